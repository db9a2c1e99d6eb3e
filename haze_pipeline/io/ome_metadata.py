"""What OME-XML says about an image, and the companion files that hold it for others."""

import json
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import numpy as np

from .acquisition import Acquisition, Channel, Plane, Position
from .micrograph import (
    LENGTH_UNITS,
    MICROMETRES,
    SECONDS,
    TIME_UNITS,
    MicrographError,
    is_positive,
    round_digits,
    spell_unit,
)


# Of the annotations that say what OME-XML has no place for.
AXES_NAMESPACE = "haze-pipeline/axes"
PROVENANCE_NAMESPACE = "haze-pipeline/provenance"

MAX_COMPANION_BYTES = 2**28


def parse_ome_xml(ome_xml: str, path: Path):
    """The OME-XML of a file as `ome_types.OME`, or `None`, with a warning, if it is invalid."""
    from ome_types import from_xml  # takes a while to import, and most files do not need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one below holds everything
            return from_xml(ome_xml)
    except Exception as error:  # many programs write invalid OME-XML; the pixels are fine all the same
        reason = str(error).splitlines()[0]
        warnings.warn(f"`{path}` has invalid OME-XML, its sizes and names are ignored: {reason}", stacklevel=3)
        return None


def image_metadata(ome, image, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """
    What OME-XML says about an image.

    Args:
        ome (`ome_types.OME`): All of it.
        image (`ome_types.model.Image`): One of its images.
        axes (`str`): Axes of the image as stored, those of length 1 included.
        shape (`tuple[int, ...]`): Their lengths.

    Returns:
        `dict`: Arguments of [`Micrograph`], as `"axes"` those that this package noted, and as `"not_kept"` what is
            stated and has no place among them.
    """
    pixels = image.pixels
    metadata: dict[str, Any] = {"acquisition": _acquisition(ome, image, axes, shape), **_sizes(pixels)}
    if any(channel.name for channel in pixels.channels):
        metadata["channel_names"] = [channel.name or "" for channel in pixels.channels]

    for annotation in ome.structured_annotations.map_annotations if ome.structured_annotations else []:
        if annotation.namespace == AXES_NAMESPACE:
            metadata["axes"] = annotation.value["axes"]
        elif annotation.namespace == PROVENANCE_NAMESPACE:
            metadata["provenance"] = {key: json.loads(value) for key, value in annotation.value.items()}
    return metadata


def _sizes(pixels) -> dict[str, Any]:
    """Sizes, and as `"not_kept"` those that are not physical ones; a size of one pixel says nothing."""
    stated = {
        name: (getattr(pixels, name), getattr(pixels, f"{name}_unit"))
        for name in ("physical_size_y", "physical_size_x", "physical_size_z", "time_increment")
    }
    units = {
        name: spell_unit(unit.value, TIME_UNITS if name == "time_increment" else LENGTH_UNITS)
        for name, (_, unit) in stated.items()
    }
    known = {name for name, (value, _) in stated.items() if units[name] and is_positive(value)}
    metadata: dict[str, Any] = {}
    if {"physical_size_y", "physical_size_x"} <= known:
        sides = [stated["physical_size_y"], stated["physical_size_x"]]
        unit = units["physical_size_x"]
        if units["physical_size_y"] != unit:
            sides, unit = [(_in_unit(*side, MICROMETRES), None) for side in sides], "µm"
        metadata |= {"pixel_size": tuple(side for side, _ in sides), "pixel_size_unit": unit}
    else:
        known -= {"physical_size_y", "physical_size_x"}
    for name, argument in (("physical_size_z", "z_step"), ("time_increment", "time_interval")):
        if name in known:
            metadata |= {argument: stated[name][0], f"{argument}_unit": units[name]}
    lost = [
        f"{name.replace('_', ' ')} of {value:g} {unit.value}"
        for name, (value, unit) in stated.items()
        if name not in known and value and (value, unit.value) != (1, "pixel")
    ]
    return metadata | ({"not_kept": [f"states a {', a '.join(lost)}"]} if lost else {})


def _acquisition(ome, image, axes: str, shape: tuple[int, ...]) -> Acquisition:
    pixels, settings, label = image.pixels, image.objective_settings, image.stage_label
    objectives = {objective.id: objective for instrument in ome.instruments for objective in instrument.objectives}
    objective = objectives.get(settings.id) if settings else None
    if objective is None and len(objectives) == 1:
        (objective,) = objectives.values()
    channels = tuple(
        Channel(
            # The schema's default, white, is no statement.
            color=_hex(channel.color) if "color" in channel.model_fields_set else None,
            emission_wavelength=_nanometres(channel.emission_wavelength, channel.emission_wavelength_unit),
            excitation_wavelength=_nanometres(channel.excitation_wavelength, channel.excitation_wavelength_unit),
        )
        for channel in pixels.channels
    )
    return Acquisition(
        description=image.description or None,
        date=image.acquisition_date.isoformat() if image.acquisition_date else None,
        numerical_aperture=objective.lens_na if objective else None,
        immersion=objective.immersion.value if objective and objective.immersion else None,
        magnification=objective.nominal_magnification if objective else None,
        refractive_index=settings.refractive_index if settings else None,
        position=_position((label.x, label.x_unit), (label.y, label.y_unit), (label.z, label.z_unit), label.name)
        if label
        else None,
        channels=channels if any(channel != Channel() for channel in channels) else (),
        planes=_planes(pixels, axes, shape),
    )


def _planes(pixels, axes: str, shape: tuple[int, ...]) -> tuple[Plane, ...]:
    """Of all planes in the order in which they are stored, or none if the file states nothing about them."""
    leading = {axis: size for axis, size in zip(axes, shape, strict=True) if axis in "TZC"}
    others = [size for axis, size in zip(axes, shape, strict=True) if axis not in "TZCYX"]
    if not pixels.planes or max(others, default=1) > 1:
        return ()
    planes = [Plane()] * int(np.prod(list(leading.values())))
    for plane in pixels.planes:
        index = [getattr(plane, f"the_{axis.lower()}") for axis in leading]
        if all(0 <= number < size for number, size in zip(index, leading.values(), strict=True)):
            number = int(np.ravel_multi_index(index, tuple(leading.values()))) if index else 0
            planes[number] = Plane(
                _position(
                    (plane.position_x, plane.position_x_unit),
                    (plane.position_y, plane.position_y_unit),
                    (plane.position_z, plane.position_z_unit),
                ),
                _in_unit(plane.exposure_time, plane.exposure_time_unit, SECONDS),
                _in_unit(plane.delta_t, plane.delta_t_unit, SECONDS),
            )
    return tuple(planes) if any(plane != Plane() for plane in planes) else ()


def _position(*coordinates: tuple, name: str | None = None) -> Position | None:
    """A place from pairs of number and unit; in µm, or without a physical unit if one of them has none."""
    *places, name = coordinates if len(coordinates) == 4 else (*coordinates, name)
    stated = [(value, unit.value) for value, unit in places if value is not None]
    if not stated and name is None:
        return None
    units = {spell_unit(unit, LENGTH_UNITS) for _, unit in stated}
    if None in units:
        return Position(*(value for value, _ in places), unit="reference frame", name=name)
    if len(units) == 1:
        return Position(*(value for value, _ in places), unit=units.pop(), name=name)
    return Position(*(_in_unit(value, unit, MICROMETRES) for value, unit in places), name=name)


def _in_unit(value: float | None, unit, factors: dict[str, float]) -> float | None:
    """A number in µm or s, or `None` where it is not stated or its unit is not a physical one."""
    spelled = spell_unit(unit.value, tuple(factors))
    return None if value is None or spelled is None else round_digits(value * factors[spelled])


def _nanometres(value: float | None, unit) -> float | None:
    length = _in_unit(value, unit, MICROMETRES)
    return round_digits(length * 1e3) if is_positive(length) else None


def _hex(color) -> str:
    red, green, blue = color.as_rgb_tuple(alpha=False)
    return f"{red:02X}{green:02X}{blue:02X}"


# Companion files


def companion_xml(ome_xml: str, path: Path, warn: bool = True) -> str | None:
    """
    The OME-XML in the companion of a file that has only pixels ("BinaryOnly"); `None` if the file is no such one.

    Where the companion is missing, `None` is returned, with a warning unless `warn` is false.

    Raises:
        `MicrographError`: If the companion lies in another folder, or is damaged.
    """
    root = ElementTree.fromstring(ome_xml)
    only_binary = next((element for element in root if element.tag.endswith("BinaryOnly")), None)
    if only_binary is None:
        return None
    name = only_binary.attrib.get("MetadataFile", "")
    refuse_other_folders(name, path)
    companion = path.with_name(name) if name else None
    if companion is None or not companion.is_file():
        if warn:
            warnings.warn(
                f"`{path}` keeps its sizes, names and axes in its companion file {name!r}, which is missing: put both "
                f"into one folder, or they are not kept.",
                stacklevel=4,
            )
        return None
    try:
        if companion.stat().st_size > MAX_COMPANION_BYTES:
            raise ValueError("it is larger than any OME-XML")
        with companion.open("rb") as file:
            is_tiff = file.read(2) in (b"II", b"MM")
        if is_tiff:
            import tifffile

            with tifffile.TiffFile(companion) as tif:
                text = tif.pages.first.description
        else:
            text = companion.read_text(encoding="utf-8")
        if ElementTree.fromstring(text).find("{*}BinaryOnly") is not None:
            raise ValueError("it has a companion itself")
    except Exception as error:
        raise MicrographError(
            f"`{path}` has a damaged companion file {name!r} ({error}): copy or export both again."
        ) from error
    return text


def refuse_other_folders(name: str, path: Path):
    """Refuse a file name in the metadata of `path` that leads out of its folder."""
    if any(len(system(name).parts) > 1 or name == ".." for system in (PurePosixPath, PureWindowsPath)):
        raise MicrographError(
            f"`{path}` refers to {name!r} outside of its own folder: put all files of the image into one folder."
        )
