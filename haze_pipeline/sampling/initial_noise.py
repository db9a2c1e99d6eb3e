"""
Initial noise of the trajectories: white noise, or noise with more power at low frequencies.

White noise has little power at low frequencies: its mean over n × n pixels has a standard deviation of 1 / n.
Plausible clear images differ mostly at low frequencies, because a hazy image does not show which of its low-frequency
intensity is haze and which is specimen. A flow from white noise decides this at the very start of the trajectory. A
solver with few steps passes the start in a single step, and its samples then hardly differ at low frequencies. Noise
with power at all scales is meant to spread the decision over the whole trajectory. Diffusion models have the same
problem; known remedies are "offset noise" and the multi-resolution noise of Marigold (Ke et al. 2024, arXiv
2312.02145). Flow matching may start from any Gaussian (Lipman et al. 2023, arXiv 2210.02747).
"""

from collections.abc import Iterator

import numpy as np
import torch

from haze_pipeline.utils.arrays import allocate


LOWEST_FREQUENCY = 1 / 256  # cycles per pixel; below it, the spectrum is flat
LARGEST_TORUS = 1024  # px; largest period of the low-frequency noise
TORUS_MARGIN = 128  # px; separates opposite edges of fields of up to 896 px, whose noise would otherwise be continuous


def draw_noise(
    size: tuple[int, int], corner_frequency: float, generator: torch.Generator | None, period: int | None = None
) -> torch.Tensor:
    """
    Draw Gaussian noise `[1, H, W]` from a CPU generator. Its power spectrum is 1 + (`corner_frequency` / f)², where
    the spatial frequency f counts as 1/256 cycles per pixel or more. Its variance exceeds that of white noise, 1: it
    is about 2.4 for a corner frequency of 0.2 cycles per pixel.

    Args:
        size (`tuple[int, int]`): Height and width in pixels.
        corner_frequency (`float`):
            Spatial frequency in cycles per pixel at which the power is twice that of white noise; 0 for white noise.
        generator (`torch.Generator`, *optional*): CPU generator; torch's default generator if omitted.
        period (`int`, *optional*):
            Pixels after which the low-frequency noise repeats without a seam. If omitted, the longer side of the field
            plus 128 px, but at most 1024 px.
    """
    noise = allocate(1, *size).normal_(generator=generator)
    if corner_frequency == 0:
        return noise
    side = period or min(max(size) + TORUS_MARGIN, LARGEST_TORUS)
    white = torch.randn(side, side, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side))  # [n,n/2+1]
    gain = corner_frequency / frequency.clamp(min=LOWEST_FREQUENCY)
    low_frequencies = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=white.shape)
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            part = noise[..., top : top + side, left : left + side]
            part += low_frequencies[: part.shape[-2], : part.shape[-1]]
    return noise


def check_latents(latents: np.ndarray | torch.Tensor, shape: tuple[int, ...], ensemble_size: int) -> None:
    """
    Check initial noise `[E, *shape]` for an image of `shape`, or of `shape` if E is 1. Raises a `ValueError` for
    anything else.
    """
    if not isinstance(latents, (np.ndarray, torch.Tensor)):
        raise ValueError(f"`latents` must be an array or a tensor, got {type(latents).__name__}.")
    allowed = [(ensemble_size, *shape), shape] if ensemble_size == 1 else [(ensemble_size, *shape)]
    if tuple(latents.shape) not in allowed:
        raise ValueError(f"`latents` must have the shape {allowed[0]}, got {tuple(latents.shape)}.")
    if not torch.isfinite(torch.as_tensor(latents)).all():
        raise ValueError("`latents` must be finite, got NaN or infinite values.")


def replays(generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """Yield a CPU generator (torch's default one for `None`), then endless copies of it in its present state."""
    generator = generator or torch.default_generator
    state = generator.get_state()
    yield generator
    while True:
        copied = torch.Generator()
        copied.set_state(state)
        yield copied
