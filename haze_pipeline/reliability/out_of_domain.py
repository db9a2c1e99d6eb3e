"""Comparison of an image with the training images of a checkpoint, by its intensity statistics and its spectrum."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

from haze_pipeline.sampling.tiling import spread_patches


CROP = 128  # px, side of the crops that are compared, so that the size of the field does not matter
LIMIT = 0.95  # quantile of the distances of crops of held-out images; this distance counts as 1
MIN_IMAGES = 50  # fewer images do not show how much images of one kind vary


def image_features(plane: np.ndarray) -> np.ndarray:
    """
    Seventeen features that do not depend on gain and offset: the amplitude of structure in bands of every width,
    relative to that of 1 to 4 px; skewness and kurtosis of the bands; the position of the median in the range; and the
    correlation of noise with brightness.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Finite intensities.
    """
    from scipy import stats  # slow to import

    plane = plane.astype(np.float64)
    smooth = [plane, *(ndimage.gaussian_filter(plane, sigma, mode="reflect") for sigma in (1, 2, 4, 8, 16, 32))]
    bands = [fine - coarse for fine, coarse in pairwise(smooth)]
    tiny = 1e-9 * max(1.0, float(np.abs(plane).max()))  # amplitude that counts as no structure
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


def fit_domain(images: Sequence[np.ndarray], num_crops: int = 500, seed: int = 0) -> dict | None:
    """
    Fit the distribution of features that [`domain_distance`] uses, from crops of training images. The limit is set on
    held-out images: each half of the images is compared with the other half.

    Args:
        images (sequence of `np.ndarray` of shape `[H, W]`): Hazy training images.
        num_crops (`int`, defaults to `500`): Number of random crops.
        seed (`int`, defaults to `0`): Seed of the random crops.

    Returns:
        `dict`: `mean` and `precision` of the features and the `limit` of the distances, as lists and a number; `None`
            for fewer than 50 images of at least 128 px a side.
    """
    images = [image for image in images if min(image.shape) >= CROP]
    if len(images) < MIN_IMAGES:
        return None
    rng = np.random.default_rng(seed)
    halves = np.array_split(rng.permutation(len(images)), 2)
    features = []
    for half in halves:
        crops = []
        for index in rng.choice(half, num_crops // 2):
            y, x = (rng.integers(length - CROP + 1) for length in images[index].shape)
            crops.append(image_features(images[index][y : y + CROP, x : x + CROP]))
        features.append(np.array(crops))
    distances = []
    for known, other in (features, features[::-1]):
        moments = _moments(known)
        distances += [_distance(each, moments) for each in other]
    return {**_moments(np.concatenate(features)), "limit": float(np.quantile(distances, LIMIT))}


def domain_distance(image: np.ndarray, domain: dict) -> float | None:
    """
    Mahalanobis distance of the features of an image from those of the training images, the median of up to 9 crops.
    Crops of images of the same kind exceed a distance of 1 in 5 % of the cases. `None` for images of less than 128 px
    a side, which are too small.

    Args:
        image (`np.ndarray` of shape `[H, W]`): The image.
        domain (`dict`): Distribution of the training images, see [`fit_domain`].
    """
    if min(image.shape) < CROP:
        return None
    crops = spread_patches(*image.shape, CROP, 3, 1)
    return float(np.median([_distance(image_features(image[crop]), domain) for crop in crops]) / domain["limit"])


def _moments(features: np.ndarray) -> dict:
    covariance = np.cov(features.T) + 1e-3 * np.eye(features.shape[1])  # regularises nearly constant features
    return {"mean": features.mean(axis=0).tolist(), "precision": np.linalg.inv(covariance).tolist()}


def _distance(features: np.ndarray, domain: dict) -> float:
    difference = features - np.array(domain["mean"])
    return float(np.sqrt(difference @ np.array(domain["precision"]) @ difference))
