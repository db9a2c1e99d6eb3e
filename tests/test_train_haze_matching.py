"""The training script, launched as a user launches it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, tiny_unet

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.microscopy_io import Micrograph, write_ome_tiff
from haze_pipeline.simulation import pair_generator, simulate_pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("hazy", "clear"):
        (folder / name).mkdir()
    for index in range(6):
        pair = simulate_pair(48, pair_generator(0, index))
        size = (pair.parameters["pixel_size"],) * 2
        write_ome_tiff(folder / "hazy" / f"{index}.tif", Micrograph(pair.hazy.numpy().astype(np.uint16), "YX", size))
        write_ome_tiff(folder / "clear" / f"{index}.tif", Micrograph(pair.clear.numpy(), "YX", size))
    tiny_unet().save_config(folder / "network")
    return folder


def train(pairs, output, *arguments, processes=1, check=True):
    launcher = [
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    if processes > 1:  # `accelerate launch --cpu` starts only one process, whatever --num_processes says
        launcher = ["torch.distributed.run", "--nproc_per_node", processes, "--master_port", 29533]
    command = [
        sys.executable, "-m", *launcher, ROOT / "training" / "train_haze_matching.py",
        *(() if "--simulate" in arguments else ("--train_data_dir", pairs)),
        *(() if "--init_from" in arguments else ("--model_config_name_or_path", pairs / "network")),
        "--output_dir", output, "--resolution", 32, "--lr_warmup_steps", 2, "--report_to", "none", *arguments,
    ]  # fmt: skip
    # One thread per process, or sums come in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return HazeMatchingPipeline.from_pretrained(folder).unet.state_dict()


def test_training_makes_a_pipeline_that_explains_itself_and_has_learned(pairs, tmp_path):
    train(
        pairs, tmp_path, "--train_batch_size", 8, "--max_train_steps", 120, "--learning_rate", "3e-3", "--ema_decay", 0.9,
        "--validation_data_dir", pairs, "--validation_steps", 60, "--checkpointing_steps", 60,
        "--report_to", "tensorboard", "--posterior_mean_share", 0.2,
    )  # fmt: skip
    pipe = HazeMatchingPipeline.from_pretrained(tmp_path)
    assert pipe.config.normalization == "image" and pipe.config.training_patch_size == 32
    assert 0.03 <= pipe.config.training_pixel_size["min"] <= pipe.config.training_pixel_size["max"] <= 0.6
    assert pipe.config.target_std > 0
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-120", "checkpoint-60"]
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] in (60, 120)
    HazeMatchingPipeline.from_pretrained(tmp_path / "best")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(next(tmp_path.glob("logs/*"))))
    log.Reload()
    losses = [event.value for event in log.Scalars("loss")]
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    assert len(log.Scalars("validation_psnr")) == 2


def test_an_interrupted_training_resumes_to_the_same_weights(pairs, tmp_path):
    arguments = ["--train_batch_size", 4, "--max_train_steps", 6, "--checkpointing_steps", 3]
    train(pairs, tmp_path / "whole", *arguments)
    # The state after three steps, beside one that was cut off while being written.
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    (tmp_path / "resumed" / "incomplete-checkpoint-5").mkdir()
    result = train(pairs, tmp_path / "resumed", *arguments, "--resume_from_checkpoint", "latest")
    assert "resumed from" in result.stderr and "checkpoint-3" in result.stderr
    expected, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_two_processes_equal_one_with_the_same_global_batch(pairs, tmp_path):
    steps = ["--max_train_steps", 5]
    train(pairs, tmp_path / "one", "--train_batch_size", 4, *steps)
    result = train(pairs, tmp_path / "two", "--train_batch_size", 2, *steps, processes=2)
    assert "2 process(es)" in result.stderr
    train(pairs, tmp_path / "accumulated", "--train_batch_size", 2, "--gradient_accumulation_steps", 2, *steps)
    expected = weights(tmp_path / "one")
    for other in (weights(tmp_path / "two"), weights(tmp_path / "accumulated")):
        assert all(torch.allclose(expected[name], other[name], atol=1e-4) for name in expected)


def test_fixed_statistics_and_mixed_precision(pairs, tmp_path):
    train(
        pairs,
        tmp_path,
        "--normalization",
        "fixed",
        "--mixed_precision",
        "bf16",
        "--train_batch_size",
        2,
        "--max_train_steps",
        2,
    )
    config = HazeMatchingPipeline.from_pretrained(tmp_path).config
    hazy = np.concatenate([tifffile.imread(path).ravel() for path in sorted((pairs / "hazy").glob("*.tif"))])
    assert config.normalization == "fixed"
    assert config.input_mean == pytest.approx(hazy.mean()) and config.input_std == pytest.approx(hazy.std())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_data_dir", "/nowhere"], "holds no TIFFs"),
        (["--resolution", "64"], "smaller than the patches"),
        (["--posterior_mean_share", "2"], "between 0 and 1"),
    ],
)
def test_impossible_trainings_say_why(pairs, tmp_path, arguments, message):
    result = train(pairs, tmp_path, *arguments, "--max_train_steps", 1, check=False)
    assert result.returncode != 0 and message in result.stderr


def test_simulated_training_resumes_at_the_same_examples(pairs, tmp_path):
    common = (
        "--simulate",
        "--simulation_size",
        48,
        "--patches_per_field",
        8,
        "--train_batch_size",
        4,
        "--checkpointing_steps",
        3,
    )
    train(pairs, tmp_path / "whole", *common, "--max_train_steps", 6, "--lr_scheduler", "constant")
    train(pairs, tmp_path / "parts", *common, "--max_train_steps", 3, "--lr_scheduler", "constant")
    train(
        pairs,
        tmp_path / "parts",
        *common,
        "--max_train_steps",
        6,
        "--lr_scheduler",
        "constant",
        "--resume_from_checkpoint",
        "latest",
    )
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    result = train(pairs, tmp_path, "--simulate", "--train_data_dir", pairs, "--max_train_steps", 1, check=False)
    assert result.returncode != 0 and "either --train_data_dir or --simulate" in result.stderr


def test_fine_tuning_starts_from_a_checkpoint_and_its_units(pairs, tmp_path):
    train(pairs, tmp_path / "first", "--train_batch_size", 4, "--max_train_steps", 3)
    first = HazeMatchingPipeline.from_pretrained(tmp_path / "first")
    first.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    first = HazeMatchingPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    arguments = ("--train_batch_size", 4, "--max_train_steps", 1, "--learning_rate", 0, "--t_sampling", "uniform")
    train(pairs, tmp_path / "tuned", *arguments, "--init_from", tmp_path / "half", "--gradient_checkpointing")
    tuned = HazeMatchingPipeline.from_pretrained(tmp_path / "tuned")
    assert tuned.config.target_std == first.config.target_std
    for name, weight in tuned.unet.state_dict().items():
        torch.testing.assert_close(weight, first.unet.state_dict()[name].float(), atol=0, rtol=0)
    result = train(pairs, tmp_path, "--init_from", tmp_path / "nowhere", "--max_train_steps", 1, check=False)
    assert result.returncode != 0 and "nowhere" in result.stderr
