"""
What training scripts share: validation, and what they keep: checkpoints to resume from, averaged weights, the best
pipeline. All whole or not there.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.training_utils import EMAModel

from haze_pipeline.data.pairs import Pair
from haze_pipeline.evaluation.metrics import range_invariant_psnr


if TYPE_CHECKING:
    import accelerate

logger = logging.getLogger(__name__)


def validate(predict: Callable[[np.ndarray], np.ndarray], pairs: list[Pair]) -> tuple[float, list[np.ndarray]]:
    """
    Mean range-invariant PSNR of predictions, dB, and the predictions themselves.

    Args:
        predict (`Callable`): From a hazy image `[H, W]` to a clear one.
        pairs (`list[Pair]`): What to predict.
    """
    predictions = [predict(pair.hazy) for pair in pairs]
    scores = [range_invariant_psnr(pair.clear, each) for pair, each in zip(pairs, predictions, strict=True)]
    return float(np.mean(scores)), predictions


def check_output(output_dir: str | Path, resume: bool) -> None:
    """
    Raise a `FileExistsError` if the folder holds another training's checkpoints or best pipeline and this one does not
    resume.
    """
    results = [Path(output_dir, name) for name in ("best", "incomplete-deleted-best")]
    if not resume and (any(result.exists() for result in results) or _checkpoints(output_dir)):
        raise FileExistsError(
            f"{output_dir} holds checkpoints of another training: pass --resume_from_checkpoint latest to go on with "
            f"it, or "
            "another --output_dir."
        )


def start_output(output_dir: str | Path, resume: bool) -> None:
    """
    Make the folder that a training writes to, and clear away what a kill has left half written. To be called by one
    process.

    Raises:
        `FileExistsError`: As [`check_output`] does, before anything is cleared away.
    """
    check_output(output_dir, resume)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    best, replaced = output_dir / "best", output_dir / "incomplete-deleted-best"
    if replaced.is_dir() and not best.exists():  # killed between the two renames
        replaced.rename(best)
    for leftover in output_dir.glob("incomplete-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:  # of the log
            leftover.unlink()


def save_checkpoint(
    accelerator: "accelerate.Accelerator", output_dir: str | Path, step: int, total_limit: int, facts: dict
) -> None:
    """
    Write `checkpoint-{step}` and delete all but the `total_limit` latest. To be called by all processes.

    Under another name until complete: one that a kill cuts short is never taken for a good one.

    Args:
        accelerator (`accelerate.Accelerator`): Knows the state.
        output_dir (`str` or `Path`): Where the training writes.
        step (`int`): Optimiser steps so far.
        total_limit (`int`): Number of checkpoints to keep.
        facts (`dict`): What must be the same when the training is resumed, see [`resume`].
    """
    checkpoint, incomplete = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"incomplete-checkpoint-{step}")
    accelerator.save_state(incomplete)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (incomplete / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        _replace(checkpoint, incomplete)
        for old in sorted(_checkpoints(output_dir), key=_step)[:-total_limit]:
            _delete(old)


def resume(
    accelerator: "accelerate.Accelerator",
    ema: EMAModel,
    output_dir: str | Path,
    name: str | None,
    facts: dict,
    max_train_steps: int,
) -> int:
    """
    Load weights, optimiser, schedule, averaged weights and random states.

    Args:
        accelerator (`accelerate.Accelerator`): Holds the state.
        ema (`EMAModel`): The averaged weights, registered with it.
        output_dir (`str` or `Path`): Where the training writes.
        name (`str`, *optional*): A checkpoint's folder, by its path or by its name in `output_dir`, or `"latest"`.
        facts (`dict`): Data, examples, units and rates of this training, which must be those of the checkpoint.
        max_train_steps (`int`): Optimiser steps in all.

    Returns:
        `int`: Optimiser steps so far; 0 if no checkpoint is asked for, or the latest and there is none yet.

    Raises:
        `FileNotFoundError`: If there is no such checkpoint.
        `FileExistsError`: If `output_dir` holds later ones than that asked for, which would soon pass for this
            training's.
        `ValueError`: If one of the facts differs, the training was to end before, or processes share the parameters
            (FSDP).
    """
    if name is None:
        return 0
    if accelerator.distributed_type == "FSDP":
        raise ValueError(
            "--resume_from_checkpoint does not work with FSDP: of the averaged weights, accelerate stores one shard "
            "only."
        )
    if name == "latest":
        candidates = [max(_checkpoints(output_dir), key=_step, default=None)]
        if candidates == [None]:
            logger.info("no checkpoint in %s, starting from the beginning", output_dir)
            return 0
    else:
        candidates = [path for path in (Path(name), Path(output_dir, name)) if _is_checkpoint(path)]
    if not candidates:
        raise FileNotFoundError(
            f"--resume_from_checkpoint must be `latest` or a folder checkpoint-…, but {name} is none."
        )
    checkpoint = candidates[0]
    step = _step(checkpoint)
    if step > max_train_steps:
        raise ValueError(f"{checkpoint} is beyond --max_train_steps {max_train_steps}: pass more steps than {step}.")
    if later := [path.name for path in sorted(_checkpoints(output_dir), key=_step) if _step(path) > step]:
        raise FileExistsError(
            f"{output_dir} holds later checkpoints than {checkpoint} ({', '.join(later)}): move them and the pipeline "
            f"in best/ "
            "away, or pass another --output_dir."
        )
    stored = json.loads((checkpoint / "facts.json").read_text())
    for fact, value in facts.items():
        if fact not in stored:
            raise ValueError(
                f"{checkpoint} is of an earlier version, whose examples were others: start a new training."
            )
        same = stored[fact] == value
        if isinstance(value, float) and isinstance(stored[fact], float):
            same = math.isclose(stored[fact], value, rel_tol=1e-6)  # sums differ a little between machines
        if not same:
            raise ValueError(
                f"{checkpoint} was trained with {fact} {stored[fact]}, not {value}: resume with the same arguments "
                f"and "
                "data."
            )
    accelerator.load_state(checkpoint)
    ema.to(accelerator.device)  # is loaded to the CPU
    logger.info("resumed from %s", checkpoint)
    return step


def averaged_unet(accelerator: "accelerate.Accelerator", unet: torch.nn.Module, ema: EMAModel) -> UNet2DModel:
    """
    A copy of a prepared network with its averaged weights, in float32 and evaluation mode. To be called by all
    processes, since weights in shards are gathered; only the main process then has them.
    """
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    state = accelerator.get_state_dict(unet)
    averaged = UNet2DModel.from_config(accelerator.unwrap_model(unet).config)
    if accelerator.is_main_process:
        # A compiled network has other names.
        averaged.load_state_dict({name.replace("_orig_mod.", ""): value.float() for name, value in state.items()})
    ema.restore(unet.parameters())
    return averaged.to(accelerator.device).eval()


def save_best(pipeline: DiffusionPipeline, output_dir: str | Path, step: int, score: float) -> None:
    """Keep a pipeline as `best`, with `score.json`, if its validation score is higher than that of the one there."""
    best = Path(output_dir, "best")
    record = best / "score.json"
    if record.is_file() and json.loads(record.read_text())["validation_psnr"] >= score:
        return
    incomplete = Path(output_dir, "incomplete-best")
    pipeline.save_pretrained(incomplete)
    (incomplete / "score.json").write_text(json.dumps({"step": step, "validation_psnr": score}) + "\n")
    _replace(best, incomplete)


def save_trained(pipeline: DiffusionPipeline, output_dir: str | Path, files: dict[str, str]) -> None:
    """
    Write a pipeline, and texts by the names of their files, to the folder of its training.

    Each part replaces one of an earlier training whole, `model_index.json` last: while it is not there, nobody takes
    the folder for a pipeline.
    """
    output_dir = Path(output_dir)
    incomplete = output_dir / "incomplete-pipeline"
    pipeline.save_pretrained(incomplete)
    for name, text in files.items():
        (incomplete / name).write_text(text, encoding="utf-8")
    index = "model_index.json"
    (output_dir / index).unlink(missing_ok=True)
    for part in sorted(incomplete.iterdir(), key=lambda part: part.name == index):
        if part.is_dir():
            _replace(output_dir / part.name, part)
        else:
            part.replace(output_dir / part.name)
    incomplete.rmdir()


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if _is_checkpoint(path)]


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a folder that [`save_checkpoint`] has completed, by its name and content."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None and (path / "facts.json").is_file()


def _step(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _replace(folder: Path, complete: Path) -> None:
    replaced = folder.with_name(f"incomplete-deleted-{folder.name}")
    if folder.exists():
        folder.rename(replaced)
    complete.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete(folder: Path) -> None:
    """
    Delete a folder; renamed first, since deleting takes a while, and what a kill leaves of it must not be taken for
    whole.
    """
    shutil.rmtree(folder.rename(folder.with_name(f"incomplete-deleted-{folder.name}")))
