"""The haze of the atmosphere, as in photographs of landscapes and, with smoke, in endoscopy."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .haze_operator import HazeOperator, box_filter, minimum_filter


class AtmosphericHaze(HazeOperator, ModelMixin, ConfigMixin):
    r"""
    Koschmieder's model: H(J) = J·t + A·(1 − t) with the transmission t = exp(−βd).

    The airlight A and the density β are parameters that can be learned. The depth d is a constant, or else it is
    measured on the hazy image by its dark channel. The formula holds for all units in which hazy and clear images have
    the same gain and offset.

    Args:
        airlight (`float` or `tuple[float, ...]`, defaults to `1.0`): A in network units, one value or one per channel.
        density (`float`, defaults to `1.0`): β.
        depth (`float`, *optional*): Depth of all pixels. If omitted, it is measured.
        dark_level (`float`, defaults to `0.0`): Value of images where there is no intensity, in network units.
        patch_size (`int`, defaults to `15`):
            Side of squares in pixels. Without haze, each would have a dark place in at least one channel.

    Raises:
        `ValueError`: If an argument is out of range.
    """

    @register_to_config
    def __init__(
        self,
        airlight: float | tuple[float, ...] = 1.0,
        density: float = 1.0,
        depth: float | None = None,
        dark_level: float = 0.0,
        patch_size: int = 15,
    ):
        super().__init__()
        airlight = torch.tensor(airlight).float().reshape(-1, 1, 1)  # [1 or C,1,1]
        if not (airlight > dark_level).all():
            raise ValueError(f"`airlight` must exceed `dark_level` {dark_level}, got {airlight.flatten().tolist()}.")
        if not (density > 0 and (depth is None or depth >= 0) and patch_size > 0):
            raise ValueError(
                "`density` and `patch_size` must be positive and `depth` not negative, got "
                f"{density}, {patch_size} and {depth}."
            )
        self.learned_airlight = nn.Parameter(airlight)
        self.log_density = nn.Parameter(torch.tensor(float(density)).log())

    def forward(self, clear: torch.Tensor, haze: torch.Tensor) -> torch.Tensor:
        """Add haze to clear images `[B, C, h, w]` at the depths `haze` `[B, 1, h, w]`."""
        transmission = torch.exp(-self.log_density.exp() * haze)
        return clear * transmission + self.learned_airlight * (1 - transmission)

    def limit(self, clear: torch.Tensor) -> torch.Tensor:
        """Intensities are never negative."""
        return clear.clamp(min=self.config.dark_level)

    def guess(self, hazy: torch.Tensor) -> torch.Tensor:
        """
        The clear images of the formula, with the depths of the hazy images. Where they would be brighter than the
        airlight, the depth is wrong or the formula does not hold.
        """
        transmission = torch.exp(-self.log_density.exp() * self.explain(hazy, hazy))
        clear = (hazy - self.learned_airlight) / transmission + self.learned_airlight
        return torch.minimum(self.limit(clear), self.learned_airlight)

    def explain(self, hazy: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        """
        Depths of hazy images for β = 1, from their dark channel (He, Sun & Tang 2011, doi 10.1109/TPAMI.2010.168): the
        darkest value of every square would be 0 without haze. A guided filter aligns the depths with the edges of the
        image (He, Sun & Tang 2013, doi 10.1109/TPAMI.2012.213).
        """
        if self.config.depth is not None:
            return torch.full_like(hazy[:, :1], self.config.depth)
        width = min(self.config.patch_size, *hazy.shape[-2:]) // 2 * 2 + 1  # px, odd
        dark_level = self.config.dark_level
        relative = (hazy - dark_level) / (self.learned_airlight.detach() - dark_level)
        transmission = 1 - 0.95 * dark_channel(relative, width)  # the constants are those of the papers
        transmission = guided_filter(relative.mean(dim=1, keepdim=True), transmission, 4 * width + 1, epsilon=1e-3)
        return -transmission.clamp(0.1, 1.0).log()

    def imagine(self, clear: torch.Tensor, hazy: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Depths of the hazy images, in random order and orientation."""
        depth = self.explain(hazy, clear)
        depth = depth.roll(int(rng.integers(len(depth))), dims=0)
        return depth.flip([(), (-2,), (-1,), (-2, -1)][rng.integers(4)])


def dark_channel(images: torch.Tensor, width: int) -> torch.Tensor:
    """Darkest values `[B, 1, h, w]` of images `[B, C, h, w]` in all channels and in squares of an odd side of `width`
    pixels."""
    return minimum_filter(images.amin(dim=1, keepdim=True), width)


def guided_filter(guide: torch.Tensor, images: torch.Tensor, width: int, epsilon: float) -> torch.Tensor:
    """
    Smooth images `[B, 1, h, w]` over squares of an odd side of `width` pixels, but not across the edges of the guide
    `[B, 1, h, w]`: in every square, the result is an affine function of the guide.
    """
    mean_guide, mean = box_filter(guide, width), box_filter(images, width)
    covariance = box_filter(guide * images, width) - mean_guide * mean
    slope = covariance / (box_filter(guide**2, width) - mean_guide**2 + epsilon)
    return box_filter(slope, width) * guide + box_filter(mean - slope * mean_guide, width)


def estimate_airlight(images: Sequence[torch.Tensor], width: int = 15) -> torch.Tensor:
    """
    Common airlight `[C]` of hazy images, each `[C, h, w]`: the mean of the pixels whose dark channel is largest, one
    in a thousand of all images together. The paper takes the brightest of them, which may be a lamp or an outlier.
    """
    dark = torch.cat([dark_channel(image[None], width).flatten() for image in images])  # [P]
    pixels = torch.cat([image.flatten(start_dim=1) for image in images], dim=1)  # [C,P]
    limit = dark.kthvalue(max(1, round(0.999 * len(dark)))).values  # `quantile` has a limit of size
    return pixels[:, dark >= limit].mean(dim=1)
