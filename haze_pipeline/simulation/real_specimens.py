"""
Pairs from real haze-free micrographs: the specimen is real, haze and camera are computed.

A plane of a confocal or otherwise sectioned micrograph is the in-focus layer. The other planes of its stack, or other
parts of the same image, lie out of focus above and below it, and smooth light stands for what lies farther away. So
the network meets the solid bodies, textures and densities of real specimens, which random filaments and blobs do not
have.
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


# Of the microscopes: pixel size in units of the largest one that resolves all that the objective passes.
SAMPLING = (0.4, 5.0)
HAZE_FREE_FRACTION = 0.18  # of the pairs
HAZE_RATIOS = (0.1, 4.0)  # mean haze over mean in-focus intensity
SHALLOWEST, DEEPEST = 1.0, 20.0  # of out-of-focus layers that are no planes of a stack, in depths of field
DIM_FRACTION, DIM_GAINS = 0.25, (1 / 64, 1 / 2)  # of the pairs with a dimmed region, and its factor
SATURATED_FRACTION = 0.06  # of the pairs whose camera is set too bright
EMPTY = 0.25  # planes are no in-focus layer if their 99.5th percentile is below this fraction of the brightest plane's
MOST_TRIES = 100  # to find a part that is not empty
SMALLEST_SIDE = 48  # pixels that shrinking leaves
NOISY = 0.015  # standard deviation of the noise over the brightest intensity, above which targets are smoothed


@dataclass
class RealSpecimen:
    """
    One structure of one micrograph.

    Args:
        planes (`np.ndarray` of shape `[N, H, W]`, float32): Intensities above the background, the brightest about 1.
        spacing (`float`, *optional*): Distance of the planes in pixels; `None` where they are no stack of known
            spacing.
        file (`str`): The file.
        channel (`int`): The channel of the file.
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
        """Numbers of the planes that are not nearly empty."""
        bright = np.percentile(self.planes, 99.5, axis=(1, 2))
        return np.flatnonzero(bright >= EMPTY * bright.max())

    @classmethod
    def from_counts(cls, planes: np.ndarray, spacing: float | None, file: str, channel: int = 0) -> "RealSpecimen":
        """
        The structure of planes `[N, H, W]` in counts, whose 1st percentile is taken for the background.

        Raises:
            `ValueError`: If they hold NaN or infinite values, or no contrast.
        """
        planes = planes.astype(np.float32)
        if not np.isfinite(planes).all():
            raise ValueError(f"{file} holds NaN or infinite values: a specimen must be finite.")
        background, brightest = np.percentile(planes, (1, 99.9))
        if brightest <= background:
            raise ValueError(f"{file} has no contrast in channel {channel}: a specimen must have structure.")
        return cls((planes - background) / (brightest - background), spacing, file, channel)


def channels_of(micrograph: Micrograph) -> np.ndarray:
    """The planes `[C, N, H, W]` of a micrograph, channel by channel, time points before depth."""
    data, axes = np.asarray(micrograph.data), micrograph.axes
    if "C" not in axes:
        data, axes = data[None], "C" + axes
    data = data.transpose([axes.index(axis) for axis in "CTZYX" if axis in axes])
    return data.reshape(len(data), -1, *data.shape[-2:])


def is_stack(micrograph: Micrograph) -> bool:
    """Whether its planes are a stack in depth alone."""
    return "Z" in micrograph.axes and "T" not in micrograph.axes


def read_specimens(
    path: str | Path, name: str | None = None, pixel_size: float | None = None, z_step: float | None = None
) -> list[RealSpecimen]:
    """
    The structures of a micrograph, one for each channel.

    Args:
        path (`str` or `Path`): A TIFF, OME-TIFF or OME-Zarr with any of the axes T, Z and C.
        name (`str`, *optional*): What the specimens are called; the file's name if omitted.
        pixel_size (`float`, *optional*): Side of a pixel, µm, where the file does not state it.
        z_step (`float`, *optional*): Distance of the planes, µm, where the file does not state it.

    Raises:
        `ValueError`: If the file cannot be read, or a channel of it has no contrast.
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
    The specimens of all TIFFs in a folder and its sub-folders, by file.

    Raises:
        `FileNotFoundError`: If there are none.
        `ValueError`: As [`read_specimens`].
    """
    names = list_tiffs(folder)
    if not names:
        raise FileNotFoundError(f"{folder} holds no TIFF files: put haze-free micrographs there.")
    return {name.as_posix(): read_specimens(Path(folder, name), name.as_posix()) for name in names}


