"""Pixels without a valid measurement: missing pixels (NaN), hot pixels and hits of cosmic rays."""

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool2d

from .arrays import row_bands


WINDOW = 11  # px, side of the surroundings that a pixel is compared with
# Largest excess of the fourth brightest of 3 × 3 pixels: this fraction of that of the outlier, beside noise.
LARGEST_NEIGHBOUR = 0.05
MIN_EXCESS = 12.0  # smallest excess of an outlier, standard deviations of the surroundings
MIN_LEVELS = 8  # smallest excess, grey levels; if photons are few, a single one resembles a hot pixel
SCREENED = 32  # px, side of the blocks of the quick test
SCREENING = 6.0  # smallest excess in the quick test that selects candidates, mean absolute deviations of a block


def fill_masked(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Give every NaN of a plane the value of the nearest pixel with a measurement, or 0 if there is none.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Intensities; NaN marks pixels without a measurement.

    Returns:
        The filled plane, which is `plane` itself if nothing is missing, and the mask of the pixels with a measurement,
        or `None` if all have one.
    """
    if not np.isnan(plane.sum()):
        return plane, None
    valid = ~np.isnan(plane)
    if not valid.any():
        return np.zeros_like(plane), valid
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return plane[tuple(nearest)], valid


def find_hot_pixels(plane: np.ndarray) -> np.ndarray:
    """
    Find isolated outliers.

    An outlier exceeds the median of the 11 × 11 pixels around it by 12 times their standard deviation and by 8 grey
    levels. Median and standard deviation are those without the four brightest pixels. At most two of its eight
    neighbours have a twentieth of its excess. Noise, edges, and images of point sources at least 1.5 px wide (full
    width at half maximum) do not count as outliers. The four corners are not checked.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Finite intensities.

    Returns:
        `np.ndarray` of shape `[K, 2]`: Rows and columns of the outliers.
    """
    found = [np.empty((0, 2), dtype=np.intp)]
    least = MIN_LEVELS * _grey_level(plane)
    for _, wider, inner in row_bands(len(plane), margin=32):
        band = plane[wider]
        excess = band - _mean_around(band, 5)
        blocks = torch.from_numpy(np.abs(excess))[None]
        blocks = avg_pool2d(blocks, SCREENED, ceil_mode=True, count_include_pad=False)[0].numpy()
        noise = blocks.repeat(SCREENED, axis=0)[: band.shape[0]].repeat(SCREENED, axis=1)[:, : band.shape[1]]
        candidates = np.argwhere(excess > SCREENING * noise)
        candidates = candidates[(candidates[:, 0] >= inner.start) & (candidates[:, 0] < inner.stop)]
        found.append(candidates[_are_isolated(band, candidates, least)] + [wider.start, 0])
    return np.concatenate(found)


def _mean_around(plane: np.ndarray, side: int) -> np.ndarray:
    """Mean of the `side` × `side` pixels around each pixel. Sums of shifted planes are faster than SciPy's filter."""
    mirrored = np.pad(plane, side // 2, mode="symmetric")
    rows = sum(mirrored[shift : shift + plane.shape[0]] for shift in range(side))
    return sum(rows[:, shift : shift + plane.shape[1]] for shift in range(side)) / np.float32(side**2)


def replace_hot_pixels(plane: np.ndarray) -> int:
    """
    Replace the outliers of [`find_hot_pixels`] by the median of the pixels around them, in place.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Finite intensities.

    Returns:
        `int`: Number of outliers.
    """
    hot = find_hot_pixels(plane)
    if len(hot) == 0:
        return 0
    around = _surroundings(plane, hot, 5)  # [K,25]
    is_hot = np.zeros(plane.shape, dtype=bool)
    is_hot[tuple(hot.T)] = True
    around[_surroundings(is_hot, hot, 5)] = np.nan
    plane[tuple(hot.T)] = np.nanmedian(around, axis=1)
    return len(hot)


def _grey_level(plane: np.ndarray) -> float:
    """Smallest difference between the values of a plane, from a sample of its pixels."""
    step = max(1, plane.size // 2**14)
    differences = np.diff(np.unique(plane.reshape(-1)[::step]))
    return float(differences.min()) if len(differences) else 0.0


def _are_isolated(plane: np.ndarray, candidates: np.ndarray, least: float) -> np.ndarray:
    """Which of the pixels `[K, 2]` are isolated outliers with an excess of at least `least`."""
    isolated = np.zeros(len(candidates), dtype=bool)
    for start in range(0, len(candidates), 2**14):
        chosen = candidates[start : start + 2**14]
        values = plane[tuple(chosen.T)]
        nearest = np.partition(_surroundings(plane, chosen, 3), (0, -4), axis=1)
        fourth = nearest[:, -4]
        # Most candidates belong to structures, whose brightness changes gradually. This test excludes them at little
        # cost.
        rank = np.flatnonzero(values - fourth > 2 * (fourth - nearest[:, 0]))
        around = np.sort(_surroundings(plane, chosen[rank], WINDOW), axis=1)[:, :-4].astype(np.float64)
        excess = values[rank] - np.median(around, axis=1)
        noise = around.std(axis=1)
        is_high = excess > np.maximum(least, MIN_EXCESS * noise)
        is_alone = fourth[rank] - np.median(around, axis=1) < LARGEST_NEIGHBOUR * excess + noise
        isolated[start + rank[is_high & is_alone]] = True
    return isolated


def _surroundings(plane: np.ndarray, pixels: np.ndarray, side: int) -> np.ndarray:
    """Copies `[K, side²]` of the squares around pixels, mirrored at the border of the plane."""
    offsets = np.arange(side) - side // 2

    def mirror(index: np.ndarray, size: int) -> np.ndarray:
        index = index % (2 * size)
        return np.where(index < size, index, 2 * size - 1 - index)

    rows = mirror(pixels[:, :1] + offsets, plane.shape[0])  # [K,side]
    columns = mirror(pixels[:, 1:] + offsets, plane.shape[1])
    return plane[rows[:, :, None], columns[:, None, :]].reshape(len(pixels), side**2)
