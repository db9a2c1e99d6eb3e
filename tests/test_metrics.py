"""Metrics, compared with published formulas, calculations by hand and other libraries on fixed arrays."""

import math

import numpy as np
import pytest
import torch
from microssim import MicroMS3IM
from scipy import ndimage, stats
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from haze_pipeline.evaluation import metrics
from haze_pipeline.evaluation.metrics import MS_SSIM_BETAS, range_invariant_psnr


def images(number=1, shape=(64, 80)):
    """Smooth targets, and blurred, noisy predictions in another unit."""
    rng = np.random.default_rng(0)
    targets = [ndimage.gaussian_filter(rng.gamma(0.2, 100, shape), 1.5) + 5 for _ in range(number)]
    predictions = [3 * ndimage.gaussian_filter(t, 1) + rng.normal(0, 2, shape) + 50 for t in targets]
    return (targets[0], predictions[0]) if number == 1 else (targets, predictions)


def affine_fit(target, prediction):
    slope, intercept = np.polyfit(prediction.ravel(), target.ravel(), 1)
    return slope * prediction + intercept


def published_formula(target, prediction):
    """juglab/ScaleInvPSNR as published: standardise the target, fit one scale, and take the PSNR over its range."""
    target, prediction = torch.tensor(target), torch.tensor(prediction)
    g = (target - target.mean()) / target.std()
    p = prediction - prediction.mean()
    a = (g * p).sum() / (p * p).sum()
    mse = ((g - a * p) ** 2).mean()
    return 20 * math.log10(((target.max() - target.min()) / target.std()).item() / mse.sqrt().item())


def test_equals_the_published_formula():
    rng = np.random.default_rng(0)
    target = rng.gamma(2.0, 50.0, (40, 50))
    prediction = 3 * target + rng.normal(0, 30, (40, 50)) + 7
    assert range_invariant_psnr(target, prediction) == pytest.approx(published_formula(target, prediction), abs=1e-9)


def test_scale_offset_and_integer_types_do_not_matter():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4000, (30, 30)).astype(np.uint16)
    prediction = (target + rng.integers(0, 500, (30, 30))).astype(np.uint16)
    score = range_invariant_psnr(target, prediction)
    assert range_invariant_psnr(target, 0.01 * prediction.astype(float) - 5) == pytest.approx(score)
    assert range_invariant_psnr(2 * target.astype(float) + 9, prediction) == pytest.approx(score)


def test_limits():
    target = np.arange(16.0).reshape(4, 4)
    assert range_invariant_psnr(target, 2 * target + 1) > 200
    assert math.isfinite(range_invariant_psnr(target, np.ones((4, 4))))
    with pytest.raises(ValueError, match="constant"):
        range_invariant_psnr(np.ones((4, 4)), target)
    with pytest.raises(ValueError, match="same shape"):
        range_invariant_psnr(target, target[:3])


def test_pixel_metrics_equal_those_of_other_libraries():
    target, prediction = images()
    spread = np.ptp(target)
    assert metrics.psnr(target, prediction) == pytest.approx(
        peak_signal_noise_ratio(target, prediction, data_range=spread)
    )
    fitted = affine_fit(target, prediction)
    np.testing.assert_allclose(metrics.fit_scale_and_offset(target, prediction), fitted)
    assert metrics.nrmse(target, prediction) == pytest.approx(
        normalized_root_mse(target, fitted, normalization="min-max")
    )
    assert metrics.pearson(target, -prediction) == pytest.approx(
        stats.pearsonr(target.ravel(), -prediction.ravel())[0]
    )
    assert metrics.pearson(target, np.ones_like(target)) == 0


def test_structural_similarity_equals_that_of_another_library():
    target, prediction = images()
    pair = [torch.from_numpy(image)[None, None] for image in (affine_fit(target, prediction), target)]
    _, everywhere = structural_similarity_index_measure(
        *pair, sigma=1.5, data_range=np.ptp(target), return_full_image=True
    )
    expected = everywhere[0, 0, 5:-5, 5:-5].mean().item()  # scikit-image leaves out pixels whose window is cut
    assert metrics.ssim(target, prediction) == pytest.approx(expected)
    assert metrics.ssim(target, 2 * target + 1) == pytest.approx(1)


