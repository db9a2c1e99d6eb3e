import math

import numpy as np
import pytest
import torch

from haze_pipeline.metrics import range_invariant_psnr


def published_formula(target, prediction):
    """juglab/ScaleInvPSNR as the literature states it: standardise the target, fit one scale, PSNR over its range."""
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
    with pytest.raises(ValueError, match="one shape"):
        range_invariant_psnr(target, target[:3])
