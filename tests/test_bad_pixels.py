import numpy as np
import pytest
from scipy import ndimage, stats

from haze_pipeline.utils.bad_pixels import fill_masked, find_hot_pixels, replace_hot_pixels


def structured(rng, size=256):
    """Blobs of 8 px with photon noise on a background of 50 counts."""
    smooth = ndimage.gaussian_filter(rng.random((size, size)), 8)
    return rng.poisson(50 + 500 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def beads(rng, width, size=256):
    """60 points with the full width at half maximum `width`, px, at any place within a pixel, which integrates."""
    plane = np.full((size, size), 100.0)
    edges = np.arange(size + 1) - 0.5
    for _ in range(60):
        row, column, height = *rng.uniform(0, size, 2), np.exp(rng.uniform(4, 10))
        profiles = (np.diff(stats.norm.cdf(edges, center, width / 2.355)) for center in (row, column))
        plane += height * np.outer(*profiles)
    return rng.poisson(plane).astype(np.float32)


def test_isolated_outliers_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    clean = structured(rng)
    hot = {(0, 1), (0, 100), (254, 255), (64, 64), (128, 31)}
    track = {(200, 200), (201, 201), (202, 202)}  # of a cosmic ray
    plane = clean.copy()
    plane[tuple(np.transpose(list(hot | track)))] = rng.uniform(20000, 65535, 8)
    assert set(map(tuple, find_hot_pixels(plane))) == hot | track
    assert replace_hot_pixels(plane) == 8
    assert np.abs(plane - clean).max() < 6 * np.sqrt(clean.max())
    assert np.count_nonzero(plane != clean) <= 8


@pytest.mark.parametrize("width", [1.5, 2.0, 4.0])
def test_beads_as_small_as_the_psf_are_no_outliers(width):
    for seed in range(5):
        assert len(find_hot_pixels(beads(np.random.default_rng(seed), width))) == 0


@pytest.mark.parametrize("mean", [0.02, 0.1, 1.0, 100.0])
def test_photon_noise_is_no_outlier(mean):
    noise = np.random.default_rng(0).poisson(mean, (512, 512)).astype(np.float32)
    assert len(find_hot_pixels(noise)) == 0


def test_blank_planes_and_edges_have_no_outliers():
    assert len(find_hot_pixels(np.full((40, 50), 7, np.float32))) == 0
    edge = np.zeros((40, 50), np.float32)
    edge[:, 25:] = 1000
    assert len(find_hot_pixels(edge)) == 0
    assert len(find_hot_pixels(np.zeros((1, 1), np.float32))) == 0


def test_missing_pixels_take_the_value_of_the_nearest_one():
    plane = np.array([[np.nan, 2, 3], [np.nan, 5, np.nan]], np.float32)
    filled, valid = fill_masked(plane)
    np.testing.assert_array_equal(filled, [[2, 2, 3], [5, 5, 5]])
    np.testing.assert_array_equal(valid, ~np.isnan(plane))
    assert fill_masked(filled)[1] is None
    nothing, valid = fill_masked(np.full((2, 2), np.nan))
    assert not nothing.any() and not valid.any()
