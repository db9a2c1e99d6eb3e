"""
Do predicted deviations say how large errors are? Fits of the line and the curve of uncertainty.py, whose symbols stand
here too, scores, and intervals with a guarantee.

With many samples a perfect model has B = s; its root mean square error (RMSE) is sqrt(1 + 1/k) times its root mean
variance (RMV). The spread of few samples is itself uncertain (to about 1 / sqrt(2k)), so that a small one is likelier
to be too small than too large. Line and curve for them are flatter, and right for ensembles of that size only. A
calibration therefore says what it was made for.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch

from haze_pipeline.sampling.uncertainty import local_light, predicted_deviation, predictor_of_error


if TYPE_CHECKING:
    from haze_pipeline.data.pairs import Pair
    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline


# Of larger images so many pixels are drawn at random: neighbours say the same, and 500 images then take a gigabyte.
MAX_PIXELS = 2**15

NUM_KNOTS = 6  # of a curve

# Means over samples vary about as much as the truth. Beyond this, they are in different units.
MAX_CONTRAST_RATIO = 8.0


def measure_errors(
    pipe: "HazeMatchingPipeline", pairs: Iterable["Pair"], num_inference_steps: int, ensemble_size: int, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """
    Spread of an ensemble's members, light, and error of their mean for pixels of every specimen, in network units.

    Prediction and truth are compared as they are, so that both must be in the same unit. Hazy images without any
    contrast, such as blank planes at the end of a stack, are left out.

    Args:
        pipe ([`HazeMatchingPipeline`]): Its calibration, if any, is not used.
        pairs (iterable of [`Pair`]): Hazy and clear images.
        num_inference_steps (`int`): Steps of every member, with the scheduler of `pipe`.
        ensemble_size (`int`): Members.
        seed (`int`, defaults to `0`): Of the noise, and of which pixels of large images are taken.

    Returns:
        `dict`: By specimen, standard deviations of the members, [`local_light`], and errors of the mean.

    Raises:
        `ValueError`: If an image is not finite, no pair has contrast, or the clear images are in another unit than the
            predictions.
    """
    specimens, variances = {}, []
    for index, pair in enumerate(pairs):
        if not np.isfinite(pair.clear).all():
            raise ValueError(f"{pair.source}: the clear image holds NaN or infinite values.")
        generator = torch.Generator().manual_seed(seed + index)
        try:
            planes = pipe.image_processor.preprocess(pair.hazy)
            unit = pipe.image_processor.compute_normalization(planes).target_std.item()
            if unit == 0:
                continue
            out = pipe(pair.hazy, num_inference_steps, ensemble_size, generator=generator, output_samples=True)
        except ValueError as error:
            raise ValueError(f"{pair.source}: {error}") from error
        spread = out.samples.std(axis=0, ddof=1).ravel() / unit
        light = local_light(planes[0, 0], unit).numpy().ravel()
        prediction, clear = out.prediction.ravel() / unit, pair.clear.astype(np.float32).ravel() / unit
        variances.append((clear.var(), prediction.var()))
        error = prediction - clear
        if spread.size > MAX_PIXELS:
            chosen = np.random.default_rng([seed, index]).choice(spread.size, MAX_PIXELS, replace=False)
            spread, light, error = spread[chosen], light[chosen], error[chosen]
        specimens.setdefault(pair.specimen_id, []).append((spread, light, error))
    if not specimens:
        raise ValueError("There is no pair whose hazy image has any contrast.")
    clear, prediction = np.mean(variances, axis=0)
    contrast = math.sqrt(clear / prediction) if prediction > 0 else math.inf
    if not 1 / MAX_CONTRAST_RATIO < contrast < MAX_CONTRAST_RATIO:
        raise ValueError(
            f"The clear images have {contrast:.3g} times the contrast of the predictions, as if they were in another "
            f"unit: scale them "
            "to the counts of the hazy images, or train with --normalization fixed."
        )
    return {
        name: tuple(np.concatenate(parts) for parts in zip(*images, strict=True)) for name, images in specimens.items()
    }


def calibrate(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], num_members: int, num_inference_steps: int
) -> dict:
    """
    What a pipeline's configuration needs to return calibrated deviations and intervals.

    Args:
        specimens (`dict`): Spread, light and errors of every specimen, see [`measure_errors`].
        num_members (`int`): Members of every ensemble.
        num_inference_steps (`int`): Steps of every member.

    Returns:
        `dict`: `uncertainty_scale` and `uncertainty_offset` of the published line, the `uncertainty_curve` that takes
            its place,
        `interval_factors`, and what they are `calibrated_for`, for `pipe.register_to_config`.
    """
    spread, light, errors = pool(specimens)
    scale, offset = fit_calibration(spread, errors, num_members)
    curve = fit_curve(spread, light, errors, num_members)
    predicted = predict_errors(specimens, num_members, curve=curve)
    factors = {str(alpha): factor for alpha, factor in conformal_factors(predicted.values()).items()}
    return {
        "uncertainty_scale": scale,
        "uncertainty_offset": offset,
        "uncertainty_curve": curve,
        "interval_factors": factors,
        "calibrated_for": {"ensemble_size": num_members, "num_inference_steps": num_inference_steps},
    }


def predict_errors(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_members: int,
    scale: float = 1.0,
    offset: float = 0.0,
    curve: dict | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Predicted deviations and errors of every specimen, from what [`measure_errors`] found by [`predicted_deviation`].
    """
    predicted = {}
    for name, (spread, light, errors) in specimens.items():
        spread, light = torch.from_numpy(spread), torch.from_numpy(light)
        predicted[name] = predicted_deviation(spread, num_members, scale, offset, curve, light).numpy(), errors
    return predicted


