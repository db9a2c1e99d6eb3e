"""Estimation of the noise level of an image."""

import numpy as np


MAX_VALUES = 2**18  # whose median is taken; more would not make it more exact


def noise_deviation(image: np.ndarray, valid: np.ndarray | None = None) -> float:
    """
    Estimate the standard deviation of white noise in an image `[H, W]`. The image is filtered with the difference of
    two Laplacians, which suppresses structure (Immerkær 1996, doi 10.1006/cviu.1996.0060). The estimate uses the
    median of the absolute values, on which sparse structure has little influence. If `valid` is given, the median is
    that of these pixels.
    """
    mirrored = np.pad(image.astype(np.float32, copy=False), 1, mode="symmetric")
    curvature = mirrored[2:] - 2 * mirrored[1:-1] + mirrored[:-2]
    difference = curvature[:, 2:] - 2 * curvature[:, 1:-1] + curvature[:, :-2]
    values = (difference if valid is None else difference[valid]).ravel()
    step = values.size // MAX_VALUES | 1  # odd, so that the sample holds all columns
    return float(1.4826 * np.median(np.abs(values[::step])) / 6)
