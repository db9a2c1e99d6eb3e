"""Classical methods: they remove background and blur, and their interface is that of the pipelines."""

import numpy as np
import pytest
from scipy import ndimage, signal

from haze_pipeline.evaluation import baselines
from haze_pipeline.evaluation.metrics import range_invariant_psnr


METHODS = [
    baselines.rolling_ball,
    baselines.white_tophat,
    baselines.difference_of_gaussians,
    baselines.wiener,
    baselines.richardson_lucy,
    baselines.richardson_lucy_gradient_consensus,
    baselines.dark_sectioning,
]


@pytest.fixture(scope="module")
def specimen():
    """Thin bright lines on a dark background."""
    rng = np.random.default_rng(0)
    clear = np.zeros((96, 80))
    for start, slope in zip(rng.uniform(0, 96, 8), rng.uniform(-1, 1, 8), strict=True):
        columns = np.arange(80)
        rows = np.round(start + slope * columns).astype(int)
        clear[rows[(rows >= 0) & (rows < 96)], columns[(rows >= 0) & (rows < 96)]] = 300
    return clear


def test_the_psf_has_its_dark_ring_at_the_airy_radius(specimen):
    for radius in (2.0, 3.7, 8.0):
        psf = baselines.widefield_psf(radius)
        assert psf.sum() == pytest.approx(1) and psf.shape[0] == psf.shape[1] and psf.shape[0] % 2
        np.testing.assert_allclose(psf, psf.T, atol=1e-6)
        np.testing.assert_allclose(psf, psf[::-1, ::-1], atol=1e-6)
        assert psf.argmax() == psf.size // 2
    profile = psf[len(psf) // 2, len(psf) // 2 :]
    assert 7 <= profile[:12].argmin() <= 9


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (baselines.rolling_ball, {"radius": 20}),
        (baselines.white_tophat, {"radius": 8}),
        (baselines.difference_of_gaussians, {"high_sigma": 10}),
        (baselines.dark_sectioning, {"airy_radius": 3}),
    ],
)
def test_backgrounds_are_removed(method, setting, specimen):
    y, x = np.mgrid[:96, :80]
    clear = ndimage.gaussian_filter(specimen, 1)
    hazy = clear + 200 + 300 * np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / 2000)
    assert range_invariant_psnr(clear, method(hazy, **setting).prediction) > range_invariant_psnr(clear, hazy) + 3


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (baselines.wiener, {"balance": 0.003}),
        (baselines.richardson_lucy, {"num_iter": 10}),
        (baselines.richardson_lucy_gradient_consensus, {"gain": 3.0}),
    ],
)
def test_blur_is_undone(method, setting, specimen):
    hazy = signal.fftconvolve(np.pad(specimen, 20, mode="symmetric"), baselines.widefield_psf(3.0), mode="same")
    hazy = hazy[20:-20, 20:-20] + np.random.default_rng(0).normal(0, 0.1, specimen.shape)
    target = ndimage.gaussian_filter(specimen, 0.7)
    assert (
        range_invariant_psnr(target, method(hazy, airy_radius=3.0, **setting).prediction)
        > range_invariant_psnr(target, hazy) + 1.5
    )


@pytest.mark.parametrize("method", METHODS)
def test_stacks_keep_their_shape_and_planes_are_independent(method):
    stack = np.random.default_rng(0).poisson(100, (2, 3, 40, 36)).astype(np.uint16)
    out = method(stack)
    assert out.prediction.shape == stack.shape and out.prediction.dtype == np.float32 and out.uncertainty is None
    np.testing.assert_allclose(out.prediction[1, 2], method(stack[1, 2]).prediction)
    assert np.isfinite(out.prediction).all() and np.ptp(out.prediction) > 0
    with pytest.raises(ValueError, match="NaN"):
        method(np.full((20, 20), np.nan))


def test_settings_of_an_evaluation_fit_their_methods():
    image = np.random.default_rng(0).poisson(100, (48, 48)).astype(np.uint16)
    for name, predict in baselines.BASELINES.items():
        images = predict(image)
        assert np.isfinite(images).all(), name
        assert len({each.tobytes() for each in images}) == len(images) > 2, name
    with pytest.raises(ValueError, match="airy_radius"):
        baselines.wiener(image, airy_radius=0)
