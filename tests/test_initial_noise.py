import numpy as np
import pytest
import torch
from conftest import tiny_unet

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.sampling.initial_noise import LARGEST_TORUS, draw_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noise_without_a_corner_frequency_is_white():
    assert torch.equal(draw_noise((20, 30), 0.0, seeded()), torch.randn(1, 20, 30, generator=seeded()))


@pytest.mark.parametrize("corner", [0.05, 0.2])
def test_the_spectrum_agrees_with_its_formula(corner):
    """The mean periodogram of many windowed fields, cut from larger ones, is compared with the formula."""
    side, number = 96, 300
    window = np.hanning(side)[:, None] * np.hanning(side)
    generator = seeded()
    fields = torch.cat([draw_noise((side, side), corner, generator) for _ in range(number)]).double().numpy()
    power = (np.abs(np.fft.fft2(fields * window)) ** 2).mean(axis=0) / (window**2).sum()
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    for low, high in ((0.04, 0.06), (0.1, 0.12), (0.2, 0.25), (0.4, 0.5)):
        ring = (frequency >= low) & (frequency < high)
        expected = (1 + (corner / frequency[ring]) ** 2).mean()
        assert power[ring].mean() == pytest.approx(expected, rel=0.08)
    assert abs(fields.mean()) < 0.1


def test_the_low_frequency_part_repeats_without_a_seam():
    low_frequencies = draw_noise((40, 100), 0.2, seeded(), period=32) - draw_noise((40, 100), 0.0, seeded())
    torch.testing.assert_close(low_frequencies[:, :8, :32], low_frequencies[:, 32:, 32:64], atol=1e-5, rtol=0)
    steps = (low_frequencies[0, :, 1:] - low_frequencies[0, :, :-1]).square().mean(dim=0)  # one value per column
    assert steps[[31, 63, 95]].mean() < 2 * steps.mean()


def test_a_field_larger_than_the_torus():
    noise = draw_noise((8, LARGEST_TORUS + 200), 0.2, seeded())
    white = torch.randn(1, 8, LARGEST_TORUS + 200, generator=seeded())
    low_frequencies = noise - white
    assert torch.allclose(low_frequencies[..., :200], low_frequencies[..., LARGEST_TORUS:], atol=1e-5)
    assert 0.5 < low_frequencies.std() < 1.5


@pytest.mark.parametrize("corner", [-0.1, float("nan"), float("inf")])
def test_an_impossible_corner_is_refused(corner):
    with pytest.raises(ValueError, match="noise_corner_frequency"):
        HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), noise_corner_frequency=corner)


def test_the_pipeline_starts_from_its_noise(tmp_path):
    made = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), noise_corner_frequency=0.2)
    made.save_pretrained(tmp_path)
    pipe = HazeMatchingPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).poisson(100, (24, 40))
    generator = seeded(3)
    noise = torch.stack([draw_noise(image.shape, 0.2, generator)[0] for _ in range(3)])
    expected = pipe(image, num_inference_steps=2, ensemble_size=3, latents=noise, output_samples=True)
    result = pipe(image, num_inference_steps=2, ensemble_size=3, generator=seeded(3), output_samples=True)
    np.testing.assert_array_equal(result.samples, expected.samples)
    white = made.__class__(made.unet, made.scheduler)(image, 2, 3, generator=seeded(3)).prediction
    assert not np.allclose(white, result.prediction)
