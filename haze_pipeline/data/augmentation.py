"""
Training images with less haze than they came with, and with more.

Hazy and clear image must count light in the same unit, as simulated pairs do: then a mixture of both is the same
specimen with part of the haze, and smooth light may be added to the hazy image alone.
"""

import math

import numpy as np
from scipy import ndimage


HAZE_WIDTHS = (20.0, 100.0)  # standard deviation of the Gaussian that blurs added light, pixels
HAZE_STRENGTHS = (0.1, 5.0)  # standard deviation of that light, in the unit of the images
NOISE_STRENGTHS = (0.003, 0.2)  # deviation of the noise of a mixture over that of the clear image
COARSE_PIXEL = 8  # px; broad light is drawn on a grid so much coarser


def log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def weaken_haze(hazy: np.ndarray, clear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    A mixture `[H, W]` of the hazy with the clear image in random shares, which has less haze, blur and noise. New
    noise is added, since the clear image of a simulated pair has none.
    """
    mixture = clear + rng.random() * (hazy - clear)
    deviation = log_uniform(*NOISE_STRENGTHS, rng) * clear.std()
    return (mixture + deviation * rng.standard_normal(clear.shape)).astype(np.float32)


def add_haze(hazy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The hazy image `[H, W]` with smooth light, a Gaussian random field of random width and strength, of mean 0."""
    width, strength = log_uniform(*HAZE_WIDTHS, rng) / COARSE_PIXEL, log_uniform(*HAZE_STRENGTHS, rng)
    rows, columns = (side // COARSE_PIXEL + 2 for side in hazy.shape)
    margin = math.ceil(3 * width)
    white = rng.standard_normal((rows + 2 * margin, columns + 2 * margin))
    coarse = ndimage.gaussian_filter(white, width, truncate=3)[margin : margin + rows, margin : margin + columns]
    coarse *= strength * 2 * math.sqrt(math.pi) * width  # white noise, blurred, has the deviation 1 / (2 √π width)
    field = ndimage.zoom(coarse, COARSE_PIXEL, order=3, mode="nearest", grid_mode=True)
    field = field[: hazy.shape[0], : hazy.shape[1]]
    return (hazy + field - field.mean()).astype(np.float32)
