"""The modular blocks that are stored with a pipeline, loaded and run by diffusers alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from PIL import Image
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.utils.stored_code import add_blocks


CALLS = [(1, 1), (2, 1), (3, 4)]  # steps, members

MODULAR = """
import sys
from pathlib import Path
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModularPipeline
folder, images, results = map(Path, sys.argv[1:])
pipe = ModularPipeline.from_pretrained(str(folder), trust_remote_code=True)
pipe.load_components()
found = {}
for path in images.glob("*.npy"):
    for steps, members in CALLS:
        call = {"num_inference_steps": steps, "ensemble_size": members}
        call |= {"generator": torch.Generator().manual_seed(3), "output": ["prediction", "samples"]}
        done = pipe(image=np.load(path), **call)
        found[f"{path.stem} {steps} {members}"] = done["prediction"]
        found[f"{path.stem} {steps} {members} samples"] = done["samples"]
pipe.update_components(scheduler=FlowMatchEulerDiscreteScheduler())
found["euler"] = pipe(image=np.load(path), num_inference_steps=2, generator=torch.Generator().manual_seed(3),
                      output="prediction")
assert type(pipe.blocks).__module__.startswith("diffusers_modules")
np.savez(results, **found)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stored pipeline whose solver and settings are not the default ones."""
    folder = tmp_path_factory.mktemp("stored")
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(solver="midpoint"), target_std=1.3).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """Planes, a stack, and a plane with a border without measurements."""
    counts = np.random.default_rng(0).poisson(100, (2, 24, 33)).astype(np.float32)
    masked = counts[0].copy()
    masked[:3] = np.nan
    images = {"plane": counts[0], "stack": counts, "masked": masked, "blank": np.full((9, 9), 7, np.uint16)}
    (tmp_path / "images").mkdir()
    for name, image in images.items():
        np.save(tmp_path / "images" / f"{name}.npy", image)
    return images


def run(tmp_path, script, *arguments):
    done = run_script(script, *arguments, folder=tmp_path, environment={"HF_HOME": str(tmp_path.parent / "home")})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_blocks_give_the_image_of_the_pipeline(folder, images, tmp_path):
    (tmp_path / "modular.py").write_text(MODULAR.replace("CALLS", repr(CALLS)))
    run(tmp_path, tmp_path / "modular.py", folder, tmp_path / "images", tmp_path / "results.npz")
    found = np.load(tmp_path / "results.npz")
    pipe = HazeMatchingPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    for name, image in images.items():
        for steps, members in CALLS:
            generator = torch.Generator().manual_seed(3)
            out = pipe(image, steps, members, generator=generator, output_samples=True)
            key = f"{name} {steps} {members}"
            margin = 1e-6 * max(1, np.nanmax(np.abs(out.prediction)))
            np.testing.assert_allclose(found[key], out.prediction, rtol=0, atol=margin, err_msg=key)
            np.testing.assert_allclose(found[f"{key} samples"], out.samples, rtol=0, atol=margin, err_msg=key)
    assert found["euler"].shape in [image.shape for image in images.values()]


def test_the_command_line_of_diffusers_runs_the_blocks(folder, images, tmp_path):
    """It takes a folder with a `model_index.json` for a pipeline of diffusers itself, so that this one has none."""
    shutil.copytree(folder, tmp_path / "blocks")
    (tmp_path / "blocks" / "model_index.json").unlink()
    Image.fromarray(images["stack"][0].astype(np.uint16)).save(tmp_path / "cells.tif")
    (tmp_path / "cli.py").write_text("from diffusers.commands.diffusers_cli import main\nmain()\n")
    shown = run(tmp_path, tmp_path / "cli.py", "schema", "-m", tmp_path / "blocks", "--trust-remote-code")
    assert "HazeMatchingBlocks" in shown and "num_inference_steps" in shown and "ensemble_size" in shown
    call = json.dumps({"file": str(tmp_path / "cells.tif"), "num_inference_steps": 2})
    options = ["--seed", "3", "--output-key", "pictures", "--output", tmp_path / "clear.png", "--device-map", "cpu"]
    run(
        tmp_path,
        tmp_path / "cli.py",
        "run",
        "-m",
        tmp_path / "blocks",
        "--trust-remote-code",
        "--pipeline-kwargs",
        call,
        *options,
    )
    pipe = HazeMatchingPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    expected = pipe(images["stack"][0], 2, generator=torch.Generator().manual_seed(3)).prediction
    saved = np.asarray(Image.open(tmp_path / "clear.png"))
    np.testing.assert_allclose(saved, expected.clip(0), atol=0.51)


def test_blocks_of_a_repository_name_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "staged")
    add_blocks(tmp_path / "staged", "lab/microscope")
    index = json.loads((tmp_path / "staged" / "modular_model_index.json").read_text())
    assert index["unet"][2]["pretrained_model_name_or_path"] == "lab/microscope"
    assert index["settings"]["target_std"] == 1.3 and index["solver"]["solver"] == "midpoint"
    assert str(folder) not in (folder / "modular_model_index.json").read_text()
