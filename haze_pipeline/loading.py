"""Loading pipelines by name: fetch the weights, load them, place them on a device."""

import re
from enum import StrEnum
from pathlib import Path

from rich.console import Console


class Device(StrEnum):
    """Where the network runs; `auto` takes the first of cuda, mps and cpu that there is."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class DType(StrEnum):
    """Arithmetic of the network; everything else is float32 anyway. `auto` takes what is fastest on the device."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def load_pipeline(model: str | None):
    """The pipeline in a folder or a Hub repository, or the default one; errors name `model` in one sentence."""
    from diffusers.utils import logging as diffusers_logging

    from .pipeline_haze_matching import HazeMatchingPipeline

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # what fails is said below, in one sentence
    if model is None:
        return HazeMatchingPipeline.from_default()
    folder = fetch_model(model)
    try:
        return HazeMatchingPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    except Exception as error:  # a damaged folder shows as anything from KeyError to SafetensorError
        raise ValueError(
            f"{model} could not be loaded as a pipeline; make it anew or check the copy: {error}"
        ) from error


def fetch_model(model: str) -> Path:
    """The folder that `--model` names, or that a repository of the Hub was fetched to."""
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    from haze_pipeline.utils.hub import fetch_pipeline

    if not Console(stderr=True).is_terminal:
        disable_progress_bars()
    if Path(model).exists():
        if not Path(model, "model_index.json").is_file():
            raise ValueError(f"{model} is not a pipeline folder: there is no model_index.json in it.")
        return Path(model)
    name, _, revision = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).parent.is_dir():
        raise ValueError(f"{model} is not there: name a pipeline folder, or ORG/NAME of the Hub.")
    try:
        folder = Path(fetch_pipeline(name, revision=revision or None))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{model} is neither a folder here nor a repository of the Hub that you may read: check the name, or log "
            f"in with "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision}: name a branch, tag or commit that it has.") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{model} is not a folder here, and the Hub, of which nothing complete of that name was kept, cannot be "
            f"reached: "
            "check the name or the connection."
        ) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{model} holds no pipeline: there is no model_index.json in it.")
    return folder


def place_pipeline(pipe, device, dtype: DType):
    """The pipeline on the device, a [`Device`] or a `torch.device`, and in the arithmetic that are asked for."""
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
