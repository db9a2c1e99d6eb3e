"""
Calibration of the uncertainty: do predicted standard deviations match the errors?

This module fits the line and the curve of `sampling/uncertainty.py`, whose symbols it uses. It also computes scores of
the calibration, and intervals with a guaranteed coverage.

With many samples, a perfect model has B = s. Its root mean square error (RMSE) is sqrt(1 + 1/k) times its root mean
variance (RMV). The spread of few samples is itself uncertain (by about 1 / sqrt(2k)), and a small spread is more often
too small than too large. The line and the curve of few samples are therefore flatter and hold only for ensembles of
that size. Every calibration records its ensemble size and number of steps.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch

from haze_pipeline.sampling.uncertainty import local_intensity, predicted_std, predictor_of_error


if TYPE_CHECKING:
    from haze_pipeline.data.pairs import Pair
    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
    from haze_pipeline.pipeline_hdn import HDNPipeline


# Pixels drawn at random from each larger image. Neighbouring pixels are redundant, and 500 images take a gigabyte.
MAX_PIXELS = 2**15

NUM_KNOTS = 6  # knots of the curve

# Predictions have about the same contrast as the clear images. Beyond this ratio, the two are in different units.
MAX_CONTRAST_RATIO = 8.0


def measure_errors(
    pipe: "HazeMatchingPipeline | HDNPipeline",
    pairs: Iterable["Pair"],
    num_inference_steps: int | None,
    ensemble_size: int,
    seed: int = 0,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """
    Measure the spread of the ensemble, the local intensity and the error of the ensemble's mean at pixels of every
    specimen, in network units.

    Predictions and clear images are compared directly, so that both must be in the same unit. Hazy images without
    contrast, such as blank planes at the end of a stack, are left out.

    Args:
        pipe ([`HazeMatchingPipeline`] or [`HDNPipeline`]): The pipeline. A stored calibration is not used.
        pairs (iterable of [`Pair`]): Hazy and clear images.
        num_inference_steps (`int`, *optional*):
            Steps of every member, with the scheduler of `pipe`; `None` for a pipeline without steps.
        ensemble_size (`int`): Number of members.
        seed (`int`, defaults to `0`): Seed of the noise and of the choice of pixels in large images.

    Returns:
        `dict`: Spread, local intensity ([`local_intensity`]) and error of the mean, by specimen.

    Raises:
        `ValueError`: If an image is not finite, no hazy image has contrast, or clear images and predictions are in
            different units.
    """
    specimens, variances = {}, []
    steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    for index, pair in enumerate(pairs):
        if not np.isfinite(pair.clear).all():
            raise ValueError(f"{pair.source}: the clear image holds NaN or infinite values; leave this pair out.")
        generator = torch.Generator().manual_seed(seed + index)
        try:
            planes = pipe.image_processor.preprocess(pair.hazy)
            unit = pipe.image_processor.compute_normalization(planes).target_std.item()
            if unit == 0:
                continue
            # Without copies for dim regions, a plane has one unit, in which spread and error are measured. The
            # pipeline applies the calibration to every copy in the unit of that copy.
            out = pipe(
                pair.hazy, **steps, ensemble_size=ensemble_size, generator=generator, output_samples=True,
                restore_dim=False,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{pair.source}: {error}") from error
        spread = out.samples.std(axis=0, ddof=1).ravel() / unit
        intensity = local_intensity(planes[0, 0], unit).numpy().ravel()
        prediction, clear = out.prediction.ravel() / unit, pair.clear.astype(np.float32).ravel() / unit
        variances.append((clear.var(), prediction.var()))
        error = prediction - clear
        if spread.size > MAX_PIXELS:
            chosen = np.random.default_rng([seed, index]).choice(spread.size, MAX_PIXELS, replace=False)
            spread, intensity, error = spread[chosen], intensity[chosen], error[chosen]
        specimens.setdefault(pair.specimen_id, []).append((spread, intensity, error))
    if not specimens:
        raise ValueError("No hazy image has any contrast: add pairs with structure.")
    clear, prediction = np.mean(variances, axis=0)
    contrast = math.sqrt(clear / prediction) if prediction > 0 else math.inf
    if not 1 / MAX_CONTRAST_RATIO < contrast < MAX_CONTRAST_RATIO:
        raise ValueError(
            f"The clear images have {contrast:.3g} times the contrast of the predictions and are probably in another "
            "unit: scale them to the counts of the hazy images, or train with --normalization fixed."
        )
    return {
        name: tuple(np.concatenate(parts) for parts in zip(*images, strict=True)) for name, images in specimens.items()
    }


def calibrate(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], num_members: int, num_inference_steps: int | None
) -> dict:
    """
    Fit the calibration that a pipeline needs to return calibrated standard deviations and intervals.

    Args:
        specimens (`dict`): Spread, local intensity and errors of every specimen, see [`measure_errors`].
        num_members (`int`): Number of members of every ensemble.
        num_inference_steps (`int`, *optional*): Steps of every member; `None` for a pipeline without steps.

    Returns:
        `dict`: Arguments of `pipe.register_to_config`: `uncertainty_scale` and `uncertainty_offset` of the published
            line, the `uncertainty_curve` that replaces it, `interval_factors`, and ensemble size and number of steps
            as `calibrated_for`.
    """
    spread, intensity, errors = pool(specimens)
    scale, offset = fit_calibration(spread, errors, num_members)
    curve = fit_curve(spread, intensity, errors, num_members)
    predicted = predict_errors(specimens, num_members, curve=curve)
    factors = {str(alpha): factor for alpha, factor in conformal_factors(predicted.values()).items()}
    steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    return {
        "uncertainty_scale": scale,
        "uncertainty_offset": offset,
        "uncertainty_curve": curve,
        "interval_factors": factors,
        "calibrated_for": {"ensemble_size": num_members, **steps},
    }


def predict_errors(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_members: int,
    scale: float = 1.0,
    offset: float = 0.0,
    curve: dict | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Standard deviations predicted by [`predicted_std`], and errors, of every specimen of [`measure_errors`]."""
    predicted = {}
    for name, (spread, intensity, errors) in specimens.items():
        spread, intensity = torch.from_numpy(spread), torch.from_numpy(intensity)
        predicted[name] = predicted_std(spread, num_members, scale, offset, curve, intensity).numpy(), errors
    return predicted


