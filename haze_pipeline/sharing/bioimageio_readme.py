"""What the packages for bioimage.io say about a model: its documentation, and the data set it was trained on."""

import re

from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
from haze_pipeline.utils.provenance import weights_digest

from .evaluation_results import DISTORTION, evaluated_models, find_model, format_score


METHOD = "HazeMatching: Dehazing Light Microscopy Images with Guided Conditional Flow Matching"
URL = "https://arxiv.org/abs/2506.22397"
DESCRIPTION = "Turns hazy (widefield) fluorescence micrographs into clear, confocal-like ones"
NOT_MEANT_FOR = (
    "Diagnosis; measuring intensities without a control; specimens, microscopes or pixel sizes that it was not "
    "trained on; brightfield, phase contrast or photographs; images that were already deconvolved, sharpened or "
    "stretched."
)


def write_readme(pipe: HazeMatchingPipeline, name: str, facts: dict) -> str:
    """
    The documentation of a package, with the headings that bioimage.io asks for.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline.
        name (`str`): Name of the model.
        facts (`dict`): What is known of training and evaluation, see [`read_facts`].
    """
    return f"""# {name}

{DESCRIPTION}.

## Description

A HazeMatching pipeline ({URL}). It estimates the mean of all clear images that are consistent with a hazy image. It
gives no uncertainty; for posterior samples and uncertainties use the pipeline itself (haze-pipeline).

The network is a U-Net with {pipe.unet.num_parameters():,} parameters. All weights of the package give the same
results. Those of PyTorch and of TorchScript need no more than torch, those in ONNX no more than ONNX Runtime.

{_training(facts)}

## Intended Use

{_expected_input(pipe)}
The network normalises over all pixels of its input, so that tiles of one image give different results. Process an
image as a whole, or in tiles as large as the memory allows. The same image always gives the same result.

**Meant for** looking at widefield micrographs of specimens like those it was trained on. Also for segmenting and
counting in such micrographs, after you have checked this on your own images.

**Not meant for:** {NOT_MEANT_FOR[0].lower()}{NOT_MEANT_FOR[1:]}

The network may remove structures of a kind it has not seen in training as haze, or invent structures. Structures that
are much dimmer than others in the plane may be lost; the preset fast of haze-pipeline restores them again.

## Validation

{_scores(pipe, facts)}

Compare the result with the input, and with clear images of your own specimens, before you measure or count anything in
it. For pairs of hazy and clear images, `haze-pipeline evaluate` measures how close the results are to the clear images
and how close classical methods come.

## Citation

{METHOD}. A. Ray, Ashesh and F. Jug, 2025. {URL}
"""


def training_dataset(facts: dict):
    """
    The data set of the training as a `DatasetDescr` of bioimage.io, or `None` if the facts name none that is public.
    """
    from bioimageio.spec.dataset.v0_3 import DatasetDescr
    from bioimageio.spec.generic.v0_3 import Author, CiteEntry

    name, url = _dataset(facts)
    if url is None:
        return None
    return DatasetDescr(
        name="Data set " + re.sub(r"[^\w+\- ()]", " ", name, flags=re.ASCII),
        description=f"Hazy and clear fluorescence micrographs: {name}",
        authors=[Author(name=name.split("/")[0])],
        cite=[CiteEntry(text=name, url=url)],
        source=url,
    )


def _dataset(facts: dict) -> tuple[str | None, str | None]:
    """Name and address of the data set of the training; `None` where they are not known."""
    dataset = facts.get("training", {}).get("dataset_name")
    if dataset is not None and dataset.count("/") == 1:
        return dataset, f"https://huggingface.co/datasets/{dataset}"
    conversion = facts.get("conversion", {})
    if conversion.get("published"):
        subset = conversion["subset"]
        return f"HazeMatching {subset}", f"https://download.fht.org/jug/hazematching/data/{subset}.zip"
    return None, None


def _training(facts: dict) -> str:
    name, url = _dataset(facts)
    if "conversion" in facts and url is not None:
        return f"The authors of the paper trained it on their data set {name} ({url})."
    if "training" in facts:
        return f"Training data: {facts['training']['data']}" + ("" if url is None else f" ({url})")
    return "The package does not name its training data."


def _expected_input(pipe: HazeMatchingPipeline) -> str:
    """Sentences on size, pixel size and unit of the images."""
    config = pipe.config
    size = f" of at least about {config.training_patch_size} pixels a side" if config.training_patch_size else ""
    sentences = [f"The input is a whole plane of one channel{size}."]
    if config.training_pixel_size:
        low, high = (config.training_pixel_size[end] for end in ("min", "max"))
        sentences.append(f"Its pixel size should be from {low:.3g} to {high:.3g} µm, as in the training.")
    if config.normalization == "fixed":
        sentences.append("The intensities must be in the counts of the training set.")
    else:
        sentences.append("The intensities may be in any linear unit; the prediction is in the same unit.")
    return " ".join(sentences)


def _scores(pipe: HazeMatchingPipeline, facts: dict) -> str:
    """The scores of `haze-pipeline evaluate`, if these weights were evaluated."""
    evaluation = facts.get("evaluation")
    if evaluation is None:
        return "No evaluation of these weights is stored with them."
    model = find_model(evaluation, weights_digest(pipe))
    own = [method for each in evaluated_models(evaluation) for method in each["methods"]]
    others = [method for method in evaluation["summary"] if method not in own]
    rows = [
        f"| {method} | {format_score(evaluation, method, DISTORTION)} |" for method in [*model["methods"], *others]
    ]
    split = f", split {evaluation['split']}" if evaluation.get("split") else ""
    return f"""Means ± standard deviations over {evaluation["num_images"]} images, {evaluation["dataset"]}{split}. The
package computes the mean of the preset fast without restoring dim regions again.

| method | {DISTORTION} |
|---|---|
{chr(10).join(rows)}"""
