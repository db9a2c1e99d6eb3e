"""
What people use today against haze, in the call style of the pipelines: `rolling_ball(image, radius=30).prediction`.

scikit-image computes; the point-spread function (PSF) comes from our optics. Predictions are in the counts of the
input; Wiener keeps its background, the others take it off. None of these methods says how far to believe it.
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
    Subtract the background that a ball rolls on (Sternberg 1983, doi 10.1109/MC.1983.1654163).

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        radius (`float`, defaults to `50.0`): Of the ball, pixels and counts alike.
    """
    from skimage.restoration import rolling_ball

    return _for_each_plane(image, lambda plane: plane - rolling_ball(plane, radius=radius))


def white_tophat(image: np.ndarray, radius: int = 15) -> HazeMatchingOutput:
    """
    Subtract the morphological opening with a disk: all that is wider than it.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        radius (`int`, defaults to `15`): Of the disk, pixels.
    """
    from skimage.morphology import disk, white_tophat

    # A disk made of small elements, or its cost would rise with the square of the radius.
    footprint = disk(radius, decomposition="sequence" if radius > 4 else None)
    return _for_each_plane(image, lambda plane: white_tophat(plane, footprint))


def difference_of_gaussians(image: np.ndarray, low_sigma: float = 1.0, high_sigma: float = 10.0) -> HazeMatchingOutput:
    """
    Keep structure between two widths.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        low_sigma (`float`, defaults to `1.0`): Deviation of the Gaussian against noise, pixels.
        high_sigma (`float`, defaults to `10.0`): Deviation of the Gaussian that is taken for haze, pixels.
    """
    from skimage.filters import difference_of_gaussians

    return _for_each_plane(image, lambda plane: difference_of_gaussians(plane, low_sigma, high_sigma, mode="reflect"))


def wiener(image: np.ndarray, airy_radius: float = 3.0, balance: float = 0.01) -> HazeMatchingOutput:
    """
    Wiener deconvolution with the widefield PSF in focus.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): 0.61 emission / NA in pixels.
        balance (`float`, defaults to `0.01`): Weight of smoothness against the data.
    """
    from skimage.restoration import wiener

    psf = widefield_psf(airy_radius)

    def deconvolve(plane):
        margin = len(psf)  # the filter is periodic
        padded = np.pad(plane, margin, mode="symmetric")
        return wiener(padded, psf, balance, clip=False)[margin:-margin, margin:-margin]

    return _for_each_plane(image, deconvolve)


def richardson_lucy(image: np.ndarray, airy_radius: float = 3.0, num_iter: int = 20) -> HazeMatchingOutput:
    """
    Richardson–Lucy deconvolution (Richardson 1972, Lucy 1974) with the widefield PSF in focus, above the plane's
    minimum. Against haze, take a rolling ball first: `richardson_lucy(rolling_ball(image, 12).prediction)`.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): 0.61 emission / NA in pixels.
        num_iter (`int`, defaults to `20`): Iterations; more are sharper and noisier.
    """
    from skimage.restoration import richardson_lucy

    psf = widefield_psf(airy_radius)

    def deconvolve(plane):
        margin = len(psf)
        padded = np.pad(plane - plane.min(), margin, mode="symmetric").astype(np.float32)  # as good, and twice as fast
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
    Richardson–Lucy deconvolution that stops by itself (Manton 2023, github.com/jdmanton/rlgc): the electrons are split
    into halves, and a pixel is updated only where both halves agree on the direction.

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `3.0`): 0.61 emission / NA in pixels.
        gain (`float`, *optional*):
            Counts of an electron. If omitted, 1, or such that the plane spans 1,000 electrons where it spans few
            counts.
        offset (`float`, *optional*): Counts without light; the plane's minimum if omitted.
        max_iter (`int`, defaults to `50`): At most so many iterations.
    """
    if gain is not None and not gain > 0:
        raise ValueError(f"`gain` must be positive, got {gain}.")
    psf = widefield_psf(airy_radius)
    margin = len(psf)

    def deconvolve(plane):
        counts = np.clip(plane - (plane.min() if offset is None else offset), 0, None)
        unit = gain or (1.0 if counts.max() >= 100 else max(counts.max(), 1e-9) / 1000)
        electrons = np.pad(counts / unit, margin, mode="symmetric").round().astype(np.int64)
        otf = np.fft.rfft2(np.fft.ifftshift(_centred(psf, electrons.shape)))  # of an even PSF, and so real

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
    Dark sectioning (Cao et al. 2025, github.com/Cao-ruijie/Dark-sectioning): the dark channel of the low frequencies
    tells the haze, as it tells that of photographs of landscapes (He, Sun & Tang 2011).

    Args:
        image (`np.ndarray` of shape `[..., H, W]`): Hazy micrographs.
        airy_radius (`float`, defaults to `4.0`): 0.61 emission / NA in pixels.
        passes (`int`, defaults to `1`): 1 for the method's "medium" haze, 2 for its "severe".
    """
    block = max(2, round(2 * airy_radius))  # px, where the method's low-passed Airy pattern has fallen to a hundredth

    def dehaze(plane):
        low, high = np.percentile(plane, (0.1, 99.9))
        scale = max(high - low, 1e-9) / 255
        result = (plane - low) / scale
        for number in range(passes):
            result = _dark_section(result, airy_radius, block, 6 if number == 0 else 3)
        return scale * result

    return _for_each_plane(image, dehaze)


