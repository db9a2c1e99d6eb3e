"""The model card of a pipeline from `train_regression.py` and the training scripts of the hierarchical VAE."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from haze_pipeline.pipeline_restoration import RestorationPipeline

# The template lies beside this file, so that it is part of an installed package.
TEMPLATE = Path(__file__).with_name("baseline_card.md.jinja")

# By class of the pipeline: script, sentences about the method, an example of a call, and where it was published.
ABOUT = {
    "HazeRegressionPipeline": (
        "train_regression.py",
        "Predicts clear micrographs from hazy ones by one call of a network that was trained on pairs. It gives no "
        "uncertainty.",
        "clear = pipe(hazy).prediction  # [..., H, W]",
        "that of the network, see the documentation of its class",
    ),
    "HDNPipeline": (
        "train_hierarchical_vae.py",
        "A hierarchical variational autoencoder, as in Hierarchical DivNoising (HDN). Every sample of its latents "
        "gives another clear image; their mean has the smallest error. The spread of the samples is no calibrated "
        "uncertainty until `haze-pipeline calibrate` was run.",
        "out = pipe(hazy, ensemble_size=8, output_samples=True)  # out.prediction, out.samples",
        "Prakash et al. 2022, [arXiv 2104.01374](https://arxiv.org/abs/2104.01374)",
    ),
    "LatentRestorationPipeline": (
        "train_latent_restoration.py",
        "Restores micrographs in the latents of a hierarchical variational autoencoder, one level of haze after "
        "another. Variants with several steps can drift away from the images that "
        "the networks know; they are meant for the study of this effect. It gives no uncertainty.",
        'out = pipe(hazy, variant="one_step")  # or another variant, with out.trajectory if output_trajectory=True',
        "haze-pipeline, the latent-space study in its documentation",
    ),
}  # fmt: skip


def make_baseline_card(pipeline: "RestorationPipeline", title: str, training: dict) -> "ModelCard":
    """
    Write the card of a trained baseline.

    Args:
        pipeline ([`RestorationPipeline`]): The pipeline, of one of the classes in `ABOUT`.
        title (`str`): Name of the folder or repository. The card shows how to load the pipeline by this name.
        training (`dict`): `data`, a sentence about the training data; `command`; and `log`, its validations.
    """
    from huggingface_hub import ModelCard, ModelCardData

    script, about, call, citation = ABOUT[type(pipeline).__name__]
    # Without lists, such as the KL of every group.
    log = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in training["log"]]
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["microscopy", "fluorescence", "dehazing", "image-restoration"],
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        script=script,
        title=title,
        about=about,
        module=type(pipeline).__module__,
        class_name=type(pipeline).__name__,
        call=call,
        config=pipeline.config,
        training={**training, "log": log},
        parameters=f"{pipeline.unet.num_parameters():,}",
        citation=citation,
    )
