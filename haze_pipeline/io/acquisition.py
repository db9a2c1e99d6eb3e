"""How an image was taken and is displayed: what a file says about it besides axes and sizes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Position:
    """
    A place on the stage. Coordinates that the file does not state are `None`.

    Attributes:
        x, y, z (`float`, *optional*): In `unit`.
        unit (`str`, defaults to `"µm"`): One of `LENGTH_UNITS`, or `"reference frame"` where the file gives none.
        name (`str`, *optional*): Name of the place, such as the well.
    """

    x: float | None = None
    y: float | None = None
    z: float | None = None
    unit: str = "µm"
    name: str | None = None


@dataclass(frozen=True)
class Channel:
    """
    How a channel was taken and is displayed.

    Attributes:
        color (`str`, *optional*): `"RRGGBB"`, the colour of the brightest pixels.
        lut (`bytes`, *optional*): Look-up table of 256 reds, then 256 greens, then 256 blues, where it is not the ramp
            from black to `color`.
        display_range (`tuple[float, float]`, *optional*): Intensities that are drawn darkest and brightest.
        emission_wavelength (`float`, *optional*): In nm.
        excitation_wavelength (`float`, *optional*): In nm.
    """

    color: str | None = None
    lut: bytes | None = field(default=None, repr=False)
    display_range: tuple[float, float] | None = None
    emission_wavelength: float | None = None
    excitation_wavelength: float | None = None


@dataclass(frozen=True)
class Plane:
    """
    How a plane was taken.

    Attributes:
        position ([`Position`], *optional*): Of the stage.
        exposure_time (`float`, *optional*): In s.
        elapsed_time (`float`, *optional*): Since the acquisition began, in s.
    """

    position: Position | None = None
    exposure_time: float | None = None
    elapsed_time: float | None = None


@dataclass(frozen=True)
class Acquisition:
    """
    How an image was taken and is displayed. What the file does not state is `None` or empty.

    Attributes:
        description (`str`, *optional*): Free text.
        date (`str`, *optional*): When the acquisition began, as ISO 8601.
        numerical_aperture (`float`, *optional*): Of the objective.
        immersion (`str`, *optional*): Of the objective, such as `"Oil"`.
        magnification (`float`, *optional*): Of the objective, as engraved on it.
        refractive_index (`float`, *optional*): Of the immersion medium.
        position ([`Position`], *optional*): Of the image.
        start_time (`float`, *optional*): Time of the first frame on a clock that several images share, in s.
        unitless (`tuple[tuple[str, float, float], ...]`): Axes whose scale and translation have no unit, with both,
            which only OME-Zarr has a place for.
        channels (`tuple[Channel, ...]`): One for each channel, or none.
        planes (`tuple[Plane, ...]`): One for each plane, the last of the leading axes the fastest, or none.
    """

    description: str | None = None
    date: str | None = None
    numerical_aperture: float | None = None
    immersion: str | None = None
    magnification: float | None = None
    refractive_index: float | None = None
    position: Position | None = None
    start_time: float | None = None
    unitless: tuple[tuple[str, float, float], ...] = ()
    channels: tuple[Channel, ...] = ()
    planes: tuple[Plane, ...] = ()

    @property
    def first_position(self) -> Position | None:
        """Where the image lies: its own position, completed by that of its first plane."""
        own, first = self.position, self.planes[0].position if self.planes else None
        if own is None or first is None or own.unit != first.unit:
            return own or first
        return _complete(own, first)

    def fitted(self, num_channels: int, num_planes: int) -> "Acquisition":
        """Without channels or planes whose number is not that of the image."""
        return dataclasses.replace(
            self,
            channels=self.channels if len(self.channels) == num_channels else (),
            planes=self.planes if len(self.planes) == num_planes else (),
        )

    def completed_by(self, other: "Acquisition") -> "Acquisition":
        """With what only another source states."""
        values = {
            field.name: getattr(self, field.name)
            if getattr(self, field.name) not in (None, ())
            else getattr(other, field.name)
            for field in dataclasses.fields(self)
        }
        if len(self.channels) == len(other.channels):
            values["channels"] = tuple(map(_complete, self.channels, other.channels))
        return Acquisition(**values)

    def select_planes(self, numbers: np.ndarray) -> "Acquisition":
        """With only the planes of some numbers."""
        return dataclasses.replace(
            self, planes=tuple(self.planes[i] for i in np.ravel(numbers)) if self.planes else ()
        )

    def to_json(self) -> dict[str, Any]:
        """What is stated, as names and values that JSON can hold; without `unitless`, which is of OME-Zarr itself."""
        return _stated(dataclasses.asdict(dataclasses.replace(self, unitless=())))

    @classmethod
    def from_json(cls, stated: dict[str, Any]) -> "Acquisition":
        """The inverse of [`to_json`]."""

        def position(value: dict | None) -> Position | None:
            return None if value is None else Position(**value)

        channels = [
            Channel(
                **{
                    **channel,
                    "lut": bytes.fromhex(channel["lut"]) if "lut" in channel else None,
                    "display_range": tuple(channel["display_range"]) if "display_range" in channel else None,
                }
            )
            for channel in stated.get("channels", ())
        ]
        planes = [
            Plane(**{**plane, "position": position(plane.get("position"))}) for plane in stated.get("planes", ())
        ]
        nested = {"channels": tuple(channels), "planes": tuple(planes), "position": position(stated.get("position"))}
        return cls(**{**stated, **nested})


def _complete(part: Any, other: Any) -> Any:
    """A channel or a position, with what only another one states."""
    missing = {name: value for name, value in vars(other).items() if getattr(part, name) is None}
    return dataclasses.replace(part, **missing)


def _stated(value: Any) -> Any:
    """A nested value without what is `None` or empty, and with bytes as hexadecimal digits."""
    if isinstance(value, dict):
        return {name: _stated(each) for name, each in value.items() if each is not None and each != ()}
    if isinstance(value, (list, tuple)):
        return [_stated(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


# Colours


def lut_of_color(color: str) -> bytes:
    """The look-up table from black to a colour."""
    ramp = np.arange(256) / 255
    return np.rint(np.outer([int(color[i : i + 2], 16) for i in (0, 2, 4)], ramp)).astype(np.uint8).tobytes()


def color_of_lut(lut: bytes) -> str | None:
    """The colour to which a look-up table rises from black in equal steps, or `None` if it does not."""
    red, green, blue = (table[255] for table in np.frombuffer(lut, np.uint8).reshape(3, 256))
    color = f"{red:02X}{green:02X}{blue:02X}"
    exact = np.frombuffer(lut_of_color(color), np.uint8).astype(int)
    return color if np.abs(exact - np.frombuffer(lut, np.uint8)).max() <= 1 else None
