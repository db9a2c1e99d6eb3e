"""Checks of the acquisition of an image: saturation, outliers, missing pixels, blank planes and few grey levels."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage


MAX_SATURATED = 1e-4  # fraction of the pixels; more cause a warning
MIN_GREY_LEVELS = 30  # fewer cause a warning
FULL_SCALES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)  # largest counts of cameras


@dataclass
class InputChecks:
    """
    Results of [`check_input`].

    Args:
        saturated (`float`): Fraction of the pixels at the largest value of the camera, or clipped at a smaller one.
        hot_pixels (`int`): Number of isolated outliers.
        missing (`int`): Number of pixels without a measurement (NaN).
        grey_levels (`int`): Number of different values.
        is_blank (`bool`): Whether all pixels have one value.
        is_inverted (`bool`): Whether dark structures stand on a bright background, as in brightfield images.
        warnings (`list[str]`): Sentences that state what makes a result less reliable.
    """

    saturated: float
    hot_pixels: int
    missing: int
    grey_levels: int
    is_blank: bool
    is_inverted: bool
    warnings: list[str] = field(default_factory=list)


def check_input(plane: np.ndarray, hot_pixels: int) -> InputChecks:
    """
    Check a plane before it is dehazed.

    Args:
        plane (`np.ndarray` of shape `[H, W]`):
            Intensities in the number type of the file; NaN marks pixels without a measurement.
        hot_pixels (`int`): Number of isolated outliers, see [`find_hot_pixels`].
    """
    valid = ~np.isnan(plane) if plane.dtype.kind == "f" else np.ones(plane.shape, dtype=bool)
    if not valid.any():
        return InputChecks(0.0, 0, plane.size, 0, True, False, ["The image is empty: all its pixels are NaN."])
    values = plane[valid]
    levels = len(np.unique(values))
    result = InputChecks(
        saturated=saturated_fraction(values, levels),
        hot_pixels=hot_pixels,
        missing=plane.size - values.size,
        grey_levels=levels,
        is_blank=levels == 1,
        is_inverted=is_inverted(np.where(valid, plane, np.median(values)).astype(np.float32)),
    )
    if result.is_blank:
        result.warnings.append("The image is blank: all its pixels have one value.")
        return result
    if result.saturated > MAX_SATURATED:
        result.warnings.append(
            f"{result.saturated:.2%} of the pixels are saturated: their true intensities are higher, "
            "and the result may be too dim there."
        )
    if result.grey_levels < MIN_GREY_LEVELS:
        result.warnings.append(
            f"The image has only {result.grey_levels} grey levels: "
            "use --output-dtype float32 so that the result is not rounded to these levels."
        )
    if result.is_inverted:
        result.warnings.append(
            "The background is brighter than the structures, as in brightfield images, "
            "but the checkpoint is for fluorescence images."
        )
    return result


def saturated_fraction(values: np.ndarray, grey_levels: int) -> float:
    """
    Fraction of saturated values. Values equal to the maximum count as saturated if the maximum is the full scale of a
    camera, or if they are more than twice as many as those in the highest 256th of the range below the maximum.
    """
    high = values.max()
    at_top = int(np.count_nonzero(values == high))
    if high == values.min():
        return 0.0
    if values.dtype.kind in "ui" and int(high) in FULL_SCALES and at_top > 3:
        return at_top / values.size
    if grey_levels < MIN_GREY_LEVELS or at_top < max(10, 1e-4 * values.size):
        return 0.0
    below = high - (float(high) - float(values.min())) / 256
    return at_top / values.size if at_top > 2 * np.count_nonzero((values >= below) & (values < high)) else 0.0


def is_inverted(plane: np.ndarray) -> bool:
    """Whether most of a plane lies near the top of its range, so that structures are darker."""
    smooth = ndimage.gaussian_filter(plane, 2.0, mode="reflect").astype(np.float64)
    low, median, high = np.quantile(smooth, (0.005, 0.5, 0.995))
    return bool(high > low and (median - low) / (high - low) > 0.7)
