"""OME-Zarr of version 0.4 and 0.5 (ngff.openmicroscopy.org): read and written plane by plane."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from haze_pipeline.utils.console import require

from .micrograph import (
    LENGTH_UNITS,
    TIME_UNITS,
    Micrograph,
    MicrographError,
    PlaneStack,
    choose_series,
    is_positive,
    name_axes,
    spell_unit,
)
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
def open_ome_zarr(path: Path, series: int | None = None) -> Iterator[Micrograph]:
    """The image in an OME-Zarr at its full resolution: what [`open_micrograph`] does for such folders."""
    require("zarr", "zarr")
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
        attributes = group.attrs.asdict()
        attributes |= attributes.get("ome", {})  # where version 0.5 has it
        if "plate" in attributes or "well" in attributes or "multiscales" not in attributes:
            raise MicrographError(
                f"`{path}` is not a single image in OME-Zarr: name one of the images in it, a folder with "
                f"`multiscales`."
            )
        images = attributes["multiscales"]
        image = images[choose_series(len(images), series, path)]
        array = group[image["datasets"][0]["path"]]
        axes = "".join(axis["name"].upper() for axis in image["axes"])
        if len(axes) != array.ndim or not axes.endswith("YX"):
            raise MicrographError(f"`{path}` stores its axes as {axes}: save it with rows and columns (YX) last.")
        axes = name_axes(axes, path)
        if array.dtype.kind not in "iuf":
            raise MicrographError(
                f"`{path}` holds values of type {array.dtype}, not intensities: convert it to 16-bit."
            )
        if not math.prod(array.shape):
            raise ValueError("it holds no pixels")
        if math.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
            raise MicrographError(f"`{path}` stores chunks of {array.chunks} pixels: store it in smaller ones.")
        metadata = _sizes(image, axes)
        channels = array.shape[axes.index("C")] if "C" in axes else 1
        described = attributes.get("omero", {}).get("channels", [])
        names = [str(channel.get("label") or "") for channel in described]
        if any(names) and len(names) == channels:
            metadata["channel_names"] = names
        metadata["provenance"] = attributes.get("haze-pipeline")
    except (MicrographError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(path, error) from error

    leading = array.shape[:-2]

    def read(number: int) -> np.ndarray:
        try:
            plane = array[np.unravel_index(number, leading)] if leading else array[:]
        except MemoryError:
            raise
        except Exception as error:
            raise _damaged(path, error) from error
        return np.asarray(plane).astype(array.dtype.newbyteorder("="), copy=False)

    yield Micrograph(PlaneStack(read, array.shape, array.dtype.newbyteorder("=")), axes, **metadata)


class OmeZarrWriter:
    """
    Writes the planes of an OME-Zarr, in any order; several processes may write different planes of one. Planes of more
    than 2048 pixels a side get smaller versions of themselves.

    Args:
        path (`Path`): The folder, which must not exist yet.
        micrograph ([`Micrograph`]): Its axes, sizes, units and names are written; its data are not looked at.
        shape (`tuple[int, ...]`): `[..., Y, X]` of what will be written.
        dtype (`np.dtype`): Its number type.
        provenance (`dict`, *optional*): How the image was made, as names and values that JSON can hold; may be
            replaced until the end.
        version (`str`, defaults to `"0.5"`): Or `"0.4"`, which older programs read.
        name (`Path`, *optional*): What errors call it, if not `path`.
        create (`bool`, defaults to `True`): Make the arrays; or write into those that another process has made.

    Raises:
        `MicrographError`: If the axes do not fit OME-Zarr.
    """

    def __init__(
        self, path, micrograph: Micrograph, shape, dtype, provenance=None, version="0.5", name=None, create=True
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
        described = {"version": version} if version == "0.5" else {}
        described |= {"multiscales": [_multiscales(micrograph, axes, shapes, version)]}
        if micrograph.channel_names is not None:
            described["omero"] = {"channels": [_channel(label, self.dtype) for label in micrograph.channel_names]}
        self._group.attrs.update({"ome": described} if version == "0.5" else described)

    def write(self, index: tuple[int, ...], plane: np.ndarray):
        """Write the plane at an index of the leading axes."""
        plane = np.asarray(plane, self.dtype)
        for array in self._arrays:
            array[index if index else ...] = plane
            plane = halve(plane) if array is not self._arrays[-1] else plane

    def close(self):
        """Note how the image was made."""
        if self._create and self.provenance:
            self._group.attrs["haze-pipeline"] = self.provenance

    def __enter__(self) -> "OmeZarrWriter":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()


def version_of(path: Path) -> str:
    """`"0.4"` for what is stored as Zarr 2, else `"0.5"`."""
    return "0.5" if (path / "zarr.json").exists() else "0.4"


def _sizes(image: dict, axes: str) -> dict[str, Any]:
    """Reads the scales of the full resolution as arguments of [`Micrograph`]."""
    scales = [1.0] * len(axes)
    for transform in [
        *image["datasets"][0].get("coordinateTransformations", []),
        *image.get("coordinateTransformations", []),
    ]:
        if transform.get("type") == "scale":
            scales = [scale * float(factor) for scale, factor in zip(scales, transform["scale"], strict=True)]
    units = [
        spell_unit(axis.get("unit"), TIME_UNITS if name == "T" else LENGTH_UNITS)
        for name, axis in zip(axes, image["axes"], strict=True)
    ]
    known = {
        name: (scale, unit)
        for name, scale, unit in zip(axes, scales, units, strict=True)
        if unit and is_positive(scale)
    }
    metadata: dict[str, Any] = {}
    if "X" in known and "Y" in known and known["X"][1] == known["Y"][1]:
        metadata |= {"pixel_size": (known["Y"][0], known["X"][0]), "pixel_size_unit": known["X"][1]}
    if "Z" in known:
        metadata |= dict(zip(("z_step", "z_step_unit"), known["Z"], strict=True))
    if "T" in known:
        metadata |= dict(zip(("time_interval", "time_interval_unit"), known["T"], strict=True))
    return metadata


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
    datasets = []
    for level, shape in enumerate(shapes):
        scale = [float(sizes.get(axis, (None,))[0] or 1.0) for axis in axes]
        scale[-2:] = [
            size * full / side for size, full, side in zip(scale[-2:], shapes[0][-2:], shape[-2:], strict=True)
        ]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    return {
        **({"version": version} if version == "0.4" else {}),
        "name": "image",
        "axes": described_axes,
        "datasets": datasets,
    }


def _channel(label: str, dtype: np.dtype) -> dict:
    """A channel's name, in grey; viewers choose the contrast within the window's limits."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(np.float16)
    low, high = float(limits.min if dtype.kind in "iu" else 0), float(limits.max)
    return {"label": label, "color": "FFFFFF", "window": {"min": low, "max": high, "start": low, "end": high}}


def _damaged(path: Path, error: Exception) -> MicrographError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return MicrographError(f"`{path}` is damaged or no OME-Zarr ({reason}): copy or export it again.")
