"""TIFFs of any maker, read plane by plane; files whose contents contradict their description are refused."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from .micrograph import Micrograph, MicrographError, PlaneStack, choose_series, name_axes
from .ome_metadata import companion_xml, refuse_other_folders
from .tiff_metadata import read_tiff_metadata


# What a small file may claim to hold. Blank planes compress well, but nothing compresses gigabytes into kilobytes.
HARMLESS_BYTES = 2**27
MAX_EXPANSION = 2000
MAX_PLANES = 2**20

SLIDE_SCANNERS = ("qpi", "svs", "scn", "bif", "avs", "ndpi", "philips")  # kinds of series of tifffile


@contextmanager
def open_tiff(path: Path, series: int | None = None, axes: str | None = None) -> Iterator[Micrograph]:
    """
    The image in a TIFF: what [`open_micrograph`] does for such files. `axes` only tells whether the samples of a pixel
    are channels.
    """
    with ExitStack() as stack:
        with _damage_is_told(path):
            tif = stack.enter_context(tifffile.TiffFile(path))
            if tif.is_ome:
                companion = companion_xml(tif.ome_metadata, path)
                if companion is not None:
                    tif = stack.enter_context(tifffile.TiffFile(path, omexml=companion))
            if tif.is_scanimage and not tif.is_bigtiff:
                # tifffile guesses where the pages of such files are and can miss the last one.
                tif = stack.enter_context(tifffile.TiffFile(path, is_scanimage=False))
            micrograph = _describe(tif, path, series, axes)
        yield micrograph


def _describe(tif: tifffile.TiffFile, path: Path, number: int | None, stated_axes: str | None) -> Micrograph:
    """The chosen image, whose planes are not read yet, and what the file says about it."""
    _refuse_false_claims(tif, path)
    series = _choose_image(tif, number, path)
    if series.dtype is None or series.dtype.kind not in "iuf":
        raise MicrographError(
            f"`{path}` holds values of type {series.dtype}, not intensities: convert it to 16-bit or 32-bit."
        )
    # tifffile fills in zeros for whatever is missing and at best says so in its log.
    if any(page is None or _is_cut_off(page) for page in series.pages) or not math.prod(series.get_shape(False)):
        raise ValueError("pixels are missing")
    for page in series.pages:
        _refuse_false_size(page)

    position = _own_position(series, tif)
    metadata = read_tiff_metadata(tif, series, path, position)
    acquisition = metadata.pop("acquisition")
    axes, shape = _axes_of_planes(series, metadata.pop("axes", None), stated_axes, path)
    interleaved = metadata.pop("interleaved_channels", 1)
    if interleaved > 1 and len(shape) == 3 and "C" not in axes and shape[0] % interleaved == 0:
        axes, shape = axes[0] + "CYX", [shape[0] // interleaved, interleaved, *shape[1:]]
    are_together = axes.endswith("YXC")
    if are_together:
        axes, shape = axes[:-3] + "CYX", [*shape[:-3], shape[-1], *shape[-3:-1]]
    if not axes.endswith("YX"):
        raise MicrographError(f"`{path}` stores its axes as {axes}: save it with rows and columns (YX) last.")
    axes = name_axes(axes, path)
    if stated_axes is None:
        _refuse_channels_as_columns(shape, path)

    read = _plane_reader(series, shape, are_together, path)
    planes: Any = PlaneStack(read, tuple(shape), series.dtype.newbyteorder("="))
    if position is not None:
        here = (slice(None),) * axes.index("R") + (position,)
        if len(acquisition.planes) == math.prod(planes.shape[:-2]):
            acquisition = acquisition.select_planes(
                np.arange(len(acquisition.planes)).reshape(planes.shape[:-2])[here]
            )
        planes, axes = planes[here], axes.replace("R", "")
    channels = planes.shape[axes.index("C")] if "C" in axes else 1
    if len(metadata.get("channel_names") or "") != channels:
        metadata["channel_names"] = None
    metadata["acquisition"] = acquisition.fitted(channels, math.prod(planes.shape[:-2]))
    # A result is in the order of its file, but for LSM, which has names for channels, as samples do not.
    channels_last = are_together and series.kind != "lsm"
    # Damage of a single plane is found at once.
    return Micrograph(planes[()] if planes.ndim == 2 else planes, axes, channels_last=channels_last, **metadata)


def list_series(tif: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """
    The images of a file from which one must be chosen. Thumbnails are not listed. Of a data set of several files, each
    with an image of its own, only the image in this file is listed.
    """
    images = _all_images(tif)
    here = [each for each in images if each.pages[0] is not None and _is_of(each.pages[0], tif)]
    return here if len(here) == 1 else images


def _all_images(tif: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    return [each for each in tif.series if not _is_extra(each)] or tif.series


def _choose_image(tif: tifffile.TiffFile, number: int | None, path: Path) -> tifffile.TiffPageSeries:
    """The image of a number, which may be in another file of the data set, or the only image if there is no number."""
    images = list_series(tif) if number is None else _all_images(tif)
    return images[choose_series(len(images), number, path)]


def _is_extra(series: tifffile.TiffPageSeries) -> bool:
    """Whether it is a thumbnail, or the picture of the slide or of its label that slide scanners add."""
    is_of_slide = series.kind in SLIDE_SCANNERS and series.name in ("Thumbnail", "Macro", "Label")
    return series.keyframe.is_reduced or is_of_slide


def _own_position(series: tifffile.TiffPageSeries, tif: tifffile.TiffFile) -> int | None:
    """
    The number of the stage position of this file along the axis `R`, where Micro-Manager stored every position as a
    file of its own, which tifffile reads together.
    """
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    if series.kind != "mmstack" or shape[axes.index("R")] == 1 or len(series.pages) != math.prod(shape[:-2]):
        return None
    is_here = np.reshape([_is_of(page, tif) for page in series.pages], shape[:-2])
    others = tuple(i for i in range(is_here.ndim) if i != axes.index("R"))
    positions = np.flatnonzero(is_here.any(axis=others))
    return int(positions[0]) if len(positions) == 1 else None


def _is_of(page: tifffile.TiffPage | tifffile.TiffFrame, tif: tifffile.TiffFile) -> bool:
    return page.parent.filename == tif.filename


def _axes_of_planes(
    series: tifffile.TiffPageSeries, noted: str | None, stated: str | None, path: Path
) -> tuple[str, list[int]]:
    """
    The axes as stored, without those of length 1 that the array did not have.

    Args:
        series (`tifffile.TiffPageSeries`): The image.
        noted (`str`, *optional*): Axes that this package noted when it wrote the file.
        stated (`str`, *optional*): Axes that the user states.
        path (`Path`): What errors call the file.
    """
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    sizes = dict(zip(axes, shape, strict=True))
    if sizes.get("S", 1) > 1:
        # Samples of a pixel are the colours of a photograph, or channels, which only we or the user can tell.
        if "C" not in (noted or stated or "").upper() or sizes.get("C", 1) > 1:
            stored = "YXC" if axes.index("S") > axes.index("Y") else "CYX"
            raise MicrographError(
                f"`{path}` stores {sizes['S']} samples per pixel, as colour images do: if they are channels, name the "
                f"axes {stored} (on the command line with --axes {stored}); if not, split it into grey images first."
            )
        axes, shape = zip(*((axis, size) for axis, size in zip(axes, shape, strict=True) if axis != "C"), strict=True)
        axes = "".join(axes).replace("S", "C")
        sizes = dict(zip(axes, shape, strict=True))

    # OME-XML always states five sizes; only a file of ours says which of those of length 1 the array had. That note is
    # stale if another program cropped the image and kept our annotation.
    if noted and math.prod(sizes.get(axis, 1) for axis in noted) == math.prod(shape):
        return noted, [sizes.get(axis, 1) for axis in noted]
    noted_ones = "" if series.kind != "shaped" else axes.replace("S", "")
    kept = [i for i, axis in enumerate(axes) if shape[i] > 1 or axis in "YX" or axis in noted_ones]
    return "".join(axes[i] for i in kept), [shape[i] for i in kept]


def _refuse_channels_as_columns(shape: list[int], path: Path):
    """Refuse planes a few pixels wide: `tifffile.imwrite` stores an array `[Y, X, C]` as Y planes of X by C pixels."""
    if len(shape) < 3 or min(shape[-3:-1]) < 16:
        return
    if shape[-1] <= 4 or (shape[-1] <= 8 and shape[-3] == shape[-2]):
        raise MicrographError(
            f"`{path}` has the shape {tuple(shape)}, planes only {shape[-1]} pixels wide: if its last axis is that of "
            f"channels, name the axes YXC (on the command line with --axes YXC); if it is a stack, ZYX."
        )


def _plane_reader(
    series: tifffile.TiffPageSeries, shape: list[int], are_together: bool, path: Path
) -> Callable[[int], np.ndarray]:
    """What reads the plane of a number from the pages of a series, where channels of a pixel may stand together."""
    number_of_planes, (height, width) = math.prod(shape[:-2]), shape[-2:]
    samples = shape[-3] if are_together else 1
    native = series.dtype.newbyteorder("=")
    upright = _brightness(series, path)
    # Uncompressed and in one piece, as ImageJ stores stacks of any size, and not in another file of a data set.
    if series.dataoffset is not None and _is_of(series.keyframe, series.parent):
        if series.dataoffset + math.prod(shape) * series.dtype.itemsize > series.parent.filehandle.size:
            raise ValueError("pixels are missing")
        stored = series.dtype.newbyteorder(series.parent.byteorder)
        form = (number_of_planes // samples, height, width, samples)
        whole = np.memmap(path, stored, "r", series.dataoffset, form)
        return lambda number: upright(np.array(whole[number // samples, :, :, number % samples], native))

    # Volumes may be stored as one page, and channels as samples of its pixels.
    planes_per_page, rest = divmod(math.prod(series.keyframe.shape), height * width)
    if rest or planes_per_page * len(series.pages) != number_of_planes:
        raise ValueError("pixels are missing")

    @lru_cache(maxsize=1)
    def read_page(number: int) -> np.ndarray:
        with _damage_is_told(path):
            page = _read(series.pages[number]).reshape(-1, height, width, samples)
            planes = np.moveaxis(page, -1, 1).reshape(planes_per_page, height, width)
            return upright(planes.astype(native, copy=False))

    return lambda number: read_page(number // planes_per_page)[number % planes_per_page]


def _read(page: tifffile.TiffPage | tifffile.TiffFrame) -> np.ndarray:
    """The pixels of a page, whose file is closed if it is a later one of an image in several files."""
    handle = page.parent.filehandle
    is_closed = handle.closed
    if is_closed:
        handle.open()
    try:
        return page.asarray()
    finally:
        if is_closed:
            handle.close()


def _brightness(series: tifffile.TiffPageSeries, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """
    What makes larger values brighter. TIFF may store 0 as white: such values are subtracted from the greatest that
    their bits can hold. ImageJ marks so an inverting look-up table, which changes the display alone, and values stay.
    """
    page = series.keyframe
    if page.photometric != tifffile.PHOTOMETRIC.MINISWHITE or series.parent.is_imagej:
        return lambda planes: planes
    if series.dtype.kind == "f":
        raise MicrographError(
            f"`{path}` stores real numbers with 0 as white, whose greatest value is not defined: save it with 0 as "
            f"black."
        )
    greatest = 2**page.bitspersample - 1 if series.dtype.kind == "u" else -1
    return lambda planes: (greatest - planes.astype(np.int64)).astype(planes.dtype)


def _refuse_false_claims(tif: tifffile.TiffFile, path: Path):
    """Refuse a description that would make tifffile list planes beyond reason, or open files outside of the folder."""
    described = (tif.ome_metadata if tif.is_ome else tif.pages.first.description) or ""
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
            refuse_other_folders(values.get("FileName") or values.get("MetadataFile") or "", path)
    if tif.is_mmstack:
        index, summary = tif.micromanager_metadata["IndexMap"], tif.micromanager_metadata["Summary"]
        highest = index[:, :4].max(axis=0, initial=0).tolist()
        stated = [int(summary.get(name, 1)) for name in ("Channels", "Slices", "Frames", "Positions")]
        counts.append(math.prod(max(last + 1, size) for last, size in zip(highest, stated, strict=True)))
    if max(counts) > MAX_PLANES:
        raise ValueError(f"it claims to hold {max(counts):.3g} planes")


def _refuse_false_size(page: tifffile.TiffPage | tifffile.TiffFrame):
    """Refuse a page that claims more pixels than its bytes can be worth, before memory is taken for them."""
    stored = sum(page.databytecounts)
    described = page.keyframe
    claimed = max(_stored_bytes(described), described.tilewidth * described.tilelength * described.dtype.itemsize)
    limit = stored if described.compression == 1 else max(HARMLESS_BYTES, MAX_EXPANSION * stored)
    if claimed > limit:
        raise ValueError(f"it claims {claimed / 2**20:.3g} MiB per plane, but stores {stored / 2**20:.3g} MiB")


def _stored_bytes(page: tifffile.TiffPage) -> int:
    """Bytes of a page without compression; values of 2, 4 or 12 bits are packed, every row from a new byte on."""
    if page.bitspersample % 8 == 0:
        return page.nbytes
    row = page.imagewidth * (page.samplesperpixel if page.planarconfig == 1 else 1)
    return page.size // row * math.ceil(row * page.bitspersample / 8)


@contextmanager
def _damage_is_told(path: Path) -> Iterator[None]:
    """Turn any failure in the body, and any error in tifffile's log, into one sentence about the file."""
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
