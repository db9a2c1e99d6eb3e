"""
Train the methods of the paper at equal cost on simulated pairs of one kind, and compare them on held-out pairs.

    python bench/methods.py

One microscope images random specimens of tubules. Every network trains for the same processor time on one core
(`--minutes`), so the networks are narrow or packed, and train far less than in the papers. The commands are those of a
user. What exists in `--folder` is not made again. Writes `bench/methods.json` and the figures
`docs/images/methods*.png`.
"""

import argparse
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from haze_pipeline.loading import load_pipeline
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.models.mprnet import MPRNet
from haze_pipeline.models.rcan import RCAN
from haze_pipeline.models.restormer import Restormer
from haze_pipeline.models.unet_haze_matching import build_unet


HERE = Path(__file__).parent
KIND = ("--specimen", "tubules", "--na", 1.2, "--pixel-size", 0.1)
# Name: number of pairs, seed. Other benchmarks use other seeds.
PAIRS = {"train": (1000, 31), "test": (100, 33)}
SIZE, RESOLUTION = 160, 64
BATCH = {"packed": 16, "plain": 4}  # patches per step; packed networks are too small for a core with fewer
PACKED = ("--pixel_packing", 2)
FLOW = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.2)
INDI = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.5)

METRICS = ("range-invariant PSNR (dB)", "MicroMS3IM", "FSIM", "spectrum distance (dB)")

# Name: script, flags, and a narrow network. The first one is the reference of the differences.
METHODS = {
    "HazeMatching": ("haze_matching", FLOW, lambda: build_unet(pixel_packing=2)),
    "U-Net": ("regression", PACKED, lambda: build_unet(pixel_packing=2)),
    "RCAN": ("regression", ("--architecture", "rcan"),
        lambda: RCAN(num_features=32, num_groups=3, num_blocks=3, reduction=8)),
    "MPRNet": ("regression", ("--architecture", "mprnet"),
        lambda: MPRNet(num_features=16, added_features=8, last_features=16, num_last_blocks=2)),
    "MIMO-UNet": ("regression", ("--architecture", "mimo-unet"), lambda: MIMOUNet(num_features=16, num_blocks=4)),
    "Restormer": ("regression", ("--architecture", "restormer"),
        lambda: Restormer(num_features=16, num_blocks=(1, 2, 2, 2), num_refinement_blocks=1)),
    "InDI": ("haze_matching", (*INDI, "--source", "hazy", "--source_noise", 0.01, "--prediction_type", "clear",
        "--unguided"), lambda: build_unet(pixel_packing=2, guided=False)),
    "SIFM 0": ("haze_matching", (*FLOW, "--source", "hazy"), lambda: build_unet(pixel_packing=2)),
    "SIFM 0.1": ("haze_matching", (*FLOW, "--source", "hazy", "--source_noise", 0.1),
        lambda: build_unet(pixel_packing=2)),
}  # fmt: skip


def run(*arguments):
    """Run a command with one thread."""
    print("$", *arguments, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(argument) for argument in arguments], check=True, env=environment)


def seconds_per_step(network, batch, precision):
    """Shortest time of a training step on one thread: network, gradients, optimiser and averages."""
    torch.set_num_threads(1)
    packing = 2 if isinstance(network, UNet2DModel) else 1
    inputs = torch.randn(batch, network.config.get("in_channels", 1), RESOLUTION // packing, RESOLUTION // packing)
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMAModel(network.parameters())
    seconds = []
    for _ in range(10):
        started = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            images = [network(inputs, torch.zeros(batch)).sample] if packing == 2 else network(inputs)
        sum(image.float().square().mean() for image in images).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        seconds.append(time.monotonic() - started)
    return min(seconds)


def train(name, folder, minutes, precision):
    """Train one method in `folder / name`, unless it exists."""
    script, flags, make_network = METHODS[name]
    output, config = folder / name, folder / f"{name}.config"
    if (output / "cost.json").is_file():
        return
    network = make_network()
    network.save_config(config)
    batch = BATCH["packed" if isinstance(network, UNet2DModel) else "plain"]
    cost = seconds_per_step(network, batch, precision)
    steps = round(60 * minutes / cost)
    run(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1,
        "--dynamo_backend", "no", "--mixed_precision", precision, HERE.parent / "training" / f"train_{script}.py",
        "--train_data_dir", folder / "train", "--resolution", RESOLUTION, "--train_batch_size", batch,
        "--max_train_steps", steps, "--lr_warmup_steps", 50, "--ema_decay", 0.995, "--checkpointing_steps", steps,
        "--model_config_name_or_path", config, "--output_dir", output, *flags,
    )  # fmt: skip
    (output / "cost.json").write_text(json.dumps({"steps": steps, "batch": batch, "seconds_per_step": cost}))


def compare(folder, minutes):
    """Evaluate all methods on the held-out pairs, and write the results and the figures."""
    # The paper also samples the interpolant that was trained without noise with noise.
    pipe = load_pipeline(str(folder / "SIFM 0"))
    pipe.register_to_config(source_noise=0.1)
    pipe.save_pretrained(folder / "SIFM 0, noise 0.1")
    models = [*METHODS]
    models.insert(models.index("SIFM 0") + 1, "SIFM 0, noise 0.1")
    shutil.rmtree(folder / "report", ignore_errors=True)
    named = itertools.chain.from_iterable(("--model", folder / name) for name in models)
    run(
        sys.executable, "-m", "haze_pipeline", "evaluate", "--dataset", folder / "test", "--baseline", "all",
        "--num-figures", 1, "-o", folder / "report", *named,
    )  # fmt: skip
    evaluation = json.loads((folder / "report" / "evaluation.json").read_text())
    kept = ("num_images", "kinds", "parameters", "seconds_per_megapixel", "reference")
    results = {name: evaluation[name] for name in kept}
    for part in ("summary", "differences"):
        results[part] = {
            method: {metric: values[metric] for metric in METRICS} for method, values in evaluation[part].items()
        }
    results["trainings"] = {name: json.loads((folder / name / "cost.json").read_text()) for name in METHODS}
    results |= {"minutes": minutes, "num_pairs": PAIRS["train"][0], "size": SIZE, "resolution": RESOLUTION}
    (HERE / "methods.json").write_text(json.dumps(results, indent=1) + "\n")
    # The first figure of the report is the plot, the second one shows the first pair.
    figures = re.findall('data:image/png;base64,([^"]+)', (folder / "report" / "report.html").read_text())
    for name, figure in zip(("methods", "methods_example"), figures, strict=True):
        (HERE.parent / "docs" / "images" / f"{name}.png").write_bytes(base64.b64decode(figure))


def main():
    parser = argparse.ArgumentParser(description="Train the methods of the paper at equal cost, and compare them.")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "methods", help="Pairs and networks.")
    parser.add_argument("--minutes", type=float, default=6, help="Processor time of each training.")
    parser.add_argument("--mixed_precision", default="bf16", help="no where the processor is slow at bf16.")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="Train these methods, and compare nothing.")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (number, seed) in PAIRS.items():
        if not (args.folder / name).is_dir():
            run(
                sys.executable, "-m", "haze_pipeline", "simulate", args.folder / name, "--num-images", number,
                "--size", SIZE, "--seed", seed, *KIND,
            )  # fmt: skip
    for name in args.only or METHODS:
        train(name, args.folder, args.minutes, args.mixed_precision)
    if not args.only:
        compare(args.folder, args.minutes)


if __name__ == "__main__":
    main()
