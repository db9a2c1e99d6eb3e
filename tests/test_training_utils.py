"""Files in the folder of a training. For trainings that are killed and resumed, see test_train_haze_matching.py."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import tiny_unet
from diffusers.training_utils import EMAModel

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.training_utils import averaged_unet, clip_gradients, resume, save_trained, start_output


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def make_checkpoint(folder, step, **facts):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "facts.json").write_text(json.dumps(facts))


def test_incomplete_files_of_a_killed_training_are_removed(tmp_path):
    make_checkpoint(tmp_path, 3)
    for name in ("incomplete-checkpoint-6", "incomplete-deleted-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "incomplete-training_log.jsonl").touch()
    (tmp_path / "training_log.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="holds checkpoints of another training"):
        start_output(tmp_path, resume=False)
    assert sorted(tmp_path.rglob("*")) == before  # it may belong to a training that is still running
    start_output(tmp_path, resume=True)
    # The previous `best` is restored, because the kill came between its removal and the arrival of the next one.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-3", "training_log.jsonl"]


def test_only_matching_checkpoints_are_resumed(accelerator, tmp_path):
    ema = EMAModel(tiny_unet().parameters())
    make_checkpoint(tmp_path, 10, seed=1, rate=0.1)
    make_checkpoint(tmp_path, 20, seed=1, rate=0.1)
    (tmp_path / "checkpoint-30").mkdir()  # without facts, so not of this script
    for name, facts, steps, error, message in (
        (
            "checkpoint-10",
            {"seed": 1},
            40,
            FileExistsError,
            r"checkpoints later than .*checkpoint-10 \(checkpoint-20\)",
        ),
        ("checkpoint-30", {"seed": 1}, 40, FileNotFoundError, "`latest` or a folder checkpoint-…"),
        (str(tmp_path), {"seed": 1}, 40, FileNotFoundError, "`latest` or a folder checkpoint-…"),
        ("latest", {"seed": 1}, 15, ValueError, "beyond --max_train_steps 15: pass more than 20 steps"),
        ("latest", {"seed": 2}, 40, ValueError, "with seed 1, not 2"),
        ("latest", {"seed": 1, "rate": 0.2}, 40, ValueError, "with rate 0.1, not 0.2"),
        ("latest", {"seed": 1, "batch": 4}, 40, ValueError, "by an earlier version"),
    ):
        with pytest.raises(error, match=message):
            resume(accelerator, ema, tmp_path, name, facts, steps)


def test_averaged_weights_of_a_compiled_network_keep_their_usual_names(accelerator):
    unet = tiny_unet()
    ema = EMAModel(unet.parameters())
    with torch.no_grad():
        for weight in unet.parameters():
            weight += 1
    expected = tiny_unet().state_dict()
    averaged = averaged_unet(accelerator, torch.compile(unet, backend="eager"), ema).state_dict()
    assert all(torch.equal(expected[name], averaged[name]) for name in expected)


def test_a_trained_pipeline_replaces_only_that_of_an_earlier_training(tmp_path):
    make_checkpoint(tmp_path, 3)
    for seed in (0, 1):
        pipeline = HazeMatchingPipeline(tiny_unet(seed), FlowMatchODEScheduler())
        (tmp_path / "incomplete-pipeline").mkdir()  # as after a kill
        save_trained(pipeline, tmp_path, {"training.json": f"{seed}"})
    assert not list(tmp_path.glob("incomplete-*")) and (tmp_path / "checkpoint-3" / "facts.json").is_file()
    assert (tmp_path / "training.json").read_text() == "1"
    expected = tiny_unet(1).state_dict()
    found = HazeMatchingPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_gradient_that_is_not_finite_changes_nothing(accelerator):
    network = torch.nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    for factor in (float("nan"), float("inf"), 1.0):
        (factor * network.weight).sum().backward()
        clip_gradients(accelerator, network, optimizer, 1.0, step=1)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(network.weight, before) == (factor != 1.0)
