"""Intensities with their axes and physical sizes, in memory or still in a file."""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .acquisition import Acquisition


# Units in the spelling of OME-XML. Any other ("pixel", "reference frame") is not a physical one.
MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
LENGTH_UNITS = tuple(MICROMETRES)
SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
TIME_UNITS = tuple(SECONDS)
# Other spellings, once greek mu (U+03BC) has been replaced by the micro sign (U+00B5) that OME wants.
UNIT_SPELLINGS = {
    **dict.fromkeys(("um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), "µm"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **{"angstrom": "Å", "picometer": "pm", "nanometer": "nm", "millimeter": "mm", "centimeter": "cm", "meter": "m"},
    **{"nanosecond": "ns", "microsecond": "µs", "millisecond": "ms", "msec": "ms"},
    **{"minute": "min", "minutes": "min", "hour": "h", "hours": "h", "day": "d"},
}
OME_AXES = "TZCAPRHE"  # tifffile stores angle, phase, tile, lifetime and lambda as "modulo" axes


class MicrographError(ValueError):
    """A file or micrograph that cannot be used. The message is one sentence that names the file and the mend."""


class SeveralImagesError(MicrographError):
    """A file holds `count` images, and none of them was chosen."""

    def __init__(self, message: str, count: int = 0):
        super().__init__(message)
        self.count = count


class PlaneStack:
    """
    The planes of a stack, each read from its file when it is asked for.

    It is indexed along its leading axes as an array is: `stack[t, z]` reads a plane, `stack[:, 2:5]` is a smaller
    stack, and `np.asarray(stack)` reads everything.

    Args:
        read (`Callable`): Reads the plane `[Y, X]` of a number, counted over the leading axes with the last the
            fastest.
        shape (`tuple[int, ...]`): `[..., Y, X]`.
        dtype (`np.dtype`): Number type of the planes.
    """

    def __init__(self, read: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: np.dtype):
        self._read = read
        self._numbers = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])
        self._plane_shape = tuple(shape[-2:])
        self.dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._numbers.shape + self._plane_shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> "np.ndarray | PlaneStack":
        numbers = self._numbers[index]
        if np.ndim(numbers) == 0:
            return self._read(int(numbers))
        part = PlaneStack(self._read, self.shape, self.dtype)
        part._numbers = numbers
        return part

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        data = np.empty(self.shape, self.dtype)
        for index in np.ndindex(self._numbers.shape):
            data[index] = self[index]
        return data if dtype is None else data.astype(dtype)


