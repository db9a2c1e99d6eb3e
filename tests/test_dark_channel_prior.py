"""The dark-channel prior, on photographs of scikit-image in computed atmospheric haze."""

import numpy as np
import pytest
import torch
from skimage import data

from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze


AIRLIGHT = (0.85, 0.85, 0.9)


def hazy_photograph(name):
    """A photograph `[3, H, W]`, linear in intensity, and the same in haze that is denser towards the top."""
    clear = (getattr(data, name)()[::2, ::2] / 255) ** 2.2
    clear = torch.from_numpy(clear).float().movedim(-1, 0)
    depth = torch.linspace(1.2, 0.2, clear.shape[1])[:, None].expand(clear.shape[1:])
    with torch.no_grad():
        hazy = AtmosphericHaze(AIRLIGHT)(clear[None], depth[None, None])[0]
    return clear.numpy(), hazy.numpy()


def psnr(clear, image):
    return -10 * np.log10(np.square(clear - np.clip(image, 0, 1)).mean())


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_haze_of_photographs_is_removed(name):
    clear, hazy = hazy_photograph(name)
    assert psnr(clear, dark_channel_prior(hazy).prediction) > psnr(clear, hazy) + 5
    assert psnr(clear, dark_channel_prior(hazy, airlight=AIRLIGHT).prediction) > psnr(clear, hazy) + 10


def test_units_and_shape_are_kept():
    _, hazy = hazy_photograph("chelsea")
    stack = np.stack([hazy, hazy[:, ::-1]])[:, None]  # [2,1,3,H,W]
    prediction = dark_channel_prior(stack).prediction
    assert prediction.shape == stack.shape and prediction.dtype == np.float32
    np.testing.assert_allclose(prediction[1, 0], prediction[0, 0][:, ::-1], atol=1e-4)
    np.testing.assert_allclose(dark_channel_prior(1000 * stack).prediction, 1000 * prediction, rtol=1e-3, atol=0.5)
    assert dark_channel_prior(np.zeros((3, 1, 1), np.uint8)).prediction.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.ones((8, 8)), {}, r"must have the shape \[..., 3, H, W\], got \(8, 8\)"),
        (np.ones((8, 8, 3)), {}, r"must have the shape"),
        (np.ones((3, 0, 8)), {}, r"must have the shape"),
        (np.full((3, 8, 8), np.nan), {}, "must be finite and not negative"),
        (-np.ones((3, 8, 8)), {}, "must be finite and not negative"),
        (np.ones((3, 8, 8)), {"patch_size": 4}, "positive odd number of pixels, got 4"),
        (np.ones((3, 8, 8)), {"strength": 0.0}, "must exceed 0 and be at most 1, got 0"),
    ],
)
def test_bad_input_is_refused(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        dark_channel_prior(image, **arguments)
