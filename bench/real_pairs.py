"""
Measure the default checkpoint on four real pairs, for a table and a figure of the README.

    python bench/real_pairs.py [--data ../shared/data]

The score is the range-invariant PSNR. Three widefield images are compared with their structured-illumination target,
and with this target blurred to widefield resolution, since dehazing cannot be expected to exceed this resolution. An
image of C. elegans with a pinhole of 1 Airy unit, which has little haze, is compared with two images of the same field
from the same Airyscan detector: one with its out-of-focus background subtracted (blurred by 1.5 px to reduce noise),
and one with pixel reassignment. Classical methods are scored as well, with the settings that score best **on each
image**. Writes `bench/real_pairs.json` and `docs/images/real_pairs.png`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash
from matplotlib import pyplot as plt
from scipy import ndimage

from haze_pipeline.evaluation.baselines import BASELINES
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.utils.background import subtract_background


HERE = Path(__file__).parent

# Deviation of the blur to widefield resolution, shift of the hazy image in x, margin left out, pixel size in µm.
PAIRS = {
    "microtubules_b": {"blur": 2.7, "roll": -1, "crop": 4, "pixel_size": 0.030},
    "factin": {"blur": 1.2, "roll": 0, "crop": 0, "pixel_size": 0.0626},
    "microtubules_a": {"blur": 1.2, "roll": 0, "crop": 0, "pixel_size": 0.0626},
    "celegans": {"blur": 1.5, "roll": 0, "crop": 0, "pixel_size": 0.043},
}

# Of the panels, where they are not widefield and a blurred target.
CAPTIONS = {"celegans": ("1 Airy unit", "dehazed", "pixel reassignment")}

BACKGROUND_WIDTHS = (30, 50, 100, 150)  # px
SHOWN_WIDTH = 50  # in the table, for all pairs


def read_pair(data, name, protocol):
    """The hazy image of a pair, and the two references that it is compared with."""
    if name == "celegans":
        hazy, target, reassigned = (
            read_micrograph(data / "hazy" / f"celegans_airyscan_{kind}.tif").data.astype(np.float64)
            for kind in ("pseudoconfocal", "isfed", "ism")
        )
        blurred = ndimage.gaussian_filter(target, protocol["blur"])
        return hazy, {"target": blurred, "target_at_widefield_resolution": reassigned}
    hazy = read_micrograph(data / "paired" / f"{name}_hazy.tif").data
    target = read_micrograph(data / "paired" / f"{name}_clear.tif").data.astype(np.float64)
    blurred = ndimage.gaussian_filter(target, protocol["blur"])
    hazy = np.roll(hazy, protocol["roll"], axis=1)
    return hazy, {"target": target, "target_at_widefield_resolution": blurred}


def main():
    parser = argparse.ArgumentParser(description="Measure the default checkpoint on real pairs.")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)

    members = choose_members(pipe, Preset.fast)
    results, panels = {}, []
    for name, protocol in PAIRS.items():
        hazy, targets = read_pair(args.data, name, protocol)
        inner = slice(protocol["crop"], -protocol["crop"] or None)

        # By the preset `fast`.
        generator = torch.Generator().manual_seed(0)
        mean = pipe(hazy, num_inference_steps=1, ensemble_size=members, generator=generator).prediction
        foregrounds = {width: subtract_background(mean, width) for width in BACKGROUND_WIDTHS}
        candidates = {"input": [hazy]}
        for method, predict in BASELINES.items():
            candidates[method] = predict(hazy)
        candidates["haze-pipeline `fast`"] = [mean]
        candidates[f"`fast --background-width {SHOWN_WIDTH}`"] = [foregrounds[SHOWN_WIDTH]]
        results[name] = {
            key: {
                method: max(range_invariant_psnr(reference[inner, inner], image[inner, inner]) for image in images)
                for method, images in candidates.items()
            }
            for key, reference in targets.items()
        }
        at_widefield_resolution = targets["target_at_widefield_resolution"][inner, inner]
        results[name]["by_background_width"] = {
            width: range_invariant_psnr(at_widefield_resolution, image[inner, inner])
            for width, image in foregrounds.items()
        }
        results[name]["share_of_intensity_removed"] = float(1 - mean.sum() / (hazy - hazy.min()).sum(dtype=np.float64))
        panels.append((name, hazy, mean, targets["target_at_widefield_resolution"], protocol["pixel_size"]))
        print(name, json.dumps(results[name], indent=1))
    results = {"checkpoint": weights_hash(pipe.unet.state_dict()), "pairs": results}
    if args.model is not None:
        return
    (HERE / "real_pairs.json").write_text(json.dumps(results, indent=2) + "\n")

    figure, axes = plt.subplots(len(panels), 3, figsize=(9, 12.4), constrained_layout=True)
    for row, (name, hazy, mean, target, pixel_size) in zip(axes, panels, strict=True):
        side = 256
        for axis, image, title in zip(
            row, (hazy, mean, target), CAPTIONS.get(name, ("widefield", "dehazed", "target, blurred")), strict=True
        ):
            part = image[:side, :side]
            low, high = np.percentile(part, (0.5, 99.8))
            axis.imshow(part, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{name.replace('_', ' ')}: {title}\nblack {low:.3g}, white {high:.3g}", fontsize=8)
            axis.set_axis_off()
        length = 2 / pixel_size  # 2 µm
        row[0].plot(
            [side - 10 - length, side - 10], [side - 12] * 2, color="white", linewidth=3, solid_capstyle="butt"
        )
        row[0].text(side - 10 - length / 2, side - 18, "2 µm", color="white", fontsize=8, ha="center")
    figure.savefig(HERE.parent / "docs" / "images" / "real_pairs.png", dpi=110)


if __name__ == "__main__":
    main()
