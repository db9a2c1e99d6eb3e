"""
What makers of microscopes and their programs say about an image in tags of their own, as tifffile decodes them.

Every function takes the open file and the chosen series of its pages, and returns arguments of [`Micrograph`].
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile

from .acquisition import Acquisition, Channel, Plane, Position
from .micrograph import LENGTH_UNITS, is_positive, round_digits, spell_unit


NO_UNITS = ("", "none", "pixel", "pixels", "px")  # where a program knows no size
# The metadata of so many planes are read one by one, at most.
MAX_READ_PLANES = 4096


def read_micromanager(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Micro-Manager: a summary in the head of the file, and JSON in tag 51123 of every page."""
    summary = (tif.micromanager_metadata or {}).get("Summary", {})
    # Where there is OME-XML, too, it says the same about every plane.
    frames = [_frame_of_micromanager(page) for page in series.pages[: 1 if tif.is_ome else MAX_READ_PLANES]]
    first = frames[0] if frames else {}
    side = _number(summary.get("PixelSize_um")) or _number(first.get("PixelSizeUm"))
    names = summary.get("ChNames") or []
    names = json.loads(names) if isinstance(names, str) else names
    names = names or list(dict.fromkeys(frame["Channel"] for frame in frames if frame.get("Channel")))
    colors = summary.get("ChColors") or []
    colors = json.loads(colors) if isinstance(colors, str) else colors
    planes = tuple(
        Plane(
            _position(*(_number(frame.get(f"{axis}PositionUm"), any_sign=True) for axis in "XYZ")),
            _scaled(_number(frame.get("Exposure-ms")), 1e-3),
            _scaled(_number(frame.get("ElapsedTime-ms"), any_sign=True), 1e-3),
        )
        for frame in frames
    )
    return {
        **_sizes(side, side, _number(summary.get("z-step_um"))),
        **_interval(_scaled(_number(summary.get("Interval_ms")), 1e-3)),
        "channel_names": [str(name) for name in names] or None,
        "acquisition": Acquisition(
            channels=tuple(Channel(color=f"{int(color) & 0xFFFFFF:06X}") for color in colors),
            planes=planes if any(plane != Plane() for plane in planes) else (),
        ),
    }


def _frame_of_micromanager(page: tifffile.TiffPage | tifffile.TiffFrame | None) -> dict[str, Any]:
    """What tag 51123 of a page says; nothing where the page is missing or lies in a file that is closed."""
    if page is None or page.parent.filehandle.closed:
        return {}
    described = page.aspage().tags.valueof(51123)
    return described if isinstance(described, dict) else {}


