"""
The model card of a pipeline. All its numbers come from the files that training, evaluation and calibration wrote, or
from a publication that the card names.
"""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from haze_pipeline.utils.provenance import weights_digest

from .evaluation_results import (
    DISTORTION,
    PERCEPTION,
    eval_results,
    evaluated_models,
    find_model,
    format_difference,
    format_parameters,
    format_score,
    format_seconds,
)


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline

# The template lies beside this file, so that it is part of an installed package.
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

# Files `NAME.json` that commands write to a pipeline folder.
FACTS = ("training", "conversion", "evaluation", "calibration")

# From the supplement of arXiv 2506.22397. The authors measured these values with the official code.
PUBLISHED_RESULTS = {
    "zebrafish": ["PSNR 27.78 dB (mean of 50 samples, Table S1)"],
    "organoids1": ["PSNR 36.83 dB and LPIPS 0.140 (Table S11)"],
    "organoids2": ["PSNR 35.02 dB (mean of 50 samples, Table S1)"],
}


def read_facts(folder: str | Path) -> dict:
    """Read the facts about the pipeline in a folder that [`make_model_card`] needs."""
    files = {name: Path(folder, f"{name}.json") for name in FACTS}
    facts = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    facts["calibration_plot"] = "calibration.png" if Path(folder, "calibration.png").is_file() else None
    return facts


def make_model_card(
    pipeline: "HazeMatchingPipeline", title: str, facts: dict, license_id: str | None = None
) -> "ModelCard":
    """
    Write the card of a pipeline.

    Args:
        pipeline ([`HazeMatchingPipeline`]): The pipeline.
        title (`str`): Name of the repository or folder. The card shows how to load the pipeline by this name.
        facts (`dict`):
            Known facts, see [`read_facts`]; each may be missing.
            - `training`: written by `training/train_haze_matching.py`.
            - `conversion`: written by `haze-pipeline convert`.
            - `evaluation`: written by `haze-pipeline evaluate`, also for several models.
            - `calibration`: written by `haze-pipeline calibrate`.
            - `calibration_plot`: name of a file beside the card.
            - `figures`: pairs of a file and its caption.
            - `known_failures`: paragraphs.
            - `measured`, `measured_calibration` and `eval_results`: texts and results of measurements that were not
              made by `haze-pipeline evaluate`.
            - `loader`: a call to show instead of `from_pretrained`.
        license_id (`str`, *optional*): Licence of the weights as the Hub spells it, such as `"apache-2.0"`.

    Raises:
        `ValueError`: If the evaluation is of other weights.
    """
    from huggingface_hub import ModelCard, ModelCardData

    training, evaluation, conversion = (facts.get(name) for name in ("training", "evaluation", "conversion"))
    dataset, base_model = (training or {}).get("dataset_name"), (training or {}).get("base_model")
    evaluated = find_model(evaluation, weights_digest(pipeline)) if evaluation else None
    results = eval_results(evaluation, evaluated) if evaluation else facts.get("eval_results")
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["microscopy", "fluorescence", "dehazing", "flow-matching", "uncertainty"],
        datasets=None if dataset is None else [dataset],
        base_model=base_model if base_model is not None and "/" in base_model else None,  # a repository, not a folder
        license=license_id,
        model_name=title.split("/")[-1] if results else None,
        eval_results=results,
    )
    published = None
    if conversion and conversion["published"]:
        from .conversion import SUBSETS

        published = SUBSETS[conversion["subset"]]
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        config=pipeline.config,
        parameters=f"{pipeline.unet.num_parameters():,}",
        results=_results(evaluation, evaluated) if evaluation else None,
        published=published,
        published_results=PUBLISHED_RESULTS.get(conversion["subset"], []) if published else [],
        **facts,
    )


def _results(evaluation: dict, model: dict) -> dict:
    """
    A table of all methods of an evaluation, and how many predictions of `model` are farther from the truth than their
    input.
    """
    columns = {}
    is_complete = "differences" in evaluation  # not in older files
    if is_complete:
        columns |= {"parameters (million)": format_parameters, "seconds per megapixel": format_seconds}
    for metric in dict.fromkeys((DISTORTION, PERCEPTION, *evaluation["higher_is_better"])):
        arrow = "↑" if evaluation["higher_is_better"][metric] else "↓"
        columns[f"{metric} {arrow}"] = partial(format_score, metric=metric)
        if is_complete and metric in (DISTORTION, PERCEPTION):
            name = f"{metric}, difference from {evaluation['reference']}"
            columns[name] = partial(format_difference, metric=metric)
    rows = {method: [cell(evaluation, method) for cell in columns.values()] for method in evaluation["summary"]}
    own = model["methods"][0]
    gains = [
        (image["scores"][own][DISTORTION] - image["scores"]["input"][DISTORTION], image["source"])
        for image in evaluation["images"]
    ]
    worse = [gain for gain, _ in gains if gain < 0]
    return {
        "columns": list(columns),
        "rows": rows,
        "metric": DISTORTION,
        "own": own,
        "revision": model["revision"],
        "name": model["name"] if len(evaluated_models(evaluation)) > 1 else None,
        "num_worse": len(worse),
        "worst": min(gains),
    }


def shareable_command(arguments: list[str]) -> str:
    """A command line in which paths outside the working directory are shortened to their names."""

    def shorten(value: str) -> str:
        path = Path(value)
        return path.name if path.is_absolute() or value.startswith("~") or ".." in path.parts else value

    shown = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        shown.append(f"{flag}={shorten(value)}" if flag.startswith("--") and equals else shorten(argument))
    return shlex.join(shown)
