"""
Train the flow and the regression baseline for the same number of steps, and compare their posterior means on held-out
pairs.

    python bench/regression.py --mixed_precision bf16

Network, pairs, patches, steps and optimiser are the same. Only the objective differs: the flow also trains on patches
at times other than 0, which sampling needs. Both methods dehaze with four network calls in the same four mirrored
orientations; the flow starts each call from another noise. All commands are those of a user. Writes
`bench/regression.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.data.patches import simulated_series
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


HERE = Path(__file__).parent
TRAINING_SEED, SEED = 1, 3  # of pairs; 2 validated the checkpoint in the package
BATCH, RESOLUTION = 8, 96
FLOW = ["--posterior_mean_share", "0.8", "--t_sampling", "uniform", "--noise_corner_frequency", "0.2", "--report_to",
    "none"]  # fmt: skip


def run(*arguments):
    """Run a command and return its seconds."""
    print("$", *arguments, flush=True)
    started = time.monotonic()
    subprocess.run([str(argument) for argument in arguments], check=True)
    return time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description="Compare the flow with regression, trained with equal steps.")
    parser.add_argument("--num_pairs", type=int, default=500, help="Pairs to train on.")
    parser.add_argument("--max_train_steps", type=int, default=2000)
    parser.add_argument("--num_images", type=int, default=60, help="Held-out pairs.")
    parser.add_argument("--mixed_precision", default="no", help="bf16 where the processor is fast at it.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder, "pairs")
        run(sys.executable, "-m", "haze_pipeline", "simulate", pairs, "--num-images", args.num_pairs, "--size", 160,
            "--seed", TRAINING_SEED)  # fmt: skip
        seconds = {}
        for name, script, flags in (("flow", "train_haze_matching", FLOW), ("regression", "train_regression", [])):
            seconds[name] = run(
                sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines",
                1, "--dynamo_backend", "no",
                "--mixed_precision", args.mixed_precision, HERE.parent / "training" / f"{script}.py",
                "--train_data_dir", pairs, "--output_dir", Path(folder, name), "--resolution", RESOLUTION,
                "--train_batch_size", BATCH,
                "--max_train_steps", args.max_train_steps, "--checkpointing_steps", args.max_train_steps, *flags,
            )  # fmt: skip
        flow = HazeMatchingPipeline.from_pretrained(Path(folder, "flow"), low_cpu_mem_usage=False)
        regression = HazeRegressionPipeline.from_pretrained(Path(folder, "regression"), low_cpu_mem_usage=False)

    methods = {
        "input": lambda hazy: hazy,
        "flow": lambda hazy: (
            flow(hazy, num_inference_steps=1, ensemble_size=4, generator=torch.Generator().manual_seed(0)).prediction
        ),
        "regression": lambda hazy: np.mean(
            [np.flip(regression(np.flip(hazy, axes).copy()).prediction, axes) for axes in ((), (0,), (1,), (0, 1))],
            axis=0,
        ),
    }
    for pipeline in (flow, regression):
        pipeline.set_progress_bar_config(disable=True)
    scores = {name: [] for name in methods}
    for pair in islice(simulated_series(SEED, 192, 0), args.num_images):
        for name, method in methods.items():
            scores[name].append(range_invariant_psnr(pair.clear, method(pair.hazy)))
    advantage = np.subtract(scores["regression"], scores["flow"])
    results = {
        "max_train_steps": args.max_train_steps,
        "batch": BATCH,
        "resolution": RESOLUTION,
        "mixed_precision": args.mixed_precision,
        "num_pairs": args.num_pairs,
        "num_images": args.num_images,
        "seconds": seconds,
        "psnr": {name: float(np.mean(each)) for name, each in scores.items()},
        "regression_advantage": float(advantage.mean()),
        "standard_error": float(advantage.std(ddof=1) / np.sqrt(len(advantage))),
    }
    print(json.dumps(results, indent=2))
    (HERE / "regression.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
