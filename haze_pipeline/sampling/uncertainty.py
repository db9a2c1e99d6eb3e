"""
Expected error of the mean of posterior samples, from their spread.

The mean of k samples with the unbiased standard deviation s has the error variance B² + s²/k. B is the error that
remains with infinitely many samples; s²/k is the variance left by averaging only k. A calibration gives B. The
published one is a line, B = scale · s + offset. It fails if the model underestimates its errors and the images differ
strongly in haze: equal spreads then belong to unequal errors. The intensity l around a pixel distinguishes these
cases, because most errors of a prediction are misjudged haze. Our calibration B = f(s¹⁻ʷ lʷ) is therefore a curve of
both. `reliability/calibration.py` fits the line and the curve.
"""

import math

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.utils.arrays import BAND_ROWS, allocate


INTENSITY_SIGMA = 4.0  # px, of the Gaussian that gives the local intensity; 2 to 32 px work about equally well
FLOOR = 1e-6  # lower limit of spread and local intensity, for logarithms


def predicted_std(
    spread: torch.Tensor,
    num_members: int,
    scale: float = 1.0,
    offset: float = 0.0,
    curve: dict | None = None,
    intensity: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Expected standard deviation of the error of an ensemble's mean.

    Args:
        spread (`torch.Tensor`): Unbiased standard deviation s of the members.
        num_members (`int`): Number of members, k.
        scale (`float`, defaults to `1.0`): Slope of the line.
        offset (`float`, defaults to `0.0`): Offset of the line, in the unit of `spread`.
        curve (`dict`, *optional*): Curve that replaces the line, see [`fit_curve`].
        intensity (`torch.Tensor` of the shape of `spread`, *optional*):
            Local intensity, which the curve needs, see [`local_intensity`].

    Returns:
        `torch.Tensor`: sqrt(B² + s²/k), where B is max(0, scale · s + offset) or the value of the curve.
    """
    if curve is None:
        own = spread.mul(scale).add_(offset).clamp_(min=0)
    else:
        predictor = predictor_of_error(spread.numpy(), intensity.numpy(), curve["light_weight"])
        own = torch.from_numpy(_interpolate(predictor, curve["predictor"], curve["deviation"])).to(spread)
    return own.hypot_(spread / math.sqrt(num_members))


def predict_stds(
    spreads: torch.Tensor,
    num_members: int,
    hazy: torch.Tensor,
    units: torch.Tensor,
    scale: float,
    offset: float,
    curve: dict | None,
) -> torch.Tensor:
    """
    Apply [`predicted_std`] to whole planes, in place.

    Args:
        spreads (`torch.Tensor` of shape `[N, 1, H, W]`): Unbiased standard deviations of the members.
        num_members (`int`): Number of members.
        hazy (`torch.Tensor` of shape `[N, 1, H, W]`): The input.
        units (`torch.Tensor` of shape `[N or 1, 1, 1, 1]`): Unit of the local intensity, in units of `hazy`.
        scale (`float`): Slope of the line.
        offset (`float`): Offset of the line.
        curve (`dict`, *optional*): Curve that replaces the line.
    """
    for spread, condition, unit in zip(spreads, hazy, units.expand(len(hazy), 1, 1, 1), strict=True):
        intensity = local_intensity(condition[0], unit.item())  # [H,W]
        # Band by band, since a large plane may not fit in memory twice.
        for part, nearby in zip(spread[0].split(BAND_ROWS), intensity.split(BAND_ROWS), strict=True):
            part.copy_(predicted_std(part, num_members, scale, offset, curve, nearby))
    return spreads


def local_intensity(hazy: torch.Tensor, unit: float) -> torch.Tensor:
    """
    Intensity around every pixel: the average over a Gaussian of σ = 4 px, less the minimum of the image.

    Args:
        hazy (`torch.Tensor` of shape `[H, W]`): The input.
        unit (`float`): Unit of the result, in units of `hazy`; 0 for an image without contrast, whose result is 0.
    """
    intensity = allocate(*hazy.shape)
    ndimage.gaussian_filter(hazy.numpy(), INTENSITY_SIGMA, output=intensity.numpy(), mode="reflect")
    return intensity.sub_(hazy.min()).div_(unit or 1.0)


def predictor_of_error(spread: np.ndarray, intensity: np.ndarray, weight: float) -> np.ndarray:
    """Weighted geometric mean of spread and local intensity, in the unit of both."""
    return np.maximum(spread, FLOOR) ** (1 - weight) * np.maximum(intensity, FLOOR) ** weight


def _interpolate(values: np.ndarray, knots: list[float], results: list[float]) -> np.ndarray:
    """
    Interpolate linearly in logarithms. Results are constant below the first knot and proportional to `values` above
    the last.
    """
    inside = np.exp(np.interp(np.log(values), np.log(knots), np.log(results)))
    return inside * np.maximum(values / knots[-1], 1)
