"""Micrographs as layers of napari, and layers as micrographs."""

from typing import Any

import numpy as np

from haze_pipeline.io.acquisition import Acquisition
from haze_pipeline.io.contrast import ContrastWindows
from haze_pipeline.io.micrograph import (
    LENGTH_UNITS,
    MICROMETRES,
    TIME_UNITS,
    Micrograph,
    MicrographError,
    name_axes,
    spell_unit,
)


# First letters of names of axes, such as "time" and "Z", and what they are called elsewhere.
AXES = ("T", "Z", "C")

# Attributes that place a layer in the world.
PLACEMENT = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


def to_micrograph(data, attributes: dict[str, Any]) -> Micrograph:
    """
    The image in a layer, with its sizes from the scale and the units of the layer. Axes without a known name are taken
    as `Z`, then `T`, then `C`, the innermost first. Nothing is read.

    Args:
        data (array of shape `[..., Y, X]`): Data of the layer; of several resolutions, the first is taken.
        attributes (`dict`): Attributes of the layer, as in its layer data tuple.

    Raises:
        `MicrographError`: If the layer is a colour picture or has too many axes.
    """
    name = attributes.get("name", "The image")
    if attributes.get("rgb"):
        raise MicrographError(f"{name} is a colour picture: choose an image of one channel, with its intensities.")
    if attributes.get("multiscale"):
        data = data[0]
    leading = data.ndim - 2
    labels = attributes.get("axis_labels") or ["?"] * data.ndim
    letters = [label[:1].upper() if label[:1].upper() in AXES else "?" for label in labels[:leading]]
    axes = name_axes("".join(letters) + "YX", name)
    scale = [float(size) for size in attributes.get("scale", np.ones(data.ndim))]
    units = [str(unit) for unit in attributes.get("units") or ["pixel"] * data.ndim]
    stated = attributes.get("metadata") or {}
    acquisition = stated.get("acquisition", Acquisition())
    channels = data.shape[axes.index("C")] if "C" in axes else 1
    micrograph = Micrograph(
        data,
        axes,
        channel_names=None if "C" in axes else [name],
        acquisition=acquisition.fitted(channels, int(np.prod(data.shape[:-2]))),
        provenance=stated.get("provenance"),
    )
    of_rows, of_columns = (spell_unit(unit, LENGTH_UNITS) for unit in units[-2:])
    if of_rows is not None and of_rows == of_columns:
        micrograph.pixel_size, micrograph.pixel_size_unit = (scale[-2], scale[-1]), of_rows
    if "Z" in axes and (unit := spell_unit(units[axes.index("Z")], LENGTH_UNITS)) is not None:
        micrograph.z_step, micrograph.z_step_unit = scale[axes.index("Z")], unit
    if "T" in axes and (unit := spell_unit(units[axes.index("T")], TIME_UNITS)) is not None:
        micrograph.time_interval, micrograph.time_interval_unit = scale[axes.index("T")], unit
    return micrograph


def to_attributes(micrograph: Micrograph) -> dict[str, Any]:
    """Scale, units and names of the axes of a micrograph. An axis of unknown size has the unit pixel."""
    sizes = dict.fromkeys(micrograph.axes, (1.0, "pixel"))
    if micrograph.pixel_size is not None:
        unit = micrograph.pixel_size_unit
        sizes |= {"Y": (micrograph.pixel_size[0], unit), "X": (micrograph.pixel_size[1], unit)}
    if micrograph.z_step is not None:
        sizes["Z"] = (micrograph.z_step, micrograph.z_step_unit)
    if micrograph.time_interval is not None:
        sizes["T"] = (micrograph.time_interval, micrograph.time_interval_unit)
    scale, units = zip(*(sizes[axis] for axis in micrograph.axes), strict=True)
    return {"scale": scale, "units": units, "axis_labels": tuple(micrograph.axes.lower())}


def contrast_limits(*planes: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and as white, as in the files that this package writes."""
    windows = ContrastWindows("YX")
    for plane in planes:
        windows.add((), plane)
    return windows.of(0)


def describe_microscope(micrograph: Micrograph) -> str:
    """What is known about the optics of an image, in one line."""
    acquisition = micrograph.acquisition
    channel = acquisition.channels[0] if acquisition.channels else None
    facts = [
        acquisition.magnification and f"{acquisition.magnification:g}×",
        acquisition.numerical_aperture and f"NA {acquisition.numerical_aperture:g}",
        acquisition.immersion and acquisition.immersion.lower(),
        channel and channel.emission_wavelength and f"emission {channel.emission_wavelength:g} nm",
    ]
    return ", ".join(fact for fact in facts if fact) or "not stated in the file"


def set_pixel_size(micrograph: Micrograph, micrometres: float | None):
    """State the side of a pixel in µm, unless the micrograph has it already."""
    known = micrograph.pixel_size_um
    if micrometres and (known is None or not np.isclose(known, micrometres, rtol=1e-3)):
        side = micrometres / MICROMETRES[micrograph.pixel_size_unit]
        micrograph.pixel_size = (side, side)
