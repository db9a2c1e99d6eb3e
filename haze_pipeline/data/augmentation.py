"""
Augmentation of training pairs: weaken their haze, or add haze.

The hazy and the clear image must have the same intensity unit, as simulated pairs have. Then a mixture of both shows
the same specimen with part of its haze, and smooth haze may be added to the hazy image alone.
"""

import math

import numpy as np
from scipy import ndimage


HAZE_WIDTHS = (20.0, 100.0)  # standard deviation of the Gaussian that blurs added haze, pixels
HAZE_STRENGTHS = (0.1, 5.0)  # standard deviation of added haze, in the unit of the images
NOISE_STRENGTHS = (0.003, 0.2)  # standard deviation of added noise, relative to that of the clear image
COARSE_PIXEL = 8  # smooth haze is drawn on a grid with pixels this many times larger


def log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def weaken_haze(hazy: np.ndarray, clear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Mix the hazy with the clear image, both `[H, W]`, in random proportion. The mixture has less haze, blur and noise.
    New noise is added, since the clear image of a simulated pair has none.
    """
    mixture = clear + rng.random() * (hazy - clear)
    noise_std = log_uniform(*NOISE_STRENGTHS, rng) * clear.std()
    return (mixture + noise_std * rng.standard_normal(clear.shape)).astype(np.float32)


def add_haze(hazy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a Gaussian random field of mean 0, with random width and strength, to the hazy image `[H, W]`."""
    width, strength = log_uniform(*HAZE_WIDTHS, rng) / COARSE_PIXEL, log_uniform(*HAZE_STRENGTHS, rng)
    rows, columns = (side // COARSE_PIXEL + 2 for side in hazy.shape)
    margin = math.ceil(3 * width)
    white = rng.standard_normal((rows + 2 * margin, columns + 2 * margin))
    coarse = ndimage.gaussian_filter(white, width, truncate=3)[margin : margin + rows, margin : margin + columns]
    # The standard deviation of blurred white noise is 1 / (2 √π width).
    coarse *= strength * 2 * math.sqrt(math.pi) * width
    field = ndimage.zoom(coarse, COARSE_PIXEL, order=3, mode="nearest", grid_mode=True)
    field = field[: hazy.shape[0], : hazy.shape[1]]
    return (hazy + field - field.mean()).astype(np.float32)
