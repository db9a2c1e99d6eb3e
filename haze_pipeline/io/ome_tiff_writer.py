"""OME-TIFFs, written plane by plane."""

import json
import math
import os
import re
import uuid
from typing import Any

import numpy as np
import tifffile

from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.version import __version__

from .micrograph import (
    LENGTH_UNITS,
    TIME_UNITS,
    Micrograph,
    MicrographError,
    PlaneStack,
    is_positive,
    name_axes,
    spell_unit,
)
from .pyramid import halve, pyramid_levels


OME_DTYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")

# Of the annotations that say what OME-XML has no place for.
AXES_NAMESPACE = "haze-pipeline/axes"
PROVENANCE_NAMESPACE = "haze-pipeline/provenance"

TILE = 512  # px, of planes that are large enough for smaller versions


def write_ome_tiff(path: str | os.PathLike, micrograph: Micrograph, provenance: dict | None = None) -> None:
    """
    Writes an OME-TIFF, and puts it in its place only when it is complete; see [`OmeTiffWriter`].

    Args:
        path (`str` or `os.PathLike`): The file, conventionally named `*.ome.tif`. One that exists is replaced.
        micrograph ([`Micrograph`]): What to write. Axes without a meaning in OME are renamed, see [`open_micrograph`].
        provenance (`dict`, *optional*): How the image was made. Defaults to `micrograph.provenance`.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `MicrographError`: If the data type, the axes, a size, a unit or the channel names do not fit OME-TIFF.
    """
    data = micrograph.data if isinstance(micrograph.data, PlaneStack) else np.asarray(micrograph.data)
    provenance = micrograph.provenance if provenance is None else provenance
    with replace_when_complete(path) as temporary:
        with OmeTiffWriter(temporary, micrograph, data.shape, data.dtype, provenance, name=path) as writer:
            for index in np.ndindex(data.shape[:-2]):
                writer.write(index, data[index])


class OmeTiffWriter:
    """
    Writes the planes of an OME-TIFF one after the other, losslessly compressed. Planes of more than 2048 pixels a side
    are stored in tiles and with smaller versions of themselves, so that viewers open them at once.

    Args:
        path (`str` or `os.PathLike`): The file.
        micrograph ([`Micrograph`]): Its axes, sizes, units and names are written; its data are not looked at.
        shape (`tuple[int, ...]`): `[..., Y, X]` of what will be written.
        dtype (`np.dtype`): Its number type.
        provenance (`dict`, *optional*):
            How the image was made, as names and values that JSON can hold. It is stored as key-value pairs, which Fiji
            and OMERO show. May be replaced until the end.
        name (`str` or `os.PathLike`, *optional*): What errors call the file, if not `path`.

    Raises:
        `MicrographError`: If something does not fit OME-TIFF.
    """

    def __init__(self, path, micrograph: Micrograph, shape, dtype, provenance: dict | None = None, name=None):
        self.path, self.name = path, name or path
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.provenance = provenance
        if self.dtype.name not in OME_DTYPES:
            raise MicrographError(
                f"`{self.name}` cannot store {self.dtype}: convert the data to one of {', '.join(OME_DTYPES)}."
            )
        if not math.prod(self.shape):
            raise MicrographError(f"`{self.name}` would hold no pixels: the shape of the data is {self.shape}.")
        self._metadata = _metadata_for_ome(micrograph, self.shape, self.name)
        self._described = self._describe(provenance)
        self._remaining = np.ndindex(self.shape[:-2])
        self._levels = pyramid_levels(self.shape[-2:])
        # The size after compression is not known in advance. Noise grows by less than 1 % and tags are small, so a
        # sixteenth of the 4 GiB of a classic TIFF is room enough; smaller versions of a plane add a third to it.
        nbytes = math.prod(self.shape) * self.dtype.itemsize * (4 / 3 if self._levels else 1)
        self._file = tifffile.TiffWriter(path, bigtiff=nbytes > 2**32 - 2**28)

    def write(self, index: tuple[int, ...], plane: np.ndarray):
        """Write the next plane; `index` must count over the leading axes with the last the fastest."""
        if index != next(self._remaining, None):
            raise ValueError(f"Planes of a TIFF must be written in order, got {index} out of order.")
        is_first = not any(index)
        options = {
            "photometric": "minisblack",  # or else a plane 3 or 4 pixels wide may be taken for colours
            "compression": "zlib",
            "metadata": None,
            "tile": (TILE, TILE) if self._levels else None,
        }
        self._file.write(
            np.ascontiguousarray(plane, self.dtype),
            description=self._described if is_first else None,
            software=f"haze-pipeline {__version__}",
            subifds=self._levels or None,
            **options,
        )
        for _ in range(self._levels):
            plane = halve(plane)
            self._file.write(plane, subfiletype=1, **options)

    def close(self):
        """Finish the file."""
        self._file.close()
        described = self._describe(self.provenance)
        if described != self._described:
            tifffile.tiffcomment(self.path, described)

    def __enter__(self) -> "OmeTiffWriter":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _describe(self, provenance: dict | None) -> bytes:
        annotations = [{"Namespace": AXES_NAMESPACE, "Value": {"axes": self._metadata["axes"]}}]
        if provenance:
            values = {str(key): json.dumps(value, ensure_ascii=False) for key, value in provenance.items()}
            annotations.append({"Namespace": PROVENANCE_NAMESPACE, "Value": values})
        # The identifier is the same for the same content, so that a file can be made again bit for bit.
        identifier = uuid.uuid5(uuid.NAMESPACE_URL, repr((self.shape, self.dtype.str, self._metadata, provenance)))
        described = tifffile.OmeXml(Creator=f"haze-pipeline {__version__}", UUID=str(identifier))
        number = math.prod(self.shape[:-2])
        try:
            described.addimage(
                self.dtype,
                self.shape,
                (number, 1, 1, *self.shape[-2:], 1),
                **self._metadata,
                MapAnnotation=annotations,
            )
        except tifffile.OmeXmlError as error:
            raise MicrographError(
                f"`{self.name}` cannot hold the axes {self._metadata['axes']} ({error}): write fewer axes per file."
            ) from error
        return described.tostring(declaration=True).encode()


