"""What training scripts keep: checkpoints to resume from, averaged weights, the best pipeline. All whole or not there."""

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.training_utils import EMAModel


if TYPE_CHECKING:
    import accelerate


def find_checkpoint(output_dir: str | Path, name: str) -> Path | None:
    """
    The checkpoint to resume from.

    Args:
        output_dir (`str` or `Path`): Where the training writes.
        name (`str`): A checkpoint's folder, by its path or by its name in `output_dir`, or `"latest"`.

    Returns:
        `Path`, or `None` if the latest is asked for and there is none yet.

    Raises:
        `FileNotFoundError`: If there is no such folder.
    """
    if name == "latest":
        return max(_checkpoints(output_dir), key=checkpoint_step, default=None)
    for path in (Path(name), Path(output_dir, name)):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"--resume_from_checkpoint must be `latest` or a checkpoint folder, but {name} is none.")


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def start_output(output_dir: str | Path, resume: bool) -> None:
    """
    Make the folder that a training writes to, and clear away what a kill has left half written. To be called by one process.

    Raises:
        `FileExistsError`: If it holds another training's checkpoints or best pipeline and this one does not resume.
    """
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
    if not resume and (best.exists() or _checkpoints(output_dir)):
        raise FileExistsError(
            f"{output_dir} holds checkpoints of another training: pass --resume_from_checkpoint latest to go on with it, or "
            "another --output_dir."
        )


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
        facts (`dict`): What must be the same when the training is resumed, see [`check_facts`].
    """
    checkpoint, incomplete = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"incomplete-checkpoint-{step}")
    accelerator.save_state(incomplete)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (incomplete / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        _replace(checkpoint, incomplete)
        for old in sorted(_checkpoints(output_dir), key=checkpoint_step)[:-total_limit]:
            _delete(old)


def check_facts(checkpoint: Path, facts: dict) -> None:
    """
    Refuse to go on from a checkpoint with other data, examples or units than it was trained with.

    Raises:
        `ValueError`: Naming what differs.
    """
    stored = json.loads((checkpoint / "facts.json").read_text())
    for name, value in facts.items():
        same = stored.get(name) == value
        if isinstance(value, float) and isinstance(stored.get(name), float):
            same = math.isclose(stored[name], value, rel_tol=1e-6)  # sums differ a little between machines
        if not same:
            raise ValueError(
                f"{checkpoint} was trained with {name} {stored.get(name)}, not {value}: resume with the same arguments and "
                "data."
            )


def averaged_unet(accelerator: "accelerate.Accelerator", unet: torch.nn.Module, ema: EMAModel) -> UNet2DModel:
    """
    A copy of a prepared network with its averaged weights, in float32 and evaluation mode. To be called by all processes,
    since weights in shards are gathered; only the main process then has them.
    """
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    state = accelerator.get_state_dict(unet)
    averaged = UNet2DModel.from_config(accelerator.unwrap_model(unet).config)
    if accelerator.is_main_process:
        averaged.load_state_dict({name: value.float() for name, value in state.items()})
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


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-", 1)[1].isdigit()]


def _replace(folder: Path, complete: Path) -> None:
    replaced = folder.with_name(f"incomplete-deleted-{folder.name}")
    if folder.exists():
        folder.rename(replaced)
    complete.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete(folder: Path) -> None:
    """Delete a folder; renamed first, since deleting takes a while, and what a kill leaves of it must not be taken for whole."""
    shutil.rmtree(folder.rename(folder.with_name(f"incomplete-deleted-{folder.name}")))
