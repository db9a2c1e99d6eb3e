"""
Train the methods of the paper at equal cost on simulated pairs of one kind, and compare them on held-out pairs.

    python bench/methods.py

One microscope images random specimens of tubules. Every network trains for the same processor time on one core
(`--minutes`), so the networks are narrow or packed, and train far less than in the papers. The commands are those of a
user. What exists in `--folder` is not made again. Writes `bench/methods.json` and `docs/images/methods.png`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path


HERE = Path(__file__).parent
KIND = ("--specimen", "tubules", "--na", 1.2, "--pixel-size", 0.1)
# Name: number of pairs, seed. Other benchmarks use other seeds.
PAIRS = {"train": (1000, 31), "test": (100, 33)}
SIZE, RESOLUTION, BATCH = 160, 64, 4
PACKED = ("--pixel_packing", 2)
FLOW = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.2)
INDI = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.5)

# Name: script, flags, and configuration of a narrow network.
METHODS = {
    "U-Net": ("regression", PACKED, None),
    "RCAN": ("regression", ("--architecture", "rcan"),
        {"num_features": 32, "num_groups": 4, "num_blocks": 4, "reduction": 8}),
    "MPRNet": ("regression", ("--architecture", "mprnet"),
        {"num_features": 16, "added_features": 8, "last_features": 16, "num_last_blocks": 2}),
    "MIMO-UNet": ("regression", ("--architecture", "mimo-unet"), {"num_features": 16, "num_blocks": 4}),
    "Restormer": ("regression", ("--architecture", "restormer"),
        {"num_features": 16, "num_blocks": [2, 2, 2, 2], "num_refinement_blocks": 1}),
    "InDI": ("haze_matching", (*INDI, "--source", "hazy", "--source_noise", 0.01, "--prediction_type", "clear",
        "--unguided"), None),
    "SIFM 0": ("haze_matching", (*FLOW, "--source", "hazy"), None),
    "SIFM 0.1": ("haze_matching", (*FLOW, "--source", "hazy", "--source_noise", 0.1), None),
    "HazeMatching": ("haze_matching", FLOW, None),
}  # fmt: skip


def run(*arguments):
    """Run a command with one thread and return its processor time in seconds."""
    print("$", *arguments, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(argument) for argument in arguments], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(name, folder, minutes, precision):
    """Train one method in `folder / name`, unless it exists."""
    script, flags, config = METHODS[name]
    output = folder / name
    if (output / "cost.json").is_file():
        return
    if config is not None:
        (folder / f"{name}.json").write_text(json.dumps(config))
        flags = (*flags, "--model_config_name_or_path", folder / f"{name}.json")

    def launch(output, steps):
        return run(
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1,
            "--dynamo_backend", "no", "--mixed_precision", precision, HERE.parent / "training" / f"train_{script}.py",
            "--train_data_dir", folder / "train", "--resolution", RESOLUTION, "--train_batch_size", BATCH,
            "--max_train_steps", steps, "--lr_warmup_steps", 50, "--ema_decay", 0.995, "--checkpointing_steps", steps,
            "--output_dir", output, *flags,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as trial:
        few, many = (launch(Path(trial, str(steps)), steps) for steps in (3, 33))
    seconds_per_step = (many - few) / 30
    steps = round(60 * minutes / seconds_per_step)
    seconds = launch(output, steps)
    cost = {"steps": steps, "seconds_per_step": seconds_per_step, "seconds": seconds}
    (output / "cost.json").write_text(json.dumps(cost))


def main():
    parser = argparse.ArgumentParser(description="Train the methods of the paper at equal cost, and compare them.")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "methods", help="Pairs and networks.")
    parser.add_argument("--minutes", type=float, default=4, help="Processor time of each training.")
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
    if args.only:
        return


if __name__ == "__main__":
    main()
