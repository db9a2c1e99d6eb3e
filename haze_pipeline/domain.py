"""Is an image like those that a checkpoint was trained on? Statistics and spectrum, compared with those of training images."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage, stats

from .tiling import spread_patches


CROP = 192  # side of the crops that are compared, px, so that the size of a field does not matter
LIMIT = 0.95  # quantile of the training crops' distances that is called 1


def image_features(plane: np.ndarray) -> np.ndarray:
    """
    Seventeen numbers that neither gain nor offset change: how much structure there is of every width against that of 1 to 4 px, how
    lopsided and how sparse it is, how much of the range the median leaves above it, and whether brighter parts are noisier.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Finite intensities.
    """
    plane = plane.astype(np.float64)
    smooth = [plane, *(ndimage.gaussian_filter(plane, sigma, mode="reflect") for sigma in (1, 2, 4, 8, 16, 32))]
    bands = [fine - coarse for fine, coarse in pairwise(smooth)]
    tiny = 1e-9 * max(1.0, float(np.abs(plane).max()))  # stands for no structure at all
    reference = max((smooth[1] - smooth[3]).std(), tiny)
    standard = [(band - band.mean()) / max(band.std(), tiny) for band in bands]
    skewness = [(band**3).mean() for band in standard[1:5]]
    kurtosis = [(band**4).mean() for band in standard[:5]]
    low, median, high = np.quantile(smooth[1], (0.01, 0.5, 0.99))
    noise = ndimage.gaussian_filter(bands[0] ** 2, 4)[::3, ::3].ravel()
    brightness = smooth[3][::3, ::3].ravel()
    noisier = stats.spearmanr(noise, brightness).statistic if np.ptp(noise) and np.ptp(brightness) else 0.0
    return np.array(
        [
            *(np.log(max(band.std(), tiny) / reference) for band in bands),
            *np.cbrt(skewness),
            *np.log(np.maximum(kurtosis, 1)),
            (median - low) / max(high - low, tiny),
            noisier,
        ]
    )


def fit_domain(images: Sequence[np.ndarray], num_crops: int = 500, seed: int = 0) -> dict:
    """
    What [`domain_distance`] compares with, from crops of training images.

    Args:
        images (sequence of `np.ndarray` of shape `[H, W]`): Hazy training images.
        num_crops (`int`, defaults to `500`): Crops, drawn at random.
        seed (`int`, defaults to `0`): Of the draws.

    Returns:
        `dict`: `mean` and `precision` of the features and the `limit` of distances, as numbers and lists.
    """
    rng = np.random.default_rng(seed)
    features = []
    for _ in range(num_crops):
        image = images[rng.integers(len(images))]
        y, x = (rng.integers(max(1, length - CROP + 1)) for length in image.shape)
        features.append(image_features(image[y : y + CROP, x : x + CROP]))
    features = np.array(features)
    covariance = np.cov(features.T) + 1e-3 * np.eye(features.shape[1])  # features that hardly vary tell nothing
    domain = {"mean": features.mean(axis=0).tolist(), "precision": np.linalg.inv(covariance).tolist(), "limit": 1.0}
    distances = [_distance(each, domain) for each in features]
    return {**domain, "limit": float(np.quantile(distances, LIMIT))}


def domain_distance(image: np.ndarray, domain: dict) -> float:
    """
    Mahalanobis distance of an image's features from those of the training images, the median of up to 9 crops; 1 is the distance
    that 5 % of the training crops exceed.

    Args:
        image (`np.ndarray` of shape `[H, W]`): The image.
        domain (`dict`): See [`fit_domain`].
    """
    crops = spread_patches(*image.shape, CROP, 3, 1)
    return float(np.median([_distance(image_features(image[crop]), domain) for crop in crops]) / domain["limit"])


def _distance(features: np.ndarray, domain: dict) -> float:
    difference = features - np.array(domain["mean"])
    return float(np.sqrt(difference @ np.array(domain["precision"]) @ difference))