def pair_series(
    files: dict[str, list[RealSpecimen]], number: int, size: int, seed: int
) -> Iterator[tuple[str, SimulatedPair]]:
    """File and pair, file by file, a random channel of each, and again until there are `number`."""
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
    Take a part of a specimen as the in-focus layer, add out-of-focus layers and far haze, and expose the camera.

    Args:
        specimen ([`RealSpecimen`]): The specimen; one smaller than the image is mirrored past its edges.
        size (`int`): Side of the images in pixels.
        generator (`torch.Generator`): CPU generator; it alone decides the result.
        optics (`Optics`, *optional*): The widefield microscope; drawn when omitted.
        haze_ratio (`float`, *optional*): Mean haze over mean in-focus intensity; drawn when omitted, 0 for 18 % of the
            pairs.

    Returns:
        [`SimulatedPair`]: The clear image is the in-focus layer, in the counts of the hazy one, without offset and
        noise.
    """
    if size < 16:
        raise ValueError(f"`size` must be at least 16 pixels, got {size}.")
    optics = optics or draw_optics(generator, sampling=SAMPLING)
    margin = min(max(32, size // 4), 128)  # light also enters the field from beside it
    grid = size + 2 * margin

    # 1. The in-focus layer: a part of a plane, turned or mirrored, and shrunk where it is large or noisy.
    number = len(specimen.planes)
    inner = slice(margin, -margin)
    candidates = specimen.planes_in_focus
    for _ in range(MOST_TRIES):  # a part may be empty
        focus = int(candidates[_integer(len(candidates), generator)])
        shrink = _draw_shrink(specimen, generator)
        view = _draw_view(specimen.planes.shape[-2:], grid * shrink, generator)
        in_focus = _smoothed_if_noisy(_cut(specimen.planes[focus], view, shrink))
        if in_focus[inner, inner].max() > 0:
            break
    else:
        raise ValueError(f"{specimen.name} is empty nearly everywhere: leave it out.")
    dim = 1.0
    if uniform(0, 1, generator) < DIM_FRACTION:
        dim = log_uniform(*DIM_GAINS, generator)
        in_focus = in_focus * _dimming(grid, dim, generator)

    # 2. Out-of-focus layers: the other planes at their true spacing, or any other parts at random defocus.
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

    # 3. The widefield microscope. Its own microscope has blurred the in-focus layer once already, so half of the
    # layers are blurred only half as much again.
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

    # 4. Haze of a chosen strength, some of it from beyond the layers, smooth.
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
    """1, 2 or 3: how many pixels become one. Shrunk images are cleaner, and show the structure at another scale."""
    largest = min(specimen.planes.shape[-2:]) // SMALLEST_SIDE
    factor = 1 + min(_integer(3, generator), _integer(3, generator))
    return max(1, min(factor, largest))


def _draw_view(
    shape: tuple[int, int], side: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """
    Rows and columns of a random square of a plane, mirrored past its edges, quarter turns, and whether to mirror it.
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
    """The part of a plane that a view shows, means of `shrink` × `shrink` pixels."""
    rows, columns, turns, mirrored = view
    part = plane[np.ix_(rows, columns)]
    side = len(rows) // shrink
    part = part.reshape(side, shrink, side, shrink).mean(axis=(1, 3))
    part = np.rot90(part, turns)
    return np.ascontiguousarray(part[:, ::-1] if mirrored else part)


def _smoothed_if_noisy(plane: np.ndarray) -> np.ndarray:
    """A plane that is hardly noise: else the network would learn to make noise."""
    brightest = float(np.percentile(plane, 99.9))
    if brightest > 0 and noise_deviation(plane) > NOISY * brightest:
        return ndimage.gaussian_filter(plane, 0.8)
    return plane


def _dimming(side: int, gain: float, generator: torch.Generator) -> np.ndarray:
    """Factors `[side, side]`: 1, and `gain` in about half of the field, with a border 5 to 20 px wide."""
    field = ndimage.gaussian_filter(torch.randn(side // 8, side // 8, generator=generator).numpy(), 4, mode="wrap")
    field = ndimage.zoom(field / field.std(), 8, order=1)
    field = np.pad(field, (0, side - len(field)), mode="edge")
    share = 1 / (1 + np.exp(-np.clip(12 * field, -30, 30)))
    return (gain**share).astype(np.float32)


def _image(spectrum: torch.Tensor, size: int) -> torch.Tensor:
    return torch.fft.irfft2(spectrum, s=(size, size))
