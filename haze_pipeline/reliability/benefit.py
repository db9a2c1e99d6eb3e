"""
Predicted benefit of dehazing: does the result improve on the input? No clear image is needed.

A ridge regression maps features of an input and its result to the gain in decibels of range-invariant PSNR. It is
fitted to pairs with known gains. It holds for specimens and microscopes like those of the pairs, and only for the
checkpoint that it was fitted for.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.sampling.tiling import tile_slices
from haze_pipeline.utils.bad_pixels import fill_masked
from haze_pipeline.utils.noise_level import noise_deviation


if TYPE_CHECKING:
    from haze_pipeline.data.pairs import Pair
    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # px, Gaussians whose differences are the bands of a spectrum
HARM = -2.0  # dB; dehazing harms an image that loses more
BENEFIT = 1.0  # dB; dehazing improves an image that gains more
MAX_FALSE_ALARMS = 0.08  # fraction of the improved images that the limit may warn of
MIN_PAIRS = 60  # fewer pairs are too few for a fit
CROP = 256  # px, largest side of the part of a plane that is evaluated, so that large planes take no longer
# Predicted gains, dB, at which none and all of what was taken for haze is removed.
NO_STRENGTH, FULL_STRENGTH = -1.0, 3.0
RIDGE = 30.0  # number of pseudo-observations that shrink every coefficient towards 0


def benefit_features(
    pipe: "HazeMatchingPipeline", hazy: np.ndarray, prediction: np.ndarray, seed: int = 0
) -> np.ndarray:
    """
    Features that describe how a plane and its result differ, and how consistent the network is. They do not depend on
    the intensity scale of the camera. In a large plane, only the 256 × 256 pixels with the strongest fine structure
    are evaluated.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline that predicted the result.
        hazy (`np.ndarray` of shape `[H, W]`): The input.
        prediction (`np.ndarray` of shape `[H, W]`): The result.
        seed (`int`, defaults to `0`): Seed of the noise, for checkpoints whose mean needs noise.

    Returns:
        `np.ndarray` of shape `[F]`: For every band of the spectrum, the log amplitude of the input relative to its
        fine structure, the log amplitude of the result relative to the input, and the correlation of input and result.
        Then the fraction of the intensity that was removed, noise relative to fine structure, and the skewness of
        input and result. Then the differences, relative to the contrast of the result, between the result and the
        results for the mirrored input, for the result itself and for the mean of input and result, and between the
        result and the input. Last, the correlation of input and result, and the position of the median in the range of
        the input.
    """
    part = _busiest_part(hazy)
    hazy, prediction = hazy[part].astype(np.float64), prediction[part].astype(np.float64)
    bands = [_bands(image) for image in (hazy, prediction)]
    tiny = 1e-6 * max(hazy.std(), np.finfo(float).tiny)
    amplitudes = np.log(np.maximum([[band.std() for band in each] for each in bands], tiny))  # [2,6]
    fine = np.log(max(np.hypot(bands[0][1].std(), bands[0][2].std()), tiny))
    correlations = [_correlation(one, other) for one, other in zip(*bands, strict=True)]

    fast, steps, members = with_preset(pipe, Preset.fast)

    def dehaze(image: np.ndarray) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return fast(image.astype(np.float32), steps, members, generator=generator).prediction.astype(np.float64)

    own = dehaze(hazy)
    scale = max(own.std(), tiny)
    mirrored = dehaze(hazy[::-1])[::-1]
    again = dehaze(own) if own.std() > tiny else own
    halfway = dehaze(0.5 * (hazy - hazy.min()) + 0.5 * own)
    excess = hazy - hazy.min()
    removed = 1 - prediction.sum() / max(excess.sum(), tiny)
    return np.array(
        [
            *(amplitudes[0] - fine),
            *(amplitudes[1] - amplitudes[0]),
            *correlations,
            np.clip(removed, -1, 2),
            np.log(max(noise_deviation(hazy), tiny)) - fine,
            np.cbrt(_skewness(hazy)),
            np.cbrt(_skewness(prediction)),
            np.log(max((mirrored - own).std(), tiny) / scale),
            np.log(max((again - own).std(), tiny) / scale),
            np.log(max((halfway - own).std(), tiny) / scale),
            np.log(max((hazy - own).std(), tiny) / scale),
            _correlation(hazy, own),
            (np.median(hazy) - hazy.min()) / max(np.quantile(hazy, 0.99) - hazy.min(), tiny),
        ]
    )


def measure_benefit(pipe: "HazeMatchingPipeline", pairs: Iterable["Pair"]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """
    Measure the features and the gains of results of the preset `fast`. Pairs without contrast are left out.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline.
        pairs (iterable of [`Pair`]): Hazy and clear images.

    Returns:
        Features `[N, F]`, gains `[N]` in dB of range-invariant PSNR, and the specimen of every pair.
    """
    fast, steps, members = with_preset(pipe, Preset.fast)
    features, gains, specimens = [], [], []
    for pair in pairs:
        hazy, clear = pair.hazy.astype(np.float32), pair.clear.astype(np.float32)
        if not np.ptp(hazy) or not np.ptp(clear):
            continue
        prediction = fast(hazy, steps, members, generator=torch.Generator().manual_seed(0)).prediction
        features.append(benefit_features(pipe, hazy, prediction))
        gains.append(range_invariant_psnr(clear, prediction) - range_invariant_psnr(clear, hazy))
        specimens.append(pair.specimen_id)
    return np.array(features), np.array(gains), specimens


def fit_benefit(features: np.ndarray, gains: np.ndarray, groups: Iterable) -> dict | None:
    """
    Fit the regression of [`predict_benefit`].

    Args:
        features (`np.ndarray` of shape `[N, F]`): Features of pairs that were not used in training.
        gains (`np.ndarray` of shape `[N]`): Gains in dB, range-invariant PSNR of the result less that of the input.
        groups (iterable of N): Specimen of every pair. The limit is set on specimens that were left out of the fit.

    Returns:
        `dict`: Coefficients, and the predicted gain below which a warning is given as `limit`; `None` for fewer than
            60 pairs or a single specimen.
    """
    if len(gains) < MIN_PAIRS:
        return None
    groups = np.array(list(groups))
    if len(np.unique(groups)) < 2:
        return None
    held_out = np.empty(len(gains))
    for group in np.unique(groups):
        known = groups != group
        held_out[~known] = predict_benefit(features[~known], _fit(features[known], gains[known]))
    limit = float(np.quantile(held_out[gains > BENEFIT], MAX_FALSE_ALARMS)) if (gains > BENEFIT).any() else HARM
    return {**_fit(features, gains), "limit": limit}


def predict_benefit(features: np.ndarray, fitted: dict) -> np.ndarray:
    """Predicted gains `[N]` in dB from features `[N, F]`, see [`fit_benefit`]."""
    return _terms(features, fitted) @ np.array(fitted["coefficients"])


def choose_strength(pipe: "HazeMatchingPipeline", planes: Iterable[np.ndarray], seed: int = 0) -> float:
    """
    Choose the `strength` of a call of the pipeline so that images that dehazing would harm change little.

    Args:
        pipe ([`HazeMatchingPipeline`]): A pipeline whose checkpoint predicts its gain.
        planes (iterable of `np.ndarray` of shape `[H, W]`): Hazy planes that are to have one strength.
        seed (`int`, defaults to `0`): Seed of the noise, for checkpoints whose mean needs noise.

    Returns:
        `float`: 0 if the mean predicted gain is −1 dB or less, 1 if it is 3 dB or more, linear in between; 1 if no
            plane has contrast.

    Raises:
        `ValueError`: If the checkpoint does not predict its gain.
    """
    if pipe.config.get("benefit") is None:
        raise ValueError(
            "This checkpoint does not predict its gain, so that no strength can be chosen: run haze-pipeline "
            "calibrate with at least 60 pairs, or give the strength."
        )
    fast, steps, members = with_preset(pipe, Preset.fast)
    features = []
    for plane in planes:
        hazy = fill_masked(plane.astype(np.float32))[0]
        if np.ptp(hazy) > 0:
            prediction = fast(hazy, steps, members, generator=torch.Generator().manual_seed(seed)).prediction
            features.append(benefit_features(pipe, hazy, prediction, seed))
    if not features:
        return 1.0
    return strength_for(predict_benefit(np.array(features), pipe.config.benefit).mean())


def strength_for(gain: float) -> float:
    """Strength for a predicted gain in dB, see [`choose_strength`]."""
    return float(np.clip((gain - NO_STRENGTH) / (FULL_STRENGTH - NO_STRENGTH), 0, 1))


def _fit(features: np.ndarray, gains: np.ndarray) -> dict:
    # Losses of 20 dB must not dominate the fit, since only gains near the limits matter.
    gains = np.clip(gains, -8, 8)
    fitted = {"mean": features.mean(axis=0).tolist(), "std": np.maximum(features.std(axis=0), 1e-6).tolist()}
    terms = _terms(features, fitted)
    penalty = RIDGE * np.eye(terms.shape[1])
    penalty[0, 0] = 0
    return {**fitted, "coefficients": np.linalg.solve(terms.T @ terms + penalty, terms.T @ gains).tolist()}


def _terms(features: np.ndarray, fitted: dict) -> np.ndarray:
    """1, the standardised features, clipped to three standard deviations, and their squares."""
    standard = np.clip((features - fitted["mean"]) / np.array(fitted["std"]), -3, 3)
    return np.concatenate([np.ones((len(features), 1)), standard, standard**2], axis=1)


def _busiest_part(image: np.ndarray) -> tuple[slice, slice]:
    """The tile of a plane with the strongest fine structure."""
    parts = tile_slices(*image.shape, CROP, 0)
    if len(parts) == 1:
        return parts[0]
    fine = np.abs(ndimage.gaussian_filter(image, 1.0) - ndimage.gaussian_filter(image, 4.0))
    return max(parts, key=lambda part: float(fine[part].mean()))


def _bands(image: np.ndarray) -> list[np.ndarray]:
    smooth = [image if sigma == 0 else ndimage.gaussian_filter(image, sigma, mode="reflect") for sigma in SCALES]
    return [fine - coarse for fine, coarse in pairwise(smooth)]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    scale = one.std() * other.std()
    return float(((one - one.mean()) * (other - other.mean())).mean() / scale) if scale > 0 else 0.0


def _skewness(image: np.ndarray) -> float:
    std = image.std()
    return float((((image - image.mean()) / std) ** 3).mean()) if std > 0 else 0.0
