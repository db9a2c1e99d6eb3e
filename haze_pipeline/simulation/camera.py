"""Camera model: from photons to counts."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Camera:
    """
    A scientific camera.

    The counts of a pixel have variance = gain · (mean − offset) + (gain · read noise)², up to rounding (the photon
    transfer curve; Janesick, Photon Transfer, 2007).

    Args:
        gain (`float`, defaults to `1.0`): Counts per electron.
        offset (`float`, defaults to `100.0`): Counts without light.
        read_noise (`float`, defaults to `1.5`): Standard deviation of the read noise, electrons.
        quantum_efficiency (`float`, defaults to `1.0`): Electrons per photon.
        bit_depth (`int`, defaults to `16`): Bits per count. Brighter pixels saturate.
        hot_pixel_share (`float`, defaults to `0.0`): Fraction of hot pixels, which leak electrons.
        hot_pixel_electrons (`float`, defaults to `500.0`): Mean number of electrons per exposure of a hot pixel.
        hot_pixel_seed (`int`, defaults to `0`): Seed of the hot-pixel pattern, which is the same in every exposure.

    Raises:
        `ValueError`: If a value lies outside its range.
    """

    gain: float = 1.0
    offset: float = 100.0
    read_noise: float = 1.5
    quantum_efficiency: float = 1.0
    bit_depth: int = 16
    hot_pixel_share: float = 0.0
    hot_pixel_electrons: float = 500.0
    hot_pixel_seed: int = 0

    def __post_init__(self):
        if not self.gain > 0:
            raise ValueError(f"`gain` must be positive, got {self.gain}.")
        for name in ("offset", "read_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not self.hot_pixel_electrons > 0:
            raise ValueError(f"`hot_pixel_electrons` must be positive, got {self.hot_pixel_electrons}.")
        if not 0 < self.quantum_efficiency <= 1:
            raise ValueError(f"`quantum_efficiency` must lie between 0 and 1, got {self.quantum_efficiency}.")
        if not 0 <= self.hot_pixel_share <= 1:
            raise ValueError(f"`hot_pixel_share` must lie between 0 and 1, got {self.hot_pixel_share}.")
        if not 1 <= self.bit_depth <= 16:
            raise ValueError(f"`bit_depth` must lie between 1 and 16, got {self.bit_depth}.")

    @property
    def largest_count(self) -> int:
        """The count at which a pixel saturates."""
        return 2**self.bit_depth - 1

    def expose(self, photons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Simulate one exposure.

        Args:
            photons (`torch.Tensor` of shape `[..., H, W]`): Expected photons of each pixel, not negative.
            generator (`torch.Generator`): Generator on the device of `photons`.

        Returns:
            `torch.Tensor` of the same shape, float32: whole counts from 0 to `largest_count`.
        """
        expected = self.quantum_efficiency * photons.float()
        if self.hot_pixel_share:
            # The pattern is a property of the camera, not of the exposure.
            pattern = torch.Generator().manual_seed(self.hot_pixel_seed)
            hot = torch.rand(photons.shape[-2:], generator=pattern) < self.hot_pixel_share
            leak = torch.empty(photons.shape[-2:]).exponential_(1 / self.hot_pixel_electrons, generator=pattern)
            expected = expected + (hot * leak).to(expected)
        electrons = torch.poisson(expected, generator=generator)
        electrons += self.read_noise * torch.randn(photons.shape, generator=generator, device=photons.device)
        return (self.gain * electrons + self.offset).round().clamp(0, self.largest_count)
