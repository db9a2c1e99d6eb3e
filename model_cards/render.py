"""
Render the cards of this folder: one of the checkpoint in the package, and one of each checkpoint that the paper
published. Also render the text of their collection on the Hub.

    python model_cards/render.py

Every number comes from `bench/`, from `training/default_checkpoint.json`, or from the official code and paper, which
the cards name. `python model_cards/render.py --check` fails if a card is out of date. The templates are part of the
package, which uses them for other pipelines after training and at a push.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.models.unet_haze_matching import build_unet
from haze_pipeline.sharing.conversion import SUBSETS
from haze_pipeline.sharing.model_card import make_model_card


HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "bench"))
import readme  # noqa: E402


def default_checkpoint() -> ModelCard:
    """
    The card of the checkpoint in the package: command from `docs/training.md`, log from `training/`, scores from
    `bench/`, limits from `README.md`, and texts from `docs/`.
    """
    recipe = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split("## The checkpoint in the package")[1]
    command = re.search(r"```sh\n(.*?)\n```", recipe, re.DOTALL)[1]
    recorded = json.loads((ROOT / "training" / "default_checkpoint.json").read_text(encoding="utf-8"))
    stages, training = recorded["earlier_stages"], recorded["training"]
    seconds = [stage["log"][-1]["seconds"] for stage in [*stages, training]]
    hours = sum(seconds) / 3600
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    limits = re.search(r"^Known limits:\n\n.*?(?=\n\n)", page, re.DOTALL | re.MULTILINE)[0]
    benchmarks, uncertainty = (
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("benchmarks", "uncertainty")
    )
    reading = re.search(r"^How to read the table: (.*?)\n\n", benchmarks, re.DOTALL | re.MULTILINE)[1]
    caption = re.search(r"^\*(Input, result of the preset.*?)\*\n", benchmarks, re.DOTALL | re.MULTILINE)[1]
    unsure = re.search(r"^(The checkpoint in the package starts .*?:)\n\n", uncertainty, re.DOTALL | re.MULTILINE)[1]
    with (ROOT / "training" / "specimens.csv").open(encoding="utf-8", newline="") as file:
        sources = [row for row in csv.DictReader(file) if row["split"] != "none"]
    simulated = json.loads((ROOT / "bench" / "simulated_pairs.json").read_text(encoding="utf-8"))
    facts = {
        "loader": "from_default()",
        "training": {
            **training,
            "command": command,
            "cost": f"All {len(seconds)} trainings took {hours:.1f} hours.",
        },
        "sources": sources,
        "figures": [("../docs/images/real_pairs.png", " ".join(caption.split()))],
        "known_failures": [limits],
        "measured": "\n".join(
            [
                "Range-invariant PSNR in dB. For every image, each classical method has the setting that scores best "
                'against the clear image, unless the table says "true optics".',
                "",
                "Held-out real specimens with simulated haze:",
                "",
                *readme.real_specimens(),
                "",
                "Single structures:",
                "",
                *readme.structures(),
                "",
                "Simulated specimens:",
                "",
                *readme.simulated_pairs(),
                "",
                "Real pairs. The first number compares with the structured-illumination target, the second with this "
                "target after blurring it to widefield resolution:",
                "",
                *readme.real_pairs(),
                "",
                reading[0].upper() + reading[1:],
            ]
        ),
        "measured_calibration": "\n".join([unsure, "", *readme.calibration()]),
        "calibration_plot": "../docs/images/calibration.png",
        "eval_results": [
            EvalResult(
                task_type="image-to-image",
                task_name="dehazing",
                dataset_type="simulated",
                dataset_name=f"simulated pairs from number {simulated['first']:,} on, seed {simulated['seed']}",
                metric_type="range-invariant PSNR (dB)",
                metric_name=f"range-invariant PSNR (dB), {method.replace('`', '')}",
                metric_value=round(simulated["mean"][method], 2),
                dataset_args={"images": simulated["num_images"]},
            )
            for method in simulated["mean"]
            if method.startswith("haze-pipeline")
        ],
    }
    pipe = HazeMatchingPipeline.from_default()
    return make_model_card(pipe, "Default checkpoint of haze-pipeline", facts, license_id="apache-2.0")


def published_checkpoint(subset: str) -> ModelCard:
    """
    The card of a published checkpoint as `haze-pipeline convert` converts it. The card depends only on the shape of
    the network, so its weights are random here.
    """
    known = SUBSETS[subset]
    pipe = HazeMatchingPipeline(
        build_unet(known.patch_size),
        FlowMatchODEScheduler(),
        normalization="fixed",
        training_patch_size=known.patch_size,
        mirror_members=False,
        **known.channels[0],
    )
    facts = {"conversion": {"subset": subset, "channel": 0, "published": True}}
    return make_model_card(pipe, f"hazematching-{subset}", facts, license_id="unknown")


def collection() -> str:
    """Title, description and notes of the collection, whose repositories are named `organisation/haze-<dataset>`."""
    title = "Dehazing of fluorescence micrographs"
    description = (
        "Pipelines that turn hazy (widefield) micrographs into clear, confocal-like ones, with the uncertainty"
    )
    description += " of every pixel. One checkpoint per dataset."
    notes = {
        "default": "For any widefield image. The checkpoint in the package haze-pipeline, trained on real haze-free "
        "specimens with computed haze."
    }
    for subset in SUBSETS:
        notes[subset] = (
            f"For images like those of the subset {subset} of HazeMatching (arXiv 2506.22397). The weights of its "
            "authors, converted to diffusers."
        )
    assert len(title) <= 60 and len(description) <= 150 and max(map(len, notes.values())) <= 500  # limits of the Hub
    return "\n".join(
        [
            "<!-- Written by model_cards/render.py. -->",
            "",
            f"# {title}",
            "",
            description,
            "",
            *readme.table(["model", "note"], [[f"`organisation/haze-{name}`", note] for name, note in notes.items()]),
            "",
            "The licence of the authors' weights is not stated. Ask them before you upload one of these checkpoints,",
            "or convert the file for yourself as its card describes.",
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description="Render the cards of this folder.")
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if a card is out of date.")
    args = parser.parse_args()
    cards = {"default_checkpoint": default_checkpoint()}
    cards |= {f"hazematching-{subset}": published_checkpoint(subset) for subset in SUBSETS}
    cards["collection"] = collection()
    for name, card in cards.items():
        path = HERE / f"{name}.md"
        if args.check and (not path.is_file() or path.read_text(encoding="utf-8") != str(card)):
            sys.exit(f"{path} is out of date: run `python model_cards/render.py`.")
        if not args.check:
            path.write_text(str(card), encoding="utf-8")


if __name__ == "__main__":
    main()
