"""
Time `haze-pipeline evaluate` on held-out simulated pairs: all baselines and the preset `fast`.

    python bench/evaluate.py

The time is that of the whole command. As a second model, it receives a regression pipeline with the network of the
checkpoint, which costs as much as a network trained for regression. Scores are not stored. Writes
`bench/evaluate.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from haze_pipeline.loading import load_pipeline
from haze_pipeline.pipeline_haze_matching import DEFAULT_CHECKPOINT
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 calibrated


def main():
    parser = argparse.ArgumentParser(description="Time an evaluation of the default checkpoint.")
    parser.add_argument("--num_images", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        HazeRegressionPipeline(load_pipeline(None).unet).save_pretrained(folder / "regression")
        program = [sys.executable, "-m", "haze_pipeline"]
        simulate = ["simulate", folder / "pairs", "--num-images", args.num_images, "--size", args.size, "--seed", SEED]
        subprocess.run([*program, *map(str, simulate)], check=True)
        evaluate = ["evaluate", "--dataset", folder / "pairs", "-o", folder / "report", "--preset", "fast"]
        evaluate += ["--model", DEFAULT_CHECKPOINT, "--model", folder / "regression"]
        started = time.perf_counter()
        subprocess.run([*program, *map(str, evaluate)], check=True)
        seconds = time.perf_counter() - started
        facts = json.loads((folder / "report" / "evaluation.json").read_text())
    results = {
        "num_images": facts["num_images"],
        "size": args.size,
        "methods": list(facts["summary"]),
        "seconds": seconds,
        "seconds_per_megapixel": facts["seconds_per_megapixel"],
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, {platform.machine()}, no GPU",
        "load_of_others_at_start": load,  # processes that wanted a core; with any, the time is an upper bound
    }
    print(json.dumps(results, indent=2))
    (HERE / "evaluate.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
