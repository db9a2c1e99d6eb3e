"""TIFFs, ImageJ TIFFs and OME-TIFFs, read plane by plane; what lies about its contents is refused."""

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

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
from .ome_tiff_writer import AXES_NAMESPACE, PROVENANCE_NAMESPACE


# What a small file may claim to hold. Blank planes compress well, but nothing compresses gigabytes into kilobytes.
HARMLESS_BYTES = 2**27
MAX_EXPANSION = 2000
MAX_PLANES = 2**20


@contextmanager
def open_tiff(path: Path, series: int | None = None) -> Iterator[Micrograph]:
    """The image in a plain TIFF, an ImageJ TIFF or an OME-TIFF: what [`open_micrograph`] does for such files."""
    with ExitStack() as stack:
        with _damage_is_told(path):
            tif = stack.enter_context(tifffile.TiffFile(path))
            micrograph = _describe(tif, path, series)
        yield micrograph


def _describe(tif: tifffile.TiffFile, path: Path, series: int | None) -> Micrograph:
    """The chosen image, whose planes are not read yet, and what the file says about it."""
    _refuse_false_claims(tif, path)
    number = choose_series(len(tif.series), series, path)
    chosen = tif.series[number]
    axes, shape = chosen.get_axes(squeeze=False), chosen.get_shape(squeeze=False)
    if any(axis == "S" and size > 1 for axis, size in zip(axes, shape, strict=True)):
        raise MicrographError(
            f"`{path}` is a colour image, not an intensity measurement: split it into grey images first."
        )
    if chosen.dtype is None or chosen.dtype.kind not in "iuf":
        raise MicrographError(
            f"`{path}` holds values of type {chosen.dtype}, not intensities: convert it to 16-bit or 32-bit."
        )
    # tifffile fills in zeros for whatever is missing and at best says so in its log.
    if any(page is None or _is_cut_off(page) for page in chosen.pages) or not math.prod(shape):
        raise ValueError("pixels are missing")
    for page in chosen.pages:
        _refuse_false_size(page)

    metadata: dict[str, Any] = {}
    if chosen.kind == "ome":
        metadata = _ome_metadata(tif.ome_metadata, path, number)
    elif chosen.kind == "imagej":
        resolution = [tif.pages.first.tags.valueof(tag) for tag in ("YResolution", "XResolution")]
        metadata = _imagej_metadata(tif.imagej_metadata, resolution, axes, shape)

    # OME-XML always states five sizes; only a file of ours says which of those of length 1 the array had. That note is
    # stale if another program cropped the image and kept our annotation.
    noted = metadata.pop("axes", None)
    sizes = dict(zip(axes, shape, strict=True))
    if noted and math.prod(sizes.get(axis, 1) for axis in noted) == math.prod(shape):
        axes, shape = noted, [sizes.get(axis, 1) for axis in noted]
    else:
        noted_ones = "" if chosen.kind != "shaped" else axes.replace("S", "")
        kept = [i for i, axis in enumerate(axes) if shape[i] > 1 or axis in "YX" or axis in noted_ones]
        axes, shape = "".join(axes[i] for i in kept), [shape[i] for i in kept]
    if not axes.endswith("YX"):
        raise MicrographError(f"`{path}` stores its axes as {axes}: save it with rows and columns (YX) last.")
    axes = name_axes(axes, path)
    channels = shape[axes.index("C")] if "C" in axes else 1
    if len(metadata.get("channel_names") or "") != channels:
        metadata["channel_names"] = None
    planes = PlaneStack(_plane_reader(chosen, shape, path), tuple(shape), chosen.dtype.newbyteorder("="))
    # Damage of a single plane is found at once.
    return Micrograph(planes[()] if planes.ndim == 2 else planes, axes, **metadata)


