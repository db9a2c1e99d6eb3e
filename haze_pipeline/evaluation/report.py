"""The report of an evaluation: a page that opens offline, all scores as JSON, and the scores for model cards."""

import base64
import json
import textwrap
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haze_pipeline.data.pairs import Pair
from haze_pipeline.sharing.evaluation_results import (
    DISTORTION,
    PERCEPTION,
    evaluated_models,
    format_difference,
    format_interval,
    format_parameters,
    format_score,
    format_seconds,
    mean_score,
    model_index,
    write_eval_results,
)

from .figures import plot_panels, plot_perception_distortion
from .scores import MIN_SPECIMENS, SET_METRICS


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The template lies beside this file, so that it is part of an installed package.
TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(folder: Path, facts: dict, shown: list[Pair], predictions: dict[str, list[np.ndarray]]) -> None:
    """
    Write `report.html`, `evaluation.json`, `model-index.json` and, for a dataset on the Hub, `.eval_results`.

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
    scatter = plot_perception_distortion(
        facts["summary"], facts["kinds"], DISTORTION, PERCEPTION, facts["higher_is_better"]
    )
    cells = (format_score, format_interval, format_difference, format_parameters, format_seconds)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **facts,
        **{cell.__name__: partial(cell, facts) for cell in cells},
        metrics=list(dict.fromkeys((DISTORTION, PERCEPTION, *facts["higher_is_better"]))),
        best=best,
        min_specimens=MIN_SPECIMENS,
        scatter=_embed(scatter),
        distortion=DISTORTION,
        perception=PERCEPTION,
        panels=panels,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "model-index.json").write_text(json.dumps(model_index(facts), indent=2) + "\n", encoding="utf-8")
    for model in evaluated_models(facts):
        write_eval_results(folder, facts, model)


def format_table(facts: dict) -> str:
    """The main scores of all methods as aligned text. The arguments are those of [`write_report`]."""
    asked_for = [metric for metric in facts["set_scores"]["input"] if metric not in SET_METRICS]
    metrics = (DISTORTION, "SSIM", PERCEPTION, *asked_for)
    columns = {metric: partial(format_score, metric=metric) for metric in metrics}
    columns |= {"parameters (million)": format_parameters, "seconds per megapixel": format_seconds}
    # The names of columns are broken into lines, of which the last stands above the first row.
    names = [textwrap.wrap(name, 15) for name in ("method", *columns)]
    height = max(map(len, names))
    lines = list(zip(*([""] * (height - len(name)) + name for name in names), strict=True))
    lines += [(method, *(cell(facts, method) for cell in columns.values())) for method in facts["summary"]]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    counts = [_count(facts["num_images"], "image"), _count(facts["num_specimens"], "specimen")]
    return "\n".join(
        [
            f"{' of '.join(counts)}, mean ± standard deviation over images",
            *("  ".join([f"{name:<{first}}", *map(str.rjust, cells, widths)]).rstrip() for name, *cells in lines),
        ]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _embed(figure: "Figure") -> str:
    """A figure as a data URL, which embeds the picture in the page."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
