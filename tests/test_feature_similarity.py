"""FSIM, GMSD and phase congruency, compared with calculations by hand and with the properties that they must have."""

import numpy as np
import pytest
from scipy import ndimage, signal

from haze_pipeline.evaluation.feature_similarity import fsim, gmsd, phase_congruency


@pytest.fixture(scope="module")
def target():
    """Smooth blobs and lines, not square."""
    return ndimage.gaussian_filter(np.random.default_rng(0).gamma(0.1, 100, (96, 131)), 1.5) + 5


@pytest.mark.parametrize("gain", [1, 0.01, -3])
def test_a_perfect_affine_fit_has_the_best_scores(target, gain):
    assert fsim(target, gain * target + 9) == pytest.approx(1)
    assert gmsd(target, gain * target + 9) == pytest.approx(0, abs=1e-9)


def test_gmsd_equals_a_calculation_by_hand():
    # Blocks of 2 × 2 pixels have the means below. One row has no vertical gradient.
    target = np.kron([[0.0, 0.0, 1.0]], [[-1, 1], [1, 3]])
    prediction = np.kron([[0.0, 1.0, 1.0]], np.ones((2, 2)))
    # The range of the target is 4. The least-squares fit gives the second and third block the same value, the mean of
    # the target there, and the first block 0.
    first, second = np.array([0, 1, 1]) / 4, np.array([0.5, 0.5, 0]) / 4
    constant = 170 / 255**2
    similarity = (2 * first * second + constant) / (first**2 + second**2 + constant)
    assert gmsd(target, prediction) == pytest.approx(similarity.std())
    assert gmsd(target.T, prediction.T) == pytest.approx(similarity.std())


def test_the_gradient_of_gmsd_is_that_of_prewitt(target):
    means = target[:96, :130].reshape(48, 2, 65, 2).mean(axis=(1, 3)) / np.ptp(target)
    padded, kernel = np.pad(means, 1, mode="edge"), np.outer((1, 1, 1), (-1, 0, 1)) / 3
    gradient = np.hypot(*(signal.correlate2d(padded, each, mode="valid") for each in (kernel, kernel.T)))
    expected = (170 / 255**2 / (gradient**2 + 170 / 255**2)).std()  # against an image without gradients
    assert gmsd(target, np.ones(target.shape)) == pytest.approx(expected)


def test_fsim_against_an_image_without_features_equals_a_calculation_by_hand(target):
    image = target / np.ptp(target)
    padded, kernel = np.pad(image, 1, mode="edge"), np.outer((3, 10, 3), (-1, 0, 1)) / 16
    gradient = np.hypot(*(signal.correlate2d(padded, each, mode="valid") for each in (kernel, kernel.T)))
    congruency, t1, t2 = phase_congruency(image), 0.85, 160 / 255**2
    similarity = t1 / (congruency**2 + t1) * t2 / (gradient**2 + t2)
    expected = (similarity * congruency).sum() / congruency.sum()
    assert fsim(target, np.ones(target.shape)) == pytest.approx(expected)


def test_fsim_averages_the_blocks_of_large_images():
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.gamma(0.1, 100, (256, 300)), 1.5)
    prediction = ndimage.gaussian_filter(target, 2)
    large = (np.kron(image, np.ones((2, 2))) for image in (target, prediction))
    assert fsim(*large) == pytest.approx(fsim(target, prediction))


@pytest.mark.parametrize("metric", [fsim, gmsd])
def test_units_and_integer_types_do_not_matter(metric, target):
    rng = np.random.default_rng(0)
    counts = np.round(10 * target).astype(np.uint16)
    prediction = (counts + rng.integers(0, 300, counts.shape)).astype(np.uint16)
    score = metric(counts, prediction)
    assert 0.01 < score < 0.99
    assert metric(counts, 0.01 * prediction - 5) == pytest.approx(score)
    assert metric(2000.0 * counts + 9e4, prediction) == pytest.approx(score)


def test_scores_become_worse_with_blur_and_noise(target):
    noise = np.random.default_rng(1).normal(0, np.ptp(target), target.shape)
    blurred = [target, *(ndimage.gaussian_filter(target, sigma) for sigma in (1, 2, 4))]
    noisy = [target + level * noise for level in (0, 0.02, 0.05, 0.1, 0.2)]
    for series in (blurred, noisy):
        assert np.diff([fsim(target, image) for image in series]).max() < -0.01
        assert np.diff([gmsd(target, image) for image in series]).min() > 0.005


