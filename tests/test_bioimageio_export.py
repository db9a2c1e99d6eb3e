"""Packages for bioimage.io: they give the same posterior means as the pipeline and pass the tests of bioimage.io."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from diffusers import UNet2DModel

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sharing.bioimageio_export import NOISE_SIZE, posterior_mean_module


FIXED = {"normalization": "fixed", "input_mean": 110.0, "input_std": 12.0, "target_mean": 50.0, "target_std": 30.0}


@pytest.mark.parametrize(
    "config",
    [
        {"target_mean": 0.4, "target_std": 1.3},
        {**FIXED, "mirror_members": False},
        {"target_std": 1.3, "noise_corner_frequency": 0.2},
    ],
)
def test_the_module_gives_the_results_of_the_pipeline_for_images_of_any_size(config):
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), **config)
    pipe.set_progress_bar_config(disable=True)
    module = posterior_mean_module(pipe, seed=3)
    generator = torch.Generator().manual_seed(3)
    corner_frequency = config.get("noise_corner_frequency", 0.0)
    size = (NOISE_SIZE, NOISE_SIZE)
    first, second = (draw_noise(size, corner_frequency, generator, NOISE_SIZE)[0] for _ in range(2))
    rng = np.random.default_rng(0)
    for size in ((64, 64), (33, 50), (9, 200), (1, 1)):
        images = rng.gamma(2, 60, (2, *size)).astype(np.float32)
        noise = torch.stack([each[: size[0], : size[1]] for each in (first, -first, second, -second)])
        latents = noise[:, None].repeat(1, 2, 1, 1)
        expected = pipe(images, num_inference_steps=1, ensemble_size=4, latents=latents).prediction
        with torch.no_grad():
            found = module(torch.from_numpy(images)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    # The noise repeats across a larger image.
    with torch.no_grad():
        assert module(torch.rand(1, 1, 8, NOISE_SIZE + 9)).isfinite().all()


def test_a_module_of_packed_pixels_needs_no_noise():
    config = {**tiny_unet().config, "in_channels": 8, "out_channels": 4}
    unet = UNet2DModel.from_config(config).eval()
    pipe = HazeMatchingPipeline(unet, FlowMatchODEScheduler(), pixel_packing=2, zero_state_mean=True)
    pipe.set_progress_bar_config(disable=True)
    module = posterior_mean_module(pipe)
    images = np.random.default_rng(0).gamma(2, 60, (2, 33, 50)).astype(np.float32)
    expected = pipe(images, num_inference_steps=1).prediction
    with torch.no_grad():
        found = module(torch.from_numpy(images)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_package_passes_the_tests_of_bioimage_io(tmp_path, run, model):
    package = tmp_path / "new" / "package.zip"
    code, out, error = run("export-bioimageio", model, "-o", package, "--license", "mit", "--name", "A tiny network")
    assert code == 0, error
    assert out.splitlines()[-1] == str(package)
    # Repeat the tests with the command of bioimage.io, in a process that cannot import this package.
    block = (
        "import sys; sys.modules['haze_pipeline'] = sys.modules['diffusers'] = None; "
        "from bioimageio.core.__main__ import main; main()"
    )
    arguments = ["test", package, "--weight-format", "torchscript", "--summary", tmp_path / "summary.json"]
    result = subprocess.run([sys.executable, "-c", block, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "passed"
    assert any("Reproduce test outputs" in detail["name"] for detail in summary["details"])
    with zipfile.ZipFile(package) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith(".yaml"))).decode()
    assert "license: MIT" in text and "A tiny network" in text and str(tmp_path) not in text


def test_bad_requests_end_in_one_sentence(run, model, tmp_path):
    example = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"
    for arguments, sentence in (
        ([model, "-o", tmp_path / "package.zip"], "--license"),
        ([model, "-o", tmp_path / "package.tar"], ".zip"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mine"], "spdx.org"),
        ([tmp_path, "-o", tmp_path / "package.zip", "--license", "mit"], "model_index.json"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--example", tmp_path / "no.tif"], "no.tif"),
        ([model, "-o", example, "--license", "mit"], ".zip"),
    ):
        code, out, error = run("export-bioimageio", *arguments)
        assert (code, out, error.count("\n")) == (1, "", 1) and sentence in error
    assert not list(tmp_path.iterdir())
