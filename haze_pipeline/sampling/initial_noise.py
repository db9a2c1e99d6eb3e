"""
The noise that trajectories start from: white, or with more power at low frequencies.

White noise says almost nothing about what is broad: averaged over n × n pixels, its deviation is 1 / n. Clear images
differ in just that, since whether broad light is haze or specimen is what can't be known. A flow from white noise
decides it in the first instant, which solvers with few steps pass at once, and samples then agree on what is broad.
The thought here is that noise with power at every scale spreads the decision over the whole trajectory. Diffusion
models know the same trouble, and as remedies "offset noise" and the multi-resolution noise of Marigold (Ke et al.
2024, arXiv 2312.02145); flow matching may start from any Gaussian (Lipman et al. 2023, arXiv 2210.02747).
"""

from collections.abc import Iterator

import torch

from haze_pipeline.utils.arrays import allocate


LOWEST_FREQUENCY = 1 / 256  # cycles per pixel, below which the spectrum is flat
LARGEST_TORUS = 1024  # px; what is broad repeats after so many pixels
TORUS_MARGIN = 128  # px, so that opposite edges of fields of up to 896 px do not go on in each other


def draw_noise(
    size: tuple[int, int], corner_frequency: float, generator: torch.Generator | None, period: int | None = None
) -> torch.Tensor:
    """
    Gaussian noise `[1, H, W]` of the next draws of a CPU generator, with the power spectrum 1 + (`corner_frequency` /
    f)², in which f is at least 1/256 cycles per pixel. Its variance is that of white noise, 1, and more: some 2.4 in
    all at 0.2 cycles per pixel.

    Args:
        size (`tuple[int, int]`): Height and width in pixels.
        corner_frequency (`float`): Where it has twice the power of white noise, cycles per pixel; 0 for white noise.
        generator (`torch.Generator`, *optional*): torch's own if omitted.
        period (`int`, *optional*):
            After how many pixels what is broad repeats, seamlessly; 1024, or more than the field where that is
            smaller, if omitted.
    """
    noise = allocate(1, *size).normal_(generator=generator)
    if corner_frequency == 0:
        return noise
    side = period or min(max(size) + TORUS_MARGIN, LARGEST_TORUS)
    white = torch.randn(side, side, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side))  # [n,n/2+1]
    gain = corner_frequency / frequency.clamp(min=LOWEST_FREQUENCY)
    broad = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=white.shape)
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            part = noise[..., top : top + side, left : left + side]
            part += broad[: part.shape[-2], : part.shape[-1]]
    return noise


def replays(generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """A CPU generator, torch's own if it is `None`, and then copies of it in the state that it has now."""
    generator = generator or torch.default_generator
    state = generator.get_state()
    yield generator
    while True:
        copied = torch.Generator()
        copied.set_state(state)
        yield copied
