"""Subtraction of out-of-focus background that is wider than all in-focus structure."""

import numpy as np
from scipy import ndimage

from .arrays import allocate, row_bands
from .bad_pixels import fill_masked


def subtract_background(plane: np.ndarray, width: int) -> np.ndarray:
    """
    Subtract the background of a plane by a white top-hat transform (Serra 1982). Everything at least `width` pixels
    wide in both directions counts as background.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Intensities; NaN marks pixels without a measurement.
        width (`int`): Side of the smallest square that the background fills, pixels.

    Returns:
        `np.ndarray` of shape `[H, W]`, float32, nowhere negative; NaN where `plane` is NaN.

    Raises:
        `ValueError`: If `plane` is not a single plane.
    """
    if plane.ndim != 2:
        raise ValueError(f"`plane` must be one plane [H, W], got shape {plane.shape}.")
    plane, valid = fill_masked(plane.astype(np.float32))
    result = allocate(*plane.shape).numpy()
    margin = 2 * width  # px, more than the reach of the opening
    for rows, wider, inner in row_bands(len(plane), margin):
        result[rows] = ndimage.white_tophat(plane[wider], size=width)[inner]
    if valid is not None:
        result[~valid] = np.nan
    return result
