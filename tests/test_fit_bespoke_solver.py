"""The script that fits a solver, run as a user runs it."""

import json

import numpy as np
import torch
from conftest import ROOT, tiny_unet, write_pairs
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.sampling.initial_noise import draw_noise


def fit(model, pairs, *arguments):
    data = ["--model", model, "--train_data_dir", pairs, "--num_images", 4, "--resolution", 32]
    return run_script(ROOT / "training" / "fit_bespoke_solver.py", *data, "--max_evaluations", 5, *arguments)


def test_the_fitted_solver_is_stored_and_beats_euler_on_other_images(tmp_path):
    made = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), noise_corner_frequency=0.2)
    made.save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    for kind in ("hazy", "clear"):
        (tmp_path / kind / "specimen").mkdir(parents=True)
        image = generator.gamma(2, 100, (4, 40, 48)).astype(np.uint16)  # each of its four planes is an image
        write_ome_tiff(tmp_path / kind / "specimen" / "stack.tiff", Micrograph(image, "ZYX"))
    for steps in (3, 2):
        done = fit(tmp_path / "model", tmp_path, "--num_inference_steps", steps)
        assert done.returncode == 0, done.stderr
    fitted = json.loads(done.stdout)
    for row, sigma, following in zip(fitted["weights"], fitted["sigmas"], fitted["sigmas"][1:], strict=False):
        assert sum(row) + sigma == np.float64(following) or abs(sum(row) + sigma - following) < 1e-9

    pipe = HazeMatchingPipeline.from_pretrained(tmp_path / "model", low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    assert set(pipe.scheduler.config.bespoke) == {"2", "3"} and pipe.scheduler.config.solver == "euler"
    image = generator.gamma(2, 100, (32, 32)).astype(np.float32)
    noise = draw_noise((32, 32), 0.2, torch.Generator().manual_seed(1))[0]

    def sample(solver, steps):
        pipe.scheduler = FlowMatchODEScheduler.from_config(pipe.scheduler.config, solver=solver)
        return pipe(image, num_inference_steps=steps, latents=noise).prediction

    converged = sample("midpoint", 100)
    errors = {solver: np.abs(sample(solver, 3) - converged).mean() for solver in ("bespoke", "euler")}
    assert errors["bespoke"] < 0.8 * errors["euler"]


def test_one_step_and_missing_models_and_images_are_refused(tmp_path):
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()).save_pretrained(tmp_path / "model")
    done = fit(tmp_path / "model", tmp_path, "--num_inference_steps", 1)
    assert done.returncode == 2 and "must be 2 or more" in done.stderr
    done = fit(tmp_path / "none", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and "none does not exist" in done.stderr
    done = fit(tmp_path / "model", tmp_path)
    assert done.returncode == 1 and "holds no TIFFs" in done.stderr and "Traceback" not in done.stderr
    write_pairs(tmp_path, 1, (24, 48))
    done = fit(tmp_path / "model", tmp_path)
    assert done.returncode == 1 and "smaller than --resolution 32" in done.stderr
