"""The checkpoints that visitors choose from, and a small cache of the loaded ones."""

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.utils.provenance import weights_digest


class Checkpoint(NamedTuple):
    """A loaded pipeline, the folder or repository that it comes from, and the digest of its weights."""

    pipe: HazeMatchingPipeline
    model: str | None
    revision: str


def list_checkpoints() -> dict[str, str | None]:
    """
    Folder or repository by the name that visitors see; `None` is the checkpoint in the package. The first one is
    chosen at the start. A folder is shown by its last name, so that no path of the server is shown.
    """
    first = os.environ.get("HAZE_MODEL")
    others = os.environ.get("HAZE_CHECKPOINTS", "").split(",")
    models = [*([first] if first else []), None, *(model.strip() for model in others if model.strip())]
    checkpoints = {}
    for model in models:
        name = "in the package" if model is None else Path(model).name if Path(model).is_dir() else model
        if name in checkpoints:
            raise ValueError(f"HAZE_CHECKPOINTS names two checkpoints that are called {name}: rename one of them.")
        checkpoints[name] = model
    return checkpoints


CHECKPOINTS = list_checkpoints()
FIRST = next(iter(CHECKPOINTS))


@lru_cache(maxsize=4)
def load_checkpoint(name: str) -> Checkpoint:
    """
    Load a checkpoint of `CHECKPOINTS`. Code in a repository is never downloaded or run.

    Raises:
        `ValueError`: If it cannot be loaded.
    """
    model = CHECKPOINTS[name]
    try:
        pipe = load_pipeline(model)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(str(model), name)) from error
    revision = weights_digest(pipe)
    pipe = place_pipeline(pipe, Device.auto, DType.auto)
    pipe.set_progress_bar_config(disable=True)
    return Checkpoint(pipe, model, revision)


load_checkpoint(FIRST)  # at the start, so that no visitor waits for it
