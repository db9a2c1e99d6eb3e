"""Micrographs in TIFF files: read with their axes and physical sizes, write as OME-TIFF."""

import json
import logging
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from .version import __version__


# Units in the spelling of OME-XML. Any other ("pixel", "reference frame") is not a physical one.
MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
LENGTH_UNITS = tuple(MICROMETRES)
TIME_UNITS = ("ns", "µs", "ms", "s", "min", "h", "d")
# Other spellings, once greek mu (U+03BC) has been replaced by the micro sign (U+00B5) that OME wants.
UNIT_SPELLINGS = {
    **dict.fromkeys(("um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), "µm"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **{"nanometer": "nm", "millimeter": "mm", "msec": "ms", "minutes": "min", "hour": "h", "hours": "h"},
}
OME_DTYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
OME_AXES = "TZCAPRHE"  # tifffile stores angle, phase, tile, lifetime and lambda as "modulo" axes

AXES_NAMESPACE = "haze-pipeline/axes"
PROVENANCE_NAMESPACE = "haze-pipeline/provenance"


class MicrographError(ValueError):
    """A file or micrograph that cannot be used. The message is one sentence that names the file and the mend."""


@dataclass
class Micrograph:
    """
    Intensities with the metadata that must not get lost between the input and the output file.

    Attributes:
        data (`np.ndarray` of shape `[..., Y, X]`): The intensities, in the number type of the file.
        axes (`str`): One letter per axis of `data`, ending in `"YX"`: `T` time, `Z` depth, `C` channel.
        pixel_size (`tuple[float, float]`, *optional*): Height and width of a pixel in `pixel_size_unit`.
        pixel_size_unit (`str`, defaults to `"µm"`): One of `LENGTH_UNITS`.
        z_step (`float`, *optional*): Distance between planes in `z_step_unit`.
        z_step_unit (`str`, defaults to `"µm"`): One of `LENGTH_UNITS`.
        time_interval (`float`, *optional*): Time between frames in `time_interval_unit`.
        time_interval_unit (`str`, defaults to `"s"`): One of `TIME_UNITS`.
        channel_names (`list[str]`, *optional*): One name per channel; a single one where there is no axis `C`.
        provenance (`dict`, *optional*): What [`write_ome_tiff`] noted about how the file was made.
    """

    data: np.ndarray
    axes: str
    pixel_size: tuple[float, float] | None = None
    pixel_size_unit: str = "µm"
    z_step: float | None = None
    z_step_unit: str = "µm"
    time_interval: float | None = None
    time_interval_unit: str = "s"
    channel_names: list[str] | None = None
    provenance: dict | None = None

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel in µm; `None` if it is unknown or pixels are not square."""
        if self.pixel_size is None or not math.isclose(*self.pixel_size, rel_tol=1e-3):
            return None
        return self.pixel_size[1] * MICROMETRES[self.pixel_size_unit]

    @property
    def z_step_um(self) -> float | None:
        """Distance between planes in µm, if known."""
        return None if self.z_step is None else self.z_step * MICROMETRES[self.z_step_unit]


def list_tiffs(folder: str | os.PathLike) -> list[Path]:
    """The TIFFs in a folder and its sub-folders, relative to it and sorted. Hidden ones are leftovers of other programs."""
    paths = [path for path in Path(folder).rglob("*") if path.suffix.lower() in (".tif", ".tiff")]
    return sorted(path.relative_to(folder) for path in paths if not path.name.startswith("."))


def read_micrograph(path: str | os.PathLike) -> Micrograph:
    """
    Reads a plain TIFF, an ImageJ TIFF or an OME-TIFF.

    Axes of length 1 are dropped, except where [`write_ome_tiff`] or `tifffile.imwrite` noted the shape of the array.
    Axes without a meaning, such as the pages of a plain TIFF, are taken as `Z`, then `T`, then `C`, the innermost
    first; Fiji, too, opens a plain stack as slices. Resolution tags of plain TIFFs are ignored: they mostly tell the
    dots per inch of a print.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        [`Micrograph`]: The data in native byte order, and what the file says about it. A size is `None` where the file
        does not state it or its unit is not a physical one; `pixel_size` also where its two units differ.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `MicrographError`: If it is not a TIFF file, is damaged or incomplete, needs a codec that is not installed,
            holds several images, or holds something else than intensities (colours, complex or binary values).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist: check the name and the folder.")
    if path.is_dir():
        raise MicrographError(f"`{path}` is a folder: name a TIFF file in it.")
    with path.open("rb") as file:
        header = file.read(2)
    if not header:
        raise MicrographError(f"`{path}` is empty (0 bytes): copy or export it again.")
    if header not in (b"II", b"MM"):
        raise MicrographError(f"`{path}` is not a TIFF file: convert it to TIFF first, for example with Fiji.")

    # 1. Read the pixels.
    ome_xml, imagej, resolution = None, None, None
    try:
        with _capture_tifffile_errors() as errors, tifffile.TiffFile(path) as tif:
            if len(tif.series) != 1:
                count = len(tif.series) or "no"
                raise MicrographError(f"`{path}` holds {count} images: save the one you want as a file of its own.")
            series = tif.series[0]
            axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
            if any(axis == "S" and size > 1 for axis, size in zip(axes, shape, strict=True)):
                raise MicrographError(
                    f"`{path}` is a colour image, not an intensity measurement: split it into grey images first."
                )
            if series.dtype.kind not in "iuf":
                raise MicrographError(
                    f"`{path}` holds values of type {series.dtype}, not intensities: convert it to 16-bit or 32-bit."
                )
            # tifffile fills in zeros for whatever is missing and at best says so in its log.
            if any(page is None or _is_cut_off(page) for page in series.pages):
                errors.append("pixels are missing")
            data = np.empty(0) if errors else series.asarray()
            if errors or data.size != math.prod(shape):
                raise ValueError(errors[0] if errors else "pixels are missing")
            if series.kind == "ome":
                ome_xml = tif.ome_metadata
            elif series.kind == "imagej":
                imagej = tif.imagej_metadata
                resolution = [tif.pages.first.tags.valueof(tag) for tag in ("YResolution", "XResolution")]
    except (MicrographError, MemoryError):
        raise
    except Exception as error:  # damage shows as anything from `struct.error` to `ZeroDivisionError`
        if "imagecodecs" in str(error):
            message = "is compressed in a way that needs `pip install imagecodecs`: install it, or save uncompressed."
        else:
            message = f"is damaged or incomplete ({error}): copy or export it again."
        raise MicrographError(f"`{path}` {message}") from error

    # 2. Read what else the file says.
    metadata: dict[str, Any] = {}
    if ome_xml is not None:
        metadata = _ome_metadata(ome_xml, path)
    elif imagej is not None:
        metadata = _imagej_metadata(imagej, resolution, axes, shape)

    # 3. Choose the axes. OME-XML always states five sizes; only a file of ours says which of those of length 1 the
    # array had. That note is stale if another program cropped the image and kept our annotation.
    noted = metadata.pop("axes", None)
    sizes = dict(zip(axes, shape, strict=True))
    if noted and math.prod(sizes.get(axis, 1) for axis in noted) == data.size:
        axes, shape = noted, [sizes.get(axis, 1) for axis in noted]
    else:
        noted_ones = "" if series.kind != "shaped" else axes.replace("S", "")
        kept = [i for i, axis in enumerate(axes) if shape[i] > 1 or axis in "YX" or axis in noted_ones]
        axes, shape = "".join(axes[i] for i in kept), [shape[i] for i in kept]
    if not axes.endswith("YX"):
        raise MicrographError(f"`{path}` stores its axes as {axes}: save it with rows and columns (YX) last.")
    axes = _name_axes(axes, path)
    channels = shape[axes.index("C")] if "C" in axes else 1
    if len(metadata.get("channel_names", "")) != channels:
        metadata["channel_names"] = None
    data = data.reshape(shape).astype(data.dtype.newbyteorder("="), copy=False)
    return Micrograph(data, axes, **metadata)


def write_ome_tiff(path: str | os.PathLike, micrograph: Micrograph, provenance: dict | None = None) -> None:
    """
    Writes an OME-TIFF, losslessly compressed, and puts it in its place only when it is complete.

    Args:
        path (`str` or `os.PathLike`): The file, conventionally named `*.ome.tif`. One that exists is replaced.
        micrograph ([`Micrograph`]): What to write. Axes without a meaning in OME are renamed, see [`read_micrograph`].
        provenance (`dict`, *optional*): How the image was made, as names and values that JSON can hold. It is stored
            as key-value pairs, which Fiji and OMERO show. Defaults to `micrograph.provenance`.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `MicrographError`: If the data type, the axes, a size, a unit or the channel names do not fit OME-TIFF.
    """
    data = np.asarray(micrograph.data)
    axes = micrograph.axes
    if data.dtype.name not in OME_DTYPES:
        raise MicrographError(
            f"`{path}` cannot store {data.dtype}: convert the data to one of {', '.join(OME_DTYPES)}."
        )
    if not data.size:
        raise MicrographError(f"`{path}` would hold no pixels: the shape of the data is {data.shape}.")
    if len(axes) != data.ndim or not axes.endswith("YX"):
        raise MicrographError(f"`{path}`: axes {axes!r} must name each axis of shape {data.shape} and end in 'YX'.")
    axes = _name_axes(axes, path)
    channels = data.shape[axes.index("C")] if "C" in axes else 1
    if micrograph.channel_names is not None and len(micrograph.channel_names) != channels:
        raise MicrographError(
            f"`{path}`: `channel_names` must have one name for each of {channels} channels, got "
            f"{micrograph.channel_names}."
        )

    metadata: dict[str, Any] = {"axes": axes, "Creator": f"haze-pipeline {__version__}"}
    pixel_height, pixel_width = micrograph.pixel_size or (None, None)
    for name, value, unit, units in (
        ("PhysicalSizeX", pixel_width, micrograph.pixel_size_unit, LENGTH_UNITS),
        ("PhysicalSizeY", pixel_height, micrograph.pixel_size_unit, LENGTH_UNITS),
        ("PhysicalSizeZ", micrograph.z_step, micrograph.z_step_unit, LENGTH_UNITS),
        ("TimeIncrement", micrograph.time_interval, micrograph.time_interval_unit, TIME_UNITS),
    ):
        if value is None:
            continue
        if not _is_positive(value) or _unit(unit, units) is None:
            raise MicrographError(
                f"`{path}`: {name} must be positive and in one of {', '.join(units)}, got {value} {unit}."
            )
        metadata |= {name: float(value), f"{name}Unit": _unit(unit, units)}
    if micrograph.channel_names is not None:
        # XML has no way to write control characters.
        metadata["Channel"] = {"Name": [re.sub(r"[\x00-\x1f\x7f]", " ", name) for name in micrograph.channel_names]}
    metadata["MapAnnotation"] = [{"Namespace": AXES_NAMESPACE, "Value": {"axes": axes}}]
    provenance = micrograph.provenance if provenance is None else provenance
    if provenance:
        values = {str(key): json.dumps(value, ensure_ascii=False) for key, value in provenance.items()}
        metadata["MapAnnotation"].append({"Namespace": PROVENANCE_NAMESPACE, "Value": values})

    with replace_when_complete(path) as temporary:
        try:
            tifffile.imwrite(
                temporary,
                data,
                ome=True,
                # The size after compression is not known in advance. Noise grows by less than 1 % and tags are small,
                # so a sixteenth of the 4 GiB of a classic TIFF is room enough.
                bigtiff=data.nbytes > 2**32 - 2**28,
                photometric="minisblack",  # or else an axis of length 3 or 4 may be taken for colours
                compression="zlib",
                software=f"haze-pipeline {__version__}",
                metadata=metadata,
            )
        except tifffile.OmeXmlError as error:
            raise MicrographError(
                f"`{path}` cannot hold the axes {axes} ({error}): write fewer axes per file."
            ) from error


@contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yields a temporary name in the folder of `path`, with its suffix, and renames the file or folder that the body makes
    there to `path` at the end.

    Whatever ends the body early, Ctrl-C included, removes what it made and leaves an existing `path` as it was.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `IsADirectoryError`: If `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder `{path.parent}` does not exist: create it, or name another for `{path.name}`."
        )
    if path.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder: choose another name.")
    temporary = path.with_name(f".haze-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


@contextmanager
def _capture_tifffile_errors() -> Iterator[list[str]]:
    """Keeps tifffile's log from the user's screen, and yields a list that collects the errors in it."""
    errors: list[str] = []

    def capture(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(capture)
    try:
        yield errors
    finally:
        logger.removeFilter(capture)


def _is_cut_off(page: tifffile.TiffPage | tifffile.TiffFrame) -> bool:
    file_size = page.parent.filehandle.size  # an OME-TIFF may be spread over several files
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    return not segments or any(count <= 0 or offset + count > file_size for offset, count in segments)


def _imagej_metadata(described: dict, resolution: list, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Reads ImageJ's description and the tags `YResolution` and `XResolution` as arguments of [`Micrograph`]."""
    metadata: dict[str, Any] = {}
    # "inch" is what ImageJ makes of the dots per inch of a plain TIFF; like "pixel" it is not in `LENGTH_UNITS`.
    unit = _unit(described.get("unit"), LENGTH_UNITS)
    same_unit = _unit(described.get("yunit", unit), LENGTH_UNITS) == unit
    rationals = all(isinstance(value, tuple) and all(map(_is_positive, value[:2])) for value in resolution)
    if unit and same_unit and rationals:
        height, width = (value[1] / value[0] for value in resolution)  # the tags are in pixels per unit
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit}
    z_unit = _unit(described.get("zunit", unit), LENGTH_UNITS)
    if z_unit and _is_positive(described.get("spacing")):
        metadata |= {"z_step": float(described["spacing"]), "z_step_unit": z_unit}
    time_unit = _unit(described.get("tunit", "s"), TIME_UNITS)
    if time_unit and _is_positive(described.get("finterval")):
        metadata |= {"time_interval": float(described["finterval"]), "time_interval_unit": time_unit}

    # There is one label per plane. It is the channel's name if it is the same on all planes of a channel, apart from
    # the counter ("c:1/2 z:3/9 - ") that Bio-Formats puts in front, and if it tells the channels apart.
    leading = shape[: axes.index("Y")]
    labels = [re.sub(r"^([czt]:\d+/\d+ *)+(- *)?", "", label) for label in np.ravel(described.get("Labels", []))]
    if "C" in axes and len(labels) == math.prod(leading):
        by_channel = np.moveaxis(np.reshape(labels, leading), axes.index("C"), 0).reshape(leading[axes.index("C")], -1)
        names = by_channel[:, 0].tolist()
        if (by_channel == by_channel[:, :1]).all() and 1 < len(names) == len(set(names)):
            metadata["channel_names"] = names
    return metadata


def _ome_metadata(ome_xml: str, path: Path) -> dict[str, Any]:
    """Reads what OME-XML says, as arguments of [`Micrograph`], and the axes that we noted in it."""
    from ome_types import from_xml  # takes a while to import, and most files do not need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours, below, says it all
            ome = from_xml(ome_xml)
    except Exception as error:  # many programs write invalid OME-XML; the pixels are fine all the same
        reason = str(error).splitlines()[0]
        warnings.warn(f"`{path}` has invalid OME-XML, its sizes and names are ignored: {reason}", stacklevel=3)
        return {}
    pixels = ome.images[0].pixels
    metadata: dict[str, Any] = {}

    unit = _unit(pixels.physical_size_x_unit.value, LENGTH_UNITS)
    height, width = pixels.physical_size_y, pixels.physical_size_x
    if (
        unit
        and _is_positive(height)
        and _is_positive(width)
        and pixels.physical_size_y_unit is pixels.physical_size_x_unit
    ):
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit}
    unit = _unit(pixels.physical_size_z_unit.value, LENGTH_UNITS)
    if unit and _is_positive(pixels.physical_size_z):
        metadata |= {"z_step": pixels.physical_size_z, "z_step_unit": unit}
    unit = _unit(pixels.time_increment_unit.value, TIME_UNITS)
    if unit and _is_positive(pixels.time_increment):
        metadata |= {"time_interval": pixels.time_increment, "time_interval_unit": unit}
    if any(channel.name for channel in pixels.channels):
        metadata["channel_names"] = [channel.name or "" for channel in pixels.channels]

    annotations = ome.structured_annotations.map_annotations if ome.structured_annotations else []
    for annotation in annotations:
        if annotation.namespace == AXES_NAMESPACE:
            metadata["axes"] = annotation.value["axes"]
        elif annotation.namespace == PROVENANCE_NAMESPACE:
            metadata["provenance"] = {key: json.loads(value) for key, value in annotation.value.items()}
    return metadata


def _name_axes(axes: str, path: str | os.PathLike) -> str:
    """Gives axes that OME does not know ("I", "Q") the meaning of `Z`, `T` or `C`, the innermost first."""
    free = [axis for axis in "CTZ" if axis not in axes]
    leading = list(axes[:-2])
    for i in reversed(range(len(leading))):
        if leading[i] not in OME_AXES and free:
            leading[i] = free.pop()
    if len(set(leading)) != len(leading) or not set(leading) <= set(OME_AXES):
        raise MicrographError(
            f"`{path}` has axes {axes}, which OME-TIFF cannot hold: split it into files of fewer axes."
        )
    return "".join(leading) + "YX"


def _unit(text: Any, units: tuple[str, ...]) -> str | None:
    """Returns the unit in the spelling of OME, or `None` if it is not one of `units`."""
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda code: chr(int(code[1], 16)), str(text))  # ImageJ: "\u00B5m"
    text = text.replace("\u03bc", "\u00b5")
    text = UNIT_SPELLINGS.get(text.lower(), text)
    return text if text in units else None


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and 0 < value < math.inf