def test_structural_similarity_on_three_scales_equals_a_calculation_by_hand():
    target, prediction = images()
    x, y, product = target, affine_fit(target, prediction), 1.0
    c1, c2 = (0.01 * np.ptp(target)) ** 2, (0.03 * np.ptp(target)) ** 2
    for level, beta in enumerate(MS_SSIM_BETAS):

        def mean(image):
            return ndimage.gaussian_filter(image, 1.5, truncate=5 / 1.5, mode="mirror")  # 11 px

        variances = mean(x**2) - mean(x) ** 2 + mean(y**2) - mean(y) ** 2
        # torchmetrics leaves out the edges on all scales except the last.
        structure = (2 * (mean(x * y) - mean(x) * mean(y)) + c2) / (variances + c2)
        if level == 2:
            structure = structure * (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1)
        else:
            structure = structure[5:-5, 5:-5]
        product *= max(structure.mean(), 0) ** beta
        x, y = (image.reshape(image.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for image in (x, y))
    assert metrics.ms_ssim(target, prediction) == pytest.approx(product, abs=1e-5)


def test_micro_ms3im_of_images_in_one_unit_is_that_of_the_library():
    targets, predictions = images(4)
    targets = [(target - target.min()) / np.ptp(target) for target in targets]
    predictions = [affine_fit(*pair) for pair in zip(targets, predictions, strict=True)]
    measure = MicroMS3IM().fit(targets, predictions)
    expected = [
        measure.score(*pair, betas=MS_SSIM_BETAS, normalize="relu").item()
        for pair in zip(targets, predictions, strict=True)
    ]
    other_units = [factor * prediction + 9 for factor, prediction in zip((1, 2, 3, 4), predictions, strict=True)]
    np.testing.assert_allclose(metrics.micro_ms3im(targets, other_units), expected, atol=1e-4)


def test_power_spectra_equal_a_calculation_by_hand():
    image = images(shape=(8, 12))[0]
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, n + 1) / (n + 1)) for n in image.shape))
    windowed = (image - image.mean()) * window
    rings = {ring: [] for ring in range(1, 5)}
    for fy in range(-4, 4):
        for fx in range(7):  # the other half is its mirror image
            wave = np.exp(-2j * np.pi * (fy * np.arange(8)[:, None] / 8 + fx * np.arange(12) / 12))
            ring = round(8 * math.hypot(fy / 8, fx / 12))
            if ring in rings:
                rings[ring].append(abs((windowed * wave).sum()) ** 2)
    spectrum = metrics.radial_power_spectrum(image)
    np.testing.assert_allclose(spectrum, [np.mean(ring) for ring in rings.values()])


def test_the_spectrum_distance_grows_with_blur():
    target = images()[0]
    assert metrics.spectrum_distance(target, 2 * target + 3) < 1e-6
    smooth, smoother = (metrics.spectrum_distance(target, ndimage.gaussian_filter(target, s)) for s in (0.5, 1))
    assert smoother > smooth > 1


def test_perceptual_metrics_prefer_samples_to_their_mean():
    rng = np.random.default_rng(0)
    posterior_mean = [ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 4) * 20 for _ in range(6)]
    fine = [[ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 1) * 2 for _ in range(6)] for _ in range(2)]
    targets, samples = ([m + f for m, f in zip(posterior_mean, each, strict=True)] for each in fine)
    psnr = [
        np.mean([range_invariant_psnr(*p) for p in zip(targets, i, strict=True)]) for i in (posterior_mean, samples)
    ]
    assert psnr[0] > psnr[1] + 2  # the mean is closer to the truth
    for metric in (
        lambda images: np.mean([metrics.spectrum_distance(*pair) for pair in zip(targets, images, strict=True)]),
        lambda images: metrics.sliced_wasserstein_distance(targets, images),
    ):
        shifted = [np.roll(target, 40, axis=0) for target in targets]
        assert metric(samples) < 0.3 * metric(posterior_mean)  # samples look more like the truth
        assert metric(shifted) < 0.5 * metric(posterior_mean)  # so does the shifted truth, apart from its seam


def test_non_finite_values_are_refused():
    target, prediction = images()
    prediction[3, 4] = np.nan
    for metric in (metrics.psnr, range_invariant_psnr, metrics.nrmse, metrics.pearson, metrics.ssim, metrics.ms_ssim):
        with pytest.raises(ValueError, match="`prediction` must be finite"):
            metric(target, prediction)


def test_sliced_wasserstein_distances_equal_those_of_another_library():
    targets, predictions = images(3)
    rng = np.random.default_rng(5)
    matched = [
        ((p - p.mean()) / p.std() * t.std() + t.mean()) / np.ptp(t) for t, p in zip(targets, predictions, strict=True)
    ]
    current = [[target / np.ptp(target) for target in targets], matched]
    distances = []
    for _ in range(3):
        smooth = [[ndimage.gaussian_filter(image, 1) for image in side] for side in current]
        bands = [[i - j for i, j in zip(*sides, strict=True)] for sides in zip(current, smooth, strict=True)]
        current = [[image[::2, ::2] for image in side] for side in smooth]
        patches = [[], []]
        for target, prediction in zip(*bands, strict=True):
            rows, columns = (rng.integers(0, length - 6, 128) for length in target.shape)
            for row, column in zip(rows, columns, strict=True):
                for side, band in zip(patches, (target, prediction), strict=True):
                    side.append(band[row : row + 7, column : column + 7].ravel())
        directions = rng.standard_normal((49, 256))
        directions /= np.sqrt((directions**2).sum(axis=0))
        sides = [np.array(side) for side in patches]
        each = [stats.wasserstein_distance(sides[0] @ d, sides[1] @ d) for d in directions.T]
        distances.append(np.mean(each) / sides[0].std())
    assert metrics.sliced_wasserstein_distance(targets, predictions, seed=5) == pytest.approx(np.mean(distances))
    assert metrics.sliced_wasserstein_distance(targets, targets) < 1e-12


@pytest.mark.parametrize("offset", [0, 1, 100])
def test_ms_ssim_is_that_of_double_precision(offset):
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.gamma(1, 50, (96, 128)), 2)
    target = (target - target.min()) / np.ptp(target) + offset
    prediction = target + rng.normal(0, 0.1, target.shape)
    pair = (
        torch.from_numpy(image)[None, None] for image in (metrics.fit_scale_and_offset(target, prediction), target)
    )
    expected = multiscale_structural_similarity_index_measure(
        *pair, data_range=1.0, betas=MS_SSIM_BETAS, normalize="relu"
    )
    assert metrics.ms_ssim(target, prediction) == pytest.approx(expected.item(), abs=1e-3)
