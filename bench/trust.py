"""
Measure whether the assessment warns of images that the default checkpoint does not know, and of results that do harm.

    python bench/trust.py [--images_dir ../shared/data]

Known images: simulated pairs of a seed that no training used. Unknown images: noise of cameras without a specimen,
photographs, the known images inverted, and the known images as a microscope with pixels ten times as fine would show
them (enlarged, with new photon noise). Results that do harm or good: pairs of real specimens and simulated pairs that
neither the training nor the fit of the prediction saw. Writes `bench/trust.json` (fractions of each kind with a
warning, and areas under the receiver operating characteristic) and `docs/images/trust.png` (that characteristic).
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import skimage.data
import torch
from checkpoint import weights_hash
from matplotlib import pyplot as plt
from real_specimens import make_pairs, read_split
from scipy import ndimage, stats

from haze_pipeline import FlowMatchODEScheduler
from haze_pipeline.data.patches import simulated_series
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.reliability.assessment import MAX_DISTANCE, MAX_INVENTED, assess
from haze_pipeline.reliability.benefit import BENEFIT, HARM, strength_for


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


def summary(gains):
    """What counts about the gains of many images, in dB."""
    return {
        "mean": float(gains.mean()),
        "median": float(np.median(gains)),
        "fraction below input": float((gains < 0).mean()),
        "fraction that loses more than 2 dB": float((gains < HARM).mean()),
        "worst": float(gains.min()),
    }


def benefit_of_warnings(pipe, pairs):
    """
    Gains, predicted gains and warnings for pairs of arrays (hazy, clear): how well the second tell the first, and
    fractions of images with warnings. Returns them with the points of the receiver operating characteristic.
    """
    gains, predicted, warned, protected = [], [], [], []
    for hazy, clear in pairs:
        generator = torch.Generator().manual_seed(0)
        out = pipe(hazy, num_inference_steps=1, ensemble_size=choose_members(pipe, Preset.fast), generator=generator)
        gains.append(range_invariant_psnr(clear, out.prediction) - range_invariant_psnr(clear, hazy))
        assessment = assess(pipe, hazy, out)
        predicted.append(assessment.predicted_gain)
        warned.append(bool(assessment.warnings))
        weakened = hazy + strength_for(assessment.predicted_gain) * (out.prediction - hazy)  # as with --protect
        protected.append(range_invariant_psnr(clear, weakened) - range_invariant_psnr(clear, hazy))
    gains, predicted, warned = map(np.array, (gains, predicted, warned))
    harm_warned = predicted < pipe.config.benefit["limit"]
    groups = {"lose more than 2 dB": gains < HARM, "lose": gains < 0, "gain more than 1 dB": gains > BENEFIT}
    if not all(group.any() for group in groups.values()):
        raise SystemExit("Too few images: none of them loses more than 2 dB, or none gains more than 1 dB.")
    harmed, _, improved = groups.values()
    results = {
        "num_images": len(gains),
        "gains": {"full strength": summary(gains), "--protect": summary(np.array(protected))},
        "correlation of predicted and true gain": float(np.corrcoef(gains, predicted)[0, 1]),
        **{
            name: {
                "num_images": int(group.sum()),
                "warned of harm": float(harm_warned[group].mean()),
                "warned of anything": float(warned[group].mean()),
            }
            for name, group in groups.items()
        },
        "area_under_curve": {
            name: float(
                stats.mannwhitneyu(-predicted[groups[name]], -predicted[improved]).statistic
                / groups[name].sum()
                / improved.sum()
            )
            for name in ("lose more than 2 dB", "lose")
        },
    }
    limits = np.sort(predicted)
    curve = [[(predicted[group] < limit).mean() for limit in limits] for group in (improved, harmed)]
    return results, curve, (harm_warned[improved].mean(), harm_warned[harmed].mean())


def draw_characteristics(found):
    """Receiver operating characteristics of the predicted gain, with the limit of the checkpoint as a dot."""
    figure, axes = plt.subplots(figsize=(4.2, 4), layout="constrained")
    for (name, (_, curve, limit)), color in zip(found.items(), ("black", "tab:blue"), strict=True):
        axes.plot(*curve, color=color, label=name)
        axes.plot(*limit, "o", color=color)
    axes.plot((0, 1), (0, 1), ":", color="gray", label="chance")
    axes.set(
        xlabel="warned of, of images that gain more than 1 dB", ylabel="warned of, of images that lose more than 2 dB"
    )
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(HERE.parent / "docs" / "images" / "trust.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description="Measure whether the checks tell unknown images from known ones.")
    parser.add_argument("--num_images", type=int, default=60)
    parser.add_argument("--images_dir", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.scheduler = FlowMatchODEScheduler()
    pipe.set_progress_bar_config(disable=True)

    simulated = [
        (pair.hazy.astype(np.float32), pair.clear)
        for pair in islice(simulated_series(SEED, SIDE, 0), 2 * args.num_images)
    ]
    known = [hazy for hazy, _ in simulated[: args.num_images]]
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

    specimens = make_pairs(read_split(args.images_dir, "test"), 2 * args.num_images)
    found = {
        "real specimens": benefit_of_warnings(
            pipe, [(pair.hazy.numpy(), pair.clear.numpy()) for _, pair in specimens]
        ),
        "simulated images": benefit_of_warnings(pipe, simulated),
    }
    draw_characteristics(found)
    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "sets": {
            name: {
                "num_images": len(group),
                "warned": float(np.mean([bool(each.warnings) for each in group])),
                "median": {
                    key: float(np.median([getattr(each, key) or 0 for each in group]))
                    for key in ("out_of_domain", "invented", "unexplained", "linearity", "fraction_removed", "excess")
                },
            }
            for name, group in assessments.items()
        },
        "area_under_curve": {name: area_under_curve(values) for name, values in unknown.items()},
        **{name: facts for name, (facts, _, _) in found.items()},
    }
    print(json.dumps(results, indent=2))
    (HERE / "trust.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
