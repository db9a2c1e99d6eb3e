"""Comparison of methods on pairs: scores of every image, means with confidence intervals, and their protocol."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from haze_pipeline.data.pairs import Pair

from . import perceptual
from .feature_similarity import fsim, gmsd
from .metrics import (
    micro_ms3im,
    ms_ssim,
    nrmse,
    pearson,
    psnr,
    range_invariant_psnr,
    sliced_wasserstein_distance,
    spectrum_distance,
    ssim,
)


# Metrics of single images. Higher is better where the second entry is True.
IMAGE_METRICS = {
    "range-invariant PSNR (dB)": (range_invariant_psnr, True),
    "PSNR (dB)": (psnr, True),
    "SSIM": (ssim, True),
    "MS-SSIM": (ms_ssim, True),
    "FSIM": (fsim, True),
    "GMSD": (gmsd, False),
    "Pearson": (pearson, True),
    "NRMSE": (nrmse, False),
    "spectrum distance (dB)": (spectrum_distance, False),
}
# Metrics of single images that need all images: MicroMS3IM fits one scale and offset to all of them.
JOINT_METRICS = {"MicroMS3IM": (micro_ms3im, True)}
# Metrics with one value for the whole set of images.
SET_METRICS = {"patch distance": (sliced_wasserstein_distance, False)}
MIN_SPECIMENS = 8  # for confidence intervals: with fewer, resampling makes them far too narrow

PROTOCOL = {
    "range-invariant PSNR (dB)": (
        "after a least-squares fit of scale and offset; the peak is the range of the clear image"
    ),
    "PSNR (dB)": (
        "without a fit, so only for predictions in the unit of the clear images; the peak is the range of the clear "
        "image"
    ),
    "SSIM": "after a fit of scale and offset; Gaussian window with a standard deviation of 1.5 px; scikit-image",
    "MS-SSIM": "after a fit of scale and offset; three scales with the weights 0.0448, 0.2856, 0.3001; torchmetrics",
    "FSIM": (
        "similarity of phase congruency and gradients after a fit of scale and offset; blocks of pixels are averaged "
        "so that the shorter side has about 256 px; the range of the clear image takes the place of 255"
    ),
    "GMSD": (
        "standard deviation of the similarity of the gradients after a fit of scale and offset; blocks of 2 × 2 "
        "pixels are averaged; the range of the clear image takes the place of 255"
    ),
    "Pearson": "correlation of the pixels",
    "NRMSE": "root mean squared error after a fit of scale and offset, divided by the range of the clear image",
    "spectrum distance (dB)": (
        "root mean squared difference of the radially averaged log power spectra, after the mean and standard "
        "deviation were matched to those of the clear image"
    ),
    "MicroMS3IM": (
        "each image is fitted to the clear one in scale and offset and divided by the range of the clear one; then "
        "one offset and one scale are fitted to all images; three scales; microssim; not comparable with published "
        "values"
    ),
    "patch distance": (
        "sliced Wasserstein distance of 7 × 7 patches on three Laplacian levels, after the mean and standard "
        "deviation of each image were matched to those of the clear one; in standard deviations of the clear patches"
    ),
    "LPIPS": "AlexNet on patches of 64 px, each scaled from its minimum to its maximum; torchmetrics",
    "FID-768": "768 features of Inception v3; patches as for LPIPS, compared with those of the clear images; "
    "torchmetrics",
    "DINOv2 distance": (
        "Fréchet distance of class tokens; patches as for LPIPS, enlarged to 224 px; transformers and torchmetrics"
    ),
}
MIN_SIDE = 48  # px; every metric is defined for images of at least this side


def choose_metrics(pairs: list[Pair], with_networks: bool, dinov2: str | None) -> tuple[dict, dict]:
    """
    The metrics of an evaluation, and what is known about them.

    Args:
        pairs (`list[Pair]`): The pairs to evaluate on.
        with_networks (`bool`): Add LPIPS and FID-768.
        dinov2 (`str`, *optional*): Add the distance of the features of this DINOv2.

    Returns:
        `tuple[dict, dict]`: The metrics of the whole set, see [`score_images`]. And `protocol`, by name the definition
        of every metric; `unreliable`, the names of those for which the pairs are too few; `higher_is_better`, by name.

    Raises:
        `ValueError`: If an image is too small for the added metrics.
        `OSError`: If DINOv2 cannot be loaded.
    """
    set_metrics, num_features = dict(SET_METRICS), {}
    small = [pair for pair in pairs if min(pair.clear.shape) < perceptual.PATCH]
    if (with_networks or dinov2 is not None) and small:
        raise ValueError(
            f"{small[0].source} has {small[0].clear.shape} pixels, too few for the patches of --perceptual and "
            f"--dinov2, whose side is {perceptual.PATCH} pixels: leave out these options or the image."
        )
    if with_networks:
        set_metrics |= {"LPIPS": (perceptual.lpips, False), "FID-768": (perceptual.fid, False)}
        num_features["FID-768"] = 768
    if dinov2 is not None:
        tokens = perceptual.ClassTokens(dinov2)  # loaded now, so that a wrong name fails at once
        set_metrics["DINOv2 distance"] = (partial(perceptual.dinov2_distance, tokens=tokens), False)
        num_features["DINOv2 distance"] = tokens.num_features
    metrics = IMAGE_METRICS | JOINT_METRICS | set_metrics
    protocol = {name: PROTOCOL[name] for name in metrics}
    # The covariance of n features needs more than n patches.
    num_patches = sum(math.prod(side // perceptual.PATCH for side in pair.clear.shape) for pair in pairs)
    unreliable = [name for name, number in num_features.items() if num_patches <= number]
    for name in unreliable:
        protocol[name] += f"; unreliable: {num_patches} patches are too few for {num_features[name]} features"
    higher_is_better = {name: higher for name, (_, higher) in metrics.items()}
    return set_metrics, {"protocol": protocol, "unreliable": unreliable, "higher_is_better": higher_is_better}


def score_images(
    pairs: list[Pair],
    methods: dict[str, Callable[[Pair], dict[str, np.ndarray]]],
    set_metrics: dict[str, tuple[Callable, bool]] = SET_METRICS,
    num_kept: int = 0,
) -> dict:
    """
    Run methods on pairs and score their predictions. Only the predictions of one method are in memory at a time.

    Args:
        pairs (`list[Pair]`): Hazy and clear images of 48 px or more a side.
        methods (`dict`): By name, a function from a pair to a `dict` of predictions `[H, W]` by name. One function may
            return several predictions that it computes together.
        set_metrics (`dict`, *optional*): By name, a function of all clear images and all predictions, and whether
            higher is better.
        num_kept (`int`, defaults to `0`): For how many of the first pairs to return the predictions.

    Returns:
        `dict`: `predictions`, by name of the prediction the kept images; `scores`, by name and metric one value for
        every image; `set_scores`, by name and metric one value; `seconds_per_megapixel`, by name the time of the
        whole method.

    Raises:
        `ValueError`: If there are no pairs, a clear image is constant, too small or not finite, a method fails with
            one, or a prediction is not finite.
    """
    if not pairs:
        raise ValueError("There are no pairs to evaluate on: name a dataset or split that has pairs.")
    for pair in pairs:
        if min(pair.clear.shape) < MIN_SIDE:
            raise ValueError(f"{pair.source}: images must have {MIN_SIDE} px or more a side, got {pair.clear.shape}.")
        if not np.isfinite(pair.clear).all() or pair.clear.min() == pair.clear.max():
            raise ValueError(f"{pair.source}: the clear image must be finite and not constant.")
    targets = [pair.clear for pair in pairs]
    megapixels = sum(pair.hazy.size for pair in pairs) / 1e6
    results = {"predictions": {}, "scores": {}, "set_scores": {}, "seconds_per_megapixel": {}}
    for name, method in methods.items():
        started = time.perf_counter()
        predictions = {}
        for pair in pairs:
            try:
                predicted = method(pair)
            except ValueError as error:
                raise ValueError(f"{pair.source}, {name}: {error}") from error
            for key, image in predicted.items():
                if not np.isfinite(image).all():
                    raise ValueError(f"{pair.source}, {key}: the prediction contains NaN or infinite values.")
                predictions.setdefault(key, []).append(image)
        seconds = time.perf_counter() - started
        for key, images in predictions.items():
            results["seconds_per_megapixel"][key] = seconds / megapixels
            results["predictions"][key] = images[:num_kept]
            results["scores"][key] = {
                metric: [function(*both) for both in zip(targets, images, strict=True)]
                for metric, (function, _) in IMAGE_METRICS.items()
            } | {metric: function(targets, images) for metric, (function, _) in JOINT_METRICS.items()}
            results["set_scores"][key] = {
                metric: function(targets, images) for metric, (function, _) in set_metrics.items()
            }
    return results


def paired_differences(scores: dict[str, dict[str, list[float]]], reference: str) -> dict[str, dict[str, list[float]]]:
    """
    The scores of every method minus those of `reference` on the same images. [`summarize`] gives their intervals: it
    resamples the same specimens for both. The spread between images is mostly common to all methods, so that these
    intervals are narrower than those of the scores.
    """
    return {
        method: {metric: np.subtract(values, scores[reference][metric]).tolist() for metric, values in metrics.items()}
        for method, metrics in scores.items()
        if method != reference
    }


def summarize(scores: dict[str, dict[str, list[float]]], specimens: Iterable[str], num_resamples: int = 2000) -> dict:
    """
    Means and standard deviations over images, and 95 % confidence intervals of the means. The bootstrap (Efron 1979)
    resamples *specimens*, because images of one specimen are not independent.

    Args:
        scores (`dict`): By method and metric, one value for every image.
        specimens (iterable of `str`): The specimen of every image.
        num_resamples (`int`, defaults to `2000`): Bootstrap samples.

    Returns:
        `dict`: By method and metric `{"mean", "deviation", "low", "high"}`, of which `"deviation"` is the standard
        deviation over images. `"low"` and `"high"` are `None` for fewer than 8 specimens.
    """
    _, specimen = np.unique(list(specimens), return_inverse=True)
    number = specimen.max() + 1
    drawn = np.random.default_rng(0).integers(number, size=(num_resamples, number))
    # How often each resample holds each image.
    times = np.array([np.bincount(each, minlength=number)[specimen] for each in drawn])
    summary = {}
    for method, metrics in scores.items():
        summary[method] = {}
        for metric, values in metrics.items():
            values = np.asarray(values)
            means = times @ values / times.sum(axis=1)
            low, high = np.quantile(means, (0.025, 0.975)) if number >= MIN_SPECIMENS else (None, None)
            summary[method][metric] = {
                "mean": float(values.mean()),
                "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
                "low": None if low is None else float(low),
                "high": None if high is None else float(high),
            }
    return summary
