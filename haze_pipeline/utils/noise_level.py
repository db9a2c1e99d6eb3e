"""How noisy an image is."""

import numpy as np
from scipy import ndimage


def noise_deviation(image: np.ndarray) -> float:
    """
    Standard deviation of white noise, from what the difference of two Laplacians leaves of an image (Immerkær 1996,
    doi 10.1006/cviu.1996.0060), by its median, which little structure does not move.
    """
    difference = ndimage.convolve(image, np.outer([1, -2, 1], [1, -2, 1]), mode="reflect")
    return float(1.4826 * np.median(np.abs(difference)) / 6)
