"""What a TIFF says about its image: sizes, names and more, from whichever program wrote it."""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from .acquisition import Acquisition, Channel, color_of_lut
from .maker_metadata import (
    read_digital_micrograph,
    read_fluoview,
    read_lsm,
    read_metaseries,
    read_micromanager,
    read_scanimage,
    read_sis,
    read_stk,
)
from .micrograph import LENGTH_UNITS, MICROMETRES, TIME_UNITS, is_positive, round_digits, spell_unit
from .ome_metadata import image_metadata, parse_ome_xml


# By the flag that tifffile gives a file. The first one that states something is believed.
MAKERS: dict[str, tuple[str, Callable]] = {
    "micromanager": ("Micro-Manager", read_micromanager),
    "lsm": ("Zeiss LSM", read_lsm),
    "stk": ("MetaMorph", read_stk),
    "metaseries": ("MetaXpress", read_metaseries),
    "fluoview": ("Olympus FluoView", read_fluoview),
    "scanimage": ("ScanImage", read_scanimage),
    "sis": ("Olympus cellSens", read_sis),
}
DIGITAL_MICROGRAPH_TAGS = (65009, 65010, 65011)
UNREAD_MAKERS = {
    "fei": "FEI",
    "sem": "Zeiss SEM",
    "tvips": "TVIPS",
    "nih": "NIH Image",
    "andor": "Andor",
    "epics": "EPICS areaDetector",
    "pilatus": "Pilatus",
    "nuvu": "Nüvü",
    "streak": "Hamamatsu",
    "eer": "EER",
    "qpi": "PerkinElmer",
    "ndpi": "Hamamatsu NDPI",
    "svs": "Aperio",
    "scn": "Leica SCN",
    "bif": "Ventana",
    "philips": "Philips",
    "agilent": "Agilent",
    "mediacy": "Media Cybernetics",
    "vista": "ISS Vista",
    "geotiff": "GeoTIFF",
}

NO_UNITS = (None, "", "pixel", "pixels", "inch", "inches", "dpi")  # of ImageJ, where it knows no size
READ_FROM_SHAPED = {
    *("shape", "axes", "truncated", "unit", "yunit", "zunit", "spacing", "finterval", "tunit", "Labels", "Channel"),
    *(f"PhysicalSize{axis}{unit}" for axis in "XYZ" for unit in ("", "Unit")),
    *("TimeIncrement", "TimeIncrementUnit", "channel_names"),
}

# Resolutions in dots per inch that programs write by default, for prints and screens.
PRINT_RESOLUTIONS = (
    1,
    72,
    90,
    96,
    100,
    120,
    144,
    150,
    180,
    200,
    220,
    240,
    254,
    300,
    350,
    360,
    400,
    600,
    720,
    1200,
    2400,
)
MICROMETRES_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}
LARGEST_PIXEL, SMALLEST_PIXEL = 10.0, 1e-4  # µm, of a resolution tag that is taken for that of a microscope


def read_tiff_metadata(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path, position: int | None = None
) -> dict[str, Any]:
    """
    What a file says about one of its images.

    Metadata that cannot be read, or whose sizes are not kept, are told in one warning; the pixels are fine all the
    same.

    Args:
        tif (`tifffile.TiffFile`): The open file.
        series (`tifffile.TiffPageSeries`): The image.
        path (`Path`): What warnings call the file.
        position (`int`, *optional*): Which stage position along the axis `R` is meant.

    Returns:
        `dict`: Arguments of [`Micrograph`], and as `"axes"` those that this package noted.
    """
    sources: list[dict[str, Any]] = []
    troubles: list[str] = []
    if tif.is_ome:
        sources.append(_ome_metadata(tif, series, path, position))
    if tif.is_imagej:
        sources.append(_imagej_metadata(tif.imagej_metadata, _resolution_tags(tif), series))
    if series.kind == "shaped":
        sources.append(_shaped_metadata(tif, series))
    for flag, (maker, read) in MAKERS.items():
        if getattr(tif.pages.first, f"is_{flag}"):
            try:
                sources.append(read(tif, series))
            except Exception as error:  # these formats are not specified; their pixels were found all the same
                reason = " ".join(str(error).split())[:100] or type(error).__name__
                troubles.append(f"has metadata of {maker} that cannot be read ({reason})")
    if any(code in tif.pages.first.tags for code in DIGITAL_MICROGRAPH_TAGS):
        sources.append(read_digital_micrograph(tif, series))

    metadata: dict[str, Any] = {}
    acquisition = Acquisition()
    for source in sources:
        troubles += source.pop("not_kept", [])
        acquisition = acquisition.completed_by(source.pop("acquisition", Acquisition()))
        for group in (
            ("pixel_size", "pixel_size_unit"),
            ("z_step", "z_step_unit"),
            ("time_interval", "time_interval_unit"),
        ):
            if group[0] in metadata:
                for name in group:
                    source.pop(name, None)
        metadata = {name: value for name, value in source.items() if value is not None} | metadata
    if "pixel_size" not in metadata:
        pixel_size, trouble = _size_of_resolution(tif)
        metadata |= pixel_size
        troubles += [trouble] if trouble else []
    described = tif.pages.first.description.strip("\0 \n")
    if not sources and described:
        acquisition = acquisition.completed_by(Acquisition(description=described))
    if "pixel_size" not in metadata and not troubles:
        troubles += _sizes_not_read(tif, described, bool(sources))
    metadata["acquisition"] = acquisition.completed_by(_display(tif, series))
    if troubles:
        warnings.warn(f"`{path}` {', and '.join(troubles)}: what it states of sizes there is not kept.", stacklevel=4)
    return metadata