def _plane_reader(series: tifffile.TiffPageSeries, shape: list[int], path: Path) -> Callable[[int], np.ndarray]:
    """What reads the plane of a number from the pages of a series."""
    number_of_planes, (height, width) = math.prod(shape[:-2]), shape[-2:]
    native = series.dtype.newbyteorder("=")
    if series.dataoffset is not None:  # uncompressed and in one piece, as ImageJ stores stacks of any size
        if series.dataoffset + math.prod(shape) * series.dtype.itemsize > series.parent.filehandle.size:
            raise ValueError("pixels are missing")
        stored = series.dtype.newbyteorder(series.parent.byteorder)
        whole = np.memmap(path, stored, "r", series.dataoffset, (number_of_planes, height, width))
        return lambda number: np.array(whole[number], native)

    # Volumes may be stored as one page.
    planes_per_page, rest = divmod(math.prod(series.keyframe.shape), height * width)
    if rest or planes_per_page * len(series.pages) != number_of_planes:
        raise ValueError("pixels are missing")

    @lru_cache(maxsize=1)
    def read_page(number: int) -> np.ndarray:
        with _damage_is_told(path):
            page = series.pages[number].asarray()
            return page.reshape(planes_per_page, height, width).astype(native, copy=False)

    return lambda number: read_page(number // planes_per_page)[number % planes_per_page]


def _refuse_false_claims(tif: tifffile.TiffFile, path: Path):
    """Refuse a description that would make tifffile list planes beyond reason, or open files outside of the folder."""
    described = tif.pages.first.description or ""
    counts = [len(tif.pages)]
    if tif.is_imagej or tif.is_shaped:
        counts += map(int, re.findall(r"^(?:images|channels|slices|frames)=(\d+)", described, re.MULTILINE))
    if tif.is_ome:
        for element in ElementTree.fromstring(described).iter():
            kind, values = element.tag.rpartition("}")[2], element.attrib
            if kind == "Pixels":
                counts.append(math.prod(int(values[f"Size{axis}"]) for axis in "TZC"))
            elif kind == "TiffData":
                counts += (int(values.get(name, 0)) for name in ("IFD", "NumPlanes", "PlaneCount"))
            elif kind.startswith("Along") and "Start" in values:
                span = abs(float(values["End"]) - float(values["Start"]))
                counts.append(span / abs(float(values.get("Step", 1))))
            name = values.get("FileName") or values.get("MetadataFile") or ""
            if any(len(system(name).parts) > 1 or name == ".." for system in (PurePosixPath, PureWindowsPath)):
                raise MicrographError(
                    f"`{path}` refers to {name!r} outside of its own folder: put all files of the image into one "
                    f"folder."
                )
    if max(counts) > MAX_PLANES:
        raise ValueError(f"it claims to hold {max(counts):.3g} planes")


def _refuse_false_size(page: tifffile.TiffPage | tifffile.TiffFrame):
    """Refuse a page that claims more pixels than its bytes can be worth, before memory is taken for them."""
    stored = sum(page.databytecounts)
    described = page.keyframe
    claimed = max(described.nbytes, described.tilewidth * described.tilelength * described.dtype.itemsize)
    limit = stored if described.compression == 1 else max(HARMLESS_BYTES, MAX_EXPANSION * stored)
    if claimed > limit:
        raise ValueError(f"it claims {claimed / 2**20:.3g} MiB per plane, but stores {stored / 2**20:.3g} MiB")


@contextmanager
def _damage_is_told(path: Path) -> Iterator[None]:
    """Turns whatever fails in the body, or is an error in tifffile's log, into one sentence about the file."""
    try:
        with _capture_tifffile_errors() as errors:
            yield
        if errors:
            raise ValueError(errors[0])
    except (MicrographError, MemoryError):
        raise
    except Exception as error:  # damage shows as anything from `struct.error` to `ZeroDivisionError`
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MicrographError(f"`{path}` is damaged or incomplete ({reason}): copy or export it again.") from error


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
    unit = spell_unit(described.get("unit"), LENGTH_UNITS)
    same_unit = spell_unit(described.get("yunit", unit), LENGTH_UNITS) == unit
    rationals = all(isinstance(value, tuple) and all(map(is_positive, value[:2])) for value in resolution)
    if unit and same_unit and rationals:
        height, width = (value[1] / value[0] for value in resolution)  # the tags are in pixels per unit
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit}
    z_unit = spell_unit(described.get("zunit", unit), LENGTH_UNITS)
    if z_unit and is_positive(described.get("spacing")):
        metadata |= {"z_step": float(described["spacing"]), "z_step_unit": z_unit}
    time_unit = spell_unit(described.get("tunit", "s"), TIME_UNITS)
    if time_unit and is_positive(described.get("finterval")):
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


def _ome_metadata(ome_xml: str, path: Path, image: int) -> dict[str, Any]:
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
    pixels = ome.images[image].pixels
    metadata: dict[str, Any] = {}

    unit = spell_unit(pixels.physical_size_x_unit.value, LENGTH_UNITS)
    height, width = pixels.physical_size_y, pixels.physical_size_x
    if (
        unit
        and is_positive(height)
        and is_positive(width)
        and pixels.physical_size_y_unit is pixels.physical_size_x_unit
    ):
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit}
    unit = spell_unit(pixels.physical_size_z_unit.value, LENGTH_UNITS)
    if unit and is_positive(pixels.physical_size_z):
        metadata |= {"z_step": pixels.physical_size_z, "z_step_unit": unit}
    unit = spell_unit(pixels.time_increment_unit.value, TIME_UNITS)
    if unit and is_positive(pixels.time_increment):
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
