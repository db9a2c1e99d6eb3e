"""MIMO-UNet, a U-Net with several inputs and outputs (Cho et al. 2021, arXiv 2108.05054)."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .image_network import ImageNetwork


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.residual(hidden_states)


class ShallowFeatures(nn.Module):
    """Features `[B, channels, h, w]` of a reduced hazy image `[B, 1, h, w]` (the paper's SCM)."""

    def __init__(self, channels: int):
        super().__init__()
        quarter, half = channels // 4, channels // 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, quarter, 3, padding=1), nn.ReLU(),
            nn.Conv2d(quarter, half, 1), nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1), nn.ReLU(),
            nn.Conv2d(half, channels - 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.conv_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hazy: torch.Tensor) -> torch.Tensor:
        return self.conv_out(torch.cat([hazy, self.layers(hazy)], dim=1))


class FeatureAttention(nn.Module):
    """Emphasise or suppress features of the finer scale by those of the reduced image (the paper's FAM)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.conv(hidden_states * shallow)


class Fusion(nn.Module):
    """Combine the features of all scales at one of them (the paper's AFF)."""

    def __init__(self, all_channels: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(all_channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, scales: list[torch.Tensor], size: torch.Size) -> torch.Tensor:
        return self.layers(torch.cat([F.interpolate(scale, size=size) for scale in scales], dim=1))


class MIMOUNet(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    U-Net that receives the image at three scales and restores it at three scales. All layers are local, so that tiles
    with sufficient overlap give the result of the whole field.

    Args:
        num_features (`int`, defaults to `32`): Channels at full resolution. Each coarser scale has twice as many.
        num_blocks (`int`, defaults to `8`): Residual blocks a scale of encoder and decoder; 20 in MIMO-UNet+.
    """

    scale_factor = 4

    @register_to_config
    def __init__(self, num_features: int = 32, num_blocks: int = 8):
        super().__init__()
        widths = [num_features, 2 * num_features, 4 * num_features]

        def blocks(channels: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))

        self.conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        self.shallow = nn.ModuleList(ShallowFeatures(channels) for channels in widths[1:])
        self.attention = nn.ModuleList(FeatureAttention(channels) for channels in widths[1:])
        self.encoders = nn.ModuleList(blocks(channels) for channels in widths)
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in range(2)
        )
        self.fusions = nn.ModuleList(Fusion(sum(widths), channels) for channels in widths[:-1])
        self.decoders = nn.ModuleList(blocks(channels) for channels in widths)
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], 4, stride=2, padding=1) for i in range(2)
        )
        self.merges = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for channels in widths[:-1])
        self.conv_out = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for channels in widths)

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, 1, h, w]` at a quarter, half and full size, see [`ImageNetwork`]."""
        images = [hazy]  # full, half and quarter size
        for _ in range(2):
            images.append(F.interpolate(images[-1], scale_factor=0.5))

        hidden_states = self.conv_in(hazy).relu()
        scales = [self.encoders[0](hidden_states)]  # [B,C,h,w], [B,2C,h/2,w/2], [B,4C,h/4,w/4]
        for i in range(2):
            hidden_states = self.downsamplers[i](scales[i]).relu()
            hidden_states = self.attention[i](hidden_states, self.shallow[i](images[i + 1]))
            scales.append(self.encoders[i + 1](hidden_states))

        hidden_states = self.decoders[2](scales[2])
        restored = [images[2] + self.conv_out[2](hidden_states)]
        for i in (1, 0):
            skip = self.fusions[i](scales, scales[i].shape[-2:])
            hidden_states = torch.cat([self.upsamplers[i](hidden_states).relu(), skip], dim=1)
            hidden_states = self.decoders[i](self.merges[i](hidden_states).relu())
            restored.append(images[i] + self.conv_out[i](hidden_states))
        return tuple(restored)