def _metadata_for_ome(micrograph: Micrograph, shape: tuple[int, ...], name: Any) -> dict[str, Any]:
    """Axes, sizes and names as tifffile's OME-XML takes them."""
    axes = micrograph.axes
    if len(axes) != len(shape) or not axes.endswith("YX"):
        raise MicrographError(f"`{name}`: axes {axes!r} must name each axis of shape {shape} and end in 'YX'.")
    axes = name_axes(axes, name)
    channels = shape[axes.index("C")] if "C" in axes else 1
    if micrograph.channel_names is not None and len(micrograph.channel_names) != channels:
        raise MicrographError(
            f"`{name}`: `channel_names` must have one name for each of {channels} channels, got "
            f"{micrograph.channel_names}."
        )
    metadata: dict[str, Any] = {"axes": axes}
    pixel_height, pixel_width = micrograph.pixel_size or (None, None)
    for label, value, unit, units in (
        ("PhysicalSizeX", pixel_width, micrograph.pixel_size_unit, LENGTH_UNITS),
        ("PhysicalSizeY", pixel_height, micrograph.pixel_size_unit, LENGTH_UNITS),
        ("PhysicalSizeZ", micrograph.z_step, micrograph.z_step_unit, LENGTH_UNITS),
        ("TimeIncrement", micrograph.time_interval, micrograph.time_interval_unit, TIME_UNITS),
    ):
        if value is None:
            continue
        if not is_positive(value) or spell_unit(unit, units) is None:
            raise MicrographError(
                f"`{name}`: {label} must be positive and in one of {', '.join(units)}, got {value} {unit}."
            )
        metadata |= {label: float(value), f"{label}Unit": spell_unit(unit, units)}
    if micrograph.channel_names is not None:
        # XML has no way to write control characters.
        metadata["Channel"] = {"Name": [re.sub(r"[\x00-\x1f\x7f]", " ", each) for each in micrograph.channel_names]}
    return metadata
