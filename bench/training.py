"""
Compare the speed of the training script with a bare loop (forward, backward, optimiser) on the same network and batch.

    python bench/training.py

The script's time per step is the time difference of a long and a short run, divided by the difference of their steps.
The times for the start and the last checkpoint thus cancel. Bare loops run before and after the script. Writes
`bench/training.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from haze_pipeline.models.unet_haze_matching import build_unet


HERE = Path(__file__).parent
BATCH, RESOLUTION = 16, 64


def bare_seconds_per_step(steps, precision):
    """Seconds of a step on one batch, after three to warm up."""
    unet = build_unet().train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    inputs, target = torch.randn(BATCH, 2, RESOLUTION, RESOLUTION), torch.randn(BATCH, 1, RESOLUTION, RESOLUTION)
    t = torch.rand(BATCH)
    for step in range(steps + 3):
        if step == 3:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            velocity = unet(inputs, t, return_dict=False)[0]
        F.mse_loss(velocity.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps


def script_seconds(folder, steps, precision):
    """Seconds of the training script from its start to its end."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", 1, "--dynamo_backend", "no",
        "--mixed_precision", precision, HERE.parent / "training" / "train_haze_matching.py",
        "--train_data_dir", folder / "pairs", "--output_dir", folder / f"run-{steps}", "--resolution", RESOLUTION,
        "--train_batch_size", BATCH, "--max_train_steps", steps, "--checkpointing_steps", 10**6,
    ]  # fmt: skip
    started = time.perf_counter()
    # accelerate would give a single process one thread per physical core, which may be half of those of the bare loop.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([str(part) for part in command], check=True, env=environment)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description="Measure the training script against a bare loop.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--mixed_precision", default="no", choices=["no", "bf16"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        simulate = ["simulate", folder / "pairs", "--num-images", "8", "--size", "128", "--seed", "1"]
        subprocess.run([sys.executable, "-m", "haze_pipeline", *map(str, simulate)], check=True)
        bare = [bare_seconds_per_step(args.steps // 2, args.mixed_precision)]
        short = script_seconds(folder, 10, args.mixed_precision)
        long = script_seconds(folder, 10 + args.steps, args.mixed_precision)
        bare.append(bare_seconds_per_step(args.steps // 2, args.mixed_precision))
    script_rate, bare_rate = BATCH * args.steps / (long - short), BATCH * len(bare) / sum(bare)
    results = {
        "batch": BATCH,
        "resolution": RESOLUTION,
        "mixed_precision": args.mixed_precision,
        "threads": torch.get_num_threads(),
        "images_per_second": {"script": script_rate, "bare loop": bare_rate},
        "ratio": script_rate / bare_rate,
    }
    print(json.dumps(results, indent=2))
    (HERE / "training.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
