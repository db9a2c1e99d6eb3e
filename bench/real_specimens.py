"""
Measure the default checkpoint on pairs of real specimens not used for training, for a table and a figure of the
README.

    python bench/real_specimens.py [--images_dir ../shared/data] [--model runs/...]

The specimens are those of the split `test` in `training/specimens.csv`; haze and camera are simulated. The score is
the range-invariant PSNR of the input, the result (preset `fast`) and classical methods. Each classical method has the
setting that scores best **on each image**; two of them are also scored with the true optics and no tuning. Writes
`bench/real_specimens.json` and `docs/images/real_specimens.png`.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash
from matplotlib import pyplot as plt

from haze_pipeline.evaluation.baselines import BASELINES, dark_sectioning, richardson_lucy_gradient_consensus
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.simulation.real_specimens import pair_series, read_specimens


HERE = Path(__file__).parent
SEED = 5  # 1, 6 and 7 train, 2 validates, 4 calibrates
SIZE = 256
OURS = "haze-pipeline `fast`"
TUNED = "best classical, tuned on the image"


def read_split(images_dir: Path, split: str) -> list:
    """The files of a split of `training/specimens.csv`, each with its row and its channels."""
    with (HERE.parent / "training" / "specimens.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return [
        (
            row,
            read_specimens(
                images_dir / row["file"],
                row["file"],
                float(row["pixel_size_um"]) if row["pixel_size_um"] else None,
                float(row["z_step_um"]) if row["z_step_um"] else None,
            ),
        )
        for row in rows
    ]


def make_pairs(files: list, number: int, size: int = SIZE, seed: int = SEED):
    """Yields the row of a file and a pair, file by file and again, until there are `number`."""
    rows = {row["file"]: row for row, _ in files}
    for name, pair in pair_series({row["file"]: channels for row, channels in files}, number, size, seed):
        yield rows[name], pair


def main():
    parser = argparse.ArgumentParser(description="Measure the default checkpoint on held-out real specimens.")
    parser.add_argument("--images_dir", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--num_images", type=int, default=120)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    parser.add_argument("--quick", action="store_true", help="Only input and result; print and write nothing.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    members = choose_members(pipe, Preset.fast)

    files = read_split(args.images_dir, "test")
    scores, rows, facts, panels, seconds = {}, [], [], [], {}
    for row, pair in make_pairs(files, args.num_images):
        hazy, clear, optics = pair.hazy.numpy(), pair.clear.numpy(), pair.parameters
        generator = torch.Generator().manual_seed(0)
        started = time.perf_counter()
        images = {
            "input": [hazy],
            OURS: [pipe(hazy, num_inference_steps=1, ensemble_size=members, generator=generator).prediction],
        }
        seconds[OURS] = seconds.get(OURS, 0) + time.perf_counter() - started
        panels.append((row["structure"], hazy, images[OURS][0], clear))
        if not args.quick:
            for method, predict in BASELINES.items():
                images[method] = predict(hazy)
            images[TUNED] = [image for method in BASELINES for image in images[method]]
            airy = 0.61 * optics["emission_wavelength"] / optics["numerical_aperture"] / optics["pixel_size"]
            images["dark sectioning, true optics"] = [dark_sectioning(hazy, airy).prediction]
            images["Richardson–Lucy, gradient consensus, true optics"] = [
                richardson_lucy_gradient_consensus(hazy, airy, optics["gain"], optics["offset"]).prediction
            ]
        for method, candidates in images.items():
            best = max(range_invariant_psnr(clear, image) for image in candidates)
            scores.setdefault(method, []).append(best)
        rows.append(row)
        facts.append(optics)

    values = {name: np.array(each) for name, each in scores.items()}
    haze = np.array([each["haze_ratio"] for each in facts])
    groups = {
        "all": np.full(len(haze), True),
        "without haze": haze == 0,
        "haze below the in-focus mean": (haze > 0) & (haze < 1),
        "haze above the in-focus mean": haze >= 1,
    }

    def summarize(method, chosen):
        gain = (values[method] - values["input"])[chosen]
        return {
            "mean": float(gain.mean()),
            "median": float(np.median(gain)),
            "below_input": float((gain < 0).mean()),
            "more_than_half_a_dB_below": float((gain < -0.5).mean()),
            "worst": float(gain.min()),
        }

    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "seed": SEED,
        "num_images": args.num_images,
        "specimens": sorted({row["file"] for row in rows}),
        "seconds_per_image": seconds[OURS] / args.num_images,
        "input": float(values["input"].mean()),
        "gain": {
            group: {"num_images": int(chosen.sum()), **{name: summarize(name, chosen) for name in values}}
            for group, chosen in groups.items()
        },
        "gain_by_specimen": {
            file: float(
                np.mean(
                    [g for g, row in zip(values[OURS] - values["input"], rows, strict=True) if row["file"] == file]
                )
            )
            for file in sorted({row["file"] for row in rows})
        },
    }
    print(json.dumps(results, indent=1))
    if args.quick or args.model is not None:
        return
    (HERE / "real_specimens.json").write_text(json.dumps(results, indent=2) + "\n")

    figure, axes = plt.subplots(10, 12, figsize=(20, 17.5), constrained_layout=True)
    gain = values[OURS] - values["input"]
    for number, (structure, *images) in enumerate(panels[:40]):
        low, high = np.percentile(images[2], (0.5, 99.8))
        for axis, image, title in zip(
            axes.flat[3 * number : 3 * number + 3],
            images,
            (structure[:26], f"dehazed {gain[number]:+.1f} dB", "clear"),
            strict=True,
        ):
            start = np.percentile(image, 0.5)
            axis.imshow(image, cmap="gray", vmin=start, vmax=start + high - low, interpolation="nearest")
            axis.set_title(title, fontsize=7)
            axis.set_axis_off()
    figure.savefig(HERE.parent / "docs" / "images" / "real_specimens.png", dpi=100)


if __name__ == "__main__":
    main()
