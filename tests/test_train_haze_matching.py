"""The training scripts. Where the launcher matters, they are launched as a user launches them."""

import json
import random
import re
import shutil
import subprocess
import sys
import time

import datasets
import numpy as np
import psutil
import pytest
import tifffile
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import ROOT, tiny_unet
from diffusers import UNet2DModel
from hub_double import hub_double
from huggingface_hub import ModelCard
from warm_python import ENVIRONMENT, run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.data.dataset_card import make_dataset_card
from haze_pipeline.data.hub_datasets import build_dataset, pair_row, save_dataset
from haze_pipeline.data.pairs import pairs_from_folder
from haze_pipeline.data.patches import FieldsInMemory, TrainingExamples
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.sampling.interpolant import Interpolant
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


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


def script_with_arguments(pairs, output, *arguments, script="train_haze_matching.py"):
    given = set(arguments)
    data = () if {"--simulate", "--dataset_name"} & given else ("--train_data_dir", pairs)
    has_network = {"--init_from", "--model_config_name_or_path"} & given
    network = () if has_network else ("--model_config_name_or_path", pairs / "network")
    common = ("--output_dir", output, "--resolution", 32, "--lr_warmup_steps", 2)
    return [ROOT / "training" / script, *data, *network, *common, *arguments]


def command(pairs, output, *arguments, processes=1, config=None):
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
    if config is not None:
        launcher = ["accelerate.commands.launch", "--config_file", config, "--main_process_port", 29534]
    return [sys.executable, "-m", *launcher, *script_with_arguments(pairs, output, *arguments)]


def without_tracker(arguments):
    return arguments if "--report_to" in arguments else (*arguments, "--report_to", "none")


