"""
Simulated pairs of a hazy (widefield) micrograph and its clear (confocal-like) counterpart.

Both microscopes image the same specimen, random or from a confocal z-stack, at the same focus. The clear image is
**the in-focus intensity of the hazy image, in the counts of the hazy image**, without offset and noise. The difference
`hazy - clear` thus consists of haze, camera offset and noise.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from .camera import Camera
from .optics import Optics, confocal_otf, widefield_otf
from .specimens import SPECIMENS, log_uniform, uniform


# Pixel sizes of random microscopes, in µm.
PIXEL_SIZES = {"min": 0.03, "max": 0.6}


@dataclass
class SimulatedPair:
    """
    A simulated pair.

    Args:
        hazy (`torch.Tensor` of shape `[H, W]`, float32): Camera image in whole counts.
        clear (`torch.Tensor` of shape `[H, W]`, float32): In-focus intensity in the same counts, without offset and
            noise.
        parameters (`dict`): Parameters of the simulation: optics, camera, structures, depth and haze.
    """

    hazy: torch.Tensor
    clear: torch.Tensor
    parameters: dict


def simulate_pair(size: int, generator: torch.Generator, optics: Optics | None = None) -> SimulatedPair:
    """
    Draw a random specimen, image it with a widefield and a confocal microscope, and expose the camera.

    Args:
        size (`int`): Side of the images in pixels, at least 16.
        generator (`torch.Generator`): CPU generator; the result depends on it alone, up to rounding in float32.
        optics (`Optics`, *optional*): The microscope; by default random, see [`draw_optics`].

    Returns:
        [`SimulatedPair`]
    """
    return simulate_series(size, generator, optics)[0]


def simulate_series(
    size: int,
    generator: torch.Generator,
    optics: Optics | None = None,
    pinholes: tuple[float, ...] = (math.inf,),
    bleaching: float = 0.0,
    drift: float = 0.0,
    camera: Camera | None = None,
    specimens: Mapping[str, Callable] = SPECIMENS,
) -> list[SimulatedPair]:
    """
    Simulate a pinhole series: pairs of one random specimen at one focus, one pair per pinhole ("level"). The haze
    increases with the pinhole. Each level has its own noise; all have the same clear image.

    Args:
        size (`int`): Side of the images in pixels, at least 16.
        generator (`torch.Generator`): CPU generator; the result depends on it alone, up to rounding in float32.
        optics (`Optics`, *optional*): The microscope; random by default. Its pinhole is that of the clear image.
        pinholes (`tuple[float]`): Pinhole diameters in Airy units, one per level; `math.inf` for a widefield
            microscope.
        bleaching (`float`, defaults to `0.0`): Fraction of the fluorescence that is lost from one level to the next.
        drift (`float`, defaults to `0.0`):
            Standard deviation in pixels of the random step by which the specimen moves before each level. The clear
            image does not move.
        camera (`Camera`, *optional*): The camera; by default random, see [`draw_camera`].
        specimens (mapping of `str` to `Callable`): Kinds of structure to draw from, such as `ALL_SPECIMENS`.

    Returns:
        `list[SimulatedPair]`: One pair per level. Bleaching dims the clear and the hazy image alike.

    Raises:
        `ValueError`: If an argument lies outside its range.
    """
    if size < 16:
        raise ValueError(f"`size` must be at least 16 pixels, got {size}.")
    if not pinholes or not all(pinhole > 0 for pinhole in pinholes):
        raise ValueError(f"`pinholes` must be one or more positive diameters in Airy units, got {pinholes}.")
    if not 0 <= bleaching < 1:
        raise ValueError(f"`bleaching` must be a fraction from 0 to below 1, got {bleaching}.")
    if not drift >= 0:
        raise ValueError(f"`drift` must not be negative, got {drift}.")
    optics = optics or draw_optics(generator)

    # 1. A specimen on a grid with a margin, since structures beside the field also contribute haze.
    margin = min(max(32, size // 4), 128)
    grid = size + 2 * margin
    num_planes = 2 * int(torch.randint(5, 16, (), generator=generator)) + 1  # 11 to 31, the middle one in focus
    # The step is small enough that a structure crossing from one plane to the next stays visible.
    z_step = log_uniform(0.25, 1.5, generator) * optics.depth_of_field
    kinds = list(specimens)
    number = 1 if uniform(0, 1, generator) < 0.7 else 2  # mostly one kind of structure per image
    kinds = [kinds[i] for i in torch.randperm(len(kinds), generator=generator)[:number]]
    volume = torch.zeros(num_planes, grid, grid)
    for kind in kinds:
        structure = specimens[kind](tuple(volume.shape), z_step / optics.pixel_size, generator)
        volume += structure / structure.max().clamp(min=1e-8) * uniform(0.3, 1.0, generator)

    # 2. Depth: the density falls off with a standard deviation `thickness`, and planes out of focus get a random gain.
    defocus = (torch.arange(num_planes) - num_planes // 2) * z_step
    thickness = log_uniform(0.15, 3, generator) * defocus[-1].item()
    out_of_focus_gain = log_uniform(0.5, 2.5, generator)
    weight = (-0.5 * (defocus / thickness) ** 2).exp()
    weight[defocus.abs() > 1.5 * optics.depth_of_field] *= out_of_focus_gain
    volume *= weight[:, None, None]

    # 3. Microscopes: every plane is convolved with the PSF of its defocus, and the planes add up.
    reach = margin * optics.pixel_size
    otfs = [confocal_otf(optics, grid, defocus, reach)]
    for pinhole in pinholes:
        widefield = math.isinf(pinhole)
        level = replace(optics, pinhole=pinhole)
        otfs.append((widefield_otf if widefield else confocal_otf)(level, grid, defocus, reach))
    shifts = (drift * torch.randn(len(pinholes), 2, generator=generator)).cumsum(dim=0)
    clear, *fields = image_planes(volume, otfs, [torch.zeros(2), *shifts])
    brightest = clear.max()  # includes the margin, since the field may be nearly empty
    clear, *fields = (field[margin:-margin, margin:-margin].clamp(min=0) for field in (clear, *fields))

    # 4. Far haze, from beyond the simulated depth, is so blurred that it varies slowly. A pinhole passes the same
    # fraction of it as of the farthest plane.
    far_haze = smooth_light(size, generator)
    far_haze_ratio = 0.0 if uniform(0, 1, generator) < 0.3 else log_uniform(0.05, 15, generator)
    fields = [
        field + far_haze * (far_haze_ratio * clear.mean() * otf[-1, 0, 0])
        for field, otf in zip(fields, otfs[1:], strict=True)
    ]

    # 5. The camera, adjusted to the brightest level.
    photons_per_unit = log_uniform(30, 3000, generator) / torch.maximum(torch.quantile(clear, 0.999), 0.03 * brightest)
    most_photons = max(field.max() for field in fields).item() * photons_per_unit.item()
    camera = camera or draw_camera(most_photons, generator)
    pairs = []
    for level, (pinhole, field) in enumerate(zip(pinholes, fields, strict=True)):
        left = photons_per_unit * (1 - bleaching) ** level
        pairs.append(
            SimulatedPair(
                hazy=camera.expose(field * left, generator),
                clear=camera.gain * camera.quantum_efficiency * left * clear,
                parameters={
                    **asdict(optics),
                    **asdict(camera),
                    "level": pinhole if math.isfinite(pinhole) else None,
                    "specimens": kinds,
                    "num_planes": num_planes,
                    "z_step": z_step,
                    "thickness": thickness,
                    "out_of_focus_gain": out_of_focus_gain,
                    "far_haze_ratio": far_haze_ratio,
                    "photons_per_unit": left.item(),
                    "bleaching": bleaching,
                    "drift": shifts[level].tolist(),
                },
            )
        )
    return pairs


def pairs_from_stack(
    stack: np.ndarray,
    z_step: float,
    optics: Optics,
    generator: torch.Generator,
    background: float | None = None,
    camera: Camera | None = None,
    focus: range | None = None,
) -> Iterator[SimulatedPair]:
    """
    Simulate pairs from a confocal z-stack. Each plane is a clear image; its hazy image is the widefield image of the
    whole stack, focused on that plane.

    Each plane also represents the specimen between the planes. At a distance `z_step` and an optical section of
    thickness t, a plane has the weight z_step / t; the weight of the plane in focus is at most 1. The specimen is
    mirrored at its lateral edges and ends above and below the stack. The confocal microscope has already blurred the
    planes once, so the hazy images are slightly more blurred than real ones.

    Args:
        stack (`np.ndarray` of shape `[Z, H, W]`): Intensities of the confocal microscope.
        z_step (`float`): Distance of the planes, µm.
        optics (`Optics`): The microscope, with the pixel size and pinhole of the stack.
        generator (`torch.Generator`): CPU generator for cameras and noise.
        background (`float`, *optional*): Intensity without light, which is subtracted; by default the 1st percentile.
        camera (`Camera`, *optional*): The camera; by default a random one for each plane.
        focus (`range`, *optional*): Planes from which pairs are made; the others only add haze. All by default.

    Yields:
        [`SimulatedPair`]: One pair per plane in focus.

    Raises:
        `ValueError`: If an argument lies outside its range.
    """
    if stack.ndim != 3 or len(stack) < 2 or min(stack.shape[1:]) < 16:
        raise ValueError(f"`stack` must be two or more planes of at least 16 × 16 pixels, got shape {stack.shape}.")
    if not z_step > 0:
        raise ValueError(f"`z_step` must be positive, got {z_step}.")
    if optics.pinhole > 5:
        raise ValueError(f"`pinhole` must be at most 5 Airy units for optical sectioning, got {optics.pinhole}.")
    if not np.isfinite(stack).all():
        raise ValueError("`stack` must be finite, but holds NaN or infinite values.")
    background = float(np.percentile(stack, 1)) if background is None else background
    # Not clipped at the background: the clipped noise of dark pixels would add up over the planes and look like haze.
    volume = torch.from_numpy(stack.astype(np.float32) - background)
    brightest = float(np.percentile(volume, 99.9))
    if brightest <= 0:
        raise ValueError(f"`stack` must be brighter than its background {background}.")

    depth, height, width = volume.shape
    margin = 128
    side = max(height, width) + 2 * margin
    reach = margin * optics.pixel_size
    after = [(margin, side - margin - length) for length in (height, width)]
    fine = optics.depth_of_field * torch.arange(-80, 81) / 8
    section = (
        confocal_otf(optics, 16, fine, 4 * optics.depth_of_field)[:, 0, 0].sum().item() * optics.depth_of_field / 8
    )
    otf = widefield_otf(optics, side, z_step * (torch.arange(2 * depth - 1) - (depth - 1)), reach) * (z_step / section)
    otf[depth - 1] *= min(1, section / z_step)
    spectra = [torch.fft.rfft2(torch.from_numpy(np.pad(plane, after, mode="symmetric"))) for plane in volume.numpy()]
    for index in range(depth) if focus is None else focus:
        clear = volume[index]
        spectrum = 0.0
        for other, each in enumerate(spectra):
            spectrum = spectrum + each * otf[depth - 1 + other - index]
        field = torch.fft.irfft2(spectrum, s=(side, side))[margin : margin + height, margin : margin + width]
        photons_per_unit = log_uniform(30, 3000, generator) / brightest
        photons = field.clamp(min=0) * photons_per_unit
        exposed = camera or draw_camera(photons.max().item(), generator)
        yield SimulatedPair(
            hazy=exposed.expose(photons, generator),
            clear=exposed.gain * exposed.quantum_efficiency * photons_per_unit * clear,
            parameters={
                **asdict(optics),
                **asdict(exposed),
                "level": None,
                "z_step": z_step,
                "plane": index,
                "background": background,
                "optical_section": section,
                "photons_per_unit": photons_per_unit,
            },
        )


def image_planes(
    volume: torch.Tensor, otfs: list[torch.Tensor], shifts: list[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """
    Image a specimen with several microscopes.

    Args:
        volume (`torch.Tensor` of shape `[..., Z, N, N]`): Fluorophore densities.
        otfs (`list[torch.Tensor]`, each of shape `[Z, N, N // 2 + 1]`): For each microscope, the OTFs of the planes.
        shifts (`list[torch.Tensor]`, *optional*): For each microscope, the displacement `(y, x)` of the specimen in
            pixels.

    Returns:
        `list[torch.Tensor]`, each of shape `[..., N, N]`: Expected intensities, up to rounding of Fourier transforms.
    """
    size = volume.shape[-1]
    totals = [0.0] * len(otfs)
    for z in range(volume.shape[-3]):  # plane by plane, since the spectrum of a large volume needs too much memory
        spectrum = torch.fft.rfft2(volume[..., z, :, :])
        totals = [total + spectrum * otf[z] for total, otf in zip(totals, otfs, strict=True)]
    if shifts is not None:
        y, x = torch.fft.fftfreq(size, device=volume.device)[:, None], torch.fft.rfftfreq(size, device=volume.device)
        totals = [
            total * torch.exp(-2j * math.pi * (y * shift[0].item() + x * shift[1].item())) if shift.any() else total
            for total, shift in zip(totals, shifts, strict=True)
        ]
    return [torch.fft.irfft2(total, s=(size, size)) for total in totals]


def draw_optics(
    generator: torch.Generator, sampling: tuple[float, float] = (0.25, 2.7), largest_pixel: float = PIXEL_SIZES["max"]
) -> Optics:
    """
    Draw a random microscope, from a dry objective of NA 0.4 to an oil objective of NA 1.45. Half of the glycerol and
    oil objectives focus 1 to 15 µm deep into a specimen of lower refractive index.

    Args:
        generator (`torch.Generator`): CPU generator.
        sampling (`tuple[float, float]`): Smallest and largest pixel size, in units of the largest pixel that samples
            without aliasing.
        largest_pixel (`float`): Upper limit of the pixel size, µm.
    """
    numerical_aperture = uniform(0.4, 1.45, generator)
    refractive_index = next(n for n in (1.0, 1.33, 1.47, 1.515) if numerical_aperture < 0.96 * n)
    emission = uniform(0.45, 0.70, generator)
    nyquist = emission / (4 * numerical_aperture)  # largest pixel that samples the band limit 2 NA/λ
    mismatched = refractive_index > 1.4 and uniform(0, 1, generator) < 0.5
    return Optics(
        numerical_aperture=numerical_aperture,
        emission_wavelength=emission,
        excitation_wavelength=emission - uniform(0.02, 0.06, generator),
        refractive_index=refractive_index,
        pixel_size=min(max(nyquist * log_uniform(*sampling, generator), PIXEL_SIZES["min"]), largest_pixel),
        pinhole=uniform(0.7, 1.2, generator),
        sample_index=uniform(1.34, 1.45, generator) if mismatched else None,
        depth=log_uniform(1, 15, generator) if mismatched else 0.0,
    )


def draw_camera(most_photons: float, generator: torch.Generator) -> Camera:
    """Draw a random camera of 8 to 16 bits that `most_photons` do not saturate. One in ten has hot pixels."""
    bit_depth = (16, 16, 16, 16, 12, 12, 8)[int(torch.randint(7, (), generator=generator))]
    largest = 0.9 * (2**bit_depth - 1)
    quantum_efficiency = uniform(0.5, 0.95, generator)
    most_electrons = max(quantum_efficiency * most_photons, 1e-3)  # the field may be empty
    offset = uniform(0, 0.3, generator) * min(most_electrons, 1000)  # electrons
    gain = min(log_uniform(0.5, 20, generator), largest / (most_electrons + offset))
    hot = uniform(0, 1, generator) < 0.1
    return Camera(
        gain=gain,
        offset=gain * offset,
        read_noise=uniform(0.5, 5, generator),
        quantum_efficiency=quantum_efficiency,
        bit_depth=bit_depth,
        hot_pixel_share=log_uniform(1e-4, 1e-3, generator) if hot else 0.0,
        hot_pixel_electrons=log_uniform(20, 500, generator),
        hot_pixel_seed=int(torch.randint(2**31, (), generator=generator)),
    )


def pair_generator(seed: int, index: int) -> torch.Generator:
    """
    Make the generator of pair `index` of a series. Seeds are hashed, so series of different seeds do not overlap.
    """
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def smooth_light(size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a smooth, positive background `[size, size]` of mean 1 that varies over 15 to 100 pixels."""
    scale = log_uniform(15, 100, generator)
    frequency = torch.hypot(torch.fft.fftfreq(2 * size)[:, None], torch.fft.rfftfreq(2 * size)[None, :])
    noise = torch.randn(2 * size, 2 * size, generator=generator)  # twice the side, so that the field is not periodic
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * (-2 * (math.pi * scale * frequency) ** 2).exp(), s=noise.shape)
    field = field[:size, :size]
    field = ((field - field.mean()) / field.std().clamp(min=1e-8) * uniform(0.1, 0.8, generator)).exp()
    return field / field.mean()
