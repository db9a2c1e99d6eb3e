"""
Train without pairs in several ways, and compare with training on pairs and with classical methods on held-out pairs.

    python bench/eid.py [--minutes 6] [--data ../shared/data]

There are three comparisons. Every training takes the same processor time on one core (`--minutes`); training an
operator takes up to half as long in addition. What exists in `--folder` is not made again.

1. *Simulated pairs*: one microscope images random specimens of tubules, as in `bench/methods.py`. Hazy and clear
   images of the trainings without pairs show different specimens. All networks but one have one architecture.
2. *Photographs* with simulated haze, see `bench/eid_photographs.py`.
3. *Real micrographs*: the checkpoint in the package is adapted to one hazy image without its partner, see
   `bench/eid_real.py`.

Writes `bench/eid.json`. `python bench/readme.py` renders its tables in `docs/unpaired.md`.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from commands import run_on_one_thread

from haze_pipeline.data.pairs import load_pairs
from haze_pipeline.data.unpaired import Plane, normalize_hazy
from haze_pipeline.equivariance import draw_transform, eid_losses, recovery_loss, relative_errors
from haze_pipeline.evaluation.baselines import (
    dark_sectioning,
    difference_of_gaussians,
    richardson_lucy,
    rolling_ball,
    white_tophat,
    wiener,
)
from haze_pipeline.evaluation.metrics import range_invariant_psnr, ssim
from haze_pipeline.evaluation.niqe import fit_niqe
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze
from haze_pipeline.models.haze_operator import OpticalHaze
from haze_pipeline.models.learned_haze import LearnedHaze
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.models.unet_haze_matching import build_unet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.training_utils import restore_normalized


HERE = Path(__file__).parent
NA, PIXEL, EMISSION = 1.2, 0.1, 0.52  # of the simulated microscope; lengths in µm
KIND = ("--specimen", "tubules", "--na", NA, "--pixel-size", PIXEL)
# Name: number of pairs, seed. Other benchmarks use other seeds. `clear` provides clear images of other specimens.
PAIRS = {"train": (500, 41), "clear": (500, 42), "test": (100, 43)}
SIZE, RESOLUTION, BATCH = 160, 64, 8
RESIDUAL = {"num_features": 16}  # of the paper's network, which is wider
PACKING = 2  # pixels a side, which become the channels of one
NIQE_PATCH = 40  # px, so that an image has 16 of them

# Tubules are so thin and sparse that squares of 32 px have a place without them.
OPTICS = ("--operator_config", json.dumps({"airy_radius": 0.61 * EMISSION / NA / PIXEL, "background_width": 32}))
GENERATORS = ("--haze_operator", "learned", "--operator_config", json.dumps({"num_features": 16, "num_blocks": 4}))
CLEAR, ADVERSARY = ("--unpaired_clear",), ("--adversarial_weight", 0.1)
RESIDUAL_UNET = "optical, residual U-Net"
# Name: flags of train_eid.py; after `--unpaired_clear` comes its folder. The first one is trained on pairs.
TRAININGS = {
    "supervised": None,
    "optical": OPTICS,
    "optical, without equivariance": (*OPTICS, "--equivariance_weight", 0),
    "optical, without first guess": (*OPTICS, "--guess_steps", 0),
    RESIDUAL_UNET: (*OPTICS, "--architecture", "residual-unet"),
    "optical, rotation90": (*OPTICS, "--transform", "rotation90"),
    "optical, flip": (*OPTICS, "--transform", "flip"),
    "optical, shift": (*OPTICS, "--transform", "shift"),
    "optical, clear images": (*OPTICS, *CLEAR),
    "optical, clear images, adversary": (*OPTICS, *CLEAR, *ADVERSARY),
    "optical, clear images, without their recovery": (*OPTICS, *CLEAR, "--recovery_weight", 0),
    "learned, clear images": (*GENERATORS, *CLEAR),
    "learned, clear images, adversary": (*GENERATORS, *CLEAR, *ADVERSARY),
    "learned, clear images, without equivariance": (*GENERATORS, *CLEAR, "--equivariance_weight", 0),
    "atmospheric": ("--haze_operator", "atmospheric"),
}
OPERATORS = {each.__name__: each for each in (OpticalHaze, LearnedHaze, AtmosphericHaze)}
# With the settings of their functions, since without clear images there is nothing to choose others by.
CLASSICAL = {
    "rolling ball": rolling_ball, "white top-hat": white_tophat, "difference of Gaussians": difference_of_gaussians,
    "Wiener": wiener, "Richardson–Lucy": richardson_lucy, "dark sectioning": dark_sectioning,
}  # fmt: skip


def launch(script, output, *arguments):
    """Run a training script with one process and one thread, in half precision."""
    run_on_one_thread(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1,
        "--dynamo_backend", "no", "--mixed_precision", "bf16", HERE.parent / "training" / f"{script}.py",
        "--output_dir", output, *arguments,
    )  # fmt: skip


def steps_of(steps):
    """Arguments of a training of so many steps."""
    return (
        "--max_train_steps", steps, "--lr_warmup_steps", min(50, steps // 4), "--ema_decay", 0.995,
        "--checkpointing_steps", steps, "--validation_steps", steps,
    )  # fmt: skip


def seconds_per_step(pipe, operator, shape, clear=False):
    """
    Least processor time of the losses of images of this shape and their gradients, without the adversary. `clear`:
    there are clear images.
    """
    torch.set_num_threads(1)
    if operator is not None:
        operator.freeze()
    pipe.unet.requires_grad_(True).train()
    rng, hazy, seconds = np.random.default_rng(0), torch.randn(shape), []
    restore = partial(restore_normalized, pipe, pipe.unet)
    for _ in range(5):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            if operator is None:
                loss = F.mse_loss(restore(hazy), hazy)
            else:
                loss = sum(eid_losses(restore, operator, hazy, draw_transform("rotation", rng), rng))
            if clear:
                loss = loss + recovery_loss(restore, operator, hazy, hazy, rng)
        loss.backward()
        seconds.append(time.process_time() - started)
    return min(seconds)


def train(name, folder, minutes):
    """Train in `folder / name`, unless it exists."""
    output, flags = folder / name, TRAININGS[name]
    if (output / "cost.json").is_file():
        return
    operators = {"learned": LearnedHaze(16, 4), "optical": OpticalHaze(), "atmospheric": AtmosphericHaze(9.0)}
    if name == RESIDUAL_UNET:
        pipe = HazeRegressionPipeline(ResidualUNet(**RESIDUAL))
        pipe.unet.save_config(folder / "residual U-Net")
        flags = (*flags, "--model_config_name_or_path", folder / "residual U-Net")
    else:
        pipe = HazeRegressionPipeline(build_unet(pixel_packing=PACKING), pixel_packing=PACKING)
    shape, is_clear = (BATCH, 1, RESOLUTION, RESOLUTION), name != "supervised" and CLEAR[0] in flags
    cost = seconds_per_step(pipe, operators.get(name.split(",")[0]), shape, is_clear)
    steps, before = max(2, round(60 * minutes / cost)), 0
    if name == "supervised":
        script, source, flags = "train_regression", folder / "train", ("--pixel_packing", PACKING)
    else:
        script, source = "train_eid", folder / "train" / "hazy"
        if is_clear:
            before = steps // 2
            after = flags.index(CLEAR[0]) + 1
            flags = (*flags[:after], folder / "clear" / "clear", "--operator_steps", before, *flags[after:])
    launch(
        script, output, "--train_data_dir", source, "--resolution", RESOLUTION, "--train_batch_size", BATCH,
        "--learning_rate", 1e-3, *steps_of(before + steps), *flags,
    )  # fmt: skip
    cost = {"steps": steps, "operator_steps": before, "seconds_per_step": cost}
    (output / "cost.json").write_text(json.dumps(cost))


def load(folder):
    pipe = load_pipeline(str(folder), PIPELINES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def errors_of(pipe, folder, pairs):
    """Mean errors of consistency and equivariance of a network with the operator it was trained with."""
    kind = json.loads((folder / "haze_operator" / "config.json").read_text())["_class_name"]
    operator = OPERATORS[kind].from_pretrained(folder / "haze_operator", low_cpu_mem_usage=False)
    operator.freeze()
    restore, errors = partial(restore_normalized, pipe, pipe.unet), []
    for number, pair in enumerate(pairs):
        rng = np.random.default_rng(number)
        field = normalize_hazy(Plane(pair.hazy, pair.source), pipe.image_processor)[None]  # [1,1,h,w]
        transform = draw_transform("rotation", rng)
        errors.append(relative_errors(restore, operator, field, transform, rng))
    return dict(zip(("consistency_error", "equivariance_error"), np.mean(errors, axis=0).tolist(), strict=True))


def compare(folder):
    """Scores of all networks and the classical methods on the held-out pairs, by method."""
    pairs = list(load_pairs(folder / "test", "test"))
    niqe = fit_niqe([pair.clear for pair in load_pairs(folder / "clear", "clear")], NIQE_PATCH)
    methods = {"input": lambda hazy: hazy}
    methods |= {name: lambda hazy, method=method: method(hazy).prediction for name, method in CLASSICAL.items()}
    results = {}
    for name in TRAININGS:
        pipe = load(folder / name)
        methods[name] = lambda hazy, pipe=pipe: pipe(hazy).prediction
        results[name] = json.loads((folder / name / "cost.json").read_text())
        if TRAININGS[name] is not None:
            results[name] |= errors_of(pipe, folder / name, pairs)
    inputs = np.array([range_invariant_psnr(pair.clear, pair.hazy) for pair in pairs])  # [N]
    for name, method in methods.items():
        images = [method(pair.hazy.astype(np.float32)) for pair in pairs]
        scores = np.array([range_invariant_psnr(pair.clear, each) for pair, each in zip(pairs, images, strict=True)])
        gains = scores - inputs
        results[name] = results.get(name, {}) | {
            "psnr": float(scores.mean()),
            "ssim": float(np.mean([ssim(pair.clear, each) for pair, each in zip(pairs, images, strict=True)])),
            "niqe": niqe(images),
            "gain": float(gains.mean()),
            "standard_error": float(gains.std(ddof=1) / np.sqrt(len(gains))),
        }
        print(name, results[name], flush=True)
    niqe_of_clear = niqe([pair.clear for pair in pairs])
    return {"methods": results, "num_images": len(pairs), "niqe_of_clear": niqe_of_clear}


def main():
    parser = argparse.ArgumentParser(description="Compare trainings without pairs with others at equal cost.")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "eid_bench", help="Pairs and networks.")
    parser.add_argument("--minutes", type=float, default=6, help="Processor time of each training.")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="Fraction of the images; at least 0.1, for a trial."
    )
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="Real pairs, as for real_pairs.py."
    )
    parser.add_argument("--only", nargs="+", choices=TRAININGS, help="Train in these ways, and compare nothing.")
    parser.add_argument("--output", type=Path, default=HERE / "eid.json", help="File of the results.")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (number, seed) in PAIRS.items():
        if not (args.folder / name).is_dir():
            run_on_one_thread(
                sys.executable, "-m", "haze_pipeline", "simulate", args.folder / name, "--num-images",
                max(2, round(args.fraction * number)), "--size", SIZE, "--seed", seed, *KIND,
            )  # fmt: skip
    for name in args.only or TRAININGS:
        train(name, args.folder, args.minutes)
    if args.only:
        return
    # Imported here, since both use the functions of this file.
    from eid_photographs import compare_photographs
    from eid_real import adapt_to_real_images

    results = {
        "minutes": args.minutes,
        "num_pairs": max(2, round(args.fraction * PAIRS["train"][0])),
        "resolution": RESOLUTION,
        "simulated": compare(args.folder),
        "photographs": compare_photographs(args.folder, args.minutes),
        "real": adapt_to_real_images(args.folder, args.data, args.minutes),
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
