"""
The noise that trajectories start from: white, or with more power at low frequencies.

White noise says almost nothing about what is broad: averaged over n × n pixels, its deviation is 1 / n. Clear images differ in just
that, since whether broad light is haze or specimen is what can't be known. A flow from white noise decides it in the first
instant, faster than any solver with few steps can follow, so that all samples agree on it, rightly or wrongly. Noise with about as much
power as the images have at every scale spreads the decision over the whole trajectory. Diffusion models know the same trouble, and as
remedies "offset noise" and the multi-resolution noise of Marigold (Ke et al. 2024, arXiv 2312.02145); for flow matching any
Gaussian will do (Lipman et al. 2023, arXiv 2210.02747).
"""

import torch
from scipy import fft

from .hardware import allocate


LOWEST_FREQUENCY = 1 / 256  # cycles per pixel, below which the spectrum is flat
LARGEST_TORUS = 1024  # px; what is broad repeats after so many pixels, far beyond what the network sees at once
TORUS_MARGIN = 128  # px, so that opposite edges of a field do not go on in each other


def draw_noise(size: tuple[int, int], corner_frequency: float, generator: torch.Generator | None) -> torch.Tensor:
    """
    Gaussian noise `[1, H, W]` of the next draws of a CPU generator, with the power spectrum 1 + (`corner_frequency` / f)².

    Args:
        size (`tuple[int, int]`): Height and width in pixels.
        corner_frequency (`float`): Where low frequencies begin to have more power than in white noise, cycles per pixel; 0 for none.
        generator (`torch.Generator`, *optional*): torch's own if omitted.
    """
    noise = allocate(1, *size).normal_(generator=generator)
    if corner_frequency > 0:
        side = fft.next_fast_len(min(max(size) + TORUS_MARGIN, LARGEST_TORUS), real=True)
        add_low_frequencies(noise, torch.randn(side, side, generator=generator), corner_frequency)
    return noise


def add_low_frequencies(noise: torch.Tensor, white: torch.Tensor, corner_frequency: float) -> None:
    """
    Add noise of the power spectrum (`corner_frequency` / f)² in place.

    Args:
        noise (`torch.Tensor` of shape `[..., H, W]`): What it is added to.
        white (`torch.Tensor` of shape `[n, n]`): White noise to make it of. Larger fields have the result again after n pixels, seamlessly.
        corner_frequency (`float`): Cycles per pixel.
    """
    side = len(white)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side))  # [n,n/2+1]
    gain = corner_frequency / frequency.clamp(min=LOWEST_FREQUENCY)
    broad = torch.from_numpy(fft.irfft2(fft.rfft2(white.numpy()) * gain.numpy(), s=white.shape))
    for top in range(0, noise.shape[-2], side):
        for left in range(0, noise.shape[-1], side):
            part = noise[..., top : top + side, left : left + side]
            part += broad[: part.shape[-2], : part.shape[-1]]