def _dark_section(plane: np.ndarray, airy_radius: float, block: int, degree: float) -> np.ndarray:
    """One pass of dark sectioning on a plane of about 0 to 255; the constants are the method's own."""
    height, width = plane.shape
    margin = max(plane.shape) // 15 + 1
    side = max(plane.shape) + 2 * margin
    after = [(margin, side - margin - length) for length in plane.shape]
    padded = np.pad(plane, after, mode="symmetric")
    # 1. Bands: low frequencies, the lowest, and the rest.
    cutoff = np.floor(0.2 * side / (0.25 * airy_radius / 0.61))
    sigma = max(2 * cutoff / 2.355, 1)
    squared = np.add.outer(np.fft.fftfreq(side, 1 / side) ** 2, np.fft.rfftfreq(side, 1 / side) ** 2)
    spectrum = np.fft.rfft2(padded)
    low, lowest = (
        np.fft.irfft2(spectrum * np.exp(-squared / width_**2), s=padded.shape) for width_ in (sigma, sigma / degree)
    )
    high = padded - low

    # 2. What haze there is: where even the darkest pixel of a block is bright.
    def dark_channel(field):
        return ndimage.minimum_filter(field, block, mode="constant", cval=np.inf)

    def atmosphere(field):
        dark = dark_channel(field)
        return field[dark >= np.quantile(dark, 0.99)].mean()

    least, most = atmosphere(low * (low < 70)), atmosphere(low)
    lowest = lowest - lowest.min()
    haze = 3 * (lowest / max(lowest.max(), 1e-9) * (most - least) + least)
    haze = np.maximum(haze, 1e-3)
    # 3. Transmission, smoothed along the edges of the image (He, Sun & Tang 2013), and what it leaves.
    transmission = _guided_filter(low, 1 - 0.95 * dark_channel(low / haze), 15, 0.001)
    clear = (low - haze) / np.maximum(transmission, 0.1) + haze
    return (clear + high)[margin : margin + height, margin : margin + width]


def _guided_filter(guide: np.ndarray, field: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    def mean(values):
        size = 2 * radius + 1
        ones = ndimage.uniform_filter(np.ones_like(values), size, mode="constant")
        return ndimage.uniform_filter(values, size, mode="constant") / ones

    covariance = mean(guide * field) - mean(guide) * mean(field)
    slope = covariance / (mean(guide * guide) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(field) - slope * mean(guide))


def _centred(psf: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A PSF in the middle of zeros of a shape."""
    canvas = np.zeros(shape)
    rows, columns = (slice(length // 2 - len(psf) // 2, length // 2 - len(psf) // 2 + len(psf)) for length in shape)
    canvas[rows, columns] = psf
    return canvas


@lru_cache(maxsize=32)
def widefield_psf(airy_radius: float) -> np.ndarray:
    """
    The widefield PSF in focus `[s, s]`, of sum 1, in pixels of which `airy_radius` reach from its centre to its first
    dark ring.

    Raises:
        `ValueError`: If the radius is not positive.
    """
    if not airy_radius > 0:
        raise ValueError(f"`airy_radius` must be positive, got {airy_radius}.")
    # In focus, a scalar PSF depends on nothing but emission / NA in pixels.
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
    lights = [image, *(rolling_ball(image, radius).prediction for radius in (12, 50))]
    grid = product(lights, (2, 4, 8), (3, 10, 30))
    return [richardson_lucy(light, airy_radius, num_iter).prediction for light, airy_radius, num_iter in grid]


# Every method at the settings that an evaluation tries, from fine to broad: predictions of an image.
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


def _for_each_plane(image: np.ndarray, method: Callable[[np.ndarray], np.ndarray]) -> HazeMatchingOutput:
    planes = HazeImageProcessor().preprocess(image)[:, 0].numpy()  # [N,H,W], which refuses what is no image
    prediction = np.stack([method(plane.astype(np.float64)) for plane in planes]).astype(np.float32)
    return HazeMatchingOutput(prediction=prediction.reshape(image.shape))
