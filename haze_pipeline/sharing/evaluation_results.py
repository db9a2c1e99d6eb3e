"""
Results of `haze-pipeline evaluate` for cards and pages: which model has which scores, how they are written, and the
formats of the Hub. All functions take the content of `evaluation.json`, also of older versions.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The two metrics of the plot, for which the tables also show differences.
DISTORTION, PERCEPTION = "range-invariant PSNR (dB)", "spectrum distance (dB)"


def evaluated_models(evaluation: dict) -> list[dict]:
    """
    The models of an evaluation, each with its `name`, its `revision` (see [`weights_digest`]) and the names of its
    `methods`.
    """
    if "models" in evaluation:
        return evaluation["models"]
    # Older files describe one model.
    own = [method for method in evaluation["summary"] if method.startswith("haze-pipeline")]
    return [{"name": evaluation["model"], "revision": evaluation.get("revision"), "methods": own}]


def find_model(evaluation: dict, revision: str) -> dict:
    """
    The model of an evaluation that has the weights `revision`.

    Raises:
        `ValueError`: If none has.
    """
    models = evaluated_models(evaluation)
    for model in models:
        if model["revision"] in (revision, None):  # the first evaluations did not store it
            return model
    others = ", ".join(model["revision"] for model in models)
    raise ValueError(
        f"The evaluation is of other weights ({others}) than those to push ({revision}): evaluate the weights to push."
    )


def mean_score(evaluation: dict, method: str, metric: str) -> float:
    """The mean of a metric over the images, or its single value if it is a metric of the whole set."""
    if metric in evaluation["set_scores"][method]:
        return evaluation["set_scores"][method][metric]
    return evaluation["summary"][method][metric]["mean"]


def format_score(evaluation: dict, method: str, metric: str) -> str:
    """A mean with the standard deviation over the images, such as `"27.12 ± 2.34"`."""
    text = _format(mean_score(evaluation, method, metric), metric)
    spread = evaluation["summary"][method].get(metric, {}).get("deviation")
    return text if spread is None else f"{text} ± {_format(spread, metric)}"


def format_interval(evaluation: dict, method: str, metric: str) -> str:
    """The confidence interval of a mean, such as `"26.51 to 27.73"`; empty if there is none."""
    value = evaluation["summary"][method].get(metric, {})
    if value.get("low") is None:
        return ""
    return f"{_format(value['low'], metric)} to {_format(value['high'], metric)}"


def format_difference(evaluation: dict, method: str, metric: str) -> str:
    """The difference from the reference with its confidence interval, such as `"−0.41 [−0.62, −0.20]"`."""
    if method not in evaluation["differences"]:
        return "–"  # the reference itself
    value = evaluation["differences"][method][metric]
    mean, low, high = (
        None if value[name] is None else _format(value[name], metric, "+") for name in ("mean", "low", "high")
    )
    return mean if low is None else f"{mean} [{low}, {high}]"


def format_parameters(evaluation: dict, method: str) -> str:
    """The number of parameters of a network in millions; a dash for methods without one."""
    number = evaluation["parameters"][method]
    return "–" if number is None else f"{number / 1e6:.3g}"


def format_seconds(evaluation: dict, method: str) -> str:
    """Seconds per megapixel; a dash for the input."""
    return "–" if method == "input" else f"{evaluation['seconds_per_megapixel'][method]:.3g}"


def _format(value: float, metric: str, sign: str = "") -> str:
    digits = 2 if "dB" in metric else 3
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def eval_results(evaluation: dict, model: dict) -> list["EvalResult"]:
    """The scores of one of the [`evaluated_models`] for the `model-index` of its card."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-to-image",
            task_name="dehazing",
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_split=evaluation["split"],
            metric_type=metric,
            metric_name=f"{metric}, {method}",
            metric_value=round(mean_score(evaluation, method, metric), 4),
            dataset_args={"images": evaluation["num_images"], "specimens": evaluation["num_specimens"]},
            metric_args={"protocol": evaluation["protocol"][metric]},
        )
        for method in model["methods"]
        for metric in evaluation["higher_is_better"]
    ]


def model_index(evaluation: dict) -> list[dict]:
    """The scores of all models in the format of a card's `model-index`, with one entry for each model."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    entries = []
    for model in evaluated_models(evaluation):
        entries += eval_results_to_model_index(model["name"], eval_results(evaluation, model))
    return entries


def write_eval_results(folder: Path, evaluation: dict, model: dict):
    """
    Write `.eval_results/haze-pipeline-….yaml` for the repository of one of the [`evaluated_models`], one file for each
    of its methods. Nothing is written if the dataset is not on the Hub, since every entry names its dataset there.

    The task of an entry is the name of the metric, such as `range-invariant-psnr`. The Hub shows an entry if the
    `eval.yaml` of the dataset lists this task. Metrics that the evaluation marks as unreliable are left out.

    Args:
        folder (`Path`): Folder to write `.eval_results` to.
        evaluation (`dict`): Content of `evaluation.json`.
        model (`dict`): The model.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if evaluation.get("dataset_id") is None:
        return
    (folder / ".eval_results").mkdir(exist_ok=True)
    for method in model["methods"]:
        entries = [
            EvalResultEntry(
                dataset_id=evaluation["dataset_id"],
                task_id=typable(metric.removesuffix(" (dB)")),
                value=round(mean_score(evaluation, method, metric), 4),
                notes=f"{method}; {evaluation['num_images']} images, split {evaluation['split']}",
            )
            for metric in evaluation["higher_is_better"]
            if metric not in evaluation["unreliable"]
        ]
        name = typable(f"haze-pipeline {method.removeprefix('haze-pipeline')}")
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        (folder / ".eval_results" / f"{name}.yaml").write_text(text, encoding="utf-8")


def typable(name: str) -> str:
    """A name in lower-case letters, digits and hyphens: `"Richardson–Lucy"` becomes `"richardson-lucy"`."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")
