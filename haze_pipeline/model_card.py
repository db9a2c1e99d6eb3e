"""The card of a trained pipeline. All its numbers come from the training."""

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from .pipeline_haze_matching import HazeMatchingPipeline

# Beside this file, so that an installed package has it.
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def make_model_card(
    pipeline: "HazeMatchingPipeline",
    title: str,
    data: str,
    command: str,
    log: list[dict],
    validation_pairs: int,
    validation_input: float | None,
    processes: int,
    examples_per_step: int,
    dataset_name: str | None = None,
    base_model: str | None = None,
    license_id: str | None = None,
) -> "ModelCard":
    """
    Write the card of a trained pipeline.

    Args:
        pipeline ([`HazeMatchingPipeline`]): The pipeline.
        title (`str`): Name of the repository or folder, by which the card shows how to load it.
        data (`str`): Sentence that says what it was trained on.
        command (`str`): The command line of the training.
        log (`list[dict]`): Of every validation `step`, `seconds`, `loss` and `validation_psnr`.
        validation_pairs (`int`): Their number.
        validation_input (`float`, *optional*): Their mean range-invariant PSNR before dehazing, dB.
        processes (`int`): Number of processes that trained.
        examples_per_step (`int`): Patches per optimiser step, of all processes.
        dataset_name (`str`, *optional*): Dataset of the Hub that it was trained on.
        base_model (`str`, *optional*): Name of the pipeline whose network it started from.
        license_id (`str`, *optional*): Licence in the spelling of the Hub, such as `"apache-2.0"`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["microscopy", "fluorescence", "dehazing", "flow-matching"],
        datasets=None if dataset_name is None else [dataset_name],
        base_model=base_model if base_model is not None and "/" in base_model else None,  # a repository, not a folder
        license=license_id,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        config=pipeline.config,
        data=data,
        base_model=base_model,
        command=command,
        log=log,
        validation_pairs=validation_pairs,
        validation_input=validation_input,
        processes=processes,
        examples_per_step=examples_per_step,
        parameters=f"{pipeline.unet.num_parameters():,}",
        versions={name: version(name.replace("_", "-")) for name in ("haze_pipeline", "diffusers", "torch")},
    )


def shareable_command(arguments: list[str]) -> str:
    """A command line that names files and folders of the user, but does not say where they lie."""

    def shorten(value: str) -> str:
        path = Path(value)
        return path.name if path.is_absolute() or value.startswith("~") or ".." in path.parts else value

    shown = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        shown.append(f"{flag}={shorten(value)}" if flag.startswith("--") and equals else shorten(argument))
    return shlex.join(shown)
