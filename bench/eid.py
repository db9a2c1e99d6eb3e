"""
Train without pairs in several ways, and compare with training on pairs and with classical methods on held-out pairs.

    python bench/eid.py

One microscope images random specimens of tubules, as in `bench/methods.py`. Hazy and clear images of the trainings
without pairs show different specimens. All networks have one architecture and train for the same processor time on one
core (`--minutes`); training an operator comes in addition. What exists in `--folder` is not made again. Writes
`bench/eid.json` and `docs/images/null_space.png`, which shows the argument of equivariance on signals.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d

from haze_pipeline.data.pairs import load_pairs
from haze_pipeline.data.unpaired import Plane, normalize_hazy
from haze_pipeline.equivariance import draw_transform, eid_losses, relative_errors
from haze_pipeline.evaluation.baselines import (
    dark_sectioning,
    difference_of_gaussians,
    richardson_lucy,
    rolling_ball,
    white_tophat,
    wiener,
)
from haze_pipeline.evaluation.metrics import range_invariant_psnr, ssim
from haze_pipeline.models.haze_operator import HazeOperator, OpticalHaze
from haze_pipeline.models.learned_haze import LearnedHaze
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


HERE = Path(__file__).parent
NA, PIXEL, EMISSION = 1.2, 0.1, 0.52  # of the simulated microscope; lengths in µm
KIND = ("--specimen", "tubules", "--na", NA, "--pixel-size", PIXEL)
# Name: number of pairs, seed. Other benchmarks use other seeds. `clear` provides clear images of other specimens.
PAIRS = {"train": (500, 41), "clear": (500, 42), "test": (100, 43)}
SIZE, RESOLUTION, BATCH = 160, 96, 4
NETWORK = {"num_features": 16}

OPTICS = ("--operator_config", json.dumps({"airy_radius": 0.61 * EMISSION / NA / PIXEL}))
GENERATORS = ("--haze_operator", "learned", "--operator_config", json.dumps({"num_features": 16, "num_blocks": 4}))
CLEAR, ADVERSARY = ("--unpaired_clear",), ("--adversarial_weight", 0.1)
# Name: flags of train_eid.py; after `--unpaired_clear` comes its folder. The first one is trained on pairs.
TRAININGS = {
    "supervised": None,
    "optical": OPTICS,
    "optical, without equivariance": (*OPTICS, "--equivariance_weight", 0),
    "optical, rotation90": (*OPTICS, "--transform", "rotation90"),
    "optical, flip": (*OPTICS, "--transform", "flip"),
    "optical, shift": (*OPTICS, "--transform", "shift"),
    "optical, clear images": (*OPTICS, *CLEAR),
    "optical, clear images, adversary": (*OPTICS, *CLEAR, *ADVERSARY),
    "learned, clear images": (*GENERATORS, *CLEAR),
    "learned, clear images, adversary": (*GENERATORS, *CLEAR, *ADVERSARY),
    "learned, without equivariance": (*GENERATORS, *CLEAR, "--equivariance_weight", 0),
}
# With the settings of their functions, since without clear images there is nothing to choose others by.
CLASSICAL = {
    "rolling ball": rolling_ball, "white top-hat": white_tophat, "difference of Gaussians": difference_of_gaussians,
    "Wiener": wiener, "Richardson–Lucy": richardson_lucy, "dark sectioning": dark_sectioning,
}  # fmt: skip


def run(*arguments):
    """Run a command with one thread."""
    print("$", *arguments, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(argument) for argument in arguments], check=True, env=environment)


def seconds_per_step(name):
    """Shortest time of a step on one thread, without the adversary."""
    torch.set_num_threads(1)
    network, rng = ResidualUNet(**NETWORK), np.random.default_rng(0)
    operator = LearnedHaze(16, 4) if name.startswith("learned") else OpticalHaze()
    operator.freeze()
    hazy, seconds = torch.randn(BATCH, 1, RESOLUTION, RESOLUTION), []
    for _ in range(5):
        started = time.monotonic()
        if name == "supervised":
            loss = F.mse_loss(network(hazy)[-1], hazy)
        else:
            loss = sum(eid_losses(lambda y: network(y)[-1], operator, hazy, draw_transform("rotation", rng), rng))
        loss.backward()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def train(name, folder, minutes):
    """Train in `folder / name`, unless it exists."""
    output, flags = folder / name, TRAININGS[name]
    if (output / "cost.json").is_file():
        return
    cost = seconds_per_step(name)
    steps, before = max(2, round(60 * minutes / cost)), 0
    if name == "supervised":
        script, source = "train_regression", folder / "train"
        flags = ("--architecture", "residual-unet")
    else:
        script, source = "train_eid", folder / "train" / "hazy"
        if CLEAR[0] in flags:
            before = steps // 2
            after = flags.index(CLEAR[0]) + 1
            flags = (*flags[:after], folder / "clear" / "clear", "--operator_steps", before, *flags[after:])
    run(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1,
        "--dynamo_backend", "no", "--mixed_precision", "no", HERE.parent / "training" / f"{script}.py",
        "--train_data_dir", source, "--resolution", RESOLUTION, "--train_batch_size", BATCH,
        "--max_train_steps", before + steps, "--lr_warmup_steps", min(50, steps // 2), "--ema_decay", 0.995,
        "--checkpointing_steps", before + steps, "--model_config_name_or_path", folder / "network",
        "--output_dir", output, *flags,
    )  # fmt: skip
    cost = {"steps": steps, "operator_steps": before, "seconds_per_step": cost}
    (output / "cost.json").write_text(json.dumps(cost))


def errors_of(pipe, folder, pairs):
    """Mean errors of consistency and equivariance of a network with the operator it was trained with."""
    operator_class = LearnedHaze if folder.name.startswith("learned") else OpticalHaze
    operator = operator_class.from_pretrained(folder / "haze_operator", low_cpu_mem_usage=False)
    operator.freeze()
    errors = []
    for number, pair in enumerate(pairs):
        rng = np.random.default_rng(number)
        field = normalize_hazy(Plane(pair.hazy, pair.source), pipe.image_processor)[None]  # [1,1,h,w]
        transform = draw_transform("rotation", rng)
        errors.append(relative_errors(lambda hazy: pipe.unet(hazy)[-1], operator, field, transform, rng))
    return dict(zip(("consistency_error", "equivariance_error"), np.mean(errors, axis=0).tolist(), strict=True))


def compare(folder, minutes):
    """Score all networks and the classical methods on the held-out pairs."""
    pairs = list(load_pairs(folder / "test", "test"))
    methods = {"input": lambda hazy: hazy}
    methods |= {name: lambda hazy, method=method: method(hazy).prediction for name, method in CLASSICAL.items()}
    results = {}
    for name in TRAININGS:
        pipe = HazeRegressionPipeline.from_pretrained(folder / name, low_cpu_mem_usage=False)
        pipe.set_progress_bar_config(disable=True)
        methods[name] = lambda hazy, pipe=pipe: pipe(hazy).prediction
        results[name] = json.loads((folder / name / "cost.json").read_text())
        if TRAININGS[name] is not None:
            results[name] |= errors_of(pipe, folder / name, pairs)
    scores = {name: [] for name in methods}
    for pair in pairs:
        for name, method in methods.items():
            image = method(pair.hazy.astype(np.float32))
            scores[name].append((range_invariant_psnr(pair.clear, image), ssim(pair.clear, image)))
    for name, each in scores.items():
        gains = np.array(each)[:, 0] - np.array(scores["input"])[:, 0]  # [N]
        psnr, similarity = np.mean(each, axis=0).tolist()
        results[name] = results.get(name, {}) | {
            "psnr": psnr,
            "ssim": similarity,
            "gain": float(gains.mean()),
            "standard_error": float(gains.std(ddof=1) / np.sqrt(len(gains))),
        }
        print(f"{name}: {psnr:.2f} dB ({gains.mean():+.2f}), SSIM {similarity:.3f}", flush=True)
    facts = {"minutes": minutes, "num_images": len(pairs), "num_pairs": PAIRS["train"][0], "resolution": RESOLUTION}
    (HERE / "eid.json").write_text(json.dumps({"methods": results, **facts}, indent=1) + "\n")


class Mask(HazeOperator, torch.nn.Module):
    """Hides a part of a signal `[B, 1, 1, 64]`. What it hides is its null space."""

    def forward(self, clear, haze):
        places = torch.arange(clear.shape[-1])
        return clear * ((places < 24) | (places >= 36))


def draw_null_space():
    """Train two linear networks on masked signals alone, and draw what they recover of a new one."""
    import matplotlib.pyplot as plt

    def signals(seed, number):
        values = gaussian_filter1d(np.random.default_rng(seed).normal(size=(number, 64)), 4, mode="wrap")
        return torch.from_numpy(values / values.std()).float()[:, None, None]

    operator, test, recovered = Mask(), signals(2, 8)[:1], {}
    hazy = operator(signals(1, 512), None)
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network, rng = torch.nn.Linear(64, 64), np.random.default_rng(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(1500):
            batch = hazy[rng.integers(0, len(hazy), 64)]
            consistency, equivariance = eid_losses(network, operator, batch, draw_transform("shift", rng), rng)
            optimizer.zero_grad()
            (consistency + weight * equivariance).backward()
            optimizer.step()
        recovered[weight] = network(operator(test, None)).detach().flatten()
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.axvspan(24, 35, color="0.9", label="hidden by the operator")
    axes.plot(test.flatten(), color="black", label="signal")
    axes.plot(recovered[0.0], color="tab:red", linestyle=":", label="consistency alone")
    axes.plot(recovered[1.0], color="tab:blue", linestyle="--", label="consistency and equivariance")
    axes.set(xlabel="place", ylabel="value", xlim=(0, 63))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(HERE.parent / "docs" / "images" / "null_space.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description="Compare trainings without pairs with others at equal cost.")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "eid_bench", help="Pairs and networks.")
    parser.add_argument("--minutes", type=float, default=6, help="Processor time of each training.")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, help="Train in these ways, and compare nothing.")
    parser.add_argument("--figure", action="store_true", help="Draw the signals, and train nothing.")
    args = parser.parse_args()
    if args.figure:
        draw_null_space()
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    ResidualUNet(**NETWORK).save_config(args.folder / "network")
    for name, (number, seed) in PAIRS.items():
        if not (args.folder / name).is_dir():
            run(
                sys.executable, "-m", "haze_pipeline", "simulate", args.folder / name, "--num-images", number,
                "--size", SIZE, "--seed", seed, *KIND,
            )  # fmt: skip
    for name in args.only or TRAININGS:
        train(name, args.folder, args.minutes)
    if not args.only:
        compare(args.folder, args.minutes)
        draw_null_space()


if __name__ == "__main__":
    main()
