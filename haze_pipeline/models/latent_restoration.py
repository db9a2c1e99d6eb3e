"""
Restoration in the latent space of a hierarchical variational autoencoder (VAE), from several levels of haze.

A specimen has a clear image x₀ and images x₁ … x_T of increasing haze, such as those of a pinhole series. The
autoencoder encodes each of them as zₜ = E(xₜ). The restoration R(zₜ, t) estimates z₀ by the least mean squared error.
The learned degradation takes this estimate to the latents of a level with less haze than before.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config

from .autoencoder_hierarchical import AutoencoderHierarchical
from .latent_degradation import LatentDegradation


def to_grid(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """Groups of latents, finest first, on the grid of the finest one: `[B, n C, h, w]`. Latents are repeated."""
    size = groups[0].shape[-2:]
    return torch.cat([F.interpolate(group, size=size) for group in groups], dim=1)


def to_groups(grid: torch.Tensor, num_groups: int) -> list[torch.Tensor]:
    """Groups of latents from those on one grid `[B, n C, h, w]`, by averages over the pixels of a latent."""
    return [F.avg_pool2d(group, 2**i) for i, group in enumerate(grid.chunk(num_groups, dim=1))]


class LatentRestoration(ModelMixin, ConfigMixin):
    r"""
    Autoencoder, restoration and learned degradation of latents.

    *Latents* are here those of all groups on the grid of the finest one, `[B, C, h, w]`, in units in which those of
    clear images have a mean of 0 and a standard deviation of 1 in every channel. They are the means of the posteriors,
    not samples.

    Args:
        autoencoder_config (`dict`):
            Configuration of the [`AutoencoderHierarchical`]. Its weights are not trained further.
        num_levels (`int`, defaults to `6`): Number of levels of haze T.
        block_out_channels (sequence of `int`, defaults to `(64, 96, 128)`):
            Channels of the levels of the U-Net that restores.
        layers_per_block (`int`, defaults to `1`): Its residual blocks per level.
        degradation_features (`int`, defaults to `64`): Channels of the layers of the learned degradation.
    """

    @register_to_config
    def __init__(
        self,
        autoencoder_config: dict[str, Any],
        num_levels: int = 6,
        block_out_channels: Sequence[int] = (64, 96, 128),
        layers_per_block: int = 1,
        degradation_features: int = 64,
    ):
        super().__init__()
        if num_levels < 1:
            raise ValueError(f"`num_levels` must be positive, got {num_levels}.")
        self.autoencoder = AutoencoderHierarchical.from_config(autoencoder_config).requires_grad_(False)
        self.num_groups = self.autoencoder.config.num_latent_groups
        channels = self.num_groups * self.autoencoder.config.latent_channels
        self.restoration = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * len(block_out_channels),
            up_block_types=("UpBlock2D",) * len(block_out_channels),
            norm_num_groups=8,
            add_attention=False,
        )
        # It starts as the identity.
        torch.nn.init.zeros_(self.restoration.conv_out.weight)
        torch.nn.init.zeros_(self.restoration.conv_out.bias)
        self.degradation = LatentDegradation(num_levels, channels, degradation_features)
        self.register_buffer("latent_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, channels, 1, 1))

        # Pixels of the image per latent of the finest group, and per pixel of the U-Net's coarsest level.
        self.latent_size = 2 * self.autoencoder.config.pixel_packing
        coarsest = self.latent_size * 2 ** (len(block_out_channels) - 1)
        self.scale_factor = max(self.autoencoder.scale_factor, coarsest)  # both are `pixel_packing` times powers of 2

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Latents of images `[B, 1, H, W]` in network units."""
        return (to_grid(self.autoencoder.encode(image.to(self.dtype)).latents) - self.latent_mean) / self.latent_std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images `[B, 1, H, W]` in network units."""
        return self.autoencoder.decode(to_groups(latents * self.latent_std + self.latent_mean, self.num_groups))

    def restore(self, latents: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        """R(zₜ, t): estimate of the clear latents from those of level t, one for all or one for each image."""
        return self._on_groups(latents + self.restoration(latents.to(self.dtype), t).sample)

    def degrade(self, clear: torch.Tensor, t: int) -> torch.Tensor:
        """G⁽ᵗ⁾: latents of level t - 1 from clear ones, for t = 2 … T."""
        return self._on_groups(self.degradation.degrade(clear, t))

    def clear(self, hazier: torch.Tensor, t: int) -> torch.Tensor:
        """F⁽ᵗ⁾, the inverse of [`degrade`]."""
        return self._on_groups(self.degradation.clear(hazier, t))

    def forward(
        self, latents: torch.Tensor, t: torch.Tensor | int, clear: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """
        What a training step needs, in one call.

        Args:
            latents (`torch.Tensor` of shape `[B, C, h, w]`): zₜ, or zₜ₋₁ with `clear`.
            t (`torch.Tensor` of shape `[B]`, or `int`): The level.
            clear (`torch.Tensor` of shape `[B, C, h, w]`, *optional*): Estimates of the clear latents.

        Returns:
            R(zₜ, t). With `clear`: G(clear), F(zₜ₋₁), F(G(clear)) and G(F(zₜ₋₁)).
        """
        if clear is None:
            return (self.restore(latents, t),)
        degraded, cleared = self.degrade(clear, t), self.clear(latents, t)
        return degraded, cleared, self.clear(degraded, t), self.degrade(cleared, t)

    def _on_groups(self, latents: torch.Tensor) -> torch.Tensor:
        """The same value at all pixels of one latent, as [`encode`] gives."""
        return to_grid(to_groups(latents, self.num_groups))