def read_lsm(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Zeiss LSM 5/7: tag CZ_LSMINFO, lengths in m and times in s."""
    described = tif.lsm_metadata
    width, height, step = (_scaled(_number(described.get(f"VoxelSize{axis}")), 1e6) for axis in "XYZ")
    times = described.get("TimeStamps")
    interval = _number(described.get("TimeIntervall")) or (None if times is None else _even_step(times))
    colors = described.get("ChannelColors") or {}
    bands = described.get("ChannelWavelength")
    bands = [] if bands is None else [1e9 * sum(band) / 2 if band[1] > band[0] > 0 else None for band in bands]
    count = max(len(bands), len(colors.get("Colors", [])))
    scan = described.get("ScanInformation") or {}
    places = described.get("Positions")
    place = None if places is None or len(places) != 1 else _position(*(_scaled(float(x), 1e6) for x in places[0]))
    return {
        **_sizes(height, width, step),
        **_interval(interval),
        "channel_names": [str(name) for name in colors.get("ColorNames", [])] or None,
        "acquisition": Acquisition(
            description=" ".join(text for text in (scan.get("Description"), scan.get("Notes")) if text) or None,
            position=place,
            channels=tuple(
                Channel(
                    color="{:02X}{:02X}{:02X}".format(*color[:3]) if color else None,
                    emission_wavelength=None if band is None else round_digits(band),
                )
                for color, band in zip(_padded(colors.get("Colors", []), count), _padded(bands, count), strict=True)
            ),
            **parse_objective(scan.get("Objective")),
        ),
    }


def read_stk(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """MetaMorph stack: tags UIC1 to UIC4, lengths in the unit of the calibration and in µm, times in ms."""
    described = tif.stk_metadata
    metadata: dict[str, Any] = {}
    if described.get("SpatialCalibration"):
        height, width = (_number(described.get(f"{axis}Calibration")) for axis in "YX")
        metadata |= _sizes_in(described.get("CalibrationUnits"), height, width)
    heights = described.get("AbsoluteZ")
    step = _number(described["ZDistance"][0]) if _is_constant(described.get("ZDistance")) else None
    step = step or (None if heights is None else _even_step(heights))
    times = described.get("TimeCreated")
    metadata |= _sizes(None, None, step)
    number = int(described.get("NumberPlanes", 1))
    if "T" in series.axes and times is not None:
        metadata |= _interval(_scaled(_even_step(times, tolerance=0.5), 1e-3))
    name = described.get("Name")
    metadata["channel_names"] = [name] if isinstance(name, str) and name else None
    places = described.get("StagePosition")
    exposures = [_exposure(text) for text in described.get("PlaneDescriptions", [])]
    planes = tuple(
        Plane(
            _position(
                *((None, None) if places is None else map(_on_a_stage, places[i])),
                None if heights is None else _on_a_stage(heights[i]),
            ),
            exposures[i] if len(exposures) == number else None,
        )
        for i in range(number)
    )
    waves = {float(wave) for wave in np.ravel(described.get("Wavelengths", []))}
    wave = waves.pop() if len(waves) == 1 else None
    return metadata | {
        "acquisition": Acquisition(
            description="\n".join(described.get("PlaneDescriptions", [])[:1]) or None,
            channels=(Channel(emission_wavelength=wave),) if is_positive(wave) and wave > 100 else (),
            planes=planes if any(plane != Plane() for plane in planes) else (),
        )
    }


def _on_a_stage(coordinate: float) -> float | None:
    """µm. tifffile reads them as unsigned fractions, of which negative ones would be metres away."""
    return float(coordinate) if 0 <= coordinate < 1e6 else None


def _exposure(text: str) -> float | None:
    """s, from "Exposure: 100 ms" in the description of a plane."""
    found = re.search(r"Exposure(?: Time)?\s*[:=]\s*([\d.]+)\s*(ms|s)\b", text, re.IGNORECASE)
    return round_digits(float(found[1]) * (1e-3 if found[2].lower() == "ms" else 1)) if found else None


def read_metaseries(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """MetaXpress and later MetaMorph: XML in the description of a single plane."""
    described = tif.metaseries_metadata
    plane = described.get("PlaneInfo", {})
    sizes: dict[str, Any] = {}
    if plane.get("spatial-calibration-state", True):
        height, width = (_number(plane.get(f"spatial-calibration-{axis}")) for axis in "yx")
        sizes = _sizes_in(plane.get("spatial-calibration-units"), height, width)
    place = _position(*(_number(plane.get(key), any_sign=True) for key in ("stage-position-x", "stage-position-y")))
    depth = _number(plane.get("z-position"), any_sign=True)
    if depth is not None:
        place = Position(place.x, place.y, depth) if place else Position(z=depth)
    name = plane.get("_IllumSetting_") or plane.get("image-name")
    wave = _number(plane.get("wavelength"))
    exposure = _exposure(str(plane.get("Exposure Time", ""))) or _exposure(f"Exposure: {plane.get('Exposure Time')}")
    return {
        **sizes,
        "channel_names": [str(name)] if name else None,
        "acquisition": Acquisition(
            description=described.get("Description") or plane.get("Description") or None,
            numerical_aperture=_number(plane.get("_MagNA_")),
            refractive_index=_number(plane.get("_MagRI_")),
            channels=(Channel(emission_wavelength=wave),) if wave and wave > 100 else (),
            planes=(Plane(place, exposure),) if place or exposure else (),
        ),
    }


def read_fluoview(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Olympus FluoView: tag MM_Header, a size and a unit for every axis."""
    metadata: dict[str, Any] = {}
    axes = {}
    for name, _, _, size, unit in tif.fluoview_metadata["Dimensions"]:
        axes[tifffile.TIFF.MM_DIMENSIONS.get(name.upper())] = (_number(size), unit)
    (height, unit_y), (width, unit_x) = (axes.get(axis, (None, None)) for axis in "YX")
    if unit_x == unit_y:
        metadata |= _sizes_in(unit_x, height, width)
    step, unit = axes.get("Z", (None, None))
    if step and spell_unit(unit, LENGTH_UNITS):
        metadata |= {"z_step": step, "z_step_unit": spell_unit(unit, LENGTH_UNITS)}
    interval, unit = axes.get("T", (None, None))
    if unit in ("s", "sec", "ms"):
        metadata |= _interval(_scaled(interval, 1e-3 if unit == "ms" else 1))

    # The text is a list of sections; those of channels have names such as "Channel 1" or "Acquisition Parameters".
    text = tif.pages.first.description
    names = re.findall(
        r"^\s*(?:Dye(?: Name)?(?: Ch ?\d+)?|DyeName|Channel ?\d+ (?:Dye|Name))\s*=\s*(.+?)\s*$", text, re.M
    )
    objective = re.search(r"^\s*(?:Objective(?: Lens)?(?: Name)?)\s*=\s*(.+?)\s*$", text, re.MULTILINE)
    return metadata | {
        "channel_names": names or None,
        "acquisition": Acquisition(description=text or None, **parse_objective(objective[1] if objective else None)),
    }


def read_scanimage(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """
    ScanImage: Matlab assignments in the head of the file, or in the tags Software (2016 on) or ImageDescription. Also
    the number of channels, `"interleaved_channels"`, which tifffile takes from the head only.
    """
    page = tif.pages.first
    described: dict[str, Any] = (tif.scanimage_metadata or {}).get("FrameData") or {}
    for text in (page.software, page.description):
        if not described and re.match(r"(SI|scanimage\.SI\d?|state)\.", text.strip() or " "):
            described = tifffile.matlabstr2py(text)
    described = {re.sub(r"^(SI|scanimage\.SI\d?)\.", "", key): value for key, value in described.items()}

    def first(*keys: str) -> Any:
        return next((described[key] for key in keys if key in described), None)

    metadata: dict[str, Any] = {}
    corners = first("hRoiManager.imagingFovUm")
    if np.shape(corners) == (4, 2):
        height, width = series.keyframe.shape[-2:]
        across, down = np.ptp(np.asarray(corners, float), axis=0)
        metadata |= _sizes(float(down) / height, float(across) / width)
    step = first("hStackManager.actualStackZStepSize", "hStackManager.stackZStepSize", "stackZStepSize")
    metadata |= _sizes(None, None, _number(step) or _number(first("state.acq.zStepSize", "acq.zStepSize")))
    period = _number(first("hRoiManager.scanFramePeriod", "scanFramePeriod"))
    rate = _number(first("hRoiManager.scanFrameRate", "scanFrameRate", "state.acq.frameRate"))
    metadata |= _interval(period or (1 / rate if rate else None))

    saved = np.ravel(first("hChannels.channelSave", "channelsSave") or []).astype(int)
    names = first("hChannels.channelName", "channelsName") or []
    names = [names] if isinstance(names, str) else list(names)
    limits = first("hChannels.channelLUT", "channelsLUT") or []
    in_file = [number - 1 for number in saved if 0 < number <= len(names)] or range(len(names))
    place = first("hMotors.motorPosition", "hMotors.samplePosition", "motorPosition")
    place = [float(x) for x in np.ravel(place if place is not None else []) if isinstance(x, (int, float, np.number))]
    return metadata | {
        "channel_names": [str(names[i]) for i in in_file] or None,
        "interleaved_channels": max(len(saved), 1),
        "acquisition": Acquisition(
            position=_position(*place[:3]) if len(place) >= 2 else None,
            channels=tuple(Channel(display_range=tuple(map(float, limits[i]))) for i in in_file)
            if np.shape(limits) == (len(names), 2) and names
            else (),
        ),
    }


def read_sis(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Olympus analySIS and cellSens: tags OlympusSIS and OlympusINI, lengths in m."""
    described = tif.sis_metadata or {}
    height, width = (_scaled(_number(described.get(f"pixelsize{axis}")), 1e6) for axis in "yx")
    heights = described.get("Z", {}).get("ZPos") if isinstance(described.get("Z"), dict) else None
    return {
        **_sizes(height, width, None if heights is None else _even_step(heights)),
        "acquisition": Acquisition(magnification=_number(described.get("magnification"))),
    }


def read_digital_micrograph(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> dict[str, Any]:
    """Gatan DigitalMicrograph, and what is exported for it: units in tags 65003 to 65005, sizes in 65009 to 65011."""
    tags = tif.pages.first.tags
    unit_x, unit_y, unit_z = (_text(tags.valueof(code)) for code in (65003, 65004, 65005))
    width, height, step = (_number(tags.valueof(code)) for code in (65009, 65010, 65011))
    metadata = _sizes_in(unit_x, height, width) if unit_x == unit_y else {}
    unit_z = spell_unit(unit_z, LENGTH_UNITS)
    return metadata | ({"z_step": step, "z_step_unit": unit_z} if step and unit_z else {})


# Numbers and texts of any maker


def parse_objective(text: str | None) -> dict[str, Any]:
    """
    Magnification, numerical aperture and immersion from the name of an objective.

    >>> parse_objective("Plan-Apochromat 63x/1.40 Oil DIC M27")
    {'magnification': 63.0, 'numerical_aperture': 1.4, 'immersion': 'Oil'}
    """
    text = text or ""
    magnification = re.search(r"(\d+(?:\.\d+)?)\s*[xX×]", text)
    aperture = re.search(r"(?:NA\s*[:=]?\s*|/\s*|[xX×]\s*)([01]\.\d+)", text)
    immersion = re.search(r"(?i:\b(oil|water|glyc|air|multi))|(?<=[\d.xX×])\s?([OW])(?![a-z])", text)
    names = {"o": "Oil", "w": "Water", "g": "Glycerol", "a": "Air", "m": "Multi"}
    return {
        "magnification": float(magnification[1]) if magnification else None,
        "numerical_aperture": float(aperture[1]) if aperture else None,
        "immersion": names[(immersion[1] or immersion[2])[0].lower()] if immersion else None,
    }


def _number(value: Any, any_sign: bool = False) -> float | None:
    """A finite number, positive unless `any_sign`, also from its text; `None` for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and (any_sign or number > 0) else None


def _text(value: Any) -> str:
    value = "" if value is None else value
    return value.decode("utf-8", "replace").rstrip("\0") if isinstance(value, bytes) else str(value)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else round_digits(value * factor)


def _padded(values: Sequence, length: int) -> list:
    return [*values, *[None] * (length - len(values))]


def _sizes(height: float | None, width: float | None, step: float | None = None, unit: str = "µm") -> dict[str, Any]:
    """Sizes as arguments of [`Micrograph`]; a step is in µm."""
    metadata: dict[str, Any] = {}
    if is_positive(height) and is_positive(width):
        metadata = {"pixel_size": (round_digits(height), round_digits(width)), "pixel_size_unit": unit}
    return metadata | ({"z_step": round_digits(step), "z_step_unit": "µm"} if is_positive(step) else {})


def _sizes_in(unit: Any, height: float | None, width: float | None) -> dict[str, Any]:
    """A pixel size in a unit of the file; one that is not physical is noted as `"not_kept"`."""
    spelled, stated = spell_unit(unit, LENGTH_UNITS), str(unit or "").strip()
    if spelled:
        return _sizes(height, width, unit=spelled)
    is_size = height and width and stated.lower() not in NO_UNITS
    return {"not_kept": [f"states a pixel size of {height:g} × {width:g} {stated}"]} if is_size else {}


def _interval(seconds: float | None) -> dict[str, Any]:
    return {"time_interval": float(seconds), "time_interval_unit": "s"} if is_positive(seconds) else {}


def _position(x: float | None = None, y: float | None = None, z: float | None = None) -> Position | None:
    """A place in µm, if anything of it is stated."""
    return None if x is y is z is None else Position(x, y, z)


def _is_constant(values: Any) -> bool:
    return values is not None and len(values) > 0 and bool(np.ptp(np.asarray(values, float)) == 0)


def _even_step(values: Any, tolerance: float = 0.01) -> float | None:
    """The step of numbers that follow one another evenly, to a fraction of the step; `None` if they do not."""
    steps = np.abs(np.diff(np.asarray(values, float)))
    if not len(steps) or not np.isfinite(steps).all():
        return None
    step = float(np.median(steps))
    return round_digits(float(steps.mean())) if step > 0 and np.abs(steps - step).max() <= tolerance * step else None
