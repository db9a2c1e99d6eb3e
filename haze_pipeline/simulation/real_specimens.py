"""
Pairs from real haze-free micrographs: the specimen is real, haze and camera are simulated.

A plane of a confocal or otherwise sectioned micrograph serves as the in-focus layer. The other planes of its stack, or
other parts of the same image, serve as out-of-focus layers above and below it. A smooth background stands for layers
farther away. The network thus learns from solid bodies, textures and densities of real specimens, which random
filaments and blobs lack.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.io.micrograph_files import Micrograph, list_tiffs, read_micrograph
from haze_pipeline.utils.noise_level import noise_deviation

from .optics import Optics, widefield_otf
from .simulated_pairs import SimulatedPair, draw_camera, draw_optics, pair_generator, smooth_light
from .specimens import log_uniform, uniform


# Range of pixel sizes, in units of the largest pixel that samples without aliasing.
SAMPLING = (0.4, 5.0)
HAZE_FREE_FRACTION = 0.18  # fraction of pairs without haze
HAZE_RATIOS = (0.1, 4.0)  # mean haze relative to mean in-focus intensity
SHALLOWEST, DEEPEST = 1.0, 20.0  # defocus, in depths of field, of layers that are not planes of a stack
DIM_FRACTION, DIM_GAINS = 0.25, (1 / 64, 1 / 2)  # fraction of pairs with a dimmed region, and its dimming factors
SATURATED_FRACTION = 0.06  # fraction of pairs whose camera saturates
EMPTY = 0.25  # a plane is nearly empty if its 99.5th percentile is below this fraction of the brightest plane's
MOST_TRIES = 100  # attempts at finding a part that is not empty
SMALLEST_SIDE = 48  # shrinking leaves at least this many pixels a side
NOISY = 0.015  # targets are smoothed if their noise exceeds this fraction of the brightest intensity


@dataclass
class RealSpecimen:
    """
    One structure of one micrograph.

    Args:
        planes (`np.ndarray` of shape `[N, H, W]`, float32): Intensities above the background, of about 1 at most.
        spacing (`float`, *optional*): Distance of the planes in pixels; `None` if they are not a stack or the distance
            is unknown.
        file (`str`): Name of the file.
        channel (`int`): Channel of the file.
    """

    planes: np.ndarray
    spacing: float | None
    file: str
    channel: int = 0

    @property
    def name(self) -> str:
        return f"{self.file}, channel {self.channel}"

    @cached_property
    def planes_in_focus(self) -> np.ndarray:
        """Indices of the planes that are not nearly empty."""
        bright = np.percentile(self.planes, 99.5, axis=(1, 2))
        return np.flatnonzero(bright >= EMPTY * bright.max())

    @classmethod
    def from_counts(cls, planes: np.ndarray, spacing: float | None, file: str, channel: int = 0) -> "RealSpecimen":
        """
        Make a specimen from planes `[N, H, W]` in counts. The background is their 1st percentile.

        Raises:
            `ValueError`: If the planes hold NaN or infinite values, or have no contrast.
        """
        planes = planes.astype(np.float32)
        if not np.isfinite(planes).all():
            raise ValueError(f"{file} holds NaN or infinite values: remove it or replace them by finite numbers.")
        background, brightest = np.percentile(planes, (1, 99.9))
        if brightest <= background:
            raise ValueError(f"{file} has no contrast in channel {channel}: remove this file or channel.")
        return cls((planes - background) / (brightest - background), spacing, file, channel)


def channels_of(micrograph: Micrograph) -> np.ndarray:
    """Arrange the planes of a micrograph as `[C, N, H, W]`, ordered by time and then by depth."""
    data, axes = np.asarray(micrograph.data), micrograph.axes
    if "C" not in axes:
        data, axes = data[None], "C" + axes
    data = data.transpose([axes.index(axis) for axis in "CTZYX" if axis in axes])
    return data.reshape(len(data), -1, *data.shape[-2:])


def is_stack(micrograph: Micrograph) -> bool:
    """Whether the planes of a micrograph are a z-stack without time points."""
    return "Z" in micrograph.axes and "T" not in micrograph.axes


def read_specimens(
    path: str | Path, name: str | None = None, pixel_size: float | None = None, z_step: float | None = None
) -> list[RealSpecimen]:
    """
    Read the specimens of a micrograph, one per channel.

    Args:
        path (`str` or `Path`): A TIFF, OME-TIFF or OME-Zarr with any of the axes T, Z and C.
        name (`str`, *optional*): Name of the specimens; by default the file's name.
        pixel_size (`float`, *optional*): Side of a pixel, µm, used if the file does not state it.
        z_step (`float`, *optional*): Distance of the planes, µm, used if the file does not state it.

    Raises:
        `ValueError`: If the file cannot be read, or a channel has no contrast.
    """
    path = Path(path)
    name = name or path.name
    micrograph = read_micrograph(path)
    pixel_size, z_step = micrograph.pixel_size_um or pixel_size, micrograph.z_step_um or z_step
    spacing = z_step / pixel_size if is_stack(micrograph) and pixel_size and z_step else None
    return [
        RealSpecimen.from_counts(planes, spacing, name, channel)
        for channel, planes in enumerate(channels_of(micrograph))
    ]


def read_specimen_folder(folder: str | Path) -> dict[str, list[RealSpecimen]]:
    """
    Read the specimens of all TIFFs in a folder and its sub-folders, grouped by file.

    Raises:
        `FileNotFoundError`: If there are no TIFFs.
        `ValueError`: If a file cannot be read, or a channel has no contrast.
    """
    names = list_tiffs(folder)
    if not names:
        raise FileNotFoundError(f"{folder} holds no TIFF files: put haze-free micrographs there.")
    return {name.as_posix(): read_specimens(Path(folder, name), name.as_posix()) for name in names}


def pair_series(
    files: dict[str, list[RealSpecimen]], number: int, size: int, seed: int
) -> Iterator[tuple[str, SimulatedPair]]:
    """Yield `number` pairs, each with the name of its file, from a random channel of each file in turn."""
    names = list(files)
    for index in range(number):
        name = names[index % len(names)]
        generator = pair_generator(seed, index)
        specimen = files[name][_integer(len(files[name]), generator)]
        yield name, simulate_real_pair(specimen, size, generator)


def simulate_real_pair(
    specimen: RealSpecimen,
    size: int,
    generator: torch.Generator,
    optics: Optics | None = None,
    haze_ratio: float | None = None,
) -> SimulatedPair:
    """
    Simulate a pair: take a part of a specimen as the in-focus layer, add out-of-focus layers and far haze, and expose
    the camera.

    Args:
        specimen ([`RealSpecimen`]): The specimen; if it is smaller than the image, it is mirrored at its edges.
        size (`int`): Side of the images in pixels, at least 16.
        generator (`torch.Generator`): CPU generator; the result depends on it alone.
        optics (`Optics`, *optional*): The widefield microscope; random by default.
        haze_ratio (`float`, *optional*): Mean haze relative to mean in-focus intensity; random by default, and 0 for
            18 % of the pairs.

    Returns:
        [`SimulatedPair`]: The clear image is the in-focus layer in the counts of the hazy image, without offset and
        noise.

    Raises:
        `ValueError`: If `size` is too small, or the specimen is empty nearly everywhere.
    """
    if size < 16:
        raise ValueError(f"`size` must be at least 16 pixels, got {size}.")
    optics = optics or draw_optics(generator, sampling=SAMPLING)
    margin = min(max(32, size // 4), 128)  # structures beside the field also contribute haze
    grid = size + 2 * margin

    # 1. The in-focus layer: a part of a plane, randomly rotated, mirrored and shrunk, and smoothed if noisy.
    number = len(specimen.planes)
    inner = slice(margin, -margin)
    candidates = specimen.planes_in_focus
    for _ in range(MOST_TRIES):  # some parts may be empty
        focus = int(candidates[_integer(len(candidates), generator)])
        shrink = _draw_shrink(specimen, generator)
        view = _draw_view(specimen.planes.shape[-2:], grid * shrink, generator)
        in_focus = _smoothed_if_noisy(_cut(specimen.planes[focus], view, shrink))
        if in_focus[inner, inner].max() > 0:
            break
    else:
        raise ValueError(f"{specimen.name} is empty nearly everywhere: remove this file.")
    dim = 1.0
    if uniform(0, 1, generator) < DIM_FRACTION:
        dim = log_uniform(*DIM_GAINS, generator)
        in_focus = in_focus * _dimming(grid, dim, generator)

    # 2. Out-of-focus layers: other planes of the stack at their true distances, or random parts at random defocus.
    if specimen.spacing is not None and number >= 5 and uniform(0, 1, generator) < 0.7:
        step = specimen.spacing / shrink * optics.pixel_size
        others = [plane for plane in range(number) if plane != focus]
        others = sorted(others, key=lambda plane: abs(plane - focus))[:16]
        defocus = torch.tensor([(plane - focus) * step for plane in others])
        layers = [_cut(specimen.planes[plane], view, shrink) for plane in others]
        weights = torch.ones(len(others))
    else:
        count = 2 + _integer(5, generator)
        depths = [log_uniform(SHALLOWEST, DEEPEST, generator) for _ in range(count)]
        signs = [1 if uniform(0, 1, generator) < 0.5 else -1 for _ in range(count)]
        defocus = torch.tensor(
            [sign * depth * optics.depth_of_field for sign, depth in zip(signs, depths, strict=True)]
        )
        layers, shape = [], specimen.planes.shape[-2:]
        for _ in range(count):
            plane = _integer(number, generator)
            layers.append(_cut(specimen.planes[plane], _draw_view(shape, grid * shrink, generator), shrink))
        weights = torch.tensor([log_uniform(0.2, 2, generator) for _ in range(count)])

    # 3. The widefield microscope. The microscope that recorded the in-focus layer has already blurred it, so for half
    # of the pairs the square root of the OTF is applied instead.
    otf = widefield_otf(optics, grid, torch.cat([torch.zeros(1), defocus]), margin * optics.pixel_size)
    if uniform(0, 1, generator) < 0.5:
        otf[0] = otf[0].clamp(min=0).sqrt()
    blurred = _image(torch.fft.rfft2(torch.from_numpy(in_focus)) * otf[0], grid)[inner, inner]
    clear = torch.from_numpy(in_focus[inner, inner])
    spectrum = sum(
        weight * transfer * torch.fft.rfft2(torch.from_numpy(layer))
        for weight, transfer, layer in zip(weights, otf[1:], layers, strict=True)
    )
    out_of_focus = _image(spectrum, grid)[inner, inner].clamp(min=0)

    # 4. Haze of a given strength: a mixture of the out-of-focus layers and smooth haze from beyond them.
    if haze_ratio is None:
        haze_free = uniform(0, 1, generator) < HAZE_FREE_FRACTION
        haze_ratio = 0.0 if haze_free else log_uniform(*HAZE_RATIOS, generator)
    far_fraction = uniform(0, 1, generator) ** 2
    far_haze = smooth_light(size, generator)
    haze = far_fraction * far_haze / far_haze.mean()
    if out_of_focus.mean() > 0:
        haze = haze + (1 - far_fraction) * out_of_focus / out_of_focus.mean()
    mean_in_focus = clear.clamp(min=0).mean()
    field = blurred.clamp(min=0) + haze_ratio * mean_in_focus * haze

    # 5. The camera.
    bright = torch.quantile(clear, 0.999).clamp(min=0.01)
    photons_per_unit = log_uniform(30, 3000, generator) / bright.item()
    photons = field * photons_per_unit
    most_photons = photons.max().item()
    if uniform(0, 1, generator) < SATURATED_FRACTION:
        most_photons = torch.quantile(photons, 1 - log_uniform(0.0005, 0.02, generator)).item()
    camera = draw_camera(most_photons, generator)
    counts = camera.gain * camera.quantum_efficiency * photons_per_unit
    return SimulatedPair(
        hazy=camera.expose(photons, generator),
        clear=counts * clear,
        parameters={
            **asdict(optics),
            **asdict(camera),
            "level": None,
            "specimen": specimen.name,
            "plane": focus,
            "shrink": shrink,
            "haze_ratio": haze_ratio,
            "far_haze_fraction": far_fraction,
            "dimmed": dim,
            "photons_per_unit": photons_per_unit,
        },
    )


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _draw_shrink(specimen: RealSpecimen, generator: torch.Generator) -> int:
    """
    Draw the factor, 1 to 3, by which a plane is shrunk. Shrinking reduces noise and shows structures at another scale.
    """
    largest = min(specimen.planes.shape[-2:]) // SMALLEST_SIDE
    factor = 1 + min(_integer(3, generator), _integer(3, generator))
    return max(1, min(factor, largest))


def _draw_view(
    shape: tuple[int, int], side: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """
    Draw a random square of a plane: its rows, its columns, the number of quarter turns, and whether it is flipped. A
    plane smaller than the square is mirrored at its edges.
    """
    indices = []
    for length in shape:
        if length >= side:
            first = _integer(length - side + 1, generator)
            indices.append(np.arange(first, first + side))
        else:
            first = _integer(side - length + 1, generator)
            indices.append(np.pad(np.arange(length), (first, side - length - first), mode="symmetric"))
    return *indices, _integer(4, generator), bool(_integer(2, generator))


def _cut(plane: np.ndarray, view: tuple[np.ndarray, np.ndarray, int, bool], shrink: int) -> np.ndarray:
    """Cut a view from a plane and average blocks of `shrink` × `shrink` pixels."""
    rows, columns, turns, mirrored = view
    part = plane[np.ix_(rows, columns)]
    side = len(rows) // shrink
    part = part.reshape(side, shrink, side, shrink).mean(axis=(1, 3))
    part = np.rot90(part, turns)
    return np.ascontiguousarray(part[:, ::-1] if mirrored else part)


def _smoothed_if_noisy(plane: np.ndarray) -> np.ndarray:
    """Smooth a plane if it is noisy, since the network would learn to reproduce noise in targets."""
    brightest = float(np.percentile(plane, 99.9))
    if brightest > 0 and noise_deviation(plane) > NOISY * brightest:
        return ndimage.gaussian_filter(plane, 0.8)
    return plane


def _dimming(side: int, gain: float, generator: torch.Generator) -> np.ndarray:
    """
    Factors `[side, side]` that dim about half of the field by `gain` and leave the rest at 1, with a smooth border 5
    to 20 px wide.
    """
    field = ndimage.gaussian_filter(torch.randn(side // 8, side // 8, generator=generator).numpy(), 4, mode="wrap")
    field = ndimage.zoom(field / field.std(), 8, order=1)
    field = np.pad(field, (0, side - len(field)), mode="edge")
    dimmed = 1 / (1 + np.exp(-np.clip(12 * field, -30, 30)))  # 0 to 1
    return (gain**dimmed).astype(np.float32)


def _image(spectrum: torch.Tensor, size: int) -> torch.Tensor:
    return torch.fft.irfft2(spectrum, s=(size, size))