def _ome_metadata(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path, position: int | None
) -> dict[str, Any]:
    ome = parse_ome_xml(tif.ome_metadata, path)
    if ome is None or not ome.images:
        return {}
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    same_name = [image for image in ome.images if series.name and image.name == series.name]
    if position is not None:
        image = ome.images[min(position, len(ome.images) - 1)]
        shape = tuple(size if axis != "R" else 1 for axis, size in zip(axes, shape, strict=True))
    elif len(ome.images) == len(tif.series):
        image = next(image for image, each in zip(ome.images, tif.series, strict=True) if each is series)
    else:  # tifffile leaves out images that have no data in the files that are there
        image = same_name[0] if same_name else ome.images[0]
    metadata = image_metadata(ome, image, axes, shape)
    if series.kind != "ome":
        metadata.pop("axes", None)
    return metadata


def _resolution_tags(tif: tifffile.TiffFile) -> list:
    return [tif.pages.first.tags.valueof(tag) for tag in ("YResolution", "XResolution")]


def _imagej_metadata(described: dict, resolution: list, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """ImageJ's description, which gives the unit of the tags `YResolution` and `XResolution`."""
    metadata: dict[str, Any] = {}
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    # "inch" is what ImageJ makes of the dots per inch of a plain TIFF; like "pixel" it is not in `LENGTH_UNITS`.
    unit = spell_unit(described.get("unit"), LENGTH_UNITS)
    unit_y = spell_unit(described.get("yunit", unit), LENGTH_UNITS)
    rationals = all(isinstance(value, tuple) and all(map(is_positive, value[:2])) for value in resolution)
    if unit and unit_y and rationals:
        height, width = (value[1] / value[0] for value in resolution)  # the tags are in pixels per unit
        if unit_y != unit:
            height = round_digits(height * MICROMETRES[unit_y] / MICROMETRES[unit])
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit}
    elif described.get("unit") not in NO_UNITS and not unit and rationals:
        metadata["not_kept"] = [f"states sizes in {str(described['unit'])!r}"]
    z_unit = spell_unit(described.get("zunit", unit), LENGTH_UNITS)
    if z_unit and is_positive(described.get("spacing")):
        metadata |= {"z_step": float(described["spacing"]), "z_step_unit": z_unit}
    time_unit = spell_unit(described.get("tunit", "s"), TIME_UNITS)
    if time_unit and is_positive(described.get("finterval")):
        metadata |= {"time_interval": float(described["finterval"]), "time_interval_unit": time_unit}
    info = described.get("Info")
    metadata["acquisition"] = Acquisition(description=info if isinstance(info, str) and info.strip() else None)

    # There is one label per plane. It is the channel's name if it is the same on all planes of a channel, apart from
    # the counter ("c:1/2 z:3/9 - ") that Bio-Formats puts in front, and if it tells the channels apart.
    leading = shape[: axes.index("Y")]
    labels = [re.sub(r"^([czt]:\d+/\d+ *)+(- *)?", "", str(label)) for label in np.ravel(described.get("Labels", []))]
    if "C" in axes and len(labels) == math.prod(leading):
        by_channel = np.moveaxis(np.reshape(labels, leading), axes.index("C"), 0).reshape(leading[axes.index("C")], -1)
        names = by_channel[:, 0].tolist()
        if (by_channel == by_channel[:, :1]).all() and 1 < len(names) == len(set(names)):
            metadata["channel_names"] = names
    return metadata


