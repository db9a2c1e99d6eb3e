"""
Classical methods against haze, called like the pipelines: `rolling_ball(image, radius=30).prediction`.

Most of the computation is done by scikit-image; the point-spread function (PSF) comes from our optics. Predictions are
in the counts of the input. Wiener deconvolution keeps the background; the other methods subtract it. None of these
methods estimates its uncertainty.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.pipeline_output import HazeMatchingOutput
from haze_pipeline.simulation.optics import Optics, otf_to_psf, widefield_otf


def rolling_ball(image: np.ndarray, radius: float = 50.0) -> HazeMatchingOutput:
    """
    Subtract a rolling-ball background (Sternberg 1983, doi 10.1109/MC.1983.1654163). The result is never negative.

    For balls above 10 px, the image is first shrunk as in ImageJ's `Subtract Background`: each block of 2 × 2 pixels
    (up to 30 px), 4 × 4 (up to 100 px) or 8 × 8 becomes its minimum, and the background is enlarged by linear
    interpolation. The ball keeps its size in the pixels and counts of the input, and the height of its apex is the
    background. ImageJ gives other values: it smooths the image first, lowers the ball by the factor of the shrinkage,
    omits the rim of the ball, and takes the whole surface of the ball as the background.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        radius (`float`, defaults to `50.0`): Radius of the ball, in pixels and, along the intensity axis, in counts.

    Raises:
        `ValueError`: If the radius is not positive and finite.
    """
    from skimage.restoration import rolling_ball

    if not 0 < radius < np.inf:
        raise ValueError(f"`radius` must be positive and finite, got {radius}.")
    block = 1 if radius <= 10 else 2 if radius <= 30 else 4 if radius <= 100 else 8
    # The ball, sampled at the centres of the blocks.
    offsets = block * np.arange(-(radius // block), radius // block + 1)
    squared = radius**2 - np.add.outer(offsets**2, offsets**2)
    ball = np.where(squared >= 0, np.sqrt(np.maximum(squared, 0)), np.inf)

    def subtract(plane):
        height, width = plane.shape
        padded = np.pad(plane, [(0, -length % block) for length in plane.shape], constant_values=np.inf)
        minima = padded.reshape(padded.shape[0] // block, block, -1, block).min(axis=(1, 3))
        background = rolling_ball(minima, kernel=ball)
        background = ndimage.zoom(background, block, order=1, mode="nearest", grid_mode=True)[:height, :width]
        return plane - np.minimum(background, plane)

    return _for_each_plane(image, subtract)


def white_tophat(image: np.ndarray, radius: int = 15) -> HazeMatchingOutput:
    """
    Subtract the morphological opening with a disk, so that only structure narrower than the disk remains.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        radius (`int`, defaults to `15`): Radius of the disk in pixels.
    """
    from skimage.morphology import disk, white_tophat

    # Large disks are composed of small elements: the cost of one full disk rises with the square of the radius.
    footprint = disk(radius, decomposition="sequence" if radius > 4 else None)
    return _for_each_plane(image, lambda plane: white_tophat(plane, footprint))


def difference_of_gaussians(image: np.ndarray, low_sigma: float = 1.0, high_sigma: float = 10.0) -> HazeMatchingOutput:
    """
    Keep structure whose width lies between those of two Gaussians.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        low_sigma (`float`, defaults to `1.0`): Standard deviation in pixels of the Gaussian that suppresses noise.
        high_sigma (`float`, defaults to `10.0`): Standard deviation in pixels of the Gaussian that estimates the haze.
    """
    from skimage.filters import difference_of_gaussians

    return _for_each_plane(image, lambda plane: difference_of_gaussians(plane, low_sigma, high_sigma, mode="reflect"))


def wiener(image: np.ndarray, airy_radius: float = 3.0, balance: float = 0.01) -> HazeMatchingOutput:
    """
    Wiener deconvolution with the in-focus widefield PSF.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): Airy radius in pixels, 0.61 · emission wavelength / NA.
        balance (`float`, defaults to `0.01`): Weight of smoothness relative to the data.
    """
    from skimage.restoration import wiener

    psf = widefield_psf(airy_radius)

    def deconvolve(plane):
        margin = len(psf)  # the filter treats the image as periodic
        padded = np.pad(plane, margin, mode="symmetric")
        return wiener(padded, psf, balance, clip=False)[margin:-margin, margin:-margin]

    return _for_each_plane(image, deconvolve)


def richardson_lucy(image: np.ndarray, airy_radius: float = 3.0, num_iter: int = 20) -> HazeMatchingOutput:
    """
    Richardson–Lucy deconvolution (Richardson 1972, Lucy 1974) with the in-focus widefield PSF. The minimum of each
    plane is subtracted first. For hazy images, subtract a rolling-ball background before:
    `richardson_lucy(rolling_ball(image, 12).prediction)`.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): Airy radius in pixels, 0.61 · emission wavelength / NA.
        num_iter (`int`, defaults to `20`): Number of iterations. More iterations give a sharper and noisier result.
    """
    from skimage.restoration import richardson_lucy

    psf = widefield_psf(airy_radius)

    def deconvolve(plane):
        margin = len(psf)
        padded = np.pad(plane - plane.min(), margin, mode="symmetric").astype(np.float32)  # as good, twice as fast
        result = richardson_lucy(padded, psf, num_iter, clip=False, filter_epsilon=1e-6 * padded.max())
        return result[margin:-margin, margin:-margin]

    return _for_each_plane(image, deconvolve)


def richardson_lucy_gradient_consensus(
    image: np.ndarray,
    airy_radius: float = 3.0,
    gain: float | None = None,
    offset: float | None = None,
    max_iter: int = 50,
) -> HazeMatchingOutput:
    """
    Richardson–Lucy deconvolution that stops by itself (Manton 2023, github.com/jdmanton/rlgc). The detected electrons
    are split at random into two halves, and a pixel is updated only where both halves agree on the direction.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): Airy radius in pixels, 0.61 · emission wavelength / NA.
        gain (`float`, *optional*):
            Counts per electron. If omitted, it is 1. For planes that span fewer than 100 counts, it is then chosen so
            that the plane spans 1,000 electrons.
        offset (`float`, *optional*): Camera counts in the dark. If omitted, the minimum of each plane.
        max_iter (`int`, defaults to `50`): Largest number of iterations.

    Raises:
        `ValueError`: If `gain` is not positive.
    """
    if gain is not None and not gain > 0:
        raise ValueError(f"`gain` must be positive, got {gain}.")
    psf = widefield_psf(airy_radius)
    margin = len(psf)

    def deconvolve(plane):
        counts = np.clip(plane - (plane.min() if offset is None else offset), 0, None)
        unit = gain or (1.0 if counts.max() >= 100 else max(counts.max(), 1e-9) / 1000)
        electrons = np.pad(counts / unit, margin, mode="symmetric").round().astype(np.int64)
        otf = np.fft.rfft2(np.fft.ifftshift(_centred(psf, electrons.shape)))  # real, since the PSF is even

        def blur(field):
            return np.fft.irfft2(np.fft.rfft2(field) * otf.real, s=electrons.shape)

        def divergence(half, expected):
            ratio = np.where(half > 0, half / expected, 1)
            return np.sum(half * np.log(ratio) - half + expected)

        rng = np.random.default_rng(0)
        estimate = previous = np.full(electrons.shape, max(electrons.mean(), 1e-9))
        lowest = [np.inf, np.inf]
        for _ in range(max_iter):
            first = rng.binomial(electrons, 0.5)
            expected = np.maximum(blur(estimate), 0) / 2 + 1e-12
            halves = (first, electrons - first)
            divergences = [divergence(half, expected) for half in halves]
            if any(new > old for new, old in zip(divergences, lowest, strict=True)):
                estimate = previous
                break
            lowest = divergences
            ratios = [blur(half / expected) for half in halves]
            agreed = blur(blur((ratios[0] - 1) * (ratios[1] - 1))) >= 0
            updated = np.where(agreed, np.maximum(estimate * (ratios[0] + ratios[1]) / 2, 0), estimate)
            change = np.abs(updated - estimate).max() / max(updated.max(), 1e-9)
            previous, estimate = estimate, updated
            if agreed.mean() < 0.01 or change < 0.001:
                break
        return unit * estimate[margin:-margin, margin:-margin]

    return _for_each_plane(image, deconvolve)


def dark_sectioning(image: np.ndarray, airy_radius: float = 4.0, passes: int = 1) -> HazeMatchingOutput:
    """
    Dark sectioning (Cao et al. 2025, github.com/Cao-ruijie/Dark-sectioning). It estimates haze from the dark channel
    of the low spatial frequencies, as is done for photographs of landscapes (He, Sun & Tang 2011).

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `4.0`): Airy radius in pixels, 0.61 · emission wavelength / NA.
        passes (`int`, defaults to `1`): 1 for haze that the method calls "medium", 2 for "severe" haze.
    """
    block = max(2, round(2 * airy_radius))  # px; there the method's low-pass filtered Airy pattern is at 1 %

    def dehaze(plane):
        low, high = np.percentile(plane, (0.1, 99.9))
        scale = max(high - low, 1e-9) / 255
        result = (plane - low) / scale
        for number in range(passes):
            result = _dark_section(result, airy_radius, block, 6 if number == 0 else 3)
        return scale * result

    return _for_each_plane(image, dehaze)


def _dark_section(plane: np.ndarray, airy_radius: float, block: int, degree: float) -> np.ndarray:
    """One pass of dark sectioning on a plane scaled to about 0 to 255. All constants are those of the method."""
    height, width = plane.shape
    margin = max(plane.shape) // 15 + 1
    side = max(plane.shape) + 2 * margin
    after = [(margin, side - margin - length) for length in plane.shape]
    padded = np.pad(plane, after, mode="symmetric")
    # 1. Split the plane into frequency bands: low, lowest and high.
    cutoff = np.floor(0.2 * side / (0.25 * airy_radius / 0.61))
    sigma = max(2 * cutoff / 2.355, 1)
    squared = np.add.outer(np.fft.fftfreq(side, 1 / side) ** 2, np.fft.rfftfreq(side, 1 / side) ** 2)
    spectrum = np.fft.rfft2(padded)
    low, lowest = (
        np.fft.irfft2(spectrum * np.exp(-squared / width_**2), s=padded.shape) for width_ in (sigma, sigma / degree)
    )
    high = padded - low

    # 2. Estimate the haze. It is strong where even the darkest pixel of a block is bright.
    def dark_channel(field):
        return ndimage.minimum_filter(field, block, mode="constant", cval=np.inf)

    def atmosphere(field):
        dark = dark_channel(field)
        return field[dark >= np.quantile(dark, 0.99)].mean()

    least, most = atmosphere(low * (low < 70)), atmosphere(low)
    lowest = lowest - lowest.min()
    haze = 3 * (lowest / max(lowest.max(), 1e-9) * (most - least) + least)
    haze = np.maximum(haze, 1e-3)
    # 3. Estimate the transmission, smooth it with edges preserved (He, Sun & Tang 2013), and invert the haze model.
    transmission = guided_filter(low, 1 - 0.95 * dark_channel(low / haze), 15, 0.001)
    clear = (low - haze) / np.maximum(transmission, 0.1) + haze
    return (clear + high)[margin : margin + height, margin : margin + width]


def guided_filter(guide: np.ndarray, field: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Smooth a field `[H, W]` except at edges of the guide `[H, W]` (He, Sun & Tang 2013)."""

    def mean(values):
        size = 2 * radius + 1
        ones = ndimage.uniform_filter(np.ones_like(values), size, mode="constant")
        return ndimage.uniform_filter(values, size, mode="constant") / ones

    covariance = mean(guide * field) - mean(guide) * mean(field)
    slope = covariance / (mean(guide * guide) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(field) - slope * mean(guide))


