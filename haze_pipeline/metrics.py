"""Image quality metrics that no library has."""

import numpy as np


def range_invariant_psnr(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Peak signal-to-noise ratio after the best scale and offset of the prediction (Weigert et al. 2018), the PSNR that
    HazeMatching reports. It suits images in different units. The peak is the target's range.

    Args:
        target (`np.ndarray`): Ground truth of any shape.
        prediction (`np.ndarray` of the same shape): Estimate, in any unit.

    Returns:
        `float`: Decibels; infinite for a perfect affine fit.

    Raises:
        `ValueError`: If the shapes differ or the target is constant.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"`target` and `prediction` must have one shape, got {target.shape} and {prediction.shape}.")
    target = target.astype(np.float64)
    prediction = prediction.astype(np.float64)
    value_range = target.max() - target.min()
    if value_range == 0:
        raise ValueError("`target` must not be constant.")
    target = target - target.mean()
    prediction = prediction - prediction.mean()
    energy = (prediction**2).sum()
    scale = (target * prediction).sum() / energy if energy > 0 else 0.0
    mse = ((target - scale * prediction) ** 2).mean()
    return float(10 * np.log10(value_range**2 / mse)) if mse > 0 else float("inf")
