"""Series of micrographs of one specimen through pinholes of increasing diameter, from nearly clear to widefield."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from .pairs import Pair


@dataclass
class PinholeSeries(Pair):
    """
    A pair whose hazy image was recorded with the largest pinhole, with the images of the smaller ones.

    Args:
        smaller (`np.ndarray` of shape `[T - 1, H, W]`): Images of the other pinholes, smallest pinhole first.
        pinholes (`tuple[float, ...]`): Diameters of all T pinholes in Airy units, smallest first; infinite for
            widefield.
    """

    smaller: np.ndarray | None = None
    pinholes: tuple[float, ...] = ()


def join_series(pairs: Iterable[Pair]) -> list[PinholeSeries]:
    """
    Join the pairs of every specimen, one for every pinhole, to its series.

    Raises:
        `ValueError`: If there are no pairs, a specimen was not recorded once with each of two or more pinholes, or its
            pinholes differ from those of the first specimen.
    """
    specimens: dict[str, list[Pair]] = {}
    for pair in pairs:
        specimens.setdefault(pair.specimen_id, []).append(pair)
    if not specimens:
        raise ValueError("There are no pairs to join to pinhole series.")
    joined = []
    for specimen, levels in specimens.items():
        levels.sort(key=_pinhole)
        pinholes = tuple(_pinhole(level) for level in levels)
        if len(set(pinholes)) < max(2, len(levels)):
            raise ValueError(
                f"{levels[0].source}: a pinhole series needs one image for each of two or more pinholes, but the "
                f"specimen {specimen} has {len(levels)} image(s) with the pinholes {_named(pinholes)}."
            )
        if joined and pinholes != joined[0].pinholes:
            raise ValueError(
                f"{levels[0].source}: all series must have the same pinholes, but this one has {_named(pinholes)} and "
                f"the first one {_named(joined[0].pinholes)}."
            )
        *smaller, largest = levels
        known = {field.name: getattr(largest, field.name) for field in fields(Pair)}
        joined.append(PinholeSeries(**known, smaller=np.stack([each.hazy for each in smaller]), pinholes=pinholes))
    return joined


def haze_fractions(series: list[PinholeSeries]) -> list[float]:
    """
    Haze of every pinhole as a fraction α of the haze of the largest one, for which it is 1.

    The fractions are those of the model x_t = (1 − α)·clear + α·hazy + constant, fitted by least squares to all
    series. Images are smoothed with a standard deviation of 2 px before, so that noise hardly counts.

    Raises:
        `ValueError`: If the fractions do not increase with the pinhole.
    """

    def haze(image: np.ndarray, clear: np.ndarray) -> np.ndarray:
        difference = gaussian_filter(image.astype(np.float64) - clear, 2)
        return difference - difference.mean()

    fitted = []  # of every specimen, so that bright and dim ones count equally
    for each in series:
        largest = haze(each.hazy, each.clear)
        fitted.append([np.mean(haze(image, each.clear) * largest) / np.mean(largest**2) for image in each.smaller])
    fractions = [*np.mean(fitted, axis=0).tolist(), 1.0]
    if not all(0 < low < high for low, high in pairwise(fractions)):
        raise ValueError(
            "The haze must increase with the pinhole, but its fractions of the haze of the largest pinhole are "
            f"{', '.join(f'{fraction:.2f}' for fraction in fractions)}: are the images of a series aligned?"
        )
    return fractions


def center_levels(fields: Iterable[torch.Tensor]) -> None:
    """
    Subtract the mean of the images of smaller pinholes in normalised series `[1 + T, H, W]` (hazy, clear, smaller), in
    place. That of the hazy image is 0 already. Haze that is the same everywhere then makes no difference.
    """
    for field in fields:
        field[2:] -= field[2:].mean(dim=(1, 2), keepdim=True)


def _pinhole(pair: Pair) -> float:
    return math.inf if pair.level is None else pair.level


def _named(pinholes: tuple[float, ...]) -> str:
    return ", ".join("open" if math.isinf(each) else f"{each:g}" for each in pinholes)
