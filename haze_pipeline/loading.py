"""Loading of pipelines by name: download the weights, load them, and move them to a device."""

import json
import re
from collections.abc import Collection
from enum import StrEnum
from importlib import import_module
from pathlib import Path

from rich.console import Console


class Device(StrEnum):
    """Device of the network. `auto` selects the first one available of cuda, mps and cpu."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class DType(StrEnum):
    """Number type of the network's arithmetic. `auto` selects the fastest on the device. All else is in float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# The classes of pipelines of this package, and their modules. `model_index.json` names the class of a stored pipeline.
PIPELINES = {
    "HazeMatchingPipeline": "haze_pipeline.pipeline_haze_matching",
    "HazeRegressionPipeline": "haze_pipeline.pipeline_haze_regression",
    "HDNPipeline": "haze_pipeline.pipeline_hdn",
    "LatentRestorationPipeline": "haze_pipeline.pipeline_latent_restoration",
}


def load_pipeline(model: str | None, kinds: Collection[str] = ("HazeMatchingPipeline",)):
    """
    Load the pipeline from a folder or a repository of the Hub. `None` loads the default checkpoint.

    Args:
        model (`str`, *optional*): Folder, or repository as `ORG/NAME` or `ORG/NAME@REVISION`.
        kinds (collection of `str`, defaults to `("HazeMatchingPipeline",)`): Accepted classes; `PIPELINES` for all.

    Raises:
        `ValueError`: If there is no such pipeline, it is of another class, or its files are damaged.
        `OSError`: If the Hub cannot be reached and there is no complete copy on this machine.
    """
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors are reported below in one sentence
    if model is None:
        from .pipeline_haze_matching import HazeMatchingPipeline

        return HazeMatchingPipeline.from_default()
    folder = fetch_model(model)
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        kind = kind[1] if isinstance(kind, list) else kind  # with stored code: [module, class]
        if kind in kinds:
            pipeline_class = getattr(import_module(PIPELINES[kind]), kind)
            return pipeline_class.from_pretrained(folder, low_cpu_mem_usage=False)
    except Exception as error:  # damaged files cause errors of many kinds, from KeyError to SafetensorError
        raise ValueError(
            f"{model} could not be loaded as a pipeline; check the copy or create it again: {error}"
        ) from error
    raise ValueError(
        f"{model} contains a pipeline of the class {kind}, but {' or '.join(kinds)} is needed: name another model."
    )


def fetch_model(model: str) -> Path:
    """The pipeline folder that `--model` names, or the folder to which a repository of the Hub was downloaded."""
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    from haze_pipeline.utils.hub import fetch_pipeline

    if not Console(stderr=True).is_terminal:
        disable_progress_bars()
    if Path(model).exists():
        if not Path(model, "model_index.json").is_file():
            raise ValueError(f"{model} is not a pipeline folder, since it has no model_index.json: name another one.")
        return Path(model)
    name, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).parent.is_dir():
        raise ValueError(f"{model} does not exist: name a pipeline folder, or ORG/NAME of a repository of the Hub.")
    try:
        folder = Path(fetch_pipeline(name, revision=revision or None))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{model} is neither a folder nor a repository of the Hub that you may read: check the name, or log in "
            "with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision}: name one of its branches, tags or commits.") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{model} is not a folder, the Hub cannot be reached, and there is no complete earlier download: check "
            "the name or the connection."
        ) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{model} is not a pipeline, since it has no model_index.json: name another repository.")
    return folder


def place_pipeline(pipe, device, dtype: DType):
    """
    Move a pipeline to a device and to a number type.

    Args:
        pipe ([`RestorationPipeline`]): The pipeline.
        device ([`Device`] or `torch.device`): The device.
        dtype ([`DType`]): The number type of the network's arithmetic.

    Raises:
        `ValueError`: If the device is not available.
    """
    import torch

    from haze_pipeline.utils.devices import fastest_dtype

    if isinstance(device, Device):
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name, there in available.items() if there) if device is Device.auto else device.value
        if not available[name]:
            raise ValueError(f"--device {name} is not available on this machine; use --device auto or cpu.")
        device = torch.device(name)
    pipe = pipe.to(device)
    return pipe.to(fastest_dtype(pipe.device) if dtype is DType.auto else getattr(torch, dtype.value))
