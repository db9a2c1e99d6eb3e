"""Smaller versions of large planes, which viewers show first."""

import math

import numpy as np


# A plane with a longer side gets smaller versions of itself, until one has no side longer than half of this.
PYRAMID_SIDE = 2048


def pyramid_levels(plane_shape: tuple[int, int]) -> int:
    """How many smaller versions a plane gets."""
    longest = max(plane_shape)
    return math.ceil(math.log2(longest / (PYRAMID_SIDE / 2))) if longest > PYRAMID_SIDE else 0


def halve(plane: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels of a plane `[Y, X]` or `[Y, X, C]`, in its number type; an odd last row is left out."""
    height, width = (side // 2 for side in plane.shape[:2])
    blocks = plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2, *plane.shape[2:])
    means = blocks.mean(axis=(1, 3), dtype=np.float64)
    return (means.round() if plane.dtype.kind in "iu" else means).astype(plane.dtype)