def cross_validate(
    specimens: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], num_members: int, num_folds: int = 5
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    As [`predict_errors`], for every specimen with a curve that was fitted to the other folds. Two specimens or more
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
    """What was measured, of all specimens together."""
    return tuple(np.concatenate(parts) for parts in zip(*specimens.values(), strict=True))


def calibration_curve(
    deviations: np.ndarray, errors: np.ndarray, num_bins: int = 50, equal: str = "counts"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    RMV and RMSE of pixels in bins of similar deviation (Levi et al. 2022, doi 10.3390/s22155540).

    Args:
        deviations (`np.ndarray`): Predicted standard deviations, any shape.
        errors (`np.ndarray` of the same shape): Prediction less truth, in the same unit.
        num_bins (`int`, defaults to `50`): At most so many bins; empty ones are left out.
        equal (`str`, defaults to `"counts"`):
            `"counts"`: bins of equally many pixels. `"widths"`: of equal width from the smallest to the largest
            deviation, as in the HazeMatching reference, where the outermost bins may hold a handful of pixels.

    Returns:
        RMV, RMSE and number of pixels of every bin, by rising deviation.

    Raises:
        `ValueError`: If the shapes differ, nothing is given, or a value is not finite.
    """
    deviations, errors = _checked(deviations, errors)
    order = np.argsort(deviations, kind="stable")
    deviations, errors = deviations[order], errors[order]
    if equal == "counts":
        edges = np.linspace(0, len(deviations), num_bins + 1).round().astype(int)
    elif equal == "widths":
        inner = np.linspace(deviations[0], deviations[-1], num_bins + 1)[1:-1]
        edges = np.concatenate([[0], np.searchsorted(deviations, inner), [len(deviations)]])
    else:
        raise ValueError(f'`equal` must be "counts" or "widths", got {equal!r}.')
    counts = np.diff(edges)
    filled = counts > 0
    starts, counts = edges[:-1][filled], counts[filled]
    rmv = np.sqrt(np.add.reduceat(deviations**2, starts) / counts)
    rmse = np.sqrt(np.add.reduceat(errors**2, starts) / counts)
    return rmv, rmse, counts


def fit_calibration(
    spread: np.ndarray, errors: np.ndarray, num_members: int, num_bins: int = 50
) -> tuple[float, float]:
    """
    Scale and offset of the line through the curve of a validation set, less what averaging few members leaves.

    The HazeMatching reference fits RMSE itself over bins of equal width, without the last, by absolute deviations:
    where errors follow a line and members are many, that is the same one.

    Args:
        spread (`np.ndarray`): Standard deviations of the members, divided by their number less one.
        errors (`np.ndarray` of the same shape): Mean of the members less truth, in the same unit.
        num_members (`int`): Their number.
        num_bins (`int`, defaults to `50`): Bins of equally many pixels.

    Returns:
        `tuple[float, float]`: Scale, and offset in the unit of `spread`.

    Raises:
        `ValueError`: As [`calibration_curve`], or if all deviations are alike.
    """
    rmv, rmse, _ = calibration_curve(spread, errors, num_bins)
    if len(rmv) < 2 or math.isclose(rmv[0], rmv[-1]):
        raise ValueError("All predicted deviations are alike, so that no line can be fitted to their errors.")
    own = np.sqrt(np.maximum(rmse**2 - rmv**2 / num_members, 0))
    weights = 1 / np.maximum(own, 1e-6 * own.max())  # relative deviations count, or bright pixels would decide alone
    slope, intercept = np.polyfit(rmv, own, 1, w=weights)
    return float(slope), float(intercept)


def fit_curve(spread: np.ndarray, light: np.ndarray, errors: np.ndarray, num_members: int) -> dict:
    """
    Curve B = f(s¹⁻ʷ lʷ) of spread s and light l for a validation set. f rises from knot to knot, all logarithmic,
    which are at quantiles of the validation set. The weight w is that of the largest likelihood of normal errors;
    where light says nothing, it is near 0.

    Args:
        spread (`np.ndarray`): Standard deviations of the members, divided by their number less one.
        light (`np.ndarray` of the same shape): See [`local_light`].
        errors (`np.ndarray` of the same shape): Mean of the members less truth, in the same unit.
        num_members (`int`): Their number.

    Returns:
        `dict`: `light_weight` w, and `predictor` and `deviation`, the knots of f.

    Raises:
        `ValueError`: As [`fit_calibration`].
    """
    from scipy.optimize import minimize_scalar  # slow to import

    spread, errors = _checked(spread, errors)
    measured = spread, np.asarray(light, np.float64).ravel(), errors
    some = [values[:: max(1, spread.size // 2**20)] for values in measured]  # a million pixels tell the weight

    def unlikelihood(weight: float) -> float:
        curve = _curve_of_weight(weight, *some, num_members)
        spread, light = (torch.from_numpy(values) for values in some[:2])
        variance = predicted_deviation(spread, num_members, curve=curve, light=light).square().numpy()
        return np.mean(some[2] ** 2 / variance + np.log(variance))

    weight = minimize_scalar(unlikelihood, bounds=(0, 1), method="bounded", options={"xatol": 0.01}).x
    return _curve_of_weight(weight, *measured, num_members)


def _curve_of_weight(
    weight: float, spread: np.ndarray, light: np.ndarray, errors: np.ndarray, num_members: int
) -> dict:
    """Least squares of log B in bins of equally many pixels, by knots, none of which is lower than the one before."""
    predictor = predictor_of_error(spread, light, weight)
    order = np.argsort(predictor)
    x, own = (
        np.array([part.mean() for part in np.array_split(values[order], min(200, len(order)))])
        for values in (np.log(predictor), errors**2 - spread**2 / num_members)
    )
    knots = np.quantile(x, np.linspace(0, 1, NUM_KNOTS))
    if not (np.diff(knots) > 0).all():
        raise ValueError("All predicted deviations are alike, so that no curve can be fitted to their errors.")
    if not own.max() > 0:
        raise ValueError(
            "The errors are no larger than what averaging few members leaves: there is nothing to calibrate."
        )
    hats = np.column_stack([np.interp(x, knots, row) for row in np.eye(NUM_KNOTS)])
    values = np.linalg.lstsq(hats, np.log(np.maximum(own, 1e-6 * own.max())) / 2, rcond=None)[0]
    return {
        "light_weight": float(weight),
        "predictor": np.exp(knots).tolist(),
        "deviation": np.exp(np.maximum.accumulate(values)).tolist(),
    }


def expected_normalized_calibration_error(deviations: np.ndarray, errors: np.ndarray, num_bins: int = 50) -> float:
    """Mean of |RMV - RMSE| / RMV over bins of equally many pixels (Levi et al. 2022); 0 is perfect."""
    rmv, rmse, _ = calibration_curve(deviations, errors, num_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(rmv == rmse, 0, np.abs(rmv - rmse) / rmv)))


def mean_squared_z_score(deviations: np.ndarray, errors: np.ndarray) -> float:
    """Mean of (error / deviation)² (Pernot 2024, arXiv 2402.10043); 1 is perfect, above 1 is too sure."""
    return float(np.mean(_z_scores(*_checked(deviations, errors)) ** 2))


def coverage(deviations: np.ndarray, errors: np.ndarray, factor: float) -> float:
    """Share of pixels whose truth lies within `factor` deviations of the prediction."""
    deviations, errors = _checked(deviations, errors)
    return float(np.mean(np.abs(errors) <= factor * deviations))


def scores(deviations: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """
    Ratio of RMS error to RMS deviation, expected normalised calibration error, mean squared z-score, and coverage of
    the intervals that normal errors would have.
    """
    flat = np.asarray(deviations, np.float64).ravel(), np.asarray(errors, np.float64).ravel()
    rms_deviation, rms_error = (math.sqrt(np.mean(np.square(values))) for values in flat)
    return {
        "RMS error / RMS deviation": rms_error / rms_deviation,
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
    Factors on predicted deviations that make intervals with a guarantee, by conformal risk control (Angelopoulos et
    al. 2024, arXiv 2208.02814): of a new specimen, drawn like these, prediction ± factor · deviation misses the truth
    in a share of its pixels of at most alpha *on average over specimens*, whatever the model. It promises nothing for
    one image, one structure, or specimens of another kind.

    Args:
        images (iterable of pairs of `np.ndarray`): Predicted deviations and errors of every specimen.
        alphas (sequence of `float`): Shares of pixels that may be missed.

    Returns:
        `dict[float, float]`: Factor for every alpha that so few specimens allow; n of them allow 1 / (n + 1) and more.

    Raises:
        `ValueError`: If they allow none.
    """
    z_scores, weights, number = [], [], 0
    for deviations, errors in images:
        z_scores.append(np.abs(_z_scores(*_checked(deviations, errors))))
        weights.append(np.full(errors.size, 1 / errors.size))  # every image counts the same
        number += 1
    allowed = [alpha for alpha in alphas if alpha * (number + 1) >= 1]
    if not allowed:
        raise ValueError(
            f"{number} specimen(s) are too few for intervals: {math.ceil(1 / max(alphas)) - 1} or more are needed."
        )
    z_scores, weights = np.concatenate(z_scores), np.concatenate(weights)
    order = np.argsort(z_scores)
    z_scores = z_scores[order]
    missed = number - np.cumsum(weights[order])  # sum over images of the shares above each of them
    # The smallest factor with (sum of shares + 1) / (n + 1) <= alpha; 1e-9 for rounding.
    factors = {}
    for alpha in allowed:
        first = np.searchsorted(-missed, 1 - alpha * (number + 1) - 1e-9)
        factors[alpha] = float(z_scores[min(first, len(z_scores) - 1)])
    return factors


def _z_scores(deviations: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Errors in deviations; 0 where neither is any, infinite where only the deviation is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0, errors / deviations)


def _checked(deviations: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat arrays in double precision."""
    deviations, errors = np.asarray(deviations), np.asarray(errors)
    if deviations.shape != errors.shape:
        raise ValueError(f"`deviations` and `errors` must have one shape, got {deviations.shape} and {errors.shape}.")
    deviations, errors = deviations.ravel().astype(np.float64), errors.ravel().astype(np.float64)
    if deviations.size == 0 or not (np.isfinite(deviations).all() and np.isfinite(errors).all()):
        raise ValueError("`deviations` and `errors` must hold finite values, and at least one.")
    if (deviations < 0).any():
        raise ValueError("`deviations` must not be negative.")
    return deviations, errors
