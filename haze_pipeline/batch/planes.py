"""Planes of a micrograph: which of them to measure, and the number type of their results."""

import numpy as np

from haze_pipeline.io.micrograph import Micrograph


def convert(values: np.ndarray, dtype: np.dtype, mask_value: float | None = None) -> tuple[np.ndarray, int, int]:
    """
    Convert values to another number type, and count those below and above its range. For an integer type, values are
    rounded, those outside its range are set to its smallest or largest value, and NaN to `mask_value` or 0.
    """
    if dtype.kind == "f":
        return values.astype(dtype), 0, 0
    limits = np.iinfo(dtype)
    rounded = np.rint(values.astype(np.float64))
    below, above = np.count_nonzero(rounded < limits.min), np.count_nonzero(rounded > limits.max)
    rounded = np.nan_to_num(rounded.clip(limits.min, limits.max), nan=mask_value or 0)
    return rounded.astype(dtype), int(below), int(above)


def spread_planes(micrograph: Micrograph, number: int) -> dict[int, list[tuple[int, ...]]]:
    """Indices of up to `number` planes of every channel, evenly spread."""
    planes: dict[int, list[tuple[int, ...]]] = {}
    for index in np.ndindex(micrograph.data.shape[:-2]):
        planes.setdefault(channel_of(index, micrograph.axes), []).append(index)
    return {channel: [each[i] for i in evenly(len(each), number)] for channel, each in planes.items()}


def evenly(length: int, number: int) -> list[int]:
    """Up to `number` of the integers below `length`, evenly spread."""
    return np.linspace(0, length - 1, min(length, number)).round().astype(int).tolist()


def channel_of(index: tuple[int, ...], axes: str) -> int:
    """Number of the channel of a plane `[..., H, W]` of a micrograph with these axes."""
    return index[axes.index("C")] if "C" in axes else 0
