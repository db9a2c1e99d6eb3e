"""
Similarity of edges and lines: FSIM compares phase congruency and gradients, GMSD compares gradients alone.

Both metrics were published for images from 0 to 255 in one unit. Like the other metrics of distortion, they first fit
the scale and offset of a prediction to the truth by least squares. The range of the truth takes the place of 255.
"""

import numpy as np
from scipy import fft, ndimage

from .metrics import fit_scale_and_offset


WAVELENGTHS = (6, 12, 24, 48)  # px, of the four scales of phase congruency
NUM_ORIENTATIONS = 4


def fsim(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Feature similarity (Zhang et al. 2011, doi 10.1109/TIP.2011.2109730) after a fit of scale and offset. It is the
    mean similarity of phase congruency and gradient, weighted by the phase congruency.

    As in the authors' program, blocks of pixels are averaged first so that the shorter side has about 256 px. Finer
    structure of larger images does not count.

    Args:
        target (`np.ndarray` of shape `[H, W]`): Ground truth, 2 px or more a side.
        prediction (`np.ndarray` of shape `[H, W]`): Estimate, in any unit.

    Returns:
        `float`: Between 0 and 1; 1 for a perfect affine fit.

    Raises:
        `ValueError`: If the shapes differ or are not `[H, W]`, a value is not finite, or the target is constant.
    """
    block = max(1, int(min(target.shape) / 256 + 0.5))
    images = [_block_means(image, block) for image in _on_unit_range(target, prediction)]
    congruencies = [phase_congruency(image) for image in images]
    gradients = [_gradient_magnitude(image, (3 / 16, 10 / 16, 3 / 16)) for image in images]  # Scharr's kernel
    similarity = _similarity(*congruencies, 0.85) * _similarity(*gradients, 160 / 255**2)
    weights = np.maximum(*congruencies)
    return float(np.average(similarity, weights=weights if weights.any() else None))


def gmsd(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Gradient magnitude similarity deviation (Xue et al. 2014, doi 10.1109/TIP.2013.2293423) after a fit of scale and
    offset. It is the standard deviation over the image of the similarity of the gradients. Blocks of 2 × 2 pixels are
    averaged first. The arguments and errors are those of [`fsim`].

    Returns:
        `float`: 0 for a perfect affine fit; higher is worse.
    """
    images = [_block_means(image, 2) for image in _on_unit_range(target, prediction)]
    gradients = [_gradient_magnitude(image, (1 / 3, 1 / 3, 1 / 3)) for image in images]  # Prewitt's kernel
    return float(_similarity(*gradients, 170 / 255**2).std())


def phase_congruency(image: np.ndarray) -> np.ndarray:
    """
    Phase congruency (Kovesi 1999, Videre 1(3)) with the constants of FSIM. It is near 1 on edges and lines, where the
    waves of all lengths are in phase, and 0 on noise and constant areas. It does not depend on the contrast.

    The filters are log-Gabor functions of four wavelengths and four orientations. The image counts as periodic.

    Args:
        image (`np.ndarray` of shape `[H, W]`): Intensities in any unit.

    Returns:
        `np.ndarray` of shape `[H, W]`: Values between 0 and 1.
    """
    if image.min() == image.max():
        return np.zeros(image.shape)
    y, x = fft.fftfreq(image.shape[0])[:, None], fft.fftfreq(image.shape[1])
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    radius[0, 0] = 1  # The logarithm of 0 is infinite. The mean of the image is removed below.
    low_pass = 1 / (1 + (radius / 0.45) ** 30)  # no corners of the frequency plane
    bands = np.stack(
        [low_pass * np.exp(-0.5 * (np.log(radius * length) / np.log(0.55)) ** 2) for length in WAVELENGTHS]
    )
    bands[:, 0, 0] = 0
    spectrum = fft.fft2(image)
    energy, amplitude = np.zeros(image.shape), np.zeros(image.shape)
    for orientation in np.pi / NUM_ORIENTATIONS * np.arange(NUM_ORIENTATIONS):
        distance = np.angle(np.exp(1j * (angle - orientation)))  # rad, between -π and π
        filters = bands * np.exp(-0.5 * (distance / (np.pi / NUM_ORIENTATIONS / 1.2)) ** 2)
        # The real part is the response of the even filter, the imaginary part that of the odd filter.
        responses = fft.ifft2(spectrum * filters)  # [4,H,W]
        mean_phase = np.angle(responses.sum(axis=0))
        aligned = responses * np.exp(-1j * mean_phase)
        aligned_energy = (aligned.real - np.abs(aligned.imag)).sum(axis=0)
        energy += np.maximum(aligned_energy - _noise_threshold(responses[0], filters), 0)
        amplitude += np.abs(responses).sum(axis=0)
    return energy / (amplitude + 1e-6 * amplitude.max())  # the second term suppresses rounding errors


def _noise_threshold(finest: np.ndarray, filters: np.ndarray) -> float:
    """
    The energy below which an orientation has only noise: its mean plus two standard deviations.

    The finest responses are mostly noise. Their squared amplitude then has an exponential distribution, whose mean is
    the median / ln 2. The amplitude of the summed responses to this noise has a Rayleigh distribution.
    """
    noise_power = np.median(np.abs(finest) ** 2) / np.log(2) / (filters[0] ** 2).sum()
    sigma = np.sqrt(noise_power * (filters.sum(axis=0) ** 2).sum() / 2)
    # Kovesi's program divides by 1.7, because the phases of noise differ and reduce the energy.
    return sigma * (np.sqrt(np.pi / 2) + 2 * np.sqrt(2 - np.pi / 2)) / 1.7


def _on_unit_range(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The target and the fitted prediction, divided by the range of the target."""
    if target.ndim != 2 or min(target.shape) < 2:
        raise ValueError(f"`target` must be an image [H, W] with 2 px or more a side, got the shape {target.shape}.")
    fitted, target = fit_scale_and_offset(target, prediction), target.astype(np.float64)
    return target / np.ptp(target), fitted / np.ptp(target)


def _block_means(image: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks of side × side pixels. Rows and columns that fill no block are left out."""
    rows, columns = (length // side for length in image.shape)
    return image[: rows * side, : columns * side].reshape(rows, side, columns, side).mean(axis=(1, 3))


def _gradient_magnitude(image: np.ndarray, smoothing: tuple[float, float, float]) -> np.ndarray:
    """Length of the gradient over 2 px, smoothed across its direction. The edge pixels continue beyond the image."""
    differences = (ndimage.correlate1d(image, (-1, 0, 1), axis, mode="nearest") for axis in (0, 1))
    return np.hypot(
        *(ndimage.correlate1d(each, smoothing, 1 - axis, mode="nearest") for axis, each in enumerate(differences))
    )


def _similarity(first: np.ndarray, second: np.ndarray, constant: float) -> np.ndarray:
    return (2 * first * second + constant) / (first**2 + second**2 + constant)
