"""
Measure the default checkpoint's uncertainty on simulated pairs of a seed that no training used.

    python bench/calibration.py

Twenty samples of the preset `balanced` for every image. The ratio of RMS error to RMS predicted deviation, both in network
units, is 1 for a calibrated model; of k samples, (RMSE)² = (1 + 1/k) (RMV)². Scale and offset are fitted on
the validation images. Writes `bench/calibration.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.presets import PRESETS
from haze_pipeline.simulation import pair_generator, simulate_pair


HERE = Path(__file__).parent
VALIDATION_SEED, TEST_SEED = 2, 3  # 1 trained
NUM_SAMPLES, NUM_BINS = 20, 20


def deviations_and_errors(pipe, seed, num_images):
    """Standard deviations of the samples and errors of their means, in network units, of all pixels of `num_images` pairs."""
    deviations, errors = [], []
    steps = PRESETS["balanced"]["num_inference_steps"]
    for index in range(num_images):
        pair = simulate_pair(192, pair_generator(seed, index))
        unit = pipe.image_processor.compute_normalization(pair.hazy[None, None]).target_std.item()
        out = pipe(
            pair.hazy, steps, NUM_SAMPLES, generator=torch.Generator().manual_seed(index), output_uncertainty=True
        )
        deviations.append(out.uncertainty / unit)
        errors.append((out.prediction - pair.clear.numpy()) / unit)
    return np.stack(deviations), np.stack(errors)


def rms(values):
    return np.sqrt(np.mean(np.square(values, dtype=np.float64)))


def fit_calibration(deviations, errors):
    """Scale and offset of the line through RMS error against RMS deviation in bins of equally many pixels."""
    order = np.argsort(deviations, axis=None)
    bins = [(rms(deviations.flat[part]), rms(errors.flat[part])) for part in np.array_split(order, NUM_BINS)]
    predicted, found = np.array(bins).T
    return np.polyfit(predicted, found, 1)


def main():
    parser = argparse.ArgumentParser(description="Measure how well the deviations of samples predict errors.")
    parser.add_argument("--num_images", type=int, default=40, help="For the test, and as many to fit.")
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = HazeMatchingPipeline.from_pretrained(args.model) if args.model else HazeMatchingPipeline.from_default()
    pipe.register_to_config(uncertainty_scale=1.0, uncertainty_offset=0.0)  # raw
    pipe.scheduler = FlowMatchODEScheduler(solver="bespoke", bespoke=pipe.scheduler.config.bespoke)
    pipe.set_progress_bar_config(disable=True)
    scale, offset = fit_calibration(*deviations_and_errors(pipe, VALIDATION_SEED, args.num_images))
    deviations, errors = deviations_and_errors(pipe, TEST_SEED, args.num_images)
    finite = np.sqrt(1 + 1 / NUM_SAMPLES)
    calibrated = np.clip(scale * deviations + offset, 0, None)
    ratios = [rms(e) / rms(d) for d, e in zip(deviations, errors, strict=True)]
    results = {
        "num_images": args.num_images,
        "num_samples": NUM_SAMPLES,
        "ratio": {
            "raw": rms(errors) / rms(deviations),
            "raw, finite ensemble": rms(errors) / (finite * rms(deviations)),
            "calibrated": rms(errors) / rms(calibrated),
        },
        "median_ratio_of_an_image": float(np.median(ratios)),
        "largest_ratio_of_an_image": float(np.max(ratios)),
        "scale": float(scale),
        "offset": float(offset),
    }
    print(json.dumps(results, indent=2))
    (HERE / "calibration.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