def cross_validate(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], num_members: int, num_folds: int = 5
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    As [`predict_errors`], but each specimen is judged with a curve fitted to the other folds. At least two specimens
    are needed.
    """
    names, predicted = list(specimens), {}
    for first in range(min(num_folds, len(names))):
        left_out = {name: specimens[name] for name in names[first::num_folds]}
        known = {name: specimens[name] for name in names if name not in left_out}
        curve = fit_curve(*pool(known), num_members)
        predicted |= predict_errors(left_out, num_members, curve=curve)
    return predicted


def pool(specimens: dict[str, tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The measurements of all specimens, concatenated."""
    return tuple(np.concatenate(parts) for parts in zip(*specimens.values(), strict=True))


def calibration_curve(
    stds: np.ndarray, errors: np.ndarray, num_bins: int = 50, equal: str = "counts"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    RMV and RMSE of pixels in bins of similar predicted standard deviation (Levi et al. 2022, doi 10.3390/s22155540).

    Args:
        stds (`np.ndarray`): Predicted standard deviations, any shape.
        errors (`np.ndarray` of the same shape): Prediction less truth, in the same unit.
        num_bins (`int`, defaults to `50`): Largest number of bins; empty bins are left out.
        equal (`str`, defaults to `"counts"`):
            `"counts"`: bins with equal numbers of pixels. `"widths"`: bins of equal width from the smallest to the
            largest standard deviation, as in the HazeMatching reference. Its outermost bins may hold few pixels.

    Returns:
        RMV, RMSE and number of pixels of every bin, in order of increasing standard deviation.

    Raises:
        `ValueError`: If shapes differ, arrays are empty, a value is not finite, or a standard deviation is negative.
    """
    stds, errors = _checked(stds, errors)
    order = np.argsort(stds, kind="stable")
    stds, errors = stds[order], errors[order]
    if equal == "counts":
        edges = np.linspace(0, len(stds), num_bins + 1).round().astype(int)
    elif equal == "widths":
        inner = np.linspace(stds[0], stds[-1], num_bins + 1)[1:-1]
        edges = np.concatenate([[0], np.searchsorted(stds, inner), [len(stds)]])
    else:
        raise ValueError(f'`equal` must be "counts" or "widths", got {equal!r}.')
    counts = np.diff(edges)
    filled = counts > 0
    starts, counts = edges[:-1][filled], counts[filled]
    rmv = np.sqrt(np.add.reduceat(stds**2, starts) / counts)
    rmse = np.sqrt(np.add.reduceat(errors**2, starts) / counts)
    return rmv, rmse, counts


def fit_calibration(
    spread: np.ndarray, errors: np.ndarray, num_members: int, num_bins: int = 50
) -> tuple[float, float]:
    """
    Scale and offset of the line through the calibration curve of a validation set, without the variance left by
    averaging few members.

    The HazeMatching reference fits RMSE itself, unweighted, over bins of equal width without the last. If errors
    follow a line and members are many, both fits give the same line.

    Args:
        spread (`np.ndarray`): Unbiased standard deviations of the members.
        errors (`np.ndarray` of the same shape): Mean of the members less truth, in the same unit.
        num_members (`int`): Number of members.
        num_bins (`int`, defaults to `50`): Number of bins, which hold equal numbers of pixels.

    Returns:
        `tuple[float, float]`: Scale, and offset in the unit of `spread`.

    Raises:
        `ValueError`: As [`calibration_curve`], or if all standard deviations are alike.
    """
    rmv, rmse, _ = calibration_curve(spread, errors, num_bins)
    if len(rmv) < 2 or math.isclose(rmv[0], rmv[-1]):
        raise ValueError("All predicted standard deviations are alike, so that no line fits: use more varied pairs.")
    own = np.sqrt(np.maximum(rmse**2 - rmv**2 / num_members, 0))
    weights = 1 / np.maximum(own, 1e-6 * own.max())  # relative residuals, or bright pixels would dominate the fit
    slope, intercept = np.polyfit(rmv, own, 1, w=weights)
    return float(slope), float(intercept)


def fit_curve(spread: np.ndarray, intensity: np.ndarray, errors: np.ndarray, num_members: int) -> dict:
    """
    Fit the curve B = f(s¹⁻ʷ lʷ) of spread s and local intensity l to a validation set. f never falls. It is linear in
    logarithms between knots at quantiles of the validation set. The weight w maximises the likelihood of normal
    errors; it is near 0 if the local intensity carries no information.

    Args:
        spread (`np.ndarray`): Unbiased standard deviations of the members.
        intensity (`np.ndarray` of the same shape): Local intensity, see [`local_intensity`].
        errors (`np.ndarray` of the same shape): Mean of the members less truth, in the same unit.
        num_members (`int`): Number of members.

    Returns:
        `dict`: The weight w as `light_weight`, and the knots of f as `predictor` and `deviation`.

    Raises:
        `ValueError`: As [`fit_calibration`].
    """
    from scipy.optimize import minimize_scalar  # slow to import

    spread, errors = _checked(spread, errors)
    measured = spread, np.asarray(intensity, np.float64).ravel(), errors
    some = [values[:: max(1, spread.size // 2**20)] for values in measured]  # a million pixels determine the weight

    def negative_log_likelihood(weight: float) -> float:
        curve = _curve_of_weight(weight, *some, num_members)
        spread, intensity = (torch.from_numpy(values) for values in some[:2])
        variance = predicted_std(spread, num_members, curve=curve, intensity=intensity).square().numpy()
        return np.mean(some[2] ** 2 / variance + np.log(variance))

    weight = minimize_scalar(negative_log_likelihood, bounds=(0, 1), method="bounded", options={"xatol": 0.01}).x
    return _curve_of_weight(weight, *measured, num_members)


def _curve_of_weight(
    weight: float, spread: np.ndarray, intensity: np.ndarray, errors: np.ndarray, num_members: int
) -> dict:
    """Fit of log B by least squares in bins with equal numbers of pixels. Values never fall from knot to knot."""
    predictor = predictor_of_error(spread, intensity, weight)
    order = np.argsort(predictor)
    x, own = (
        np.array([part.mean() for part in np.array_split(values[order], min(200, len(order)))])
        for values in (np.log(predictor), errors**2 - spread**2 / num_members)
    )
    knots = np.quantile(x, np.linspace(0, 1, NUM_KNOTS))
    if not (np.diff(knots) > 0).all():
        raise ValueError("All predicted standard deviations are alike, so that no curve fits: use more varied pairs.")
    if not own.max() > 0:
        raise ValueError(
            "The errors are no larger than those left by averaging few members: there is nothing to calibrate."
        )
    hats = np.column_stack([np.interp(x, knots, row) for row in np.eye(NUM_KNOTS)])
    values = np.linalg.lstsq(hats, np.log(np.maximum(own, 1e-6 * own.max())) / 2, rcond=None)[0]
    return {
        "light_weight": float(weight),
        "predictor": np.exp(knots).tolist(),
        "deviation": np.exp(np.maximum.accumulate(values)).tolist(),
    }


def expected_normalized_calibration_error(stds: np.ndarray, errors: np.ndarray, num_bins: int = 50) -> float:
    """Mean of |RMV - RMSE| / RMV over bins with equal numbers of pixels (Levi et al. 2022); 0 is perfect."""
    rmv, rmse, _ = calibration_curve(stds, errors, num_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(rmv == rmse, 0, np.abs(rmv - rmse) / rmv)))


def mean_squared_z_score(stds: np.ndarray, errors: np.ndarray) -> float:
    """Mean of (error / std)² (Pernot 2024, arXiv 2402.10043); 1 is perfect, above 1 the errors are underestimated."""
    return float(np.mean(_z_scores(*_checked(stds, errors)) ** 2))


def coverage(stds: np.ndarray, errors: np.ndarray, factor: float) -> float:
    """Fraction of pixels whose truth lies within `factor` standard deviations of the prediction."""
    stds, errors = _checked(stds, errors)
    return float(np.mean(np.abs(errors) <= factor * stds))


def scores(stds: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """
    Ratio of RMS error to RMS predicted standard deviation, expected normalised calibration error (ENCE), mean squared
    z-score, and coverage of the intervals that contain 50, 90 and 95 % of normal errors.
    """
    flat = np.asarray(stds, np.float64).ravel(), np.asarray(errors, np.float64).ravel()
    rms_std, rms_error = (math.sqrt(np.mean(np.square(values))) for values in flat)
    return {
        "RMS error / RMS deviation": rms_error / rms_std,
        "ENCE": expected_normalized_calibration_error(*flat),
        "mean squared z": mean_squared_z_score(*flat),
        **{
            f"coverage at {level:.0%}": coverage(*flat, NormalDist().inv_cdf((1 + level) / 2))
            for level in (0.5, 0.9, 0.95)
        },
    }


def conformal_factors(
    images: Iterable[tuple[np.ndarray, np.ndarray]], alphas: Sequence[float] = (0.5, 0.32, 0.2, 0.1, 0.05)
) -> dict[float, float]:
    """
    Factors on the predicted standard deviations that give intervals with a guarantee, by conformal risk control
    (Angelopoulos et al. 2024, arXiv 2208.02814). In new specimens of the same distribution, prediction ± factor ·
    standard deviation misses the truth in at most a fraction alpha of the pixels, *on average over specimens*, for any
    model. There is no guarantee for a single image, a single structure, or specimens of another kind.

    Args:
        images (iterable of pairs of `np.ndarray`): Predicted standard deviations and errors of every specimen.
        alphas (sequence of `float`): Fractions of pixels that may be missed.

    Returns:
        `dict[float, float]`: Factor by alpha. With n specimens, alphas below 1 / (n + 1) are left out.

    Raises:
        `ValueError`: If there are too few specimens for any alpha.
    """
    z_scores, weights, number = [], [], 0
    for stds, errors in images:
        z_scores.append(np.abs(_z_scores(*_checked(stds, errors))))
        weights.append(np.full(errors.size, 1 / errors.size))  # every specimen has the same weight
        number += 1
    allowed = [alpha for alpha in alphas if alpha * (number + 1) >= 1]
    if not allowed:
        raise ValueError(
            f"{number} specimen(s) are too few for intervals: use {math.ceil(1 / max(alphas)) - 1} or more."
        )
    z_scores, weights = np.concatenate(z_scores), np.concatenate(weights)
    order = np.argsort(z_scores)
    z_scores = z_scores[order]
    missed = number - np.cumsum(weights[order])  # sum over specimens of the fractions above each z-score
    # The smallest factor with (sum of fractions + 1) / (n + 1) <= alpha; 1e-9 for rounding.
    factors = {}
    for alpha in allowed:
        first = np.searchsorted(-missed, 1 - alpha * (number + 1) - 1e-9)
        factors[alpha] = float(z_scores[min(first, len(z_scores) - 1)])
    return factors


def _z_scores(stds: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Errors in standard deviations; 0 where the error is 0, infinite where only the standard deviation is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0, errors / stds)


def _checked(stds: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat arrays in double precision."""
    stds, errors = np.asarray(stds), np.asarray(errors)
    if stds.shape != errors.shape:
        raise ValueError(f"`stds` and `errors` must have the same shape, got {stds.shape} and {errors.shape}.")
    stds, errors = stds.ravel().astype(np.float64), errors.ravel().astype(np.float64)
    if stds.size == 0 or not (np.isfinite(stds).all() and np.isfinite(errors).all()):
        raise ValueError("`stds` and `errors` must not be empty and must hold finite values only.")
    if (stds < 0).any():
        raise ValueError("`stds` must not be negative.")
    return stds, errors
