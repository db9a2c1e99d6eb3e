"""What the attributes of an OME-Zarr say about an image."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .acquisition import Acquisition, Channel, Position
from .micrograph import LENGTH_UNITS, MICROMETRES, SECONDS, TIME_UNITS, is_positive, round_digits, spell_unit


ACQUISITION_KEY = "haze-pipeline-acquisition"  # of the attribute with what OME-Zarr has no place for


def axes_of(image: dict, ndim: int) -> list[dict[str, Any]]:
    """The axes of an image as version 0.4 describes them; 0.3 gives names only, and before they were always TCZYX."""
    stated = image.get("axes") or list("tczyx"[-ndim:])
    return [{"name": axis} if isinstance(axis, str) else axis for axis in stated]


def read_transformations(image: dict, axes: str, source: Path | str) -> dict[str, Any]:
    """Sizes, and the position as an `acquisition`, from the transformations of the full resolution of an image."""
    scales, offsets = np.ones(len(axes)), np.zeros(len(axes))
    for transform in [
        *image["datasets"][0].get("coordinateTransformations", []),
        *image.get("coordinateTransformations", []),
    ]:
        if transform.get("type") == "scale":
            factors = np.array(transform["scale"], float)
            scales, offsets = scales * factors, offsets * factors
        elif transform.get("type") == "translation":
            offsets = offsets + np.array(transform["translation"], float)
    units = [
        spell_unit(axis.get("unit"), TIME_UNITS if name == "T" else LENGTH_UNITS)
        for name, axis in zip(axes, axes_of(image, len(axes)), strict=True)
    ]
    known = {
        name: (float(scale), unit)
        for name, scale, unit in zip(axes, scales, units, strict=True)
        if unit and is_positive(scale)
    }
    unitless = tuple(
        (name, float(scale), float(offset))
        for name, scale, offset in zip(axes, scales, offsets, strict=True)
        if name not in known and name != "C" and is_positive(scale) and np.isfinite(offset) and (scale != 1 or offset)
    )
    if unitless:
        names = ", ".join(name for name, *_ in unitless)
        warnings.warn(
            f"`{source}` states a scale or a translation of the axes {names} without a unit of length or time: only "
            f"OME-Zarr results keep them.",
            stacklevel=4,
        )
    metadata: dict[str, Any] = {}
    if "X" in known and "Y" in known:
        (height, unit_y), (width, unit_x) = known["Y"], known["X"]
        if unit_y != unit_x:
            height = round_digits(height * MICROMETRES[unit_y] / MICROMETRES[unit_x])
        metadata |= {"pixel_size": (height, width), "pixel_size_unit": unit_x}
    if "Z" in known:
        metadata |= dict(zip(("z_step", "z_step_unit"), known["Z"], strict=True))
    if "T" in known:
        metadata |= dict(zip(("time_interval", "time_interval_unit"), known["T"], strict=True))

    # Where the first pixel lies. Without any translation the file says nothing about it.
    places = {
        name: (float(offset), unit)
        for name, offset, unit in zip(axes, offsets, units, strict=True)
        if name in known and np.isfinite(offset)
    }
    position = start = None
    lengths = {name: places[name] for name in "XYZ" if name in places}
    if any(offset for offset, _ in lengths.values()):
        unit = lengths["X"][1] if len({unit for _, unit in lengths.values()}) == 1 and "X" in lengths else "µm"
        factors = {name: MICROMETRES[stated] / MICROMETRES[unit] for name, (_, stated) in lengths.items()}
        moved = {name.lower(): round_digits(offset * factors[name]) for name, (offset, _) in lengths.items()}
        position = Position(**moved, unit=unit)
    if places.get("T", (0, None))[0]:
        start = round_digits(places["T"][0] * SECONDS[places["T"][1]])
    return metadata | {"acquisition": Acquisition(position=position, start_time=start, unitless=unitless)}


def channel_names(attributes: dict[str, Any]) -> list[str] | None:
    """Labels of the channels, if any has one."""
    names = [str(channel.get("label") or "") for channel in attributes.get("omero", {}).get("channels", [])]
    return names if any(names) else None


def read_acquisition(attributes: dict[str, Any]) -> Acquisition:
    """Colours and contrast windows of the channels, and what this package noted."""
    shown = []
    for channel in attributes.get("omero", {}).get("channels", []):
        window, color = channel.get("window") or {}, str(channel.get("color") or "").lstrip("#").upper()
        limits = (window.get("start"), window.get("end"))
        is_range = all(isinstance(limit, (int, float)) and math.isfinite(limit) for limit in limits)
        shown.append(
            Channel(
                color=color if re.fullmatch("[0-9A-F]{6}", color) else None,
                display_range=tuple(map(float, limits)) if is_range else None,
            )
        )
    noted = attributes.get(ACQUISITION_KEY)
    noted = Acquisition.from_json(noted) if noted else Acquisition()
    return Acquisition(channels=tuple(shown)).completed_by(noted)
