"""RRDBNet, the generator of ESRGAN (Wang et al. 2018, arXiv 1809.00219), without its enlargement."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .image_network import ImageNetwork


SLOPE = 0.2  # of the activations (leaky ReLU) below 0
RESIDUAL_SCALE = 0.2  # factor of every residual; the paper's β


class DenseBlock(nn.Module):
    """Five convolutions, each of which receives the input and the results of those before it (figure 4)."""

    def __init__(self, num_features: int, growth: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(num_features + i * growth, growth if i < 4 else num_features, 3, padding=1) for i in range(5)
        )
        for conv in self.convs:  # initial weights are a tenth of the usual ones, as in the paper
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
            conv.weight.data.mul_(0.1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        features = hidden_states
        for conv in self.convs[:-1]:
            features = torch.cat([features, F.leaky_relu(conv(features), SLOPE)], dim=1)
        return hidden_states + RESIDUAL_SCALE * self.convs[-1](features)


class ResidualInResidualDenseBlock(nn.Module):
    """Three dense blocks, added to the input (figure 4)."""

    def __init__(self, num_features: int, growth: int):
        super().__init__()
        self.residual = nn.Sequential(*(DenseBlock(num_features, growth) for _ in range(3)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + RESIDUAL_SCALE * self.residual(hidden_states)


class RRDBNet(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    Generator of ESRGAN. All layers work at full resolution and are local, so that tiles with sufficient overlap give
    the result of the whole field.

    The original enlarges images of 3 channels by 4 and has 16.70 million parameters. Here, its two convolutions for
    the enlargement are left out, images have one channel, and the layers predict what is added to the hazy image. The
    defaults have 16.62 million parameters.

    Args:
        num_features (`int`, defaults to `64`): Channels between the blocks.
        num_blocks (`int`, defaults to `23`): Number of residual-in-residual dense blocks.
        growth (`int`, defaults to `32`): Channels that each convolution of a dense block adds to its input.
    """

    @register_to_config
    def __init__(self, num_features: int = 64, num_blocks: int = 23, growth: int = 32):
        super().__init__()
        self.conv_in = nn.Conv2d(1, num_features, 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResidualInResidualDenseBlock(num_features, growth) for _ in range(num_blocks)),
            nn.Conv2d(num_features, num_features, 3, padding=1),
        )
        self.conv_out = nn.Sequential(
            nn.Conv2d(num_features, num_features, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(num_features, 1, 3, padding=1),
        )

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, 1, h, w]`, see [`ImageNetwork`]."""
        shallow = self.conv_in(hazy)  # [B,C,h,w]
        return (hazy + self.conv_out(shallow + self.blocks(shallow)),)  # [B,1,h,w]
