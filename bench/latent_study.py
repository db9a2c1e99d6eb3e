"""
The latent-space study: restoration in the latents of a hierarchical VAE, from one level of haze to the next, compared
with a U-Net and HDN that restore in one step.

    python bench/latent_study.py

One microscope records random specimens of tubules through pinholes of six diameters. All networks are trained on the
same specimens with the commands of a user, and evaluated on others. `--size full` has the networks of the papers and
trainings for a GPU. What exists in `--folder` is not made again. Writes `bench/latent_study.json` and the figures
`docs/images/latent_study*.png`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from commands import run

from haze_pipeline.data.pairs import load_pairs
from haze_pipeline.data.pinhole_series import PinholeSeries, join_series
from haze_pipeline.evaluation.figures import new_figure
from haze_pipeline.evaluation.metrics import range_invariant_psnr, spectrum_distance
from haze_pipeline.evaluation.scores import summarize
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.autoencoder_hierarchical import AutoencoderHierarchical
from haze_pipeline.models.unet_haze_matching import build_unet
from haze_pipeline.reliability import calibration


HERE = Path(__file__).parent
KIND = ("--specimen", "tubules", "--na", 1.2, "--pixel-size", 0.1)
PINHOLES = "1,1.5,2,3,5,open"  # Airy units
SEEDS = {"train": 41, "test": 43}  # other benchmarks use other seeds
HDN_MEMBERS = 8
REMEDY = "re-projection, own states, α 0.25"
TRAININGS = ("unet", "hdn", "vae", "latent", "latent_own")

# Number of specimens for training and testing, side of images and patches, networks, and flags of the trainings.
SIZES = {
    "narrow": {
        "specimens": {"train": 300, "test": 40},
        "image": 160,
        "patch": 64,
        "packing": 2,
        "hdn": {
            "num_latent_groups": 4,
            "latent_channels": 16,
            "num_features": 48,
            "num_blocks": 1,
            "pixel_packing": 2,
        },
        "vae": {
            "num_latent_groups": 3,
            "latent_channels": 16,
            "num_features": 48,
            "num_blocks": 1,
            "pixel_packing": 2,
        },
        "latent": ("--block_out_channels", 64, 96, 128, "--degradation_features", 64, "--degradation_steps", 1500),
        "batch": 8,
        "steps": {"unet": 2200, "hdn": 1700, "vae": 1200, "latent": 4500, "latent_own": 2200},
    },
    "full": {
        "specimens": {"train": 2000, "test": 100},
        "image": 256,
        "patch": 128,
        "packing": 1,
        "hdn": {},
        "vae": {"num_latent_groups": 4},
        "latent": (
            "--block_out_channels",
            128,
            256,
            256,
            "--degradation_features",
            128,
            "--degradation_steps",
            20_000,
        ),
        "batch": 32,
        "steps": {"unet": 60_000, "hdn": 60_000, "vae": 60_000, "latent": 80_000, "latent_own": 20_000},
    },
}

# Name in the figure: training, and arguments of the pipeline.
VARIANTS = {
    "direct": ("latent", {"variant": "direct"}),
    "latent combination, α 0.5": ("latent", {"variant": "latent_combination", "alpha": 0.5}),
    "latent combination, α 0.25": ("latent", {"variant": "latent_combination", "alpha": 0.25}),
    "clean combination, α 0.5": ("latent", {"variant": "clean_combination", "alpha": 0.5}),
    "clean combination, α 0.25": ("latent", {"variant": "clean_combination", "alpha": 0.25}),
    "refinement, 1 pass": ("latent", {"variant": "refinement", "num_refinements": 1}),
    "refinement, 3 passes": ("latent", {"variant": "refinement", "num_refinements": 3}),
    "re-projection": ("latent", {"variant": "reprojection", "alpha": 1.0}),
    "re-projection, own states": ("latent_own", {"variant": "reprojection", "alpha": 1.0}),
    REMEDY: ("latent_own", {"variant": "reprojection", "alpha": 0.25}),
}
# Colours that colour-blind readers can tell apart (Okabe & Ito), one for each kind of variant.
COLOURS = (
    "#000000",
    "#56B4E9",
    "#0072B2",
    "#009E73",
    "#007050",
    "#E69F00",
    "#B07800",
    "#CC79A7",
    "#A05080",
    "#D55E00",
)
STYLES = dict(zip(VARIANTS, zip(COLOURS, "sv^v^v^ovD", strict=True), strict=True))


def make_data(folder: Path, size: dict):
    """Pinhole series for training and testing, and the pairs of the open pinhole alone for one-step methods."""
    for name, seed in SEEDS.items():
        if not (folder / name).is_dir():
            run(
                sys.executable, "-m", "haze_pipeline", "simulate", folder / name, "--num-images",
                size["specimens"][name], "--size", size["image"], "--seed", seed, "--pinholes", PINHOLES, *KIND,
            )  # fmt: skip
    widefield = folder / "widefield"
    if not widefield.is_dir():
        lines = (folder / "train" / "parameters.jsonl").read_text().splitlines()
        opened = [line for line in lines if json.loads(line)["level"] is None]
        for kind in ("hazy", "clear"):
            (widefield / kind).mkdir(parents=True)
            for line in opened:
                name = f"{json.loads(line)['image']}.ome.tif"
                shutil.copy(folder / "train" / kind / name, widefield / kind)
        (widefield / "parameters.jsonl").write_text("\n".join(opened) + "\n")


def train(name: str, script: str, folder: Path, size: dict, precision: str, *flags):
    """Train one network in `folder / name`, unless it exists."""
    output = folder / name
    if (output / "cost.json").is_file():
        return
    minutes = run(
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1,
        "--dynamo_backend", "no", "--mixed_precision", precision, HERE.parent / "training" / f"{script}.py",
        "--output_dir", output, "--resolution", size["patch"], "--train_batch_size", size["batch"],
        "--max_train_steps", size["steps"][name], "--learning_rate", 1e-3, "--lr_warmup_steps", 50, "--ema_decay",
        0.995, "--checkpointing_steps", 1000, "--resume_from_checkpoint", "latest", *flags,
    )  # fmt: skip
    (output / "cost.json").write_text(json.dumps({"steps": size["steps"][name], "processor minutes": minutes}))


def train_all(folder: Path, size: dict, precision: str, only: Iterable[str]):
    """Train the U-Net, HDN, the VAE, restoration and degradation in its latents, and the remedy."""
    networks = {
        "unet": build_unet(pixel_packing=size["packing"]),
        "hdn": AutoencoderHierarchical(**size["hdn"]),
        "vae": AutoencoderHierarchical(**size["vae"]),
    }
    for name, network in networks.items():
        network.save_config(folder / f"{name}.config")
    pairs, series = ("--train_data_dir", folder / "widefield"), ("--train_data_dir", folder / "train")
    config = {name: ("--model_config_name_or_path", folder / f"{name}.config") for name in networks}
    trainings = {
        "unet": ("train_regression", *pairs, *config["unet"], "--pixel_packing", size["packing"]),
        "hdn": ("train_hierarchical_vae", *pairs, *config["hdn"], "--kl_weight", 0.1),
        # With less weight of the KL, the latents say more about the image, and the decoder's own error is smaller.
        "vae": (
            "train_hierarchical_vae", *series, *config["vae"], "--kl_weight", 0.01, "--target", "input",
            "--pinhole_series",
        ),
        "latent": ("train_latent_restoration", *series, "--autoencoder", folder / "vae", *size["latent"]),
        "latent_own": (
            "train_latent_restoration", *series, "--init_from", folder / "latent", "--own_states", 1,
            "--degradation_steps", 0,
        ),
    }  # fmt: skip
    for name in only:
        script, *flags = trainings[name]
        train(name, script, folder, size, precision, *flags)


def normalize(pipe, image: np.ndarray, like: np.ndarray | None = None) -> torch.Tensor:
    """A hazy image `[H, W]` in network units `[1, 1, H, W]`: its mean is 0, and the unit is that of `like`."""
    planes, reference = (pipe.image_processor.preprocess(each) for each in (image, image if like is None else like))
    scaled = planes / pipe.image_processor.compute_normalization(reference).input_std
    return scaled - scaled.mean()


@torch.no_grad()
def measure_series(pipes: dict, series: PinholeSeries) -> tuple[dict, dict, dict]:
    """
    Estimates and drift on one specimen.

    Returns:
        `dict`: The estimates `[T, H, W]` of every variant by name.
        `dict`: Root mean squared distance of the states from the latents of the true images of their level, by name.
        `dict`: `decoder`, what the autoencoder makes of the clear image; `true levels`, the restoration of the true
        image of every level, haziest first; `neighbours`, the distance of the latents of neighbouring levels.
    """
    pipe, hazy = pipes["latent"], series.hazy
    network = pipe.unet
    recorded = [*series.smaller, hazy]  # level 1 first
    true = [network.encode(normalize(pipe, image, like=hazy)) for image in recorded]
    maps = pipe.image_processor.compute_normalization(pipe.image_processor.preprocess(hazy))

    def in_counts(image: torch.Tensor) -> np.ndarray:
        return (image * maps.target_std + maps.target_mean)[0, 0].numpy()

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return (one - other).square().mean().sqrt().item()

    clear = (pipe.image_processor.preprocess(series.clear) - maps.target_mean) / maps.target_std
    known = {
        "decoder": in_counts(network.decode(network.encode(clear))),
        "true levels": [
            in_counts(network.decode(network.restore(true[t - 1], t))) for t in range(len(recorded), 0, -1)
        ],
        "neighbours": [distance(true[t - 1], true[t - 2]) for t in range(len(recorded), 1, -1)],
    }
    estimates, drift = {}, {}
    for name, (training, arguments) in VARIANTS.items():
        states = []

        def watch(pipe, step, t, tensors, states=states):
            states.append(tensors["latents"])

        out = pipes[training](hazy, **arguments, output_trajectory=True, restore_dim=False, callback_on_step_end=watch)
        estimates[name] = out.trajectory
        drift[name] = [distance(state, true[len(recorded) - 2 - step]) for step, state in enumerate(states[:-1])]
    return estimates, drift, known


def evaluate(folder: Path, size: dict) -> tuple[dict, dict]:
    """Scores of all methods on the test specimens, and the images of the specimen with the median score by name."""
    pipes = {name: load_pipeline(str(folder / name), PIPELINES) for name in TRAININGS if name != "vae"}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    scores = {name: [] for name in ("hazy image", "U-Net", "HDN", "decoder", "true levels", *VARIANTS)}
    realism = {name: [] for name in ("U-Net", "HDN", "HDN, one sample", *VARIANTS)}
    drifts, neighbours, shown = {name: [] for name in VARIANTS}, [], []
    test = join_series(load_pairs(folder / "test", "test"))
    for number, series in enumerate(test):
        estimates, drift, known = measure_series(pipes, series)
        sampled = pipes["hdn"](
            series.hazy, HDN_MEMBERS, generator=torch.Generator().manual_seed(number), output_samples=True
        )
        images = {
            "hazy image": series.hazy,
            "U-Net": pipes["unet"](series.hazy).prediction,
            "HDN": sampled.prediction,
            "HDN, one sample": sampled.samples[0],
            "decoder": known["decoder"],
        }
        for name in ("hazy image", "U-Net", "HDN", "decoder"):
            scores[name].append(range_invariant_psnr(series.clear, images[name]))
        for name, trajectory in {"true levels": known["true levels"], **estimates}.items():
            scores[name].append([range_invariant_psnr(series.clear, image) for image in trajectory])
        images |= {name: trajectory[-1] for name, trajectory in estimates.items()}
        for name, distances in realism.items():
            distances.append(spectrum_distance(series.clear, images[name]))
        for name, distances in drift.items():
            drifts[name].append(distances)
        neighbours.append(known["neighbours"])
        shown.append({"clear image": series.clear, **images})
    results = {
        "specimens": {name: len(test) if name == "test" else size["specimens"][name] for name in SEEDS},
        "pinholes": PINHOLES,
        "haze_fractions": pipes["latent"].config.haze_fractions,
        "members": HDN_MEMBERS,
        "psnr": {name: with_interval(values) for name, values in scores.items()},
        "spectrum_distance": {name: with_interval(values) for name, values in realism.items()},
        "drift": {name: np.mean(values, axis=0).tolist() for name, values in drifts.items()},
        "distance_of_levels": np.mean(neighbours, axis=0).tolist(),
        "difference_from_unet": {
            name: with_interval([values[i] - scores["U-Net"][i] for i in range(len(test))])
            for name, values in (
                ("HDN", scores["HDN"]),
                *((name, [each[-1] for each in scores[name]]) for name in VARIANTS),
            )
        },
        "trainings": {name: json.loads((folder / name / "cost.json").read_text()) for name in TRAININGS},
        "calibration_of_hdn": calibration_of(pipes["hdn"], test),
        "parameters": {name: pipe.unet.num_parameters() for name, pipe in pipes.items()},
    }
    typical = np.argsort(scores["U-Net"])[len(test) // 2]
    return results, shown[typical]


def calibration_of(pipe, pairs: list) -> dict:
    """Scores of the uncertainty of HDN before calibration, and on specimens that its calibration has not seen."""
    specimens = calibration.measure_errors(pipe, pairs, None, HDN_MEMBERS)
    before = calibration.pool(calibration.predict_errors(specimens, HDN_MEMBERS))
    after = calibration.pool(calibration.cross_validate(specimens, HDN_MEMBERS))
    return {"before": calibration.scores(*before), "after": calibration.scores(*after)}


def with_interval(values: list) -> dict:
    """Mean of every step, or of the only value, and its 95 % confidence interval over the specimens."""
    rows = np.array(values)  # [specimens] or [specimens, steps]
    steps = dict(enumerate(rows.T if rows.ndim == 2 else [rows]))
    summary = summarize({"": steps}, map(str, range(len(rows))))[""]
    facts = {key: [summary[step][key] for step in steps] for key in ("mean", "low", "high")}
    return facts if rows.ndim == 2 else {key: values[0] for key, values in facts.items()}


def plot(results: dict, path: Path):
    """PSNR over the steps with one-step methods as horizontal lines, and the distance of the states from true ones."""
    figure = new_figure(figsize=(11, 4.6))
    left, right = figure.subplots(1, 2)
    num_steps = len(results["haze_fractions"])
    for name, (colour, marker) in STYLES.items():
        wide = {"linewidth": 2.5} if name == REMEDY else {"linewidth": 1.3}
        left.plot(
            range(1, num_steps + 1), results["psnr"][name]["mean"], f"{marker}-", color=colour, label=name, **wide
        )
        right.plot(range(1, num_steps), results["drift"][name], f"{marker}-", color=colour, **wide)
    for name, line in (("U-Net", "-"), ("HDN", "--"), ("hazy image", ":")):
        left.axhline(results["psnr"][name]["mean"], color="grey", linestyle=line, linewidth=1, label=name)
    true = results["psnr"]["true levels"]["mean"]
    left.plot(range(1, num_steps + 1), true, "*", color="grey", label="from the true image of the level")
    neighbours = results["distance_of_levels"]
    right.plot(range(1, num_steps), neighbours, "P", color="grey", label="from one true level to the next")
    left.set(xlabel="step", ylabel="range-invariant PSNR (dB)", xticks=range(1, num_steps + 1))
    right.set(
        xlabel="step", ylabel="distance from the latents of the true image\n(standard deviations)",
        xticks=range(1, num_steps), ylim=(0, None),
    )  # fmt: skip
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def show(images: dict[str, np.ndarray], path: Path):
    """One specimen, from the dark level of the clear image to its 99.8th percentile."""
    names = ("hazy image", "clear image", "U-Net", "HDN", "HDN, one sample", "decoder", *VARIANTS)
    clear = images["clear image"]
    figure = new_figure(figsize=(9, 9.6))
    axes = figure.subplots(-(-len(names) // 4), 4).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, name in zip(axes, names, strict=False):
        image = images[name]
        gain, offset = np.polyfit(image.ravel(), clear.ravel(), 1)  # as range-invariant PSNR compares them
        axis.imshow(gain * image + offset, cmap="gray", vmin=clear.min(), vmax=np.percentile(clear, 99.8))
        axis.set_title(name, fontsize=7)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Restoration in latents, step by step, against one-step methods.")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "runs" / "latent_study", help="Data and networks."
    )
    parser.add_argument("--size", choices=SIZES, default="narrow", help="`full` needs a GPU.")
    parser.add_argument("--mixed_precision", default="bf16", help="no where the processor is slow at bf16.")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, help="Train these networks and stop.")
    args = parser.parse_args()
    size = SIZES[args.size]
    args.folder.mkdir(parents=True, exist_ok=True)
    make_data(args.folder, size)
    train_all(args.folder, size, args.mixed_precision, args.only or TRAININGS)
    if args.only:
        return
    results, shown = evaluate(args.folder, size)
    results |= {"size": args.size, "image": size["image"], "patch": size["patch"]}
    (HERE / "latent_study.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, HERE.parent / "docs" / "images" / "latent_study.png")
    show(shown, HERE.parent / "docs" / "images" / "latent_study_example.png")


if __name__ == "__main__":
    main()
