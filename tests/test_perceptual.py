"""
The patch protocol and the Fréchet distances, with a small random DINOv2. LPIPS and FID need downloads, so only their
errors are tested here.
"""

import importlib.util

import numpy as np
import pytest
from scipy import linalg

from haze_pipeline.evaluation import perceptual


def test_patches_are_scaled_one_by_one():
    rng = np.random.default_rng(0)
    image = rng.gamma(2, 50, (130, 200)).astype(np.float32)
    image[:64, :64] = 7
    patches = perceptual.unit_patches([image, image[:64, :64]])
    assert patches.shape == (2 * 3 + 1, 3, 64, 64)
    assert (patches[0] == 0).all() and (patches[-1] == 0).all()
    part = image[64:128, 128:192]
    np.testing.assert_allclose(patches[5, 2], (part - part.min()) / np.ptp(part), rtol=1e-5)
    with pytest.raises(ValueError, match="64 px"):
        perceptual.unit_patches([image[:63]])


def test_distances_of_dinov2_equal_a_calculation_by_hand(dinov2):
    rng = np.random.default_rng(0)
    targets = [rng.gamma(1, 50, (256, 256)) for _ in range(3)]
    predictions = [rng.gamma(3, 50, (256, 256)) for _ in range(3)]
    tokens = perceptual.ClassTokens(dinov2)
    real, made = (tokens(perceptual.unit_patches(images)).double().numpy() for images in (targets, predictions))
    covariances = [np.cov(features.T) for features in (real, made)]
    expected = ((real.mean(axis=0) - made.mean(axis=0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * linalg.sqrtm(covariances[0] @ covariances[1]).real)
    assert perceptual.dinov2_distance(targets, predictions, tokens) == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert perceptual.dinov2_distance(targets, targets, tokens) == pytest.approx(0, abs=1e-3)


def test_missing_packages_and_weights_are_named(tmp_path, monkeypatch):
    images = [np.random.default_rng(0).random((64, 64))]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="name a folder that contains it"):
        perceptual.ClassTokens(tmp_path / "nothing")
    for function, package in ((perceptual.lpips, "torchvision"), (perceptual.fid, "torch_fidelity")):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(ImportError, match="perceptual"):
                function(images, images)
