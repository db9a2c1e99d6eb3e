"""Features and domain distances of images with clearly different textures."""

import json

import numpy as np
import pytest
from scipy import ndimage

from haze_pipeline.reliability.out_of_domain import domain_distance, fit_domain, image_features


def spots(number, seed, sigma=1.5, shape=(128, 160)):
    """Micrographs of dots with photon noise. Each has another density and brightness."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        dots = (rng.random(shape) < rng.uniform(0.002, 0.02)) * rng.uniform(500, 3000)
        yield rng.poisson(ndimage.gaussian_filter(dots, sigma) + 20).astype(np.uint16)


@pytest.fixture(scope="module")
def domain():
    return fit_domain(list(spots(60, seed=0)), num_crops=200)


def test_images_of_the_same_kind_are_near_and_others_far(domain):
    domain = json.loads(json.dumps(domain))  # as a checkpoint stores it
    known = [domain_distance(image, domain) for image in spots(20, seed=1)]
    assert np.mean(np.array(known) > 1) <= 0.2 and np.median(known) < 0.9
    rng = np.random.default_rng(2)
    noise = rng.poisson(50, (128, 160))
    inverted = [3000.0 - image for image in spots(3, seed=3)]
    wide = list(spots(3, seed=4, sigma=6))
    for image in (noise, *inverted, *wide, np.full((128, 128), 5.0)):
        assert domain_distance(np.asarray(image), domain) > max(1, np.median(known) * 1.5)


def test_gain_offset_and_size_do_not_matter(domain):
    image = next(spots(1, seed=5)).astype(np.float64)
    np.testing.assert_allclose(image_features(3 * image + 1000), image_features(image), atol=1e-6)
    large = [domain_distance(image, domain) for image in spots(5, seed=6, shape=(400, 300))]
    assert np.median(large) < 1


@pytest.mark.parametrize("image", [np.zeros((40, 40)), np.ones((1, 1)), np.arange(9.0).reshape(3, 3)])
def test_odd_images_have_finite_features(image):
    assert image_features(image).shape == (17,) and np.isfinite(image_features(image)).all()


def test_too_few_and_too_small_images_are_not_judged(domain):
    assert fit_domain(list(spots(49, seed=0))) is None
    assert fit_domain([image[:100] for image in spots(60, seed=0)]) is None
    assert domain_distance(next(spots(1, seed=0))[:127], domain) is None
