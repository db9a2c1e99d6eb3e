"""Estimation of the noise level of an image."""

import numpy as np
from scipy import ndimage


def noise_deviation(image: np.ndarray, valid: np.ndarray | None = None) -> float:
    """
    Estimate the standard deviation of white noise in an image `[H, W]`. The image is filtered with the difference of
    two Laplacians, which suppresses structure (Immerkær 1996, doi 10.1006/cviu.1996.0060). The estimate uses the
    median of the absolute values, on which sparse structure has little influence. If `valid` is given, the median is
    that of these pixels.
    """
    difference = ndimage.convolve(image, np.outer([1, -2, 1], [1, -2, 1]), mode="reflect")
    return float(1.4826 * np.median(np.abs(difference if valid is None else difference[valid])) / 6)
