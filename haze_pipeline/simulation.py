"""
Simulated pairs of a hazy (widefield) micrograph and its clear (confocal-like) counterpart.

One random specimen is imaged by both microscopes at one focus. The clear image holds **the in-focus light of the hazy image
in the hazy image's own counts**, without offset and noise: `hazy - clear` is what haze, camera offset and noise added.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .optics import Optics, confocal_psf, widefield_psf
from .specimens import SPECIMENS, log_uniform, uniform


@dataclass
class SimulatedPair:
    """
    Args:
        hazy (`torch.Tensor` of shape `[H, W]`, float32): Widefield camera image, whole counts from 0 to 65535.
        clear (`torch.Tensor` of shape `[H, W]`, float32): In-focus light in the same counts, free of offset and noise.
        parameters (`dict`): Everything that was drawn: optics, specimen kinds, depth, haze, camera.
    """

    hazy: torch.Tensor
    clear: torch.Tensor
    parameters: dict


def draw_optics(generator: torch.Generator) -> Optics:
    """A random microscope: dry 0.4 to oil 1.45 NA, sampled from four times finer to 2.7 times coarser than Nyquist."""
    numerical_aperture = uniform(0.4, 1.45, generator)
    refractive_index = next(n for n in (1.0, 1.33, 1.47, 1.515) if numerical_aperture < 0.96 * n)
    emission = uniform(0.45, 0.70, generator)
    nyquist = emission / (4 * numerical_aperture)  # largest pixel that samples the band limit 2 NA/λ
    return Optics(
        numerical_aperture=numerical_aperture,
        emission_wavelength=emission,
        excitation_wavelength=emission - uniform(0.02, 0.06, generator),
        refractive_index=refractive_index,
        pixel_size=min(max(nyquist * log_uniform(0.25, 2.7, generator), 0.03), 0.6),
        pinhole=uniform(0.7, 1.2, generator),
    )


def simulate_pair(size: int, generator: torch.Generator, optics: Optics | None = None) -> SimulatedPair:
    """
    Draw a specimen, image it through both microscopes and expose the camera.

    Args:
        size (`int`): Side of the images in pixels.
        generator (`torch.Generator`): CPU generator; it alone decides the result.
        optics (`Optics`, *optional*): The microscope; drawn by [`draw_optics`] when omitted.

    Returns:
        [`SimulatedPair`]
    """
    if size < 16:
        raise ValueError(f"`size` must be at least 16 pixels, got {size}.")
    optics = optics or draw_optics(generator)

    # 1. A specimen on a grid with a margin, since light also enters the field from beside it.
    margin = max(16, size // 8)
    grid = size + 2 * margin
    num_planes = 2 * int(torch.randint(5, 13, (), generator=generator)) + 1  # 11 to 25, the middle one in focus
    z_step = log_uniform(0.25, 2.5, generator) * optics.depth_of_field
    shape = (num_planes, grid, grid)
    kinds = list(SPECIMENS)
    kinds = [kinds[i] for i in torch.randperm(len(kinds), generator=generator)[: _draw_number_of_kinds(generator)]]
    volume = torch.zeros(shape)
    for kind in kinds:
        structure = SPECIMENS[kind](shape, z_step / optics.pixel_size, generator)
        volume += structure / structure.max().clamp(min=1e-8) * uniform(0.3, 1.0, generator)

    # 2. Depth: the specimen fades out within `thickness` of the focus, and what is out of focus may glow more or less.
    defocus = (torch.arange(num_planes) - num_planes // 2) * z_step
    thickness = log_uniform(0.15, 3, generator) * defocus[-1].item()
    out_of_focus_gain = log_uniform(0.5, 2.5, generator)
    weight = (-0.5 * (defocus / thickness) ** 2).exp()
    weight[defocus.abs() > 1.5 * optics.depth_of_field] *= out_of_focus_gain
    volume *= weight[:, None, None]

    # 3. Both microscopes: every plane is convolved with the PSF of its defocus, and the planes add up. The PSF is even in
    # defocus and in x and y, so that half the planes suffice and transfer functions are real.
    half = defocus[num_planes // 2 :]
    spectrum = torch.fft.rfft2(volume)
    fields = []
    for psf in (widefield_psf(optics, grid, half), confocal_psf(optics, grid, half)):
        transfer = torch.fft.rfft2(psf).real
        transfer = torch.cat([transfer[1:].flip(0), transfer])
        field = torch.fft.irfft2((spectrum * transfer).sum(dim=0), s=(grid, grid))
        fields.append(field[margin:-margin, margin:-margin].clamp(min=0))
    widefield, clear = fields

    # 4. Far haze: light from beyond the simulated depth, so blurred that only its slow variation is left.
    far_haze = _far_haze(size, generator)
    far_haze_ratio = 0.0 if uniform(0, 1, generator) < 0.3 else log_uniform(0.05, 15, generator)
    widefield = widefield + far_haze * (far_haze_ratio * clear.mean())

    # 5. The camera: photons, read noise, gain and offset, 16-bit counts.
    peak_photons = log_uniform(30, 3000, generator)
    brightest = torch.quantile(clear, 0.999).clamp(min=1e-8)  # of the in-focus light; haze comes on top
    photons = widefield / brightest * peak_photons
    read_noise = uniform(0.5, 5, generator)  # electrons
    electrons = torch.poisson(photons, generator=generator) + read_noise * torch.randn(size, size, generator=generator)
    offset = uniform(0, 0.3, generator) * peak_photons
    gain = min(log_uniform(0.5, 20, generator), 60000 / (photons.max().item() + offset))  # counts per electron
    hazy = (gain * (electrons + offset)).round().clamp(0, 65535)
    return SimulatedPair(
        hazy=hazy,
        clear=gain * clear / brightest * peak_photons,
        parameters={
            **asdict(optics),
            "specimens": kinds,
            "num_planes": num_planes,
            "z_step": z_step,
            "thickness": thickness,
            "out_of_focus_gain": out_of_focus_gain,
            "far_haze_ratio": far_haze_ratio,
            "peak_photons": peak_photons,
            "read_noise": read_noise,
            "offset": gain * offset,
            "gain": gain,
        },
    )


def pair_generator(seed: int, index: int) -> torch.Generator:
    """Generator of pair `index` of the series `seed`. Seeds are hashed, so that series of different seeds don't overlap."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def _draw_number_of_kinds(generator: torch.Generator) -> int:
    """Mostly one kind of structure a picture, at times two together."""
    return 1 if uniform(0, 1, generator) < 0.7 else 2


def _far_haze(size: int, generator: torch.Generator) -> torch.Tensor:
    """A smooth positive field of mean 1 and shape `[size, size]`, varying over 15 to 100 pixels."""
    scale = log_uniform(15, 100, generator)
    frequency = torch.hypot(torch.fft.fftfreq(2 * size)[:, None], torch.fft.rfftfreq(2 * size)[None, :])
    noise = torch.randn(2 * size, 2 * size, generator=generator)  # twice the field, so that its period does not show
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * (-2 * (math.pi * scale * frequency) ** 2).exp(), s=noise.shape)
    field = field[:size, :size]
    field = ((field - field.mean()) / field.std().clamp(min=1e-8) * uniform(0.1, 0.8, generator)).exp()
    return field / field.mean()
