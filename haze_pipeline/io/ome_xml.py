"""OME-XML for a micrograph that is written."""

import json
import math
import re
import uuid
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from haze_pipeline.version import __version__

from .acquisition import Acquisition
from .micrograph import LENGTH_UNITS, TIME_UNITS, Micrograph, MicrographError, is_positive, name_axes, spell_unit
from .ome_metadata import AXES_NAMESPACE, PROVENANCE_NAMESPACE


IMMERSIONS = ("Oil", "Water", "WaterDipping", "Air", "Multi", "Glycerol")


class OmeXmlDescription:
    """
    What an OME-TIFF says about itself.

    Args:
        micrograph ([`Micrograph`]): Its axes, sizes, units, names and acquisition; its data are not looked at.
        shape (`tuple[int, ...]`): `[..., Y, X]` of what will be written.
        dtype (`np.dtype`): Its number type.
        name: What errors call the file.

    Raises:
        `MicrographError`: If something does not fit OME-XML.
    """

    def __init__(self, micrograph: Micrograph, shape: tuple[int, ...], dtype: np.dtype, name: Any):
        self._metadata = _metadata_for_ome(micrograph, shape, name)
        self._shape, self._dtype, self._name = shape, dtype, name
        channels = shape[micrograph.axes.index("C")] if "C" in micrograph.axes else 1
        self._acquisition = micrograph.acquisition.fitted(channels, math.prod(shape[:-2]))
        self._stored_shape = (math.prod(shape[:-2]), 1, 1, *shape[-2:], 1)
        if micrograph.channels_last:
            *leading, channels, height, width = shape
            self._metadata["axes"] = self._metadata["axes"][:-3] + "YXC"
            self._shape = (*leading, height, width, channels)
            self._stored_shape = (math.prod(leading), 1, 1, height, width, channels)

    def with_provenance(self, provenance: dict | None) -> bytes:
        """The XML, with how the image was made as key-value pairs."""
        annotations = [{"Namespace": AXES_NAMESPACE, "Value": {"axes": self._metadata["axes"]}}]
        if provenance:
            values = {str(key): json.dumps(value, ensure_ascii=False) for key, value in provenance.items()}
            annotations.append({"Namespace": PROVENANCE_NAMESPACE, "Value": values})
        metadata = self._metadata | _acquisition_for_ome(self._acquisition, self._metadata.get("Channel", {}))
        # The identifier is the same for the same content, so that a file can be made again bit for bit.
        identifier = uuid.uuid5(uuid.NAMESPACE_URL, repr((self._shape, self._dtype.str, metadata, provenance)))
        described = tifffile.OmeXml(Creator=f"haze-pipeline {__version__}", UUID=str(identifier))
        try:
            described.addimage(self._dtype, self._shape, self._stored_shape, **metadata, MapAnnotation=annotations)
        except tifffile.OmeXmlError as error:
            raise MicrographError(
                f"`{self._name}` cannot hold the axes {metadata['axes']} ({error}): write fewer axes per file."
            ) from error
        _add_instrument(described, self._acquisition)
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
            f"`{name}`: there must be one name for each of {channels} channels, got {micrograph.channel_names}."
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
        metadata["Channel"] = {"Name": [_clean(each) for each in micrograph.channel_names]}
    return metadata


def _acquisition_for_ome(acquisition: Acquisition, channel: dict[str, list]) -> dict[str, Any]:
    """Description, date, channels and planes as tifffile's OME-XML takes them."""
    metadata: dict[str, Any] = {}
    if acquisition.description:
        metadata["Description"] = _clean(acquisition.description, kept="\t\n\r")
    if acquisition.date:
        metadata["AcquisitionDate"] = acquisition.date
    names = channel.get("Name") or [None] * len(acquisition.channels)
    if acquisition.channels:
        metadata["Channel"] = [
            _without_none(
                Name=name,
                Color=each.color and _rgba(each.color),
                EmissionWavelength=each.emission_wavelength,
                EmissionWavelengthUnit=each.emission_wavelength and "nm",
                ExcitationWavelength=each.excitation_wavelength,
                ExcitationWavelengthUnit=each.excitation_wavelength and "nm",
            )
            for name, each in zip(names, acquisition.channels, strict=True)
        ]
    if acquisition.planes:
        metadata["Plane"] = [
            _without_none(
                DeltaT=each.elapsed_time,
                ExposureTime=each.exposure_time,
                **{f"Position{name}": value for name, value in _coordinates(each.position).items()},
            )
            for each in acquisition.planes
        ]
    return metadata


def _add_instrument(described: tifffile.OmeXml, acquisition: Acquisition):
    """Add the objective and the place of the image, which `tifffile.OmeXml` has no arguments for."""
    objective = _without_none(
        LensNA=acquisition.numerical_aperture,
        Immersion=acquisition.immersion
        and (acquisition.immersion if acquisition.immersion in IMMERSIONS else "Other"),
        NominalMagnification=acquisition.magnification,
    )
    index = acquisition.refractive_index
    references = ""
    if objective or index:
        described.experimenters.append(  # after which instruments stand
            f'<Instrument ID="Instrument:0"><Objective ID="Objective:0"{_attributes(objective)}/></Instrument>'
        )
        settings = _attributes(_without_none(RefractiveIndex=index))
        references = f'<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"{settings}/>'
    if acquisition.position:
        place = {"Name": _clean(acquisition.position.name or "image"), **_coordinates(acquisition.position)}
        references += f"<StageLabel{_attributes(place)}/>"
    described.images[0] = described.images[0].replace("<Pixels ", f"{references}<Pixels ", 1)


def _coordinates(position) -> dict[str, Any]:
    """`X`, `XUnit` and so on, of what is stated."""
    stated = {axis: getattr(position, axis.lower(), None) for axis in "XYZ"}
    return {
        name: value
        for axis, number in stated.items()
        if number is not None
        for name, value in ((axis, number), (f"{axis}Unit", position.unit))
    }


def _attributes(values: dict[str, Any]) -> str:
    return "".join(f" {name}={quoteattr(str(value))}" for name, value in values.items())


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rgba(color: str) -> int:
    """A colour as OME-XML has it: a signed integer of four bytes, the last of them opaque."""
    number = int(color, 16) << 8 | 255
    return number - 2**32 if number >= 2**31 else number


def _clean(text: str, kept: str = "") -> str:
    """Text without the control characters that XML has no way to write."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", lambda c: c[0] if c[0] in kept else " ", text)
