"""Haze that is learned from unpaired images, by the generators of CycleGAN (Zhu et al. 2017, arXiv 1703.10593)."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .haze_operator import HazeOperator


class ResidualBlock(nn.Module):
    """Two normalised convolutions, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.residual(hidden_states)


def generator(num_features: int, num_blocks: int, num_channels: int) -> nn.Sequential:
    """
    ResNet generator for images `[B, C, h, w]` whose sides are multiples of 4. Intensities have no upper limit, so that
    there is no tanh at its end.
    """
    widths = [num_features, 2 * num_features, 4 * num_features]
    layers = [nn.Conv2d(num_channels, widths[0], 7, padding=3, padding_mode="reflect")]
    layers += [nn.InstanceNorm2d(widths[0]), nn.ReLU()]
    for i in (0, 1):
        layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1)]
        layers += [nn.InstanceNorm2d(widths[i + 1]), nn.ReLU()]
    layers += [ResidualBlock(widths[2]) for _ in range(num_blocks)]
    for i in (1, 0):
        layers += [nn.ConvTranspose2d(widths[i + 1], widths[i], 4, stride=2, padding=1)]
        layers += [nn.InstanceNorm2d(widths[i]), nn.ReLU()]
    layers += [nn.Conv2d(widths[0], num_channels, 7, padding=3, padding_mode="reflect")]
    return nn.Sequential(*layers)


class LearnedHaze(HazeOperator, ModelMixin, ConfigMixin):
    r"""
    A generator that adds haze, and another one that removes it. Both are trained together on unpaired hazy and clear
    images, so that each undoes the other.

    The generators add a correction to their input. CycleGAN's generators predict the whole image, but normalise their
    features and thus lose its mean and contrast.

    Args:
        num_features (`int`, defaults to `64`): Channels at full resolution.
        num_blocks (`int`, defaults to `9`): Number of residual blocks in each generator.
        num_channels (`int`, defaults to `1`): Channels of the images.
    """

    # The sides of an image must be multiples of this many pixels.
    scale_factor = 4

    @register_to_config
    def __init__(self, num_features: int = 64, num_blocks: int = 9, num_channels: int = 1):
        super().__init__()
        self.to_hazy = generator(num_features, num_blocks, num_channels)
        self.to_clear = generator(num_features, num_blocks, num_channels)

    def forward(self, clear: torch.Tensor, haze: torch.Tensor) -> torch.Tensor:
        """Add haze to clear images `[B, C, h, w]`. The haze depends on the clear image alone; `haze` is not used."""
        return clear + self.to_hazy(clear)

    def guess(self, hazy: torch.Tensor) -> torch.Tensor:
        """Remove the haze of images `[B, C, h, w]`, as the inverse of `forward`."""
        return hazy + self.to_clear(hazy)
