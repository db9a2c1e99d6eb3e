"""The model card of a pipeline that was trained without pairs, by `training/train_eid.py`."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline

# The template lies beside this file, so that it is part of an installed package.
TEMPLATE = Path(__file__).with_name("unpaired_card.md.jinja")


def make_unpaired_card(pipeline: "HazeRegressionPipeline", title: str, training: dict) -> "ModelCard":
    """
    Write the card of a pipeline that was trained without pairs.

    Args:
        pipeline ([`HazeRegressionPipeline`]): The pipeline.
        title (`str`): Name of the folder or repository. The card shows how to load the pipeline by this name.
        training (`dict`): What `train_eid.py` writes to `training.json`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base_model, log = training["base_model"], training["log"]
    is_scored = bool(log) and "validation_psnr" in log[-1]
    colours = pipeline.num_channels > 1
    tags = ["dehazing", "unsupervised", "equivariant-imaging"]
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=tags if colours else ["microscopy", "fluorescence", *tags],
        base_model=base_model if base_model is not None and "/" in base_model else None,  # a repository, not a folder
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        kind="photographs in colour" if colours else "micrographs",
        shape="[..., 3, H, W]" if colours else "[..., H, W]",
        num_channels=pipeline.num_channels,
        config=pipeline.config,
        parameters=f"{pipeline.unet.num_parameters():,}",
        last_column="validation PSNR, dB" if is_scored else "fraction of images with warnings",
        last_key="validation_psnr" if is_scored else "doubtful",
        transform=training["transform"],
        training=training,
    )
