"""The report of an evaluation: a page that opens offline, all scores as JSON, and the scores for a model card."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haze_pipeline.data.pairs import Pair
from haze_pipeline.sharing.model_card import eval_results, mean_score

from .figures import plot_panels, plot_perception_distortion


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The template lies beside this file, so that it is part of an installed package.
TEMPLATE = Path(__file__).with_name("report.html.jinja")

DISTORTION, PERCEPTION = "range-invariant PSNR (dB)", "spectrum distance (dB)"


def write_report(folder: Path, facts: dict, shown: list[Pair], predictions: dict[str, list[np.ndarray]]) -> None:
    """
    Write `report.html`, `evaluation.json` and `model-index.json`.

    Args:
        folder (`Path`): An existing folder.
        facts (`dict`): Results, data and settings of `haze-pipeline evaluate`.
        shown (`list[Pair]`): Pairs to show: the first ones of the evaluated pairs.
        predictions (`dict`): By name of the method, the predictions for these pairs.

    Raises:
        `ImportError`: If jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("Reports need jinja2: pip install 'haze-pipeline[eval]'.") from error

    best = {}  # by metric, the method with the best score
    for metric, higher in facts["higher_is_better"].items():
        values = {method: mean_score(facts, method, metric) for method in facts["summary"]}
        best[metric] = (max if higher else min)(values, key=values.get)
    panels = []
    for index, pair in enumerate(shown):
        images = {name: each[index] for name, each in predictions.items()}
        scores = {name: facts["images"][index]["scores"][name][DISTORTION] for name in images}
        panels.append((pair.source, _embed(plot_panels(pair, images, scores))))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **facts,
        metrics=list(facts["higher_is_better"]),
        best=best,
        scatter=_embed(plot_perception_distortion(facts["summary"], DISTORTION, PERCEPTION)),
        distortion=DISTORTION,
        perception=PERCEPTION,
        panels=panels,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
    (folder / "model-index.json").write_text(json.dumps(model_index(facts), indent=2) + "\n")


def model_index(facts: dict) -> list[dict]:
    """The scores of a model's own predictions in the format of a model card's `model-index`."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    return eval_results_to_model_index(facts["model"], eval_results(facts))


def _embed(figure: "Figure") -> str:
    """A figure as a data URL, which embeds the picture in the page."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
