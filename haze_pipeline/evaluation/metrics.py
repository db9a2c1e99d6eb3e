"""
Metrics of image quality: how close a prediction is to the truth (distortion), and how similar it looks (perception).

The images of a microscope's two modes are in different units. Metrics of distortion therefore first fit the scale and
offset of a prediction to the truth by least squares. Metrics of perception first match its mean and standard
deviation to those of the truth. Most metrics are computed by scikit-image, torchmetrics and microssim, which the extra
`eval` installs.
"""

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
from scipy import ndimage


# Weights of the three scales: the first three of Wang et al. 2003, as HazeMatching uses them for MicroMS3IM.
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001)


def range_invariant_psnr(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Peak signal-to-noise ratio after the scale and offset of the prediction were fitted to the target by least squares
    (Weigert et al. 2018). HazeMatching reports this PSNR. The two images may be in different units. The peak is the
    range of the target.

    Args:
        target (`np.ndarray`): Ground truth of any shape.
        prediction (`np.ndarray` of the same shape): Estimate, in any unit.

    Returns:
        `float`: Decibels; infinite for a perfect affine fit.

    Raises:
        `ValueError`: If the shapes differ, a value is not finite, or the target is constant.
    """
    return _decibels(target, fit_scale_and_offset(target, prediction))


def psnr(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Peak signal-to-noise ratio of a prediction in the unit of the target. The peak is the range of the target. The
    arguments and errors are those of [`range_invariant_psnr`].
    """
    _check(target, prediction)
    return _decibels(target, prediction)


def fit_scale_and_offset(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """
    The image a · prediction + b with the smallest squared distance from the target. The scale a may be negative.

    Raises:
        `ValueError`: If the shapes differ, a value is not finite, or the target is constant.
    """
    _check(target, prediction)
    target, prediction = target.astype(np.float64), prediction.astype(np.float64)
    prediction = prediction - prediction.mean()
    energy = (prediction**2).sum()
    scale = ((target - target.mean()) * prediction).sum() / energy if energy > 0 else 0.0
    return scale * prediction + target.mean()


def nrmse(target: np.ndarray, prediction: np.ndarray) -> float:
    """Root mean squared error after a fit of scale and offset, as a fraction of the range of the target."""
    return 10 ** (-range_invariant_psnr(target, prediction) / 20)


def pearson(target: np.ndarray, prediction: np.ndarray) -> float:
    """Pearson's correlation of the pixels; 0 for a constant prediction."""
    _check(target, prediction)
    deviation = prediction.std(dtype=np.float64)
    return float(np.corrcoef(target.ravel(), prediction.ravel())[0, 1]) if deviation > 0 else 0.0


def ssim(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Structural similarity after a fit of scale and offset, with the Gaussian window of Wang et al. 2004 (doi
    10.1109/TIP.2003.819861). Computed by scikit-image.

    Args:
        target (`np.ndarray` of shape `[H, W]`): Ground truth, 11 px or more a side.
        prediction (`np.ndarray` of shape `[H, W]`): Estimate, in any unit.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            target.astype(np.float64), fit_scale_and_offset(target, prediction), data_range=_range(target),
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def ms_ssim(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Structural similarity on three scales (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216) after a fit of scale and
    offset. Computed by torchmetrics.

    Args:
        target (`np.ndarray` of shape `[H, W]`): Ground truth, 48 px or more a side.
        prediction (`np.ndarray` of shape `[H, W]`): Estimate, in any unit.
    """
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    fitted, span = fit_scale_and_offset(target, prediction), _range(target)
    # float32 takes a tenth of the time and changes the result by less than 0.001. On a large offset, however, its
    # rounding would hide the contrast.
    dtype = np.float32 if np.abs(target).max() < 2 * span else np.float64
    images = (torch.from_numpy((image / span).astype(dtype))[None, None] for image in (fitted, target))
    return multiscale_structural_similarity_index_measure(
        *images, data_range=1.0, betas=MS_SSIM_BETAS, normalize="relu"
    ).item()


def micro_ms3im(targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> list[float]:
    """
    MicroMS3IM (Ashesh et al. 2024, arXiv 2408.08747) of every image: structural similarity on three scales, after an
    offset and a scale that all images share. Computed by microssim.

    Every pair may be in its own unit: the prediction is first fitted to its target by least squares, and both are then
    divided by the range of the target. HazeMatching's own script uses the intensities unchanged, so that its values
    are not comparable with these.

    Args:
        targets (sequence of `np.ndarray` of shape `[H, W]`): Ground truth, 48 px or more a side.
        predictions (sequence of `np.ndarray` of the same shapes): Estimates.
    """
    from microssim import MicroMS3IM

    fitted = [fit_scale_and_offset(*pair) / _range(pair[0]) for pair in zip(targets, predictions, strict=True)]
    scaled = [target.astype(np.float64) / _range(target) for target in targets]
    with redirect_stderr(StringIO()), np.errstate(invalid="ignore"):  # progress bars; rounding in empty regions
        measure = MicroMS3IM().fit(scaled, fitted)
    return [
        float(measure.score(*pair, betas=MS_SSIM_BETAS, normalize="relu")) for pair in zip(scaled, fitted, strict=True)
    ]


def spectrum_distance(target: np.ndarray, prediction: np.ndarray) -> float:
    """
    Root mean squared difference in dB of the radially averaged log power spectra, after the mean and the standard
    deviation were matched. It measures whether prediction and target have equally much structure of every size,
    wherever it lies in the image. An image that is too smooth has too little fine structure.

    Args:
        target (`np.ndarray` of shape `[H, W]`): Ground truth.
        prediction (`np.ndarray` of shape `[H, W]`): Estimate, in any unit.
    """
    spectra = [radial_power_spectrum(image) for image in (target, _match_moments(target, prediction))]
    floor = 1e-6 * spectra[0].max()  # 60 dB below the largest, invisible on any display
    levels = [10 * np.log10(np.maximum(spectrum, floor)) for spectrum in spectra]
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))


def radial_power_spectrum(image: np.ndarray) -> np.ndarray:
    """
    Mean power of an image `[H, W]` at every radius of the frequency plane, up to the Nyquist frequency and without the
    mean of the image. A bin is as wide as a frequency step of the shorter side. A Hann window suppresses edge effects.
    """
    height, width = image.shape
    values = image - image.mean(dtype=np.float64)
    values *= np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.rfft2(values)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    number = min(height, width) // 2
    bins = np.round(radius * 2 * number).astype(int).ravel()
    inside = (bins >= 1) & (bins <= number)
    totals = np.bincount(bins[inside], power.ravel()[inside], number + 1)
    return totals[1:] / np.bincount(bins[inside], minlength=number + 1)[1:]


def sliced_wasserstein_distance(
    targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray], seed: int = 0
) -> float:
    """
    Sliced Wasserstein distance between the 7 × 7 patches of predictions and targets, averaged over three levels of
    Laplacian pyramids (Karras et al. 2018, arXiv 1710.10196, section 5). It measures whether the patches look alike,
    wherever they lie in the image.

    Unlike in that paper, the standard deviation of the *targets'* patches of a level normalises both sets of patches,
    so that a prediction without fine structure scores badly. 0 is perfect. Two halves of one set of images score
    above 0.

    Args:
        targets (sequence of `np.ndarray` of shape `[H, W]`): Ground truth, 32 px or more a side.
        predictions (sequence of `np.ndarray` of the same shapes): Estimates. The mean and the standard deviation of
            each are first matched to those of its target.
        seed (`int`, defaults to `0`): Seed of the patch positions and the projections.
    """
    rng = np.random.default_rng(seed)
    number, side = 128, 7  # number of patches per image and level, and their side in px
    pyramids = {"target": [], "prediction": []}
    for target, prediction in zip(targets, predictions, strict=True):
        matched = _match_moments(target, prediction) / _range(target)
        pyramids["target"].append(_laplacian_pyramid(target.astype(np.float64) / _range(target)))
        pyramids["prediction"].append(_laplacian_pyramid(matched))
    distances = []
    for level in range(3):
        patches = {"target": [], "prediction": []}
        for pair in zip(*pyramids.values(), strict=True):
            shape = pair[0][level].shape
            corners = np.column_stack([rng.integers(0, length - side + 1, number) for length in shape])
            for name, pyramid in zip(patches, pair, strict=True):
                windows = np.lib.stride_tricks.sliding_window_view(pyramid[level], (side, side))
                patches[name].append(windows[corners[:, 0], corners[:, 1]].reshape(number, -1))
        target, prediction = (np.concatenate(each) for each in patches.values())
        directions = rng.standard_normal((side * side, 256))
        directions /= np.linalg.norm(directions, axis=0)
        projected = [np.sort(each @ directions, axis=0) for each in (target, prediction)]
        distances.append(np.abs(projected[0] - projected[1]).mean() / max(target.std(), np.finfo(float).tiny))
    return float(np.mean(distances))


def _laplacian_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Frequency bands of an image, from fine to coarse. Each band has half the side of the one before."""
    bands = []
    for _ in range(3):
        smooth = ndimage.gaussian_filter(image, 1.0, mode="reflect")
        bands.append(image - smooth)
        image = smooth[::2, ::2]
    return bands


def _match_moments(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The prediction, scaled and shifted to the mean and standard deviation of the target."""
    _check(target, prediction)
    target, prediction = target.astype(np.float64), prediction.astype(np.float64)
    deviation = prediction.std()
    scale = target.std() / deviation if deviation > 0 else 0.0
    return scale * (prediction - prediction.mean()) + target.mean()


def _check(target: np.ndarray, prediction: np.ndarray):
    if target.shape != prediction.shape:
        raise ValueError(
            f"`target` and `prediction` must have the same shape, got {target.shape} and {prediction.shape}."
        )
    for name, image in (("target", target), ("prediction", prediction)):
        if not np.isfinite(image).all():
            raise ValueError(f"`{name}` must be finite, but holds NaN or infinite values.")
    if target.min() == target.max():
        raise ValueError("`target` must not be constant.")


def _range(target: np.ndarray) -> float:
    return float(target.max()) - float(target.min())


def _decibels(target: np.ndarray, prediction: np.ndarray) -> float:
    mse = ((target.astype(np.float64) - prediction.astype(np.float64)) ** 2).mean()
    return float(10 * np.log10(_range(target) ** 2 / mse)) if mse > 0 else float("inf")
