"""
Measure the default checkpoint's uncertainty on simulated pairs of a seed that neither trained nor calibrated it.

    python bench/calibration.py

Twenty samples of the preset `balanced` for every image, raw and with the checkpoint's calibration. Writes
`bench/calibration.json` and `bench/calibration.png`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.calibration import coverage, measure_errors, predicted_deviation, scores
from haze_pipeline.figures import plot_calibration
from haze_pipeline.hardware import fastest_dtype
from haze_pipeline.presets import Preset, choose_solver
from haze_pipeline.training_examples import simulated_series


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 calibrated
NUM_SAMPLES = 20


def main():
    parser = argparse.ArgumentParser(description="Measure how well the deviations of samples predict errors.")
    parser.add_argument("--num_images", type=int, default=60)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = HazeMatchingPipeline.from_pretrained(args.model) if args.model else HazeMatchingPipeline.from_default()
    pipe = pipe.to(fastest_dtype(pipe.device))
    pipe.scheduler, steps = choose_solver(pipe, Preset.balanced, None)
    pipe.set_progress_bar_config(disable=True)

    pairs = islice(simulated_series(SEED, 192, 0), args.num_images)
    specimens = measure_errors(pipe, pairs, steps, NUM_SAMPLES)
    lines = {"raw": (1.0, 0.0), "calibrated": (pipe.config.uncertainty_scale, pipe.config.uncertainty_offset)}
    results = {"num_images": args.num_images, "num_samples": NUM_SAMPLES, "num_inference_steps": steps}
    curves = {}
    for name, line in lines.items():
        images = [
            (predicted_deviation(torch.from_numpy(spread), NUM_SAMPLES, *line).numpy(), errors)
            for spread, errors in specimens.values()
        ]
        curves[name] = tuple(np.concatenate(parts) for parts in zip(*images, strict=True))
        results[name] = scores(*curves[name])
    spread, errors = (np.concatenate(parts) for parts in zip(*specimens.values(), strict=True))
    results["raw"]["RMS error / RMS spread of the samples"] = float(np.sqrt(np.mean(errors**2) / np.mean(spread**2)))
    results["interval_coverage"] = {
        f"{1 - float(alpha):.0%}": float(np.mean([coverage(*image, factor) for image in images]))
        for alpha, factor in (pipe.config.interval_factors or {}).items()
    }
    print(json.dumps(results, indent=2))
    (HERE / "calibration.json").write_text(json.dumps(results, indent=2) + "\n")
    plot_calibration(curves).savefig(HERE / "calibration.png")


if __name__ == "__main__":
    main()
