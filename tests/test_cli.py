"""The command line. Exit codes and interrupts are tested in real processes, the rest through the same entry point."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from conftest import tiny_unet, write_pairs
from torchcfm_unet import reference_unet

from haze_pipeline import HazeMatchingPipeline, __version__, cli
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


def test_wrong_usage_exits_with_2(run):
    assert run("dehaze")[0] == 2
    assert run("dehaze", "in.tif", "-o", "out.tif", "--preset", "best")[0] == 2
    assert run("polish")[0] == 2


def test_help_and_version(run):
    code, out, _ = run("--version")
    assert code == 0 and out.strip() == __version__
    for command in ("dehaze", "simulate", "dataset", "convert", "info"):
        code, out, _ = run(command, "--help")
        assert code == 0 and "Usage" in out


def panels_of(text):
    """Options by panel of a help page, in order."""
    panels = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            options = panels.setdefault(title[1], [])
        elif option := re.match(r"│ (?:[* ]  )?(--[a-z0-9-]+)", line):
            options.append(option[1])
    return panels


@pytest.mark.parametrize("columns", [80, 120])
def test_long_help_pages_have_panels_and_every_option_lies_in_one(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, command in typer.main.get_command(cli.app).commands.items():
        code, out, _ = run(name, "--help")
        panels = panels_of(out)
        expected = [max(param.opts, key=len) for param in command.params if param.opts[0].startswith("-")]
        assert code == 0 and sorted(option for panel in panels.values() for option in panel) == sorted(
            [*expected, "--help"]
        )
        assert len(expected) <= 10 or ("Options" not in panels and len(panels) > 2)
        assert max(map(len, out.splitlines())) <= columns and "…" not in out  # no name is cut off
        assert "<bool>" not in out
        if name == "dehaze":
            titles = ["Options used most", "Input", "Result", "Quality", "Many files", "Speed", "Other"]
            assert list(panels) == ["Arguments", *titles]
            assert len(panels["Options used most"]) == 10 and panels["Options used most"][0] == "--output"


def test_info_says_what_the_checkpoint_stores(run, model):
    code, out, _ = run("info", model, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["normalization"] == "image" and facts["default_num_inference_steps"] == 19
    assert "uncertainty_scale" in run("info", model)[1]
    assert json.loads(run("info", "--json")[1])["parameters"] == 3_706_692


def test_info_describes_pipelines_of_any_class(run, tmp_path):
    HazeRegressionPipeline(MIMOUNet(num_features=8, num_blocks=1)).save_pretrained(tmp_path)
    facts = json.loads(run("info", tmp_path, "--json")[1])
    assert (facts["pipeline"], facts["network"], facts["scheduler"]) == ("HazeRegressionPipeline", "MIMOUNet", None)
    assert facts["parameters"] > 0 and facts["block_out_channels"] is None


def test_info_refuses_a_folder_without_a_pipeline(run, tmp_path):
    code, _, err = run("info", tmp_path)
    assert code == 1 and "model_index.json" in err


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "model_index.json").write_text("[]"),
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}'),
        lambda folder: (folder / "unet" / "config.json").unlink(),
    ],
)
def test_damaged_pipeline_folders_end_in_one_sentence(run, model, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    damage(folder)
    code, out, err = run("info", folder)
    assert code == 1 and out == "" and err.count("\n") == 1 and str(folder) in err


def test_commands_that_need_samples_of_a_flow_refuse_other_pipelines(run, tmp_path):
    HazeRegressionPipeline(tiny_unet()).save_pretrained(tmp_path / "regression")
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs", 1, (32, 32))
    for command in (
        ["calibrate", pairs, "-o", tmp_path / "calibrated", "--model", tmp_path / "regression"],
        ["export-bioimageio", tmp_path / "regression", "-o", tmp_path / "package.zip", "--license", "mit"],
        ["push", tmp_path / "regression", "lab/other"],
    ):
        code, out, error = run(*command)
        assert code == 1 and out == "" and error.count("\n") == 1, command
        assert "contains a pipeline of the class HazeRegressionPipeline, but HazeMatchingPipeline" in error, command


def test_half_precision_folders_load(run, model, tmp_path):
    HazeMatchingPipeline.from_pretrained(model).to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert run("info", tmp_path)[0] == 0


def test_convert_makes_a_pipeline_of_a_published_network(run, tmp_path):
    torch.save(reference_unet(128).state_dict(), tmp_path / "best_model.pth")
    folder = tmp_path / "zebrafish"
    code, out, err = run("convert", tmp_path / "best_model.pth", "--subset", "zebrafish", "--channel", 2, "-o", folder)
    assert code == 0 and out.strip() == str(folder)
    assert "sha256" in " ".join(err.split())  # random weights are not the published ones: a warning, not an error
    pipe = HazeMatchingPipeline.from_pretrained(folder)
    assert pipe.config.normalization == "fixed" and pipe.config.input_mean == 162.67065
    assert run("convert", tmp_path / "best_model.pth", "--subset", "zebrafish", "-o", folder)[0] == 1
    code, _, err = run("convert", tmp_path / "best_model.pth", "--subset", "neuron", "-o", tmp_path / "neuron")
    assert code == 1 and "64-pixel" in err and not (tmp_path / "neuron").exists()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        # Nor is the pipeline imported before one of its names is used.
        ("import haze_pipeline, haze_pipeline.cli", {"torch", "diffusers", "accelerate"}),
        ("from haze_pipeline import HazeMatchingPipeline", set()),
    ],
)
def test_importing_is_cheap_and_needs_no_extras(statement, unwanted):
    unwanted = unwanted | {"datasets", "gradio", "wandb", "torchvision", "matplotlib", "zarr"}
    code = f"import sys; {statement}; print(sorted({unwanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