def test_phase_congruency_equals_the_published_formula(target):
    """Kovesi 1999: amplitudes, deviations from the mean phase, and the noise estimated from filters in space."""
    image = target + np.random.default_rng(0).normal(0, 2, target.shape)  # noise, so that the threshold matters
    height, width = image.shape
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius, spectrum = np.hypot(x, y), np.fft.fft2(image)
    energy, amplitudes = 0, 0
    for theta in np.deg2rad([0, 45, 90, 135]):
        cosine = (x * np.cos(theta) + y * np.sin(theta)) / np.maximum(radius, 1e-9)
        angular = np.exp(-(np.arccos(np.clip(cosine, -1, 1)) ** 2) / (2 * np.deg2rad(45 / 1.2) ** 2))
        responses, kernels = [], []
        for scale in range(4):
            centre = 1 / (6 * 2**scale)
            ratio = np.log(np.where(radius > 0, radius, 1e-9) / centre)
            gabor = angular * np.exp(-(ratio**2) / (2 * np.log(0.55) ** 2)) / (1 + (radius / 0.45) ** 30)
            responses.append(np.fft.ifft2(spectrum * gabor))
            kernels.append(np.fft.ifft2(gabor).real * np.sqrt(image.size))
            if scale == 0:
                power = np.median(np.abs(responses[0]) ** 2) / -np.log(0.5) / (gabor**2).sum()
        products = sum((kernels[i] * kernels[j]).sum() for i in range(4) for j in range(i))
        tau = np.sqrt((2 * power * sum((kernel**2).sum() for kernel in kernels) + 4 * power * products) / 2)
        threshold = (tau * np.sqrt(np.pi / 2) + 2 * np.sqrt((2 - np.pi / 2) * tau**2)) / 1.7
        even, odd = sum(each.real for each in responses), sum(each.imag for each in responses)
        deviations = [np.arctan2(each.imag, each.real) - np.arctan2(odd, even) for each in responses]
        each_energy = sum(
            np.abs(response) * (np.cos(deviation) - np.abs(np.sin(deviation)))
            for response, deviation in zip(responses, deviations, strict=True)
        )
        energy = energy + np.maximum(each_energy - threshold, 0)
        amplitudes = amplitudes + sum(np.abs(each) for each in responses)
    congruency = phase_congruency(image)
    assert 0.05 < congruency.mean() < 0.5
    # The product of a filter and its mirror image, which the estimate in space includes, changes the third decimal.
    np.testing.assert_allclose(congruency, energy / amplitudes, atol=3e-3)


def test_the_phases_agree_on_edges_of_any_contrast():
    # The middle of a step is column 64: 0 below, 1 above.
    step = np.tile(np.sign(np.arange(129) - 64) / 2 + 0.5, (65, 1))
    congruency = phase_congruency(step)
    assert congruency[:, 64].min() > 0.95 and congruency.max() <= 1
    assert congruency[:, 40:56].max() < 0.3 and congruency[:, 73:89].max() < 0.3
    for contrast in (1e-3, 1e4):
        np.testing.assert_allclose(phase_congruency(contrast * step + 7), congruency, atol=1e-6)


def test_the_phases_agree_on_lines():
    line = np.zeros((64, 80))
    line[30] = 1
    congruency = phase_congruency(line)
    assert congruency[30].min() > 0.95
    np.testing.assert_allclose(congruency, congruency[:, :1] * np.ones(80), atol=1e-6)


def test_phase_congruency_does_not_prefer_a_direction(target):
    image = target[:95]  # With an odd number of pixels, every frequency has its mirror image.
    congruency = phase_congruency(image)
    np.testing.assert_allclose(phase_congruency(image.T), congruency.T, atol=1e-9)
    np.testing.assert_allclose(phase_congruency(image[::-1]), congruency[::-1], atol=1e-9)
    np.testing.assert_allclose(phase_congruency(-image), congruency, atol=1e-9)


def test_noise_and_constant_images_have_no_features():
    noise = np.random.default_rng(0).normal(100, 5, (128, 96))
    assert phase_congruency(noise).mean() < 0.1
    assert not phase_congruency(np.full((20, 30), 7.0)).any()


@pytest.mark.parametrize("metric", [fsim, gmsd])
def test_bad_images_are_refused(metric, target):
    broken = target.copy()
    broken[3, 4] = np.nan
    for pair, error in [
        ((target, target[1:]), "same shape"),
        ((target[None], target[None]), r"`target` must be an image \[H, W\]"),
        ((target[:1], target[:1]), "2 px or more"),
        ((np.ones_like(target), target), "constant"),
        ((target, broken), "`prediction` must be finite"),
    ]:
        with pytest.raises(ValueError, match=error):
            metric(*pair)
