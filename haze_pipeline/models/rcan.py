"""RCAN, a residual channel attention network (Zhang et al. 2018, arXiv 1807.02758), without its enlargement."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .image_network import ImageNetwork


class ChannelAttention(nn.Module):
    """
    Multiply every channel by a factor between 0 and 1. The factors depend on the means of all channels over the image
    (section 3.3).
    """

    def __init__(self, num_features: int, reduction: int, bias: bool):
        super().__init__()
        self.squeeze = nn.Conv2d(num_features, num_features // reduction, 1, bias=bias)
        self.excite = nn.Conv2d(num_features // reduction, num_features, 1, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        means = hidden_states.mean(dim=(-2, -1), keepdim=True)  # [B,C,1,1]
        return hidden_states * self.excite(self.squeeze(means).relu()).sigmoid()


class ChannelAttentionBlock(nn.Module):
    """Two convolutions and channel attention, added to the input (section 3.4)."""

    def __init__(self, num_features: int, reduction: int, bias: bool = True, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(num_features, num_features, 3, padding=1, bias=bias),
            activation(),
            nn.Conv2d(num_features, num_features, 3, padding=1, bias=bias),
            ChannelAttention(num_features, reduction, bias),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.residual(hidden_states)


class ResidualGroup(nn.Module):
    """Blocks and a convolution, added to the input (section 3.2)."""

    def __init__(self, num_features: int, num_blocks: int, **block):
        super().__init__()
        blocks = [ChannelAttentionBlock(num_features, **block) for _ in range(num_blocks)]
        convolution = nn.Conv2d(num_features, num_features, 3, padding=1, bias=block.get("bias", True))
        self.residual = nn.Sequential(*blocks, convolution)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.residual(hidden_states)


class RCAN(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    Residual channel attention network. All layers work at full resolution. The original enlarges images; here, input
    and output have the same size. The attention averages over the image, so that the result depends slightly on the
    size of the tile.

    Args:
        num_features (`int`, defaults to `64`): Channels of all layers.
        num_groups (`int`, defaults to `10`): Number of residual groups.
        num_blocks (`int`, defaults to `20`): Number of blocks in a group.
        reduction (`int`, defaults to `16`): Factor by which the attention reduces the number of channels.
    """

    pools_image = True

    @register_to_config
    def __init__(self, num_features: int = 64, num_groups: int = 10, num_blocks: int = 20, reduction: int = 16):
        super().__init__()
        self.conv_in = nn.Conv2d(1, num_features, 3, padding=1)
        self.groups = nn.Sequential(
            *(ResidualGroup(num_features, num_blocks, reduction=reduction) for _ in range(num_groups)),
            nn.Conv2d(num_features, num_features, 3, padding=1),
        )
        self.conv_out = nn.Conv2d(num_features, 1, 3, padding=1)

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, 1, h, w]`, see [`ImageNetwork`]."""
        shallow = self.conv_in(hazy)  # [B,C,h,w]
        return (self.conv_out(shallow + self.groups(shallow)),)  # [B,1,h,w]
