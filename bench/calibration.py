"""
Measure the default checkpoint's uncertainty on simulated pairs of a seed that neither trained nor calibrated it.

    python bench/calibration.py

Ensembles of the preset `balanced`, of twenty samples and of as many as the checkpoint was calibrated for, raw and calibrated.
Writes `bench/calibration.json`, and of the second `bench/calibration.png`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np

from haze_pipeline.calibration import coverage, measure_errors, pool, predict_errors, scores
from haze_pipeline.cli_model import load_pipeline
from haze_pipeline.figures import plot_calibration
from haze_pipeline.hardware import fastest_dtype
from haze_pipeline.presets import Preset, choose_solver
from haze_pipeline.training_examples import simulated_series


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 calibrated


def main():
    parser = argparse.ArgumentParser(description="Measure how well the deviations of samples predict errors.")
    parser.add_argument("--num_images", type=int, default=40)
    parser.add_argument(
        "--num_samples", type=int, nargs="+", help="20, and what the checkpoint was calibrated for, if omitted."
    )
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe = pipe.to(fastest_dtype(pipe.device))
    pipe.scheduler, steps = choose_solver(pipe, Preset.balanced, None)
    pipe.set_progress_bar_config(disable=True)

    pairs = list(islice(simulated_series(SEED, 192, 0), args.num_images))
    lines = {"raw": (1.0, 0.0), "calibrated": (pipe.config.uncertainty_scale, pipe.config.uncertainty_offset)}
    path = HERE / "calibration.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for number in args.num_samples or [20, pipe.config.calibrated_for["ensemble_size"]]:
        specimens = measure_errors(pipe, pairs, steps, number)
        result = {"num_images": args.num_images, "num_inference_steps": steps}
        curves = {}
        for name, line in lines.items():
            predicted = predict_errors(specimens, number, *line)
            curves[name] = pool(predicted)
            result[name] = scores(*curves[name])
        spread, errors = pool(specimens)
        result["RMS error / RMS spread"] = float(np.sqrt(np.mean(errors**2) / np.mean(spread**2)))
        if pipe.config.calibrated_for == {"ensemble_size": number, "num_inference_steps": steps}:
            result["interval_coverage"] = {
                f"{1 - float(alpha):.0%}": float(np.mean([coverage(*image, factor) for image in predicted.values()]))
                for alpha, factor in pipe.config.interval_factors.items()
            }
            plot_calibration(curves).savefig(HERE / "calibration.png")
        results[str(number)] = result
        print(number, json.dumps(result, indent=2))
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