def launch(pairs, output, *arguments, environment=ENVIRONMENT, **options):
    """Train with `accelerate launch`."""
    parts = [str(part) for part in command(pairs, output, *without_tracker(arguments), **options)]
    result = subprocess.run(parts, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def train(pairs, output, *arguments, check=True, script="train_haze_matching.py"):
    """Train in one process, without a launcher."""
    if script == "train_haze_matching.py":
        arguments = without_tracker(arguments)
    result = run_script(*script_with_arguments(pairs, output, *arguments, script=script))
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return HazeMatchingPipeline.from_pretrained(folder).unet.state_dict()


def logged(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(next(folder.glob("logs/*"))))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


@pytest.fixture(scope="module")
def dataset(pairs, tmp_path_factory):
    """The pairs as a dataset with the splits train and validation, as written by `haze-pipeline dataset`."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = build_dataset((pair_row(**vars(pair)) for pair in pairs_from_folder(pairs)), folder / "rows.arrow")
    splits = datasets.DatasetDict({"train": rows.select(range(4)), "validation": rows.select(range(4, 6))})
    save_dataset(splits, make_dataset_card(splits, "pairs", "", "", ""), folder / "pairs")
    return folder / "pairs"


def test_training_learns_and_writes_a_pipeline_with_config_log_and_card(pairs, tmp_path):
    launch(
        pairs, tmp_path, "--train_batch_size", 8, "--max_train_steps", 120,
        "--learning_rate", "3e-3", "--ema_decay", 0.9, "--posterior_mean_share", 0.2,
        "--validation_data_dir", pairs, "--validation_steps", 60, "--checkpointing_steps", 60,
        "--report_to", "tensorboard",
    )  # fmt: skip
    pipe = HazeMatchingPipeline.from_pretrained(tmp_path)
    assert pipe.config.normalization == "image" and pipe.config.training_patch_size == 32
    assert 0.03 <= pipe.config.training_pixel_size["min"] <= pipe.config.training_pixel_size["max"] <= 0.6
    assert pipe.config.target_std > 0
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-120", "checkpoint-60"]
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] in (60, 120)
    HazeMatchingPipeline.from_pretrained(tmp_path / "best")
    losses = logged(tmp_path, "loss")
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])

    # The scores of both validations are in the tracker, the log and the card. The card also has the command, without
    # the folders of the user.
    log = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [60, 120]
    assert logged(tmp_path, "validation_psnr") == pytest.approx([row["validation_psnr"] for row in log])
    assert json.loads((tmp_path / "best" / "score.json").read_text())["validation_psnr"] == max(
        row["validation_psnr"] for row in log
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "image-to-image"
    assert f"| 120 | {log[1]['loss']:.4f} | {log[1]['validation_psnr']:.2f} |" in card.text
    assert "--max_train_steps 120" in card.text and str(tmp_path.parent) not in card.text
    events = b"".join(path.read_bytes() for path in tmp_path.glob("logs/*/events*"))
    assert b"validation/0" in events  # a picture


def kill(parts, moment):
    """
    Start a training. As soon as `moment()` is true, kill it with all its processes and return `True`. Return `False`
    if it ended before.
    """
    process = subprocess.Popen(
        [str(part) for part in parts], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not moment():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    return True


def test_a_training_killed_while_it_writes_a_checkpoint_resumes_to_the_same_weights(pairs, tmp_path):
    arguments = [
        "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--max_train_steps", 8,
        "--checkpointing_steps", 3, "--validation_data_dir", pairs, "--validation_steps", 4, "--report_to", "none",
    ]  # fmt: skip
    train(pairs, tmp_path / "whole", *arguments)
    for attempt in range(5):  # on a busy machine, the writing may end before the kill
        killed = tmp_path / f"killed-{attempt}"
        incomplete = killed / "incomplete-checkpoint-6"
        assert kill(command(pairs, killed, *arguments), incomplete.exists)
        if incomplete.exists():
            break
    assert incomplete.exists() and not (killed / "checkpoint-6").exists()
    result = train(pairs, killed, *arguments, "--resume_from_checkpoint", "latest")
    assert "resumed from" in result.stderr and "checkpoint-3" in result.stderr
    expected, resumed = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert not list(killed.glob("incomplete-*"))
    scores = [
        [json.loads(line)["validation_psnr"] for line in (folder / "training_log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", killed)
    ]
    assert len(scores[0]) == 2 and scores[0] == scores[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_streaming_trainings_killed_at_any_step_resume_to_the_same_weights(pairs, dataset, tmp_path, processes):
    arguments = [
        "--dataset_name", dataset, "--streaming", "--patches_per_field", 3, "--train_batch_size", 2,
        "--max_train_steps", 60, "--checkpointing_steps", 4, "--report_to", "none",
    ]  # fmt: skip
    launch(pairs, tmp_path / "whole", *arguments, processes=processes)
    killed = tmp_path / "killed"
    parts = command(pairs, killed, *arguments, processes=processes)
    step = 4 * random.randint(2, 7)
    assert kill(parts, (killed / f"checkpoint-{step}").exists), step
    reached = max(int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*"))
    assert step <= reached < 60 and not (killed / "model_index.json").exists()
    result = launch(pairs, killed, *arguments, "--resume_from_checkpoint", "latest", processes=processes)
    assert "resumed from" in result.stderr and f"checkpoint-{reached}" in result.stderr
    expected, resumed = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_only_the_same_training_is_resumed(pairs, tmp_path):
    few = tmp_path / "few"
    for kind in ("hazy", "clear"):
        (few / kind).mkdir(parents=True)
        shutil.copy(pairs / kind / "0.tif", few / kind)
    tiny = tmp_path / "tiny"
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), target_mean=0.4, target_std=1.2).save_pretrained(tiny)
    steps = ("--init_from", tiny, "--train_batch_size", 2, "--max_train_steps", 2)
    latest, output = ("--resume_from_checkpoint", "latest"), tmp_path / "run"
    train(pairs, output, *steps)
    finished = weights(output)
    (output / "model_index.json").unlink()  # as if killed before the end
    train(pairs, output, *steps, *latest)
    assert all(torch.equal(finished[name], weight) for name, weight in weights(output).items())
    result = train(few, output, *steps, *latest, check=False)
    assert result.returncode == 1 and "with pairs 6, not 1" in result.stderr
    other = tmp_path / "other"
    network = tiny_unet().config
    wide = UNet2DModel.from_config({**network, "block_out_channels": [2 * n for n in network["block_out_channels"]]})
    HazeMatchingPipeline(wide, FlowMatchODEScheduler(), target_mean=0.4, target_std=1.2).save_pretrained(other)
    result = train(pairs, output, "--init_from", other, *steps[2:], *latest, check=False)
    assert result.returncode == 1 and "holds the weights of another network" in result.stderr
    assert "Traceback" not in result.stderr
    flags = ("--train_batch_size", 2, "--max_train_steps", 2)
    result = train(pairs, output, *flags, *latest, script="train_regression.py", check=False)
    assert result.returncode == 1 and "with script train_haze_matching.py, not train_regression.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_packed_network_for_means_without_noise_is_trained_in_pieces(pairs, tmp_path):
    """Train in several short runs, as on a machine with a time limit, then fine-tune without the flags."""
    config = {**tiny_unet().config, "in_channels": 8, "out_channels": 4}
    UNet2DModel.from_config(config).save_config(tmp_path / "network")
    arguments = [
        "--model_config_name_or_path", tmp_path / "network", "--pixel_packing", 2, "--zero_state_share", 0.7,
        "--balanced_loss", "--mean_error_weight", 0.5, "--noise_corner_frequency", 0.2,
        "--train_batch_size", 2, "--max_train_steps", 6,
    ]  # fmt: skip
    train(pairs, tmp_path / "whole", *arguments)
    pieces = tmp_path / "pieces"
    pause = ("--max_train_minutes", 1e-6, "--resume_from_checkpoint", "latest")
    for step in range(1, 6):
        result = train(pairs, pieces, *arguments, *pause)
        assert f"stopped after {step} of 6 steps" in result.stderr
        assert not (pieces / "model_index.json").exists()
    train(pairs, pieces, *arguments, *pause)
    expected, found = weights(tmp_path / "whole"), weights(pieces)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    config = HazeMatchingPipeline.from_pretrained(pieces).config
    assert config.pixel_packing == 2 and config.zero_state_mean
    few = ("--init_from", pieces, "--predict_gain", "--train_batch_size", 2, "--max_train_steps", 1)
    train(pairs, tmp_path / "tuned", *few)
    tuned = HazeMatchingPipeline.from_pretrained(tmp_path / "tuned")
    assert tuned.config.pixel_packing == 2 and tuned.config.zero_state_mean
    assert tuned.unet.config.out_channels == 8
    result = train(
        pairs,
        tmp_path / "no",
        "--init_from",
        pieces,
        "--posterior_mean_share",
        0.9,
        "--max_train_steps",
        1,
        check=False,
    )
    assert result.returncode != 0 and "sum to more than 1: pass --posterior_mean_share 0.5 or less" in result.stderr
    for flags, message in (
        (("--pixel_packing", 0), "--pixel_packing must be 1 or more"),
        (("--zero_state_share", 0.8, "--posterior_mean_share", 0.3), "must be fractions that sum to 1 at most"),
        (("--max_train_minutes", 0), "--max_train_minutes must be positive"),
        (("--pixel_packing", 2), "8 input channels"),
    ):
        result = train(pairs, tmp_path / "no", *flags, "--max_train_steps", 1, check=False)
        assert result.returncode != 0 and message in result.stderr, flags


def test_two_processes_equal_one_with_the_same_global_batch(pairs, tmp_path):
    steps = ["--max_train_steps", 20, "--report_to", "tensorboard"]
    train(pairs, tmp_path / "one", "--train_batch_size", 4, *steps)
    config = ROOT / "training" / "accelerate_configs" / "cpu_2_processes.yaml"
    result = launch(pairs, tmp_path / "two", "--train_batch_size", 2, *steps, config=config)
    assert "2 process(es)" in result.stderr
    train(pairs, tmp_path / "accumulated", "--train_batch_size", 2, "--gradient_accumulation_steps", 2, *steps)
    expected = weights(tmp_path / "one")
    for name in ("two", "accumulated"):
        np.testing.assert_allclose(logged(tmp_path / name, "loss"), logged(tmp_path / "one", "loss"), atol=1e-4)
        assert all(torch.allclose(expected[key], value, atol=1e-4) for key, value in weights(tmp_path / name).items())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "training" / "accelerate_configs").iterdir()), ids=lambda path: path.stem
)
def test_accelerate_reads_the_configurations(path):
    parser = launch_command_parser()
    args, _, _ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "script.py"]))
    assert args.num_processes == {"gpu": 1, "cpu_2_processes": 2, "multi_node": 32}.get(path.stem, 8)
    launchers = {"fsdp": args.use_fsdp, "deepspeed_zero2": args.use_deepspeed, "gpu": not args.multi_gpu}
    assert launchers.get(path.stem, args.multi_gpu)


def test_a_dataset_trains_like_the_folder_it_was_made_from(pairs, dataset, tmp_path):
    few = tmp_path / "few"
    for kind in ("hazy", "clear"):
        (few / kind).mkdir(parents=True)
        for index in range(4):
            shutil.copy(pairs / kind / f"{index}.tif", few / kind)
    steps = ["--train_batch_size", 2, "--max_train_steps", 2, "--validation_steps", 2]
    (tmp_path / "published" / "train_crop").mkdir(parents=True)
    (tmp_path / "published" / "val").mkdir()
    for index in range(6):
        channels = [tifffile.imread(pairs / kind / f"{index}.tif").astype(np.float32) for kind in ("clear", "hazy")]
        folder = tmp_path / "published" / ("train_crop" if index < 4 else "val")
        tifffile.imwrite(folder / f"{index}.tif", np.stack(channels), photometric="minisblack")
    steps += ["--model_config_name_or_path", pairs / "network"]
    train(few, tmp_path / "folder", *steps)
    dataset_result = train(pairs, tmp_path / "dataset", *steps, "--dataset_name", dataset)
    published_result = train(tmp_path / "published", tmp_path / "hazematching", *steps)
    expected = weights(tmp_path / "folder")
    for name, result in (("dataset", dataset_result), ("hazematching", published_result)):
        found = weights(tmp_path / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert "validation: 2 pairs" in result.stderr  # the split of the dataset


def test_a_dry_run_estimates_the_training_time_and_writes_nothing(pairs, tmp_path):
    arguments = ("--dry_run", "--train_batch_size", 2, "--max_train_steps", 5000, "--validation_data_dir", pairs)
    result = train(pairs, tmp_path / "run", *arguments)
    step, validation, hours = map(
        float, re.search(r"works; (.*) s per step and (.*) s per val.* make (.*) hours", result.stderr).groups()
    )
    assert 0 < step < 10 and hours == pytest.approx((5000 * step + 10 * validation) / 3600, abs=0.02 + 10 / 3600)
    assert not list(tmp_path.iterdir())


def test_a_trained_pipeline_goes_to_the_hub_in_one_commit(pairs, tmp_path):
    with hub_double() as hub:
        environment = {
            **ENVIRONMENT,
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        steps = ["--train_batch_size", 2, "--max_train_steps", 2]
        push = ["--push_to_hub", "--hub_model_id", "lab/microscope", "--hub_private_repo"]
        launch(pairs, tmp_path / "run", *steps, *push, environment=environment)
        files = hub.files("lab/microscope")
        assert len(hub.repos["lab/microscope"]) == 2 and "lab/microscope" in hub.private
        assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.safetensors"} <= set(files)
        assert not any("checkpoint" in name or "logs" in name for name in files)
        assert b'from_pretrained("lab/microscope")' in files["README.md"]
        # A fine-tuning starts from the pushed pipeline.
        tuned = ["--init_from", "lab/microscope", *steps, "--learning_rate", 0]
        launch(pairs, tmp_path / "tuned", *tuned, environment=environment)
    first, second = weights(tmp_path / "run"), weights(tmp_path / "tuned")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_regression_baseline_learns_resumes_and_does_not_load_as_a_flow(pairs, tmp_path):
    arguments = [
        "--train_batch_size", 4, "--max_train_steps", 40, "--learning_rate", "3e-3", "--ema_decay", 0.9,
        "--checkpointing_steps", 20, "--validation_data_dir", pairs, "--validation_steps", 20,
    ]  # fmt: skip
    result = train(pairs, tmp_path / "whole", *arguments, script="train_regression.py")
    losses = [json.loads(line[line.index("{") :])["loss"] for line in result.stderr.splitlines() if '"loss"' in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    shutil.copytree(tmp_path / "whole" / "checkpoint-20", tmp_path / "resumed" / "checkpoint-20")
    resume = ["--resume_from_checkpoint", "latest"]
    train(pairs, tmp_path / "resumed", *arguments, *resume, script="train_regression.py")
    whole, resumed = (HazeRegressionPipeline.from_pretrained(tmp_path / name) for name in ("whole", "resumed"))
    hazy = tifffile.imread(pairs / "hazy" / "0.tif")
    np.testing.assert_array_equal(whole(hazy).prediction, resumed(hazy).prediction)
    assert whole(hazy).prediction.shape == hazy.shape and whole(hazy).uncertainty is None
    with pytest.raises(ValueError, match="HazeRegressionPipeline"):
        HazeMatchingPipeline.from_pretrained(tmp_path / "whole")


def test_the_loss_follows_the_flags(pairs, tmp_path):
    tiny = HazeMatchingPipeline(
        tiny_unet(), FlowMatchODEScheduler(), target_mean=0.4, target_std=1.2, noise_corner_frequency=0.2
    )
    tiny.save_pretrained(tmp_path / "tiny")
    flags = ("--posterior_mean_share", 0.3, "--t_sampling", "uniform", "--seed", 5)
    fields = FieldsInMemory(pairs_from_folder(pairs), tiny.image_processor, 32)
    for share, weight in ((0.0, 1.0), (0.4, 0.25)):
        output = tmp_path / f"{weight}"
        train(
            pairs, output, "--init_from", tmp_path / "tiny", *flags, "--train_batch_size", 4, "--max_train_steps", 1,
            "--weakened_haze", share, "--added_haze", share, "--mean_error_weight", weight,
            "--report_to", "tensorboard",
        )  # fmt: skip
        examples = TrainingExamples(
            fields, 32, posterior_mean_share=0.3, t_sampling="uniform", seed=5, length=4,
            weakened_haze=share, added_haze=share, noise_corner_frequency=0.2,
        )  # fmt: skip
        losses = []
        for index in range(4):
            hazy, clear, noise, t = (examples[index][name] for name in ("hazy", "clear", "noise", "t"))
            state = torch.lerp(noise, clear, t)
            with torch.no_grad():
                velocity = tiny.unet(torch.cat([state, hazy])[None], t).sample[0]
            error = velocity - (clear - noise)
            losses.append((error - error.mean()).square().mean() + weight * error.mean().square())
        assert logged(output, "loss") == pytest.approx([torch.stack(losses).mean().item()], rel=1e-4)


def test_fixed_statistics_and_mixed_precision(pairs, tmp_path):
    arguments = ("--normalization", "fixed", "--mixed_precision", "bf16")
    train(pairs, tmp_path, *arguments, "--train_batch_size", 2, "--max_train_steps", 2)
    config = HazeMatchingPipeline.from_pretrained(tmp_path).config
    hazy = np.concatenate([tifffile.imread(path).ravel() for path in sorted((pairs / "hazy").glob("*.tif"))])
    assert config.normalization == "fixed"
    assert config.input_mean == pytest.approx(hazy.mean()) and config.input_std == pytest.approx(hazy.std())


def test_other_paths_are_trained_and_kept_when_training_continues(pairs, tmp_path):
    """InDI: from the hazy image to a predicted clear one, which alone the network sees."""
    UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1}).save_config(tmp_path / "network")
    path = ("--source", "hazy", "--source_noise", 0.01, "--prediction_type", "clear", "--unguided")
    steps = ("--train_batch_size", 2, "--max_train_steps")
    train(pairs, tmp_path / "indi", "--model_config_name_or_path", tmp_path / "network", *path, *steps, 2)
    train(pairs, tmp_path / "tuned", "--init_from", tmp_path / "indi", *steps, 1)
    for name in ("indi", "tuned"):
        trained = HazeMatchingPipeline.from_pretrained(tmp_path / name)
        assert trained.interpolant == Interpolant("hazy", 0.01, "clear", guided=False)
    result = train(
        pairs, tmp_path / "indi", "--model_config_name_or_path", tmp_path / "network", *path[:2], "--unguided",
        *steps, 3, "--resume_from_checkpoint", "latest", check=False,
    )  # fmt: skip
    assert result.returncode == 1 and "with source_noise 0.01, not 0.0" in result.stderr


def test_weights_favour_dim_parts_and_patches_with_little_haze(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    from train_haze_matching import balance, relative_weight

    ramp = torch.linspace(0, 4, 32).expand(2, 1, 32, 32) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    weights = balance(ramp)
    assert (weights[..., 0] > 5 * weights[..., -1]).all() and (weights[0] >= weights[1]).all()
    haze = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 2.0]).view(
        2, 1, 1, 1
    )
    little, much = relative_weight(ramp + haze, ramp).flatten().tolist()
    assert little / much == pytest.approx((0.05 + 4) / (0.05 + 0.25), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_data_dir", "/nowhere"], "holds no TIFFs"),
        (["--resolution", "64"], "smaller than the patches"),
        (["--posterior_mean_share", "2"], "must be fractions that sum to 1 at most"),
        (["--simulated_fraction", "0.5"], "--simulated_fraction needs a dataset of specimens"),
        (["--noise_corner_frequency", "-1"], "--noise_corner_frequency must be 0 or more"),
        (["--source_noise", "0"], "--source_noise must be positive if --source is"),
        (["--unguided"], "--unguided needs --source hazy"),
        (["--init_from", "lab/model", "--source", "hazy"], "remove --source"),
        (["--weakened_haze", "0.6", "--added_haze", "0.6"], "--added_haze must be fractions that sum to 1"),
        (["--mean_error_weight", "-1"], "--mean_error_weight must be finite and not negative"),
        (["--validation_steps", "0"], "--validation_steps must be positive"),
        (["--report_to", "clearml"], "--report_to clearml needs a package"),
        (["--report_to", "clearml", "--dry_run"], "--report_to clearml needs a package"),
        (["--push_to_hub", "--hub_model_id", "lab/microscope", "--dry_run"], "hf auth login"),
        (["--max_grad_norm", "0"], "--max_grad_norm must be positive"),
        (["--ema_decay", "1.5"], "--ema_decay must lie between 0 and 1"),
        (["--lr_scheduler", "piecewise_constant"], "invalid choice"),
        (["--model_config_name_or_path", "NETWORK"], "must have 2 input channels"),
        (
            ["--dataset_name", "x/y", "--streaming", "--dataloader_num_workers", "2"],
            "at most one worker",
        ),
    ],
)
def test_impossible_trainings_are_explained(pairs, tmp_path, arguments, message):
    if "NETWORK" in arguments:
        network = {**tiny_unet().config, "in_channels": 3}
        UNet2DModel.from_config(network).save_config(tmp_path / "network")
        arguments = [tmp_path / "network" if part == "NETWORK" else part for part in arguments]
    result = train(pairs, tmp_path, *arguments, "--max_train_steps", 1, check=False)
    assert result.returncode in (1, 2) and message in result.stderr and "Traceback" not in result.stderr


def test_simulated_training_resumes_at_the_same_examples(pairs, tmp_path):
    common = (
        "--simulate", "--simulation_size", 48, "--patches_per_field", 8, "--train_batch_size", 4,
        "--checkpointing_steps", 3, "--lr_scheduler", "constant",
    )  # fmt: skip
    train(pairs, tmp_path / "whole", *common, "--max_train_steps", 6)
    train(pairs, tmp_path / "parts", *common, "--max_train_steps", 3)
    train(pairs, tmp_path / "parts", *common, "--max_train_steps", 6, "--resume_from_checkpoint", "latest")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    result = train(pairs, tmp_path, "--simulate", "--train_data_dir", pairs, "--max_train_steps", 1, check=False)
    assert result.returncode != 0 and "one of --train_data_dir, --dataset_name and --simulate" in result.stderr


def test_fine_tuning_keeps_the_units_and_the_noise_of_its_checkpoint(pairs, tmp_path):
    noise = ("--noise_corner_frequency", 0.2)
    train(pairs, tmp_path / "first", "--train_batch_size", 4, "--max_train_steps", 3, *noise)
    first = HazeMatchingPipeline.from_pretrained(tmp_path / "first")
    first.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    first = HazeMatchingPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    arguments = ("--train_batch_size", 4, "--max_train_steps", 1, "--learning_rate", 0, "--t_sampling", "uniform")
    train(pairs, tmp_path / "tuned", *arguments, "--init_from", tmp_path / "half", "--gradient_checkpointing")
    tuned = HazeMatchingPipeline.from_pretrained(tmp_path / "tuned")
    assert tuned.config.target_std == first.config.target_std
    assert tuned.config.noise_corner_frequency == first.config.noise_corner_frequency == 0.2
    for name, weight in tuned.unet.state_dict().items():
        torch.testing.assert_close(weight, first.unet.state_dict()[name].float(), atol=0, rtol=0)
    result = train(pairs, tmp_path, "--init_from", tmp_path / "nowhere", "--max_train_steps", 1, check=False)
    assert result.returncode != 0 and "nowhere" in result.stderr
