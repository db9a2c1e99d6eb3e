"""
Measure whether the checks of the default checkpoint distinguish images unlike the training images from images like
them.

    python bench/trust.py

Known images are the hazy images of simulated pairs with a seed not used for training. Unknown images are camera noise
without a specimen, photographs, inverted known images, and known images as with pixels ten times smaller (enlarged,
with new photon noise). Writes `bench/trust.json`: for each kind, the fraction of images with a warning, and the area
under the ROC curve of the larger of the two scores of the input, each in units of its limit.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import skimage.data
import torch
from checkpoint import weights_hash
from scipy import ndimage, stats

from haze_pipeline import FlowMatchODEScheduler
from haze_pipeline.data.patches import simulated_series
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.reliability.assessment import MAX_DISTANCE, MAX_INVENTED, assess


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 validated
SIDE = 192
# Those that scikit-image brings along.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "page",
    "rocket",
    "text",
)


def photographs():
    """Parts of photographs in shades of grey."""
    for name in PHOTOGRAPHS:
        image = getattr(skimage.data, name)().astype(np.float32)
        image = image.mean(axis=-1) if image.ndim == 3 else image
        for y, x in ((0, 0), (60, 100)):
            part = image[y : y + SIDE, x : x + SIDE]
            if part.shape == (SIDE, SIDE):
                yield part


def empty_fields(number):
    """Photon noise of a dark to a bright empty field, with read noise."""
    rng = np.random.default_rng(0)
    for light in np.geomspace(1, 1000, number):
        yield (100 + rng.poisson(light, (SIDE, SIDE)) + rng.normal(0, 2, (SIDE, SIDE))).astype(np.float32)


def enlarged(image):
    """A tenth of the image, ten times as large, with photon noise of its own."""
    part = SIDE // 10 + 1
    light = ndimage.zoom(image[:part, :part], SIDE / part, order=3)
    return np.random.default_rng(0).poisson(np.maximum(light, 0)).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description="Measure whether the checks tell unknown images from known ones.")
    parser.add_argument("--num_images", type=int, default=60)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.scheduler = FlowMatchODEScheduler()
    pipe.set_progress_bar_config(disable=True)

    known = [pair.hazy.astype(np.float32) for pair in islice(simulated_series(SEED, SIDE, 0), args.num_images)]
    sets = {
        "known": known,
        "empty field": list(empty_fields(args.num_images // 3)),
        "photograph": list(photographs()),
        "inverted": [image.max() - image for image in known],
        "pixels 10 times finer": [enlarged(image) for image in known],
    }
    assessments = {}
    for name, images in sets.items():
        assessments[name] = []
        for image in images:
            out = pipe(
                image,
                num_inference_steps=1,
                ensemble_size=choose_members(pipe, Preset.fast),
                generator=torch.Generator().manual_seed(0),
            )
            assessments[name].append(assess(pipe, image, out))

    def score(assessment):
        return max(assessment.out_of_domain / MAX_DISTANCE, (assessment.invented or 0) / MAX_INVENTED)

    scores = {name: [score(each) for each in group] for name, group in assessments.items()}
    unknown = {name: values for name, values in scores.items() if name != "known"}
    unknown["all of them"] = [value for values in unknown.values() for value in values]

    def area_under_curve(values):
        pairs = len(values) * len(scores["known"])
        return float(stats.mannwhitneyu(values, scores["known"]).statistic / pairs)

    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "sets": {
            name: {
                "num_images": len(group),
                "warned": float(np.mean([bool(each.warnings) for each in group])),
                "median": {
                    key: float(np.median([getattr(each, key) or 0 for each in group]))
                    for key in ("out_of_domain", "invented", "unexplained", "linearity", "share_removed", "excess")
                },
            }
            for name, group in assessments.items()
        },
        "area_under_curve": {name: area_under_curve(values) for name, values in unknown.items()},
    }
    print(json.dumps(results, indent=2))
    (HERE / "trust.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
