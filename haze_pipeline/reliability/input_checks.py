"""What an image says about its acquisition: saturation, outliers, missing pixels, blank planes, few grey levels."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from haze_pipeline.utils.bad_pixels import find_hot_pixels


MAX_SATURATED = 1e-4  # fraction of the pixels above which a warning is due
MIN_GREY_LEVELS = 30
FULL_SCALES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)  # greatest counts of cameras


@dataclass
class InputChecks:
    """
    Args:
        saturated (`float`): Fraction of the pixels at the greatest value of the camera, or cut off at the top.
        hot_pixels (`int`): Number of isolated outliers.
        missing (`int`): Number of pixels without a measurement (NaN).
        grey_levels (`int`): Number of different values.
        is_blank (`bool`): Whether all pixels have one value.
        is_inverted (`bool`): Whether dark structures stand on a bright background, as in brightfield images.
        warnings (`list[str]`): Sentences on what makes a result less reliable.
    """

    saturated: float
    hot_pixels: int
    missing: int
    grey_levels: int
    is_blank: bool
    is_inverted: bool
    warnings: list[str] = field(default_factory=list)


def check_input(plane: np.ndarray) -> InputChecks:
    """
    Look at a plane before it is dehazed.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Intensities in the number type of the file; NaN where there are none.
    """
    valid = ~np.isnan(plane) if plane.dtype.kind == "f" else np.ones(plane.shape, dtype=bool)
    if not valid.any():
        return InputChecks(0.0, 0, plane.size, 0, True, False, ["The image has no pixel with a measurement."])
    low, high = plane[valid].min(), plane[valid].max()
    levels = len(np.unique(plane[valid]))
    result = InputChecks(
        saturated=saturated_fraction(plane[valid], levels),
        hot_pixels=len(find_hot_pixels(np.where(valid, plane, low).astype(np.float32))),
        missing=int(plane.size - valid.sum()),
        grey_levels=levels,
        is_blank=bool(low == high),
        is_inverted=is_inverted(np.where(valid, plane, np.median(plane[valid])).astype(np.float32)),
    )
    if result.is_blank:
        result.warnings.append("The image is blank: all its pixels have one value.")
        return result
    if result.saturated > MAX_SATURATED:
        result.warnings.append(
            f"{result.saturated:.2%} of the pixels are saturated: their true intensities are higher, and so may be "
            "those of the result."
        )
    if result.grey_levels < MIN_GREY_LEVELS:
        result.warnings.append(
            f"The image has only {result.grey_levels} grey levels: write the result with --output-dtype float32, "
            "which does not round it to them."
        )
    if result.is_inverted:
        result.warnings.append(
            "The background is brighter than the structures, as in brightfield images: the checkpoint expects "
            "fluorescence."
        )
    return result


def saturated_fraction(values: np.ndarray, grey_levels: int) -> float:
    """
    Fraction of values that are saturated: equal to the greatest one, if that is the full scale of a camera, or if more
    pixels have it than have all values of the next 256th of the range.
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
    """Whether most of a plane lies near the top of its range, and structures below."""
    smooth = ndimage.gaussian_filter(plane, 2.0, mode="reflect").astype(np.float64)
    low, median, high = np.quantile(smooth, (0.005, 0.5, 0.995))
    return bool(high > low and (median - low) / (high - low) > 0.7)
