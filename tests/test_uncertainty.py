"""Predicted standard deviations against values from their definition; test_calibration.py has the fits."""

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.sampling.uncertainty import local_intensity, predicted_std


def test_the_standard_deviation_by_a_line_is_at_least_that_of_the_mean_of_the_members():
    spread = torch.tensor([0.0, 1, 2])
    np.testing.assert_allclose(predicted_std(spread, 4, 1.5, 0.25), np.hypot([0.25, 1.75, 3.25], [0, 0.5, 1]))
    np.testing.assert_allclose(predicted_std(spread, 4, 1.5, -5), [0, 0.5, 1])


def test_a_curve_is_constant_below_its_first_knot_and_proportional_above_its_last():
    curve = {"light_weight": 0.5, "predictor": [0.1, 1.0], "deviation": [0.2, 0.8]}
    spread, intensity = np.array([0.01, 0.1, 0.4, 1, 4, 0]), np.array([0.01, 0.1, 0.4, 1, 100, 0])
    own = [0.2, 0.2, 0.2 * 4 ** np.log10(4), 0.8, 0.8 * 20, 0.2]
    found = predicted_std(torch.from_numpy(spread), 4, curve=curve, intensity=torch.from_numpy(intensity))
    np.testing.assert_allclose(found, np.hypot(own, spread / 2))


def test_local_intensity_is_measured_from_the_darkest_pixel():
    rng = np.random.default_rng(0)
    hazy = torch.from_numpy(rng.gamma(2, 50, (40, 60)).astype(np.float32))
    intensity = local_intensity(hazy, 20.0)
    expected = (ndimage.gaussian_filter(hazy.double().numpy(), 4) - hazy.min().item()) / 20
    np.testing.assert_allclose(intensity, expected, rtol=1e-4)
    np.testing.assert_allclose(local_intensity(3 * hazy + 100, 60.0), expected, rtol=1e-4)
    assert (local_intensity(torch.full((9, 9), 7.0), 0.0) == 0).all()
