"""
From the spread of posterior samples to the error to expect of their mean.

Of k samples with the unbiased deviation s, the mean has the error variance B² + s²/k: what the model gets wrong or
cannot know, and what averaging few samples leaves. A calibration says what B is. The published one is a line, B =
scale · s + offset. It fails where a model that is too sure of all its samples meets images of very different haze:
equal spreads then stand for unequal errors. How much light l lies around a pixel tells them apart, since most of what
a prediction can get wrong is haze. Ours is a curve of both, B = f(s¹⁻ʷ lʷ). calibration.py fits them.
"""

import math

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.utils.arrays import allocate


# Of the blur that tells how much light is around a pixel, px. From 2 to 32 px, it hardly matters.
LIGHT_SIGMA = 4.0
ROWS_AT_ONCE = 1024  # that are worked on at once
FLOOR = 1e-6  # of spread and light, for logarithms


def predicted_deviation(
    spread: torch.Tensor,
    num_members: int,
    scale: float = 1.0,
    offset: float = 0.0,
    curve: dict | None = None,
    light: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Deviation to expect between the mean of an ensemble and the truth.

    Args:
        spread (`torch.Tensor`): Standard deviation s of the members, of squares divided by their number less one.
        num_members (`int`): Their number k.
        scale (`float`, defaults to `1.0`): Of the line.
        offset (`float`, defaults to `0.0`): Of the line, in the unit of `spread`.
        curve (`dict`, *optional*): Takes the place of the line, see [`fit_curve`].
        light (`torch.Tensor` of the shape of `spread`, *optional*): What the curve needs, see [`local_light`].

    Returns:
        `torch.Tensor`: sqrt(B² + s²/k), where B is max(0, scale · s + offset), or what the curve says.
    """
    if curve is None:
        own = spread.mul(scale).add_(offset).clamp_(min=0)
    else:
        predictor = predictor_of_error(spread.numpy(), light.numpy(), curve["light_weight"])
        own = torch.from_numpy(_interpolate(predictor, curve["predictor"], curve["deviation"])).to(spread)
    return own.hypot_(spread / math.sqrt(num_members))


def predict_deviations(
    spreads: torch.Tensor,
    num_members: int,
    hazy: torch.Tensor,
    units: torch.Tensor,
    scale: float,
    offset: float,
    curve: dict | None,
) -> torch.Tensor:
    """
    [`predicted_deviation`] of whole planes, in place.

    Args:
        spreads (`torch.Tensor` of shape `[N, 1, H, W]`): Standard deviations of the members.
        num_members (`int`): Their number.
        hazy (`torch.Tensor` of shape `[N, 1, H, W]`): The input.
        units (`torch.Tensor` of shape `[N or 1, 1, 1, 1]`): What the light of the input is measured in.
        scale (`float`): Of the line.
        offset (`float`): Of the line.
        curve (`dict`, *optional*): Takes the place of the line.
    """
    for spread, condition, unit in zip(spreads, hazy, units.expand(len(hazy), 1, 1, 1), strict=True):
        light = local_light(condition[0], unit.item())  # [H,W]
        # Band by band, since a large plane may not fit in memory twice.
        for part, part_light in zip(spread[0].split(ROWS_AT_ONCE), light.split(ROWS_AT_ONCE), strict=True):
            part.copy_(predicted_deviation(part, num_members, scale, offset, curve, part_light))
    return spreads


def local_light(hazy: torch.Tensor, unit: float) -> torch.Tensor:
    """
    Light around every pixel above the darkest one, by a Gaussian of 4 px, which leaves little noise.

    Args:
        hazy (`torch.Tensor` of shape `[H, W]`): The input.
        unit (`float`): What is called 1; 0 for an image without contrast, whose light does not matter.
    """
    light = allocate(*hazy.shape)
    ndimage.gaussian_filter(hazy.numpy(), LIGHT_SIGMA, output=light.numpy(), mode="reflect")
    return light.sub_(hazy.min()).div_(unit or 1.0)


def predictor_of_error(spread: np.ndarray, light: np.ndarray, light_weight: float) -> np.ndarray:
    """The weighted geometric mean of spread and light, in the unit of both."""
    return np.maximum(spread, FLOOR) ** (1 - light_weight) * np.maximum(light, FLOOR) ** light_weight


def _interpolate(values: np.ndarray, knots: list[float], results: list[float]) -> np.ndarray:
    """
    Straight from knot to knot in logarithms; constant below the first one, and proportional to `values` above the last
    one.
    """
    inside = np.exp(np.interp(np.log(values), np.log(knots), np.log(results)))
    return inside * np.maximum(values / knots[-1], 1)
