"""Contrast windows: the intensities that viewers show as darkest and brightest, measured while planes are written."""

import numpy as np


PERCENTILES = (0.1, 99.9)
MAX_MEASURED_SIDE = 512  # px; larger planes are sampled on a grid of at most this many rows and columns


class ContrastWindows:
    """
    One range of intensities per channel, from the smallest 0.1th to the largest 99.9th percentile of its planes. The
    order of the planes does not matter, so that several processes can each measure some of them.

    Args:
        axes (`str`): Axes of the image, such as `"TCZYX"`.

    Attributes:
        ranges (`dict[int, tuple[float, float]]`): Smallest and largest intensity of every channel.
    """

    def __init__(self, axes: str):
        self._channel = axes.index("C") if "C" in axes else None
        self.ranges: dict[int, tuple[float, float]] = {}

    def add(self, index: tuple[int, ...], plane: np.ndarray):
        """Measure the plane `[Y, X]` at an index of the leading axes."""
        rows, columns = (-(-side // MAX_MEASURED_SIDE) for side in plane.shape)
        values = np.asarray(plane[::rows, ::columns], np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, PERCENTILES)
            self._widen(0 if self._channel is None else index[self._channel], float(low), float(high))

    def merge(self, ranges: dict[int, tuple[float, float]]):
        """Add the ranges that another process measured."""
        for channel, (low, high) in ranges.items():
            self._widen(channel, low, high)

    def of(self, channel: int) -> tuple[float, float]:
        """The range of a channel; never empty, so that viewers can divide by its width."""
        low, high = self.ranges.get(channel, (0.0, 1.0))
        return low, high if high > low else low + 1

    def _widen(self, channel: int, low: float, high: float):
        least, greatest = self.ranges.get(channel, (low, high))
        self.ranges[channel] = min(low, least), max(high, greatest)
