"""Out-of-focus background that is known to be wider than the specimen."""

import numpy as np
from scipy import ndimage

from .arrays import allocate
from .bad_pixels import fill_masked


BAND_ROWS = 1024  # that are worked on at once, so that temporary arrays of large planes stay small


def subtract_background(plane: np.ndarray, width: int) -> np.ndarray:
    """
    A plane without its background, which is everything at least `width` pixels wide in both directions: its white
    top-hat (Serra 1982).

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Intensities.
        width (`int`): Side of the smallest square that the background fills, pixels.

    Returns:
        `np.ndarray` of shape `[H, W]`, float32, nowhere negative.

    Raises:
        `ValueError`: If it is not one plane. Pixels without a measurement (NaN) stay so.
    """
    if plane.ndim != 2:
        raise ValueError(f"`plane` must be one plane [H, W], got shape {plane.shape}.")
    plane, valid = fill_masked(plane.astype(np.float32))
    result = allocate(*plane.shape).numpy()
    margin = 2 * width  # more than the opening sees on either side
    for start in range(0, len(plane), BAND_ROWS):
        first = max(0, start - margin)
        band = ndimage.white_tophat(plane[first : start + BAND_ROWS + margin], size=width)
        result[start : start + BAND_ROWS] = band[start - first :][:BAND_ROWS]
    if valid is not None:
        result[~valid] = np.nan
    return result
