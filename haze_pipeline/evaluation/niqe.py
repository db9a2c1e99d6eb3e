"""
NIQE (Mittal, Soundararajan & Bovik 2013, doi 10.1109/LSP.2012.2227726), fitted on clear micrographs.

It compares the statistics of images with those of clear ones, and needs no pairs. It does not measure whether the
structure in an image is true. The published model is that of photographs, and says nothing about micrographs: name the
images that a score was fitted on. BRISQUE, its relative, needs opinions of people on photographs and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import gamma


# Shapes of the generalised Gaussian, and the ratio of moments by which each is recognised.
SHAPES = np.arange(0.2, 10.0, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
WINDOW = 7 / 6  # px, standard deviation of the window of local means and contrasts
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # to the neighbours of a pixel: right, below, and along both diagonals


@dataclass
class NIQE:
    """
    Gaussian model of the statistics of clear images, see [`fit_niqe`].

    Args:
        mean (`np.ndarray` of shape `[36]`): Means of the statistics over patches.
        covariance (`np.ndarray` of shape `[36, 36]`): Their covariance.
        patch_size (`int`): Side of the patches in pixels.
    """

    mean: np.ndarray
    covariance: np.ndarray
    patch_size: int

    def __call__(self, images: Sequence[np.ndarray]) -> float:
        """
        Distance of a set of images `[H, W]`, in any unit, from the clear images. 0 is perfect. All patches of the set
        are one distribution, since a micrograph may have few of them.

        Raises:
            `ValueError`: If there is no image, or one is smaller than a patch or constant.
        """
        statistics = _statistics(images, self.patch_size)  # [N,36]
        difference = statistics.mean(axis=0) - self.mean
        covariance = (np.cov(statistics, rowvar=False) if len(statistics) > 1 else 0) + self.covariance
        return float(np.sqrt(difference @ np.linalg.pinv(covariance / 2) @ difference))


def fit_niqe(clear: Sequence[np.ndarray], patch_size: int = 96, min_sharpness: float = 0.75) -> NIQE:
    """
    Fit the model on clear images. As in the paper, only the sharp patches of an image count.

    Args:
        clear (sequence of `np.ndarray` of shape `[H, W]`): Clear images in any unit.
        patch_size (`int`, defaults to `96`): Side of the patches in pixels, even.
        min_sharpness (`float`, defaults to `0.75`): Least mean contrast of a patch, relative to the sharpest of its
            image.

    Raises:
        `ValueError`: If an image is smaller than a patch or constant, or there are too few patches for a covariance.
    """
    if patch_size < 16 or patch_size % 2:
        raise ValueError(f"`patch_size` must be an even number of 16 or more pixels, got {patch_size}.")
    statistics = _statistics(clear, patch_size, min_sharpness)
    if len(statistics) <= statistics.shape[1]:
        raise ValueError(
            f"`clear` must have more than {statistics.shape[1]} sharp patches of {patch_size} pixels, got "
            f"{len(statistics)}: add images, or use smaller patches."
        )
    return NIQE(statistics.mean(axis=0), np.cov(statistics, rowvar=False), patch_size)


def _statistics(images: Sequence[np.ndarray], patch_size: int, min_sharpness: float = 0.0) -> np.ndarray:
    """Statistics `[N, 36]` of the patches of images whose sharpness is at least this fraction of the largest."""
    rows = []
    for image in images:
        if image.ndim != 2 or min(image.shape) < patch_size:
            raise ValueError(
                f"Images must be planes of {patch_size} pixels or more a side, got shape {image.shape}: use smaller "
                "patches."
            )
        low, high = np.percentile(image, (0.1, 99.9))
        if not low < high:
            raise ValueError("Images must be finite and not constant.")
        # The paper's constant of 1 in the local contrast is for 8-bit images.
        image = (image.astype(np.float64) - low) * (255 / (high - low))
        features = []
        for side in (patch_size, patch_size // 2):
            mean, square = (ndimage.gaussian_filter(each, WINDOW, radius=3) for each in (image, image**2))
            contrast = np.sqrt(np.maximum(square - mean**2, 0))
            patches = _cut((image - mean) / (contrast + 1), side)  # [N,s,s]
            if side == patch_size:
                sharpness = _cut(contrast, side).mean(axis=(1, 2))  # [N]
            features.append([_patch_statistics(patch) for patch in patches])
            image = ndimage.gaussian_filter(image, 1.0)[::2, ::2]
        kept = sharpness >= min_sharpness * sharpness.max()
        rows.append(np.concatenate(features, axis=1)[kept])
    if not rows:
        raise ValueError("There must be at least one image.")
    return np.concatenate(rows)


def _cut(image: np.ndarray, side: int) -> np.ndarray:
    """Patches `[N, side, side]` that do not overlap, from the upper left."""
    rows, columns = (length // side for length in image.shape)
    patches = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return patches.swapaxes(1, 2).reshape(-1, side, side)


def _patch_statistics(patch: np.ndarray) -> list[float]:
    """18 statistics of a normalised patch: of its values, and of their products with four neighbours."""
    shape, left, right = _fit_generalised_gaussian(patch)
    statistics = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = _fit_generalised_gaussian(patch * np.roll(patch, shift, axis=(0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        statistics += [shape, mean, left**2, right**2]
    return statistics


def _fit_generalised_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    """
    Shape, left scale and right scale of an asymmetric generalised Gaussian, by the moments of the values (Lasmar et
    al. 2009, doi 10.1109/ICIP.2009.5414108).
    """
    negative, positive = values[values < 0], values[values > 0]
    left, right = (np.sqrt((part**2).mean()) if part.size else 1e-6 for part in (negative, positive))
    ratio = left / right
    moments = np.abs(values).mean() ** 2 / max((values**2).mean(), 1e-12)
    moments *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = SHAPES[np.abs(RATIOS - moments).argmin()]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return float(shape), float(left * scale), float(right * scale)
