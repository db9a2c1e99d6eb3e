"""
Measure the uncertainty of the default checkpoint on pairs used neither for training nor for calibration: pairs of
held-out real specimens, and simulated pairs.

    python bench/calibration.py

The ensembles of the preset `balanced` are measured without calibration, with the published calibration line, and with
the calibration of the checkpoint. Larger ensembles are measured on the first quarter of the images. Writes
`bench/calibration.json` and `docs/images/calibration.png`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
from checkpoint import weights_hash
from real_specimens import make_pairs, read_split

from haze_pipeline.data.pairs import Pair
from haze_pipeline.data.patches import simulated_series
from haze_pipeline.evaluation.figures import plot_calibration
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import PRESETS, Preset, choose_solver
from haze_pipeline.reliability.calibration import (
    coverage,
    expected_normalized_calibration_error,
    measure_errors,
    pool,
    predict_errors,
    scores,
)
from haze_pipeline.utils.devices import fastest_dtype


HERE = Path(__file__).parent
SIMULATED_SEED = 3  # 1 trained
SIZE = 192
RESAMPLES = 200
LARGE_ENSEMBLE = 20


def main():
    parser = argparse.ArgumentParser(description="Measure how well the deviations of samples predict errors.")
    parser.add_argument("--images_dir", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--num_images", type=int, default=120)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    checkpoint = weights_hash(pipe.unet.state_dict())
    pipe = pipe.to(fastest_dtype(pipe.device))
    pipe.scheduler, steps = choose_solver(pipe, Preset.balanced, None)
    pipe.set_progress_bar_config(disable=True)
    number = PRESETS[Preset.balanced]["ensemble_size"]
    if pipe.config.calibrated_for != {"ensemble_size": number, "num_inference_steps": steps}:
        raise SystemExit(
            f"The checkpoint is calibrated for {pipe.config.calibrated_for}, not for {number} samples of {steps} "
            f"steps."
        )

    files = read_split(args.images_dir, "test")
    results, plotted = (
        {"checkpoint": checkpoint, "num_samples": number, "num_inference_steps": steps, "sets": {}},
        None,
    )
    for name, pairs in (
        ("real specimens", lambda: real_pairs(files)),
        ("simulated", lambda: simulated_series(SIMULATED_SEED, SIZE, 0)),
    ):
        results["sets"][name], curves = measure(pipe, pairs, args.num_images, steps, number)
        plotted = plotted or curves
    print(json.dumps(results, indent=2))
    if args.model is None:
        plot_calibration(plotted).savefig(HERE.parent / "docs" / "images" / "calibration.png")
        (HERE / "calibration.json").write_text(json.dumps(results, indent=2) + "\n")


def real_pairs(files):
    """An endless series of pairs of held-out specimens."""
    for index, (row, pair) in enumerate(make_pairs(files, 10**6, SIZE)):
        yield Pair(pair.hazy.numpy(), pair.clear.numpy(), f"{row['file']}, pair {index}", row["file"])


def measure(pipe, pairs, num_images, steps, number):
    """Scores of the uncertainty on the first pairs of a series, and the curves of deviation and error."""
    config = pipe.config
    images = measure_errors(pipe, islice(pairs(), num_images), steps, number)
    calibrations = {
        "raw": {},
        "with a line": {"scale": config.uncertainty_scale, "offset": config.uncertainty_offset},
        "calibrated": {"curve": config.uncertainty_curve},
    }
    predicted = {name: predict_errors(images, number, **how) for name, how in calibrations.items()}
    curves = {name: pool(each) for name, each in predicted.items()}
    calibrated = list(predicted["calibrated"].values())
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(calibrated), size=len(calibrated)) for _ in range(RESAMPLES)]
    results = {
        "num_images": num_images,
        "scores": {name: scores(*values) for name, values in curves.items()},
        # 95 % of what other images of this number would have given
        "ENCE_interval": np.quantile([ence_of(calibrated, each) for each in drawn], (0.025, 0.975)).tolist(),
        "interval_coverage": {},
    }
    for alpha, factor in config.interval_factors.items():
        covered = np.array([coverage(*image, factor) for image in calibrated])
        results["interval_coverage"][f"{1 - float(alpha):.0%}"] = {
            "mean": float(covered.mean()),
            "standard_error": float(covered.std(ddof=1) / np.sqrt(len(covered))),
        }
    larger = measure_errors(pipe, islice(pairs(), num_images // 4), steps, LARGE_ENSEMBLE)
    results["large_ensemble"] = {"num_images": num_images // 4, "num_samples": LARGE_ENSEMBLE}
    for name, how in calibrations.items():
        ratio = scores(*pool(predict_errors(larger, LARGE_ENSEMBLE, **how)))["RMS error / RMS deviation"]
        results["large_ensemble"][name] = ratio
    return results, curves


def ence_of(images, drawn):
    """ENCE of the images drawn, from every eighth pixel."""
    deviations, errors = (np.concatenate([images[index][which][::8] for index in drawn]) for which in (0, 1))
    return expected_normalized_calibration_error(deviations, errors)


if __name__ == "__main__":
    main()
