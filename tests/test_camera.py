"""Counts of the simulated camera, compared with photon statistics."""

import numpy as np
import pytest
import torch

from haze_pipeline.simulation.camera import Camera


@pytest.mark.parametrize(
    "camera",
    [
        Camera(gain=2.2, offset=100, read_noise=1.6, quantum_efficiency=0.8),
        Camera(gain=0.5, offset=400, read_noise=4),
        Camera(gain=12, offset=1000, read_noise=3, quantum_efficiency=0.6),
    ],
)
def test_photon_transfer(camera):
    """
    Variance against mean of flat fields: slope = gain, intercept = (gain · read noise)² (Janesick 2007), within 3 %.
    """
    generator = torch.Generator().manual_seed(0)
    photons = torch.tensor([0, 1, 2, 5, 10, 20, 40]) * camera.read_noise**2
    means, variances = [], []
    for level in photons:
        first, second = (camera.expose(level.expand(2000, 2000), generator).double() for _ in range(2))
        means.append((first.mean() + second.mean()).item() / 2 - camera.offset)
        variances.append((first - second).var().item() / 2 - 1 / 12)  # without the variance of rounding
    # Weighted, because the variance of a variance is proportional to its square.
    slope, intercept = np.polyfit(means, variances, 1, w=1 / np.array(variances))
    assert slope == pytest.approx(camera.gain, rel=0.03)
    assert intercept == pytest.approx((camera.gain * camera.read_noise) ** 2, rel=0.03)
    assert means[0] == pytest.approx(0, abs=0.02 * camera.gain * camera.read_noise)
    assert means[-1] == pytest.approx(camera.gain * camera.quantum_efficiency * photons[-1].item(), rel=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_counts_are_integers_and_saturate(bits):
    counts = Camera(gain=1, bit_depth=bits).expose(
        torch.linspace(0, 2**17, 10_000)[None], torch.Generator().manual_seed(0)
    )
    assert (counts == counts.round()).all() and counts.min() >= 0
    assert counts.max() == 2**bits - 1 and (counts == 2**bits - 1).any()


def test_hot_pixels_have_the_same_positions_in_every_exposure():
    camera = Camera(hot_pixel_share=0.01, hot_pixel_electrons=2000, read_noise=1)
    generator = torch.Generator().manual_seed(0)
    first, second = (camera.expose(torch.zeros(3, 100, 100), generator) for _ in range(2))
    hot = (first > 300).all(dim=0)
    assert 40 < hot.sum() < 160
    assert (second[:, hot] > 250).all() and not torch.equal(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"gain": 0},
        {"offset": -1},
        {"read_noise": -1},
        {"quantum_efficiency": 1.5},
        {"bit_depth": 17},
        {"hot_pixel_share": 2},
        {"hot_pixel_electrons": 0},
    ],
)
def test_impossible_cameras_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Camera(**change)
