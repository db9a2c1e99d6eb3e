"""The residual U-Net of equivariant image dehazing (EID), with circular padding."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .image_network import ImageNetwork


def double_convolution(in_channels: int, out_channels: int, padding_mode: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode=padding_mode), nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, padding_mode=padding_mode), nn.ReLU(),
    )  # fmt: skip


class ResidualUNet(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    U-Net that predicts what is added to the hazy image. With circular padding, it commutes with shifts by multiples of
    its `scale_factor`, edges included. The stock U-Nets of diffusers pad with zeros and need a time.

    No layer normalises its features. All layers are therefore local. Tiles agree with the whole field, except near the
    edges, where circular padding shows each of them its own opposite edge.

    Args:
        num_features (`int`, defaults to `32`): Channels at full resolution. Each coarser scale has twice as many.
        num_scales (`int`, defaults to `5`): Number of scales, each of half the size of the one before.
        padding_mode (`str`, defaults to `"circular"`): Padding of the convolutions, as in `torch.nn.Conv2d`.
        num_channels (`int`, defaults to `1`): Channels of the images; 3 for colours.
    """

    @register_to_config
    def __init__(
        self, num_features: int = 32, num_scales: int = 5, padding_mode: str = "circular", num_channels: int = 1
    ):
        super().__init__()
        self.scale_factor = 2 ** (num_scales - 1)
        widths = [num_features * 2**scale for scale in range(num_scales)]
        self.encoders = nn.ModuleList(
            double_convolution(before, width, padding_mode)
            for before, width in zip([num_channels, *widths[:-1]], widths, strict=True)
        )
        self.upsamplers = nn.ModuleList(
            nn.Conv2d(2 * width, width, 3, padding=1, padding_mode=padding_mode) for width in widths[:-1]
        )
        self.decoders = nn.ModuleList(double_convolution(2 * width, width, padding_mode) for width in widths[:-1])
        self.conv_out = nn.Conv2d(num_features, num_channels, 1)
        # Without layers that normalise, the features keep their size through all scales (He et al. 2015, arXiv
        # 1502.01852).
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # Training starts from the identity, since the first restored images are also targets.
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, C, h, w]`, see [`ImageNetwork`]."""
        hidden_states, skips = hazy, []
        for scale, encoder in enumerate(self.encoders):
            hidden_states = encoder(F.max_pool2d(hidden_states, 2) if scale > 0 else hidden_states)
            skips.append(hidden_states)  # [B,F,h,w], [B,2F,h/2,w/2], …
        for scale in reversed(range(len(self.decoders))):
            hidden_states = self.upsamplers[scale](F.interpolate(hidden_states, scale_factor=2.0)).relu()
            hidden_states = self.decoders[scale](torch.cat([skips[scale], hidden_states], dim=1))
        return (hazy + self.conv_out(hidden_states),)  # [B,C,h,w]
