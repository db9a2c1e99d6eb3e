"""Classical methods: they remove background and blur, and their interface is that of the pipelines."""

import numpy as np
import pytest
from scipy import ndimage, signal
from skimage.restoration import rolling_ball as full_rolling_ball

from haze_pipeline.evaluation import baselines
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.io.micrograph_files import read_micrograph


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


@pytest.mark.parametrize("radius", [1, 2.5, 10])
def test_small_balls_roll_on_the_image_itself(radius):
    image = np.random.default_rng(0).poisson(100, (41, 37)).astype(float)
    expected = image - full_rolling_ball(image, radius=radius)
    np.testing.assert_allclose(baselines.rolling_ball(image, radius).prediction, expected, atol=1e-4)


@pytest.mark.parametrize(("radius", "block"), [(20, 2), (50, 4), (120, 8)])
def test_large_balls_roll_on_block_minima(radius, block):
    y, x = np.mgrid[:101, :90]
    background = 100 + 0.2 * x + 40 * np.exp(-((y - 40) ** 2 + (x - 30) ** 2) / (2 * 40**2))
    spots = np.zeros(background.shape)
    spots[10::20, 7::25] = 1
    spots = ndimage.gaussian_filter(spots, 1.2)
    image = background + 100 * spots / spots.max()
    prediction = baselines.rolling_ball(image, radius).prediction
    # The minimum of a block and the interpolation move the background by less than the diagonal of a block.
    tolerance = block * np.sqrt(2) * np.hypot(*np.gradient(background)).max()
    assert tolerance < 10
    np.testing.assert_allclose(prediction, image - full_rolling_ball(image, radius=radius), atol=tolerance)
    assert prediction.min() >= 0 and prediction[10::20, 7::25].min() > 90


@pytest.mark.parametrize(("radius", "block"), [(10.5, 2), (30, 2), (30.5, 4), (100, 4), (100.5, 8)])
def test_blocks_have_the_size_of_imagej(radius, block):
    for dark, in_the_first_block in ((block - 1, True), (block, False)):
        image = np.full((24, 32), 100.0)
        image[dark, dark] = 0  # it is the background of its whole block, up to the interpolation
        assert (baselines.rolling_ball(image, radius).prediction[0, 0] == 100) == in_the_first_block


def test_the_ball_keeps_its_height_on_a_shrunken_image():
    image = np.zeros((64, 128))
    image[:, 44:84] = 100  # the ball rises between pixels 20 px to the left and to the right of the centre
    prediction = baselines.rolling_ball(image, radius=50).prediction
    np.testing.assert_allclose(prediction[:, 62:66], 100 - (50 - np.sqrt(50**2 - 20**2)), rtol=1e-5)
    np.testing.assert_array_equal(prediction[:, :40], 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (33, 65)])
@pytest.mark.parametrize("radius", [1, 10.5, 30, 31, 200])
def test_the_rolling_ball_accepts_every_size(shape, radius):
    flat = np.full(shape, 120, np.uint16)
    np.testing.assert_array_equal(baselines.rolling_ball(flat, radius).prediction, np.zeros(shape))
    image = np.random.default_rng(0).poisson(100, shape).astype(np.uint16)
    prediction = baselines.rolling_ball(image, radius).prediction
    assert prediction.shape == shape and prediction.min() >= 0 and (prediction <= image - image.min() + 1e-4).all()


@pytest.mark.parametrize("radius", [0, -3, np.nan, np.inf])
def test_balls_without_a_size_are_refused(radius):
    with pytest.raises(ValueError, match="`radius` must be positive and finite"):
        baselines.rolling_ball(np.ones((8, 8)), radius)


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


def test_dark_sectioning_reaches_its_known_score_on_real_microtubules_in_counts(shared_data):
    """The method's own program scores 28.6 dB with an Airy radius of 6 px and severe haze (bench/real_pairs.py)."""
    hazy, clear = (
        read_micrograph(shared_data / "paired" / f"microtubules_b_{kind}.tif").data for kind in ("hazy", "clear")
    )
    prediction = baselines.dark_sectioning(np.roll(hazy, -1, axis=1), airy_radius=6, passes=2).prediction
    inner = (slice(4, -4), slice(4, -4))
    reference = ndimage.gaussian_filter(clear.astype(float), 2.7)[inner]
    assert range_invariant_psnr(reference, prediction[inner]) == pytest.approx(28.6, abs=0.3)
    span = np.ptp(np.percentile(hazy, (0.1, 99.9)))
    assert 0.5 * span < np.ptp(np.percentile(prediction, (0.1, 99.9))) < 1.5 * span