def _shaped_metadata(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """What users of `tifffile.imwrite` note as JSON, by the names that ImageJ or OME-XML have for it."""
    text = series.keyframe.shaped_description
    described = json.loads(text) if text and text.startswith("{") else {}
    metadata = _imagej_metadata(described, _resolution_tags(tif), series)
    sides = [described.get(f"PhysicalSize{axis}") for axis in "YXZ"]
    units = [spell_unit(described.get(f"PhysicalSize{axis}Unit", "µm"), LENGTH_UNITS) for axis in "YXZ"]
    if is_positive(sides[0]) and is_positive(sides[1]) and units[0] and units[0] == units[1]:
        metadata |= {"pixel_size": (float(sides[0]), float(sides[1])), "pixel_size_unit": units[0]}
    if is_positive(sides[2]) and units[2]:
        metadata |= {"z_step": float(sides[2]), "z_step_unit": units[2]}
    interval, unit = described.get("TimeIncrement"), spell_unit(described.get("TimeIncrementUnit", "s"), TIME_UNITS)
    if is_positive(interval) and unit:
        metadata |= {"time_interval": float(interval), "time_interval_unit": unit}
    channel = described.get("Channel")
    names = channel.get("Name") if isinstance(channel, dict) else described.get("channel_names")
    if isinstance(names, list) and names:
        metadata["channel_names"] = [str(name) for name in names]
    description = described.get("Description") or described.get("description")
    if not isinstance(description, str):
        rest = {name: value for name, value in described.items() if name not in READ_FROM_SHAPED}
        description = json.dumps(rest, ensure_ascii=False) if rest else None
    metadata["acquisition"] = Acquisition(description=description)
    return metadata


def _size_of_resolution(tif: tifffile.TiffFile) -> tuple[dict[str, Any], str | None]:
    """
    A pixel size from the resolution tags, and what is wrong with one that is not kept.

    Most programs write the dots per inch of a print there. A resolution is that of a microscope if its pixels are of
    10 µm or less, finer than any print; the usual ones of prints are ignored; others are not kept, but told.
    """
    if tif.is_imagej:
        return {}, None
    page = tif.pages.first
    resolution = _resolution_tags(tif)
    if not all(isinstance(value, tuple) and all(map(is_positive, value[:2])) for value in resolution):
        return {}, None
    per_unit = [value[0] / value[1] for value in resolution]
    unit = int(page.tags.valueof("ResolutionUnit", default=2))  # inch is the default of TIFF
    if unit not in MICROMETRES_PER_RESOLUTION_UNIT:
        is_print = all(any(math.isclose(value, dpi, rel_tol=1e-3) for dpi in PRINT_RESOLUTIONS) for value in per_unit)
        return {}, None if is_print else f"states {per_unit[1]:.4g} pixels per unit of length, but not the unit"
    sides = [round_digits(MICROMETRES_PER_RESOLUTION_UNIT[unit] / value) for value in per_unit]
    if all(SMALLEST_PIXEL <= side <= LARGEST_PIXEL for side in sides):
        return {"pixel_size": tuple(sides), "pixel_size_unit": "µm"}, None
    dots = [25400 / side for side in sides]
    tolerance = 1.3  # dots per inch; programs round to whole dots per cm
    if all(any(abs(dot - dpi) <= tolerance for dpi in PRINT_RESOLUTIONS) for dot in dots) or set(per_unit) == {1.0}:
        return {}, None
    return {}, f"states {dots[1]:.4g} pixels per inch, too few for a microscope"


def _sizes_not_read(tif: tifffile.TiffFile, described: str, is_known: bool) -> list[str]:
    """What a file without a pixel size says in places that are not read."""
    unread = [maker for flag, maker in UNREAD_MAKERS.items() if getattr(tif, f"is_{flag}")]
    if unread:
        return [
            f"has metadata of {' and '.join(unread)} that are not read (save it as OME-TIFF with Fiji to keep them)"
        ]
    spoken = re.search(r"(?i)(pixel|voxel|physical|spatial)[\s_-]*(size|width|calibration|spacing|scale)", described)
    if spoken and not is_known:
        return [
            f"speaks of {spoken[0]!r} in a description that is not read (save it as OME-TIFF with Fiji to keep it)"
        ]
    return []


def _display(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Acquisition:
    """Look-up tables and ranges: ImageJ's, which stand in a tag of their own, or the palette of the page."""
    page = tif.pages.first
    noted = page.tags.valueof(50839)  # IJMetadata
    noted = noted if isinstance(noted, dict) else {}
    luts = noted.get("LUTs", [])
    luts = [lut for lut in (luts if isinstance(luts, list) else [luts]) if np.shape(lut) == (3, 256)]
    ranges = [float(value) for value in np.ravel(noted.get("Ranges", []))]
    limits = list(zip(ranges[::2], ranges[1::2], strict=False))
    if tif.is_imagej and not limits:
        low, high = (tif.imagej_metadata.get(name) for name in ("min", "max"))
        limits = [(float(low), float(high))] if all(isinstance(v, (int, float)) for v in (low, high)) else []
    if not luts and page.colormap is not None and np.shape(page.colormap) == (3, 256):
        luts = [page.colormap >> 8]
    if not luts and tif.is_imagej and page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        luts = [np.tile(np.arange(255, -1, -1), (3, 1))]
    tables = [np.asarray(lut, np.uint8).tobytes() for lut in luts]
    count = max(len(tables), len(limits))
    tables += [None] * (count - len(tables))
    limits += [None] * (count - len(limits))
    channels = []
    for table, limit in zip(tables, limits, strict=True):
        color = table and color_of_lut(table)
        channels.append(Channel(color, None if color else table, limit))
    return Acquisition(channels=tuple(channels))
