"""What training scripts keep: checkpoints to resume from, averaged weights, the best pipeline. All whole or not there."""

import json
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


def save_checkpoint(
    accelerator: "accelerate.Accelerator", output_dir: str | Path, step: int, total_limit: int
) -> None:
    """
    Write `checkpoint-{step}` and delete all but the `total_limit` latest. To be called by all processes.

    Under another name until complete: one that a kill cuts short is never taken for a good one.
    """
    checkpoint, incomplete = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"incomplete-checkpoint-{step}")
    if accelerator.is_main_process:
        shutil.rmtree(incomplete, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(incomplete)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _replace(checkpoint, incomplete)
        for old in sorted(_checkpoints(output_dir), key=checkpoint_step)[:-total_limit]:
            _delete(old)


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
    shutil.rmtree(incomplete, ignore_errors=True)
    pipeline.save_pretrained(incomplete)
    (incomplete / "score.json").write_text(json.dumps({"step": step, "validation_psnr": score}) + "\n")
    _replace(best, incomplete)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-", 1)[1].isdigit()]


def _replace(folder: Path, complete: Path) -> None:
    _delete(folder)
    complete.rename(folder)


def _delete(folder: Path) -> None:
    """Delete a folder; renamed first, since deleting takes a while, and what a kill leaves of it must not be taken for whole."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(f"incomplete-deleted-{folder.name}")))
