"""OME-Zarr of version 0.4 and 0.5 (ngff.openmicroscopy.org): read and written plane by plane."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from haze_pipeline.utils.console import require

from .acquisition import Acquisition, Channel
from .contrast import ContrastWindows
from .micrograph import (
    MICROMETRES,
    SECONDS,
    Micrograph,
    MicrographError,
    PlaneStack,
    choose_series,
    name_axes,
    round_digits,
)
from .ome_zarr_collections import describe_group, find_images
from .ome_zarr_metadata import ACQUISITION_KEY, axes_of, channel_names, read_acquisition, read_transformations
from .pyramid import halve, pyramid_levels


# OME-Zarr spells units out.
UNIT_NAMES = {
    **{
        "pm": "picometer",
        "Å": "angstrom",
        "nm": "nanometer",
        "µm": "micrometer",
        "mm": "millimeter",
        "cm": "centimeter",
    },
    **{"m": "meter", "ns": "nanosecond", "µs": "microsecond", "ms": "millisecond", "s": "second", "min": "minute"},
    **{"h": "hour", "d": "day"},
}
AXIS_TYPES = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}

CHUNK = 1024  # px; one plane deep
MAX_CHUNK_BYTES = 2**31  # what a chunk of somebody else's may take in memory


@contextmanager
def open_ome_zarr(source: Path | str, series: int | None = None) -> Iterator[Micrograph]:
    """
    The image in an OME-Zarr at its full resolution: what [`open_micrograph`] does for such folders and for the
    addresses of remote ones.
    """
    require("zarr", "zarr")

    try:
        group, attributes, number = _choose_image(_open_group(source), series, source)
        image = attributes["multiscales"][number]
        array = group[image["datasets"][0]["path"]]
        axes = "".join(axis["name"].upper() for axis in axes_of(image, array.ndim))
        if len(axes) != array.ndim or not axes.endswith("YX"):
            raise MicrographError(f"`{source}` stores its axes as {axes}: save it with rows and columns (YX) last.")
        axes = name_axes(axes, source)
        if array.dtype.kind not in "iuf":
            raise MicrographError(
                f"`{source}` holds values of type {array.dtype}, not intensities: convert it to 16-bit."
            )
        if not math.prod(array.shape):
            raise ValueError("it holds no pixels")
        if math.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
            raise MicrographError(f"`{source}` stores chunks of {array.chunks} pixels: store it in smaller ones.")
        metadata = read_transformations(image, axes, source)
        channels = array.shape[axes.index("C")] if "C" in axes else 1
        names = channel_names(attributes)
        metadata["channel_names"] = names if len(names or "") == channels else None
        stated = metadata["acquisition"].completed_by(read_acquisition(attributes))
        metadata["acquisition"] = stated.fitted(channels, math.prod(array.shape[:-2]))
        metadata["provenance"] = attributes.get("haze-pipeline")
        metadata["zarr_version"] = "0.4" if group.metadata.zarr_format == 2 else "0.5"
    except (MicrographError, MemoryError, ImportError, FileNotFoundError):
        raise
    except Exception as error:
        raise _damaged(source, error) from error

    leading = array.shape[:-2]

    def read(number: int) -> np.ndarray:
        try:
            plane = array[np.unravel_index(number, leading)] if leading else array[:]
        except MemoryError:
            raise
        except Exception as error:
            raise _damaged(source, error) from error
        return np.asarray(plane).astype(array.dtype.newbyteorder("="), copy=False)

    yield Micrograph(PlaneStack(read, array.shape, array.dtype.newbyteorder("=")), axes, **metadata)


def _open_group(source: Path | str):
    """
    The group in a folder or at an address.

    Raises:
        `ImportError`: If an address needs a package that is not installed.
        `FileNotFoundError`: If there is no Zarr at an address, or it cannot be reached.
    """
    import zarr

    if isinstance(source, Path):
        return zarr.open_group(source, mode="r")
    protocol = source.partition("://")[0]
    try:
        try:
            return zarr.open_group(source, mode="r")
        except Exception as error:
            if protocol == "s3" and "credentials" in str(error).lower():  # public data need none
                return zarr.open_group(source, mode="r", storage_options={"anon": True})
            raise
    except (ImportError, RuntimeError) as error:
        package = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs"}.get(protocol, protocol)
        raise ImportError(
            f"`{source}` needs `pip install fsspec {package}` ({error}): install them, or copy it to this machine."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(
            f"`{source}` is no OME-Zarr that can be reached ({reason}): check the address and your access; files of "
            f"other formats must be copied to this machine."
        ) from error


def _choose_image(root, series: int | None, source: Path | str) -> tuple[Any, dict[str, Any], int]:
    """The group of the chosen image, its attributes, and its number among the `multiscales` there."""
    images = []
    for each in find_images(root):
        images.append(each)
        if series is not None and len(images) > series:  # plates are long, and servers slow
            break
    if not images:
        raise MicrographError(
            f"`{source}` is not an image in OME-Zarr, and none is found in it: name one of the images in it, a folder "
            f"with `multiscales`."
        )
    path, number = images[choose_series(len(images), series, source)]
    group = root[path] if path else root
    return group, describe_group(group), number


class OmeZarrWriter:
    """
    Writes the planes of an OME-Zarr, in any order; several processes may write different planes of one. Planes of more
    than 2048 pixels a side get smaller versions of themselves.

    Args:
        path (`Path`): The folder, which must not exist yet.
        micrograph ([`Micrograph`]): Source of axes, sizes, units and names. Its data are not read.
        shape (`tuple[int, ...]`): Shape `[..., Y, X]` of the image to write.
        dtype (`np.dtype`): Number type of the image to write.
        provenance (`dict`, *optional*): How the image was made, as names and values that JSON can hold; may be
            replaced until the end.
        version (`str`, defaults to `"0.5"`): Or `"0.4"`, which older programs read.
        name (`Path`, *optional*): What errors call it, if not `path`.
        create (`bool`, defaults to `True`): Make the arrays; or write into those that another process has made.
        measure_display (`bool`, defaults to `False`): Whether contrast windows are measured on the planes that are
            written even where the micrograph has some, since they are of other intensities.

    Attributes:
        windows ([`ContrastWindows`]): Those of what was written.

    Raises:
        `MicrographError`: If the axes do not fit OME-Zarr.
    """

    def __init__(
        self,
        path,
        micrograph: Micrograph,
        shape,
        dtype,
        provenance=None,
        version="0.5",
        name=None,
        create=True,
        measure_display=False,
    ):
        require("zarr", "zarr")
        import zarr

        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.provenance = provenance
        self._create = create
        axes = name_axes(micrograph.axes, name or path)
        if axes != "".join(axis for axis in "TCZYX" if axis in axes):
            raise MicrographError(
                f"`{name or path}` cannot hold the axes {axes}: OME-Zarr has T, C, Z, Y and X, in this order; choose "
                f"a TIFF."
            )
        self.windows = ContrastWindows(axes)
        self._measure_display = measure_display
        self._names = micrograph.channel_names
        self._num_channels = self.shape[axes.index("C")] if "C" in axes else 1
        self._acquisition = micrograph.acquisition.fitted(self._num_channels, math.prod(self.shape[:-2]))
        levels = pyramid_levels(self.shape[-2:])
        shapes = [self.shape]
        for _ in range(levels):
            shapes.append((*self.shape[:-2], *(side // 2 for side in shapes[-1][-2:])))
        if not create:
            self._group = zarr.open_group(path, mode="r+")
            self._arrays = [self._group[str(level)] for level in range(levels + 1)]
            return
        self._group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
        self._arrays = []
        for level, level_shape in enumerate(shapes):
            chunks = (1,) * (len(self.shape) - 2) + tuple(min(CHUNK, side) for side in level_shape[-2:])
            options: dict[str, Any] = {"dimension_names": list(axes.lower())}
            if version == "0.4":
                options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
            self._arrays.append(
                self._group.create_array(str(level), shape=level_shape, chunks=chunks, dtype=self.dtype, **options)
            )
        self._described: dict[str, Any] = {"version": version} if version == "0.5" else {}
        self._described |= {"multiscales": [_multiscales(micrograph, axes, shapes, version)]}
        self._version = version
        self._note()

    def write(self, index: tuple[int, ...], plane: np.ndarray):
        """Write the plane at an index of the leading axes."""
        plane = np.asarray(plane, self.dtype)
        self.windows.add(index, plane)
        for array in self._arrays:
            array[index if index else ...] = plane
            plane = halve(plane) if array is not self._arrays[-1] else plane

    def close(self):
        """Note how the image was made, and the contrast that shows it."""
        if self._create:
            self._note()

    def _note(self):
        channels = self._acquisition.channels or (Channel(),) * self._num_channels
        ranges = [
            self.windows.of(number) if self._measure_display or each.display_range is None else each.display_range
            for number, each in enumerate(channels)
        ]
        names = self._names or [None] * self._num_channels
        self._described["omero"] = {
            "channels": [
                _channel(name, each.color, limits, self.dtype)
                for name, each, limits in zip(names, channels, ranges, strict=True)
            ]
        }
        noted = {"ome": self._described} if self._version == "0.5" else dict(self._described)
        if self._acquisition != Acquisition():
            noted[ACQUISITION_KEY] = self._acquisition.to_json()
        if self.provenance:
            noted["haze-pipeline"] = self.provenance
        self._group.attrs.update(noted)

    def __enter__(self) -> "OmeZarrWriter":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()


def _multiscales(micrograph: Micrograph, axes: str, shapes: list[tuple[int, ...]], version: str) -> dict:
    """Axes, and the scale of every level, as OME-Zarr describes them."""
    height, width = micrograph.pixel_size or (None, None)
    sizes = {
        "T": (micrograph.time_interval, micrograph.time_interval_unit),
        "Z": (micrograph.z_step, micrograph.z_step_unit),
        "Y": (height, micrograph.pixel_size_unit),
        "X": (width, micrograph.pixel_size_unit),
    }
    described_axes = []
    for axis in axes:
        size, unit = sizes.get(axis, (None, None))
        described = {"name": axis.lower(), "type": AXIS_TYPES[axis]}
        described_axes.append(described | ({"unit": UNIT_NAMES[unit]} if size is not None else {}))
    unitless = {name: (scale, offset) for name, scale, offset in micrograph.acquisition.unitless}
    scale = [float(sizes.get(axis, (None,))[0] or unitless.get(axis, (1.0,))[0]) for axis in axes]
    offset = _translation(micrograph.acquisition, axes, sizes)
    datasets = []
    for level, shape in enumerate(shapes):
        factors = [full / side for full, side in zip(shapes[0][-2:], shape[-2:], strict=True)]
        level_scale = scale[:-2] + [size * factor for size, factor in zip(scale[-2:], factors, strict=True)]
        transforms: list[dict] = [{"type": "scale", "scale": level_scale}]
        if any(offset):
            # A translation is that of the centre of the first pixel, which is a larger one at lower resolution.
            moved = [place + (new - old) / 2 for place, new, old in zip(offset, level_scale, scale, strict=True)]
            transforms.append({"type": "translation", "translation": moved})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return {
        **({"version": version} if version == "0.4" else {}),
        "name": "image",
        "axes": described_axes,
        "datasets": datasets,
    }


def _translation(acquisition: Acquisition, axes: str, sizes: dict[str, tuple]) -> list[float]:
    """Where the first pixel lies, along every axis in its unit; 0 where that or the unit is not known."""
    position = acquisition.first_position
    offsets = []
    for axis in axes:
        size, unit = sizes.get(axis, (None, None))
        offset = 0.0
        if axis == "T" and size is not None and acquisition.start_time is not None:
            offset = acquisition.start_time / SECONDS[unit]
        elif axis in "ZYX" and size is not None and position is not None and position.unit in MICROMETRES:
            offset = (getattr(position, axis.lower()) or 0.0) * MICROMETRES[position.unit] / MICROMETRES[unit]
        elif size is None:
            offset = next((offset for name, _, offset in acquisition.unitless if name == axis), 0.0)
        offsets.append(round_digits(offset))
    return offsets


def _channel(label: str | None, color: str | None, limits: tuple[float, float], dtype: np.dtype) -> dict:
    """A channel's name, its colour, grey if there is none, and the range that is drawn from black to the colour."""
    low, high = limits
    if dtype.kind in "iu":
        least, greatest = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    else:
        least, greatest = low, high
    window = {"min": least, "max": greatest, "start": low, "end": high}
    return {**({"label": label} if label else {}), "color": color or "FFFFFF", "active": True, "window": window}


def _damaged(source: Path | str, error: Exception) -> MicrographError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return MicrographError(f"`{source}` is damaged or no OME-Zarr ({reason}): copy or export it again.")
