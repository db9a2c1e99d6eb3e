"""Pinhole series: pairs of one specimen, their haze, and a network that is trained on the images of all pinholes."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from diffusers import UNet2DModel
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.data.pairs import Pair, load_pairs
from haze_pipeline.data.patches import FieldsInMemory, TrainingExamples
from haze_pipeline.data.pinhole_series import haze_fractions, join_series
from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.sampling.interpolant import Interpolant


@pytest.fixture
def pairs():
    """Two specimens with pinholes of 1 and 4 Airy units and an open one, not in order. The haze mixes linearly."""
    rng, made = np.random.default_rng(0), []
    for specimen in ("a", "b"):
        clear, haze = rng.gamma(2, 50, (2, 64, 64))
        for level, fraction in ((None, 1.0), (1.0, 0.2), (4.0, 0.5)):
            hazy = (clear + fraction * haze + 7).astype(np.float32)
            made.append(Pair(hazy, clear.astype(np.float32), specimen, f"{specimen} {level}", level, 0.1))
    return made


def test_the_images_of_a_specimen_are_joined_in_the_order_of_their_pinholes(pairs):
    first, second = join_series(pairs)
    assert first.pinholes == second.pinholes == (1.0, 4.0, math.inf) and second.specimen_id == "b"
    np.testing.assert_array_equal(first.hazy, pairs[0].hazy)
    np.testing.assert_array_equal(first.smaller, [pairs[1].hazy, pairs[2].hazy])
    np.testing.assert_allclose(haze_fractions([first, second]), [0.2, 0.5, 1.0], atol=1e-4)


def test_incomplete_series_are_refused(pairs):
    with pytest.raises(ValueError, match=r"specimen a has 1 image\(s\) with the pinholes open"):
        join_series(pairs[:1])
    with pytest.raises(ValueError, match="this one has 1, open and the first one 1, 4, open"):
        join_series(pairs[:5])
    with pytest.raises(ValueError, match="no pairs"):
        join_series([])
    with pytest.raises(ValueError, match=r"of the largest pinhole are 1\.00, 0\.50, 1\.00"):
        for pair, like in ((pairs[1], pairs[0]), (pairs[4], pairs[3])):
            pair.hazy = like.hazy
        haze_fractions(join_series(pairs))


def test_an_example_shows_the_image_of_one_pinhole_at_its_time(pairs):
    processor = HazeImageProcessor("fixed", input_mean=0.0, input_std=1.0)
    series = join_series(pairs[:3])
    fields = FieldsInMemory(series, processor, 64)
    arguments = {"posterior_mean_share": 0.0, "t_sampling": "uniform", "seed": 0, "length": 30}
    seen = {}
    for example in TrainingExamples(fields, 64, level_times=(0.0, 0.8, 0.5), **arguments):
        haze = example["state"] - example["clear"] - 7
        whole = example["hazy"] - example["clear"] - 7
        seen[round(example["t"].item(), 3)] = (haze.mean() / whole.mean()).item()
        if len(seen) == 3:
            break
    assert seen == {0.0: pytest.approx(1.0), 0.8: pytest.approx(0.2, 1e-3), 0.5: pytest.approx(0.5, 1e-3)}
    with pytest.raises(ValueError, match="cannot be varied"):
        TrainingExamples(fields, 64, level_times=(0.0, 0.5), added_haze=0.1, **arguments)


def test_a_scheduler_may_have_a_grid_of_its_own():
    scheduler = FlowMatchODEScheduler(solver="cold", sigmas=[1.0, 0.5, 0.2])
    scheduler.set_timesteps(3)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1.0, 0.5, 0.2, 0.0]))
    scheduler.set_timesteps(2)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1.0, 0.5, 0.0]))


def test_a_network_is_trained_on_all_pinholes_and_iterates_over_their_haze(run, tmp_path):
    simulated = ("--num-images", 2, "--size", 48, "--pinholes", "1,4,open")
    assert run("simulate", tmp_path / "series", *simulated)[0] == 0
    UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1}).save_config(tmp_path / "network")
    arguments = [
        ROOT / "training" / "train_haze_matching.py", "--train_data_dir", tmp_path / "series",
        "--validation_data_dir", tmp_path / "series", "--output_dir", tmp_path / "output", "--resolution", 32,
        "--model_config_name_or_path", tmp_path / "network", "--train_batch_size", 2, "--max_train_steps", 2,
        "--report_to", "none", "--pinhole_series", "--source", "hazy", "--prediction_type", "clear",
    ]  # fmt: skip
    result = run_script(*arguments)
    assert result.returncode == 2 and "--pinhole_series needs --source hazy" in result.stderr
    result = run_script(*arguments, "--unguided")
    assert result.returncode == 0, result.stderr[-3000:]
    trained = HazeMatchingPipeline.from_pretrained(tmp_path / "output")
    fractions = haze_fractions(join_series(load_pairs(tmp_path / "series", "train")))
    assert trained.scheduler.config.sigmas == fractions[::-1] and trained.scheduler.config.solver == "cold"
    assert trained.interpolant == Interpolant("hazy", 0.0, "clear", guided=False)
    called = []
    trained(np.random.default_rng(0).gamma(2, 50, (32, 32)), callback_on_step_end=lambda *call: called.append(call[2]))
    assert [each.item() / 1000 for each in called] == pytest.approx(fractions[::-1])
