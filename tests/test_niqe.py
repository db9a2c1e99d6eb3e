"""NIQE, fitted on clear images."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from haze_pipeline.evaluation.niqe import _fit_generalised_gaussian, fit_niqe


def textures(seed, number, size=128):
    """Images with fine bright structures on a dark ground."""
    noise = np.random.default_rng(seed).normal(size=(number, size, size))
    smooth = np.stack([gaussian_filter(each, 1.5) for each in noise])
    return np.clip(smooth / smooth.std() - 0.3, 0, None)


@pytest.fixture(scope="module")
def niqe():
    return fit_niqe(textures(0, 12), patch_size=32)


def test_blurred_and_noisy_images_are_farther_from_clear_ones(niqe):
    clear = textures(1, 6)
    blurred = [gaussian_filter(image, 2) for image in clear]
    noisy = clear + np.random.default_rng(0).normal(0, 0.3, clear.shape)
    assert niqe(clear) < 2
    assert niqe(blurred) > 3 * niqe(clear) and niqe(noisy) > 3 * niqe(clear)


def test_gain_and_offset_do_not_matter(niqe):
    clear = textures(1, 2)
    assert niqe(300 * clear + 1000) == pytest.approx(niqe(clear), rel=1e-6)


@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_the_shape_of_a_distribution_is_found(shape):
    rng = np.random.default_rng(0)
    values = rng.laplace(size=200_000) if shape == 1 else rng.normal(size=200_000)
    found, left, right = _fit_generalised_gaussian(values)
    assert found == pytest.approx(shape, abs=0.03)
    assert left == pytest.approx(right, rel=0.02) == (1.0 if shape == 1 else np.sqrt(2))


def test_impossible_fits_are_refused(niqe):
    with pytest.raises(ValueError, match="`patch_size` must be an even number"):
        fit_niqe(textures(0, 1), patch_size=33)
    with pytest.raises(ValueError, match="must have more than 36 sharp patches of 96 pixels"):
        fit_niqe(textures(0, 1))
    with pytest.raises(ValueError, match="planes of 32 pixels or more a side"):
        niqe([np.ones((20, 40))])
    with pytest.raises(ValueError, match="not constant"):
        niqe([np.ones((40, 40))])
    with pytest.raises(ValueError, match="at least one image"):
        niqe([])