def _centred(psf: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The PSF, padded with zeros on all sides to an array of the given shape."""
    canvas = np.zeros(shape)
    rows, columns = (slice(length // 2 - len(psf) // 2, length // 2 - len(psf) // 2 + len(psf)) for length in shape)
    canvas[rows, columns] = psf
    return canvas


@lru_cache(maxsize=32)
def widefield_psf(airy_radius: float) -> np.ndarray:
    """
    The in-focus widefield PSF `[s, s]`, which sums to 1. Its first dark ring is `airy_radius` pixels from the centre.

    Raises:
        `ValueError`: If the radius is not positive.
    """
    if not airy_radius > 0:
        raise ValueError(f"`airy_radius` must be positive, got {airy_radius}.")
    # In focus, a scalar PSF depends only on the ratio emission wavelength / NA in pixels.
    aperture, wavelength = 0.5, 0.5
    optics = Optics(aperture, wavelength, wavelength, 1.0, pixel_size=0.61 * wavelength / aperture / airy_radius)
    half = max(3, round(4 * airy_radius))
    psf = otf_to_psf(widefield_otf(optics, 2 * (2 * half + 1), torch.zeros(1)))[0]
    psf = torch.fft.fftshift(psf).numpy()
    centre = len(psf) // 2
    psf = np.clip(psf[centre - half : centre + half + 1, centre - half : centre + half + 1], 0, None)
    return psf / psf.sum()


def _with_settings(method: Callable[..., HazeMatchingOutput], settings: list[dict]):
    return lambda image: [method(image, **setting).prediction for setting in settings]


def _richardson_lucy_with_settings(image: np.ndarray) -> list[np.ndarray]:
    inputs = [image, *(rolling_ball(image, radius).prediction for radius in (12, 50))]
    grid = product(inputs, (2, 4, 8), (3, 10, 30))
    return [richardson_lucy(each, airy_radius, num_iter).prediction for each, airy_radius, num_iter in grid]


# By name, a function from an image to its predictions, one for every setting that an evaluation tries.
BASELINES: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "rolling ball": _with_settings(rolling_ball, [{"radius": radius} for radius in (3, 5, 8, 12, 20, 30, 50)]),
    "white top-hat": _with_settings(white_tophat, [{"radius": radius} for radius in (3, 5, 8, 12, 20, 30)]),
    "difference of Gaussians": _with_settings(
        difference_of_gaussians,
        [{"low_sigma": low, "high_sigma": high} for low in (0.5, 1, 2) for high in (5, 10, 20, 40)],
    ),
    "Wiener": _with_settings(
        wiener, [{"airy_radius": radius, "balance": b} for radius in (2, 4, 8) for b in (0.001, 0.01, 0.1, 1)]
    ),
    "Richardson–Lucy": _richardson_lucy_with_settings,
    "Richardson–Lucy, gradient consensus": _with_settings(
        richardson_lucy_gradient_consensus, [{"airy_radius": radius} for radius in (2, 4, 8)]
    ),
    "dark sectioning": _with_settings(
        dark_sectioning,
        [{"airy_radius": radius, "passes": passes} for radius in (2, 3, 4, 6, 8, 12) for passes in (1, 2)],
    ),
}

# By name, methods that need no setting but the Airy radius, which the metadata of an image may state.
WITH_KNOWN_OPTICS: dict[str, Callable[..., HazeMatchingOutput]] = {
    "Richardson–Lucy, gradient consensus": richardson_lucy_gradient_consensus,
    "dark sectioning": dark_sectioning,
}


def _for_each_plane(image: np.ndarray, method: Callable[[np.ndarray], np.ndarray]) -> HazeMatchingOutput:
    planes = HazeImageProcessor().preprocess(image)[:, 0].numpy()  # [N,H,W]; raises errors for invalid images
    prediction = np.stack([method(plane.astype(np.float64)) for plane in planes]).astype(np.float32)
    return HazeMatchingOutput(prediction=prediction.reshape(image.shape))