@dataclass
class Micrograph:
    """
    Intensities with the metadata that must not get lost between the input and the output file.

    Attributes:
        data (`np.ndarray` or [`PlaneStack`] of shape `[..., Y, X]`): The intensities, in the number type of the file.
        axes (`str`): One letter per axis of `data`, ending in `"YX"`: `T` time, `Z` depth, `C` channel.
        pixel_size (`tuple[float, float]`, *optional*): Height and width of a pixel in `pixel_size_unit`.
        pixel_size_unit (`str`, defaults to `"µm"`): One of `LENGTH_UNITS`.
        z_step (`float`, *optional*): Distance between planes in `z_step_unit`.
        z_step_unit (`str`, defaults to `"µm"`): One of `LENGTH_UNITS`.
        time_interval (`float`, *optional*): Time between frames in `time_interval_unit`.
        time_interval_unit (`str`, defaults to `"s"`): One of `TIME_UNITS`.
        channel_names (`list[str]`, *optional*): One name per channel; a single one where there is no axis `C`.
        provenance (`dict`, *optional*): How the image was made, as this package notes it in the files that it writes.
        acquisition ([`Acquisition`]): How the image was taken and is displayed.
        channels_last (`bool`, defaults to `False`):
            Whether the file holds the channels of a pixel together, `[..., Y, X, C]`. In `data` the axis `C` comes
            before `Y` all the same; files that are written for this micrograph are again in the order of its file.
        zarr_version (`str`, *optional*): Version of OME-Zarr of the file, if it is one.
    """

    data: np.ndarray | PlaneStack
    axes: str
    pixel_size: tuple[float, float] | None = None
    pixel_size_unit: str = "µm"
    z_step: float | None = None
    z_step_unit: str = "µm"
    time_interval: float | None = None
    time_interval_unit: str = "s"
    channel_names: list[str] | None = None
    provenance: dict | None = None
    acquisition: Acquisition = field(default_factory=Acquisition)
    channels_last: bool = False
    zarr_version: str | None = None

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

    def select(
        self, channel: int | None = None, z_range: slice | None = None, t_range: slice | None = None
    ) -> "Micrograph":
        """
        A part of the micrograph; nothing is read.

        Args:
            channel (`int`, *optional*): The only channel to keep, from 0; the axis `C` is dropped.
            z_range (`slice`, *optional*): Planes to keep.
            t_range (`slice`, *optional*): Frames to keep.

        Raises:
            `MicrographError`: If there is no such axis or channel, or nothing is left.
        """
        data, axes, names, acquisition = self.data, self.axes, self.channel_names, self.acquisition
        numbers = np.arange(math.prod(data.shape[:-2])).reshape(data.shape[:-2])  # of the planes
        for axis, part in (("Z", z_range), ("T", t_range)):
            if part is None:
                continue
            if axis not in axes:
                raise MicrographError(f"there is no axis {axis} to take a range of: the axes are {axes}.")
            position = axes.index(axis)
            length = data.shape[position]
            kept = range(*part.indices(length))
            if not kept:
                raise MicrographError(f"the range of {axis} leaves nothing of {length}: count from 0.")
            index = (slice(None),) * position + (part,)
            data, numbers = data[index], numbers[index]
            acquisition = self._begin_at(acquisition, axis, kept[0])
        if channel is not None:
            count = data.shape[axes.index("C")] if "C" in axes else 1
            if not 0 <= channel < count:
                raise MicrographError(f"there is no channel {channel}: there are {count}, counted from 0.")
            if "C" in axes:
                index = (slice(None),) * axes.index("C") + (channel,)
                data, numbers = data[index], numbers[index]
                axes = axes.replace("C", "")
                names = None if names is None else [names[channel]]
                channels = acquisition.channels
                acquisition = dataclasses.replace(acquisition, channels=channels[channel : channel + 1])
        return dataclasses.replace(
            self,
            data=data,
            axes=axes,
            channel_names=names,
            acquisition=acquisition.select_planes(numbers),
            channels_last=self.channels_last and channel is None,
        )

    def _begin_at(self, acquisition: Acquisition, axis: str, first: int) -> Acquisition:
        """The acquisition of an image that begins with a later plane (`Z`) or frame (`T`)."""
        place, start = acquisition.position, acquisition.start_time
        if axis == "Z" and place and place.z is not None and place.unit in MICROMETRES and self.z_step:
            moved = first * self.z_step_um / MICROMETRES[place.unit]
            place = dataclasses.replace(place, z=round_digits(place.z + moved))
        if axis == "T" and start is not None and self.time_interval:
            start = round_digits(start + first * self.time_interval * SECONDS[self.time_interval_unit])
        unitless = tuple(
            (name, scale, offset + first * scale * (name == axis)) for name, scale, offset in acquisition.unitless
        )
        return dataclasses.replace(acquisition, position=place, start_time=start, unitless=unitless)


def choose_series(count: int, series: int | None, source: Any) -> int:
    """The number of the image to read of `count` in a file; which one must be said if there are several."""
    if count == 0:
        raise MicrographError(f"`{source}` holds no images: save the one you want as a file of its own.")
    if series is None and count > 1:
        raise SeveralImagesError(
            f"`{source}` holds {count} images: choose one by its number, 0 to {count - 1} (on the command line with "
            f"--series), or save it as a file of its own.",
            count,
        )
    if series is not None and not 0 <= series < count:
        raise MicrographError(f"`{source}` has no image {series}: it holds {count}, counted from 0.")
    return series or 0


def name_axes(axes: str, source: Any) -> str:
    """Gives axes that OME does not know ("I", "Q") the meaning of `Z`, `T` or `C`, the innermost first."""
    free = [axis for axis in "CTZ" if axis not in axes]
    leading = list(axes[:-2])
    for i in reversed(range(len(leading))):
        if leading[i] not in OME_AXES and free:
            leading[i] = free.pop()
    if len(set(leading)) != len(leading) or not set(leading) <= set(OME_AXES):
        raise MicrographError(
            f"`{source}` has axes {axes}, which OME-TIFF cannot hold: split it into files of fewer axes."
        )
    return "".join(leading) + "YX"


def spell_unit(text: Any, units: tuple[str, ...]) -> str | None:
    """The unit in the spelling of OME, or `None` if it is not one of `units`."""
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda code: chr(int(code[1], 16)), str(text))  # ImageJ: "\u00B5m"
    text = text.replace("\u03bc", "\u00b5")
    text = UNIT_SPELLINGS.get(text.lower(), text)
    return text if text in units else None


def is_positive(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and 0 < value < math.inf


def round_digits(value: float) -> float:
    """A number without its last digits, which only the change of a unit makes."""
    return float(f"{value:.12g}")
