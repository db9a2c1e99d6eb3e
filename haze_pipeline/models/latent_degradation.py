"""
Learned degradation of latents: maps from clear latents to hazier ones, and back.

As in a CycleGAN (Zhu et al. 2017, arXiv 1703.10593), each map has its inverse. A pair of maps belongs to one level of
haze: G⁽ᵗ⁾ takes the estimate of the clear latents z₀ to zₜ₋₁, and F⁽ᵗ⁾ takes zₜ₋₁ back.
"""

import torch
from torch import nn


class ResidualMap(nn.Module):
    """Three convolutions that predict what is added to latents `[B, C, h, w]`. It starts as the identity."""

    def __init__(self, channels: int, num_features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, num_features, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(num_features, num_features, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(num_features, channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + self.layers(latents.to(self.layers[0].weight.dtype))


class LatentDegradation(nn.Module):
    """
    The maps G⁽ᵗ⁾ and F⁽ᵗ⁾ for t = 2 … T.

    Args:
        num_levels (`int`): Number of levels T.
        channels (`int`): Channels of the latents.
        num_features (`int`): Channels of the layers between.
    """

    def __init__(self, num_levels: int, channels: int, num_features: int):
        super().__init__()
        self.degrading = nn.ModuleList(ResidualMap(channels, num_features) for _ in range(num_levels - 1))
        self.clearing = nn.ModuleList(ResidualMap(channels, num_features) for _ in range(num_levels - 1))

    def degrade(self, clear: torch.Tensor, t: int) -> torch.Tensor:
        """G⁽ᵗ⁾: latents of level t - 1 from clear ones, `[B, C, h, w]`."""
        return self.degrading[t - 2](clear)

    def clear(self, hazier: torch.Tensor, t: int) -> torch.Tensor:
        """F⁽ᵗ⁾: clear latents from those of level t - 1, `[B, C, h, w]`."""
        return self.clearing[t - 2](hazier)
