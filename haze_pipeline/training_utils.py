"""
Functions shared by the training scripts: validation, logs, checkpoints for resuming, averaged weights, and saving of
pipelines. All files are written atomically: a kill leaves no incomplete checkpoint or pipeline under its final name.
"""

import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import EMAModel

from haze_pipeline.data.pairs import Pair
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.sharing.baseline_card import make_baseline_card
from haze_pipeline.sharing.model_card import shareable_command


if TYPE_CHECKING:
    import accelerate

logger = logging.getLogger(__name__)


def validate(predict: Callable[[np.ndarray], np.ndarray], pairs: list[Pair]) -> tuple[float, list[np.ndarray]]:
    """
    Predict the clear images of pairs and score them.

    Args:
        predict (`Callable`): Function from a hazy image `[H, W]` to a clear one.
        pairs (`list[Pair]`): The validation pairs.

    Returns:
        (`float`, `list[np.ndarray]`): Mean range-invariant PSNR in dB, and the predictions.
    """
    predictions = [predict(pair.hazy) for pair in pairs]
    scores = [range_invariant_psnr(pair.clear, each) for pair, each in zip(pairs, predictions, strict=True)]
    return float(np.mean(scores)), predictions


def check_output(output_dir: str | Path, resume: bool) -> None:
    """
    Check that a training may write to a folder.

    Raises:
        `FileExistsError`: If the folder holds results of another training and `resume` is false.
    """
    results = [Path(output_dir, name) for name in ("best", "incomplete-deleted-best")]
    if not resume and (any(result.exists() for result in results) or _checkpoints(output_dir)):
        raise FileExistsError(
            f"{output_dir} holds checkpoints of another training: pass --resume_from_checkpoint latest to continue "
            "it, or another --output_dir."
        )


def start_output(output_dir: str | Path, resume: bool) -> None:
    """
    Make the output folder of a training and delete incomplete files of a killed one. Call it in one process only.

    Raises:
        `FileExistsError`: As [`check_output`], before anything is deleted.
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
        else:  # an incomplete log
            leftover.unlink()


def save_checkpoint(
    accelerator: "accelerate.Accelerator", output_dir: str | Path, step: int, total_limit: int, facts: dict
) -> None:
    """
    Write `checkpoint-{step}` and delete all but the latest `total_limit` checkpoints. Call it in all processes.

    An incomplete checkpoint has another name, so a checkpoint cut short by a kill is never used.

    Args:
        accelerator (`accelerate.Accelerator`): Holds the state.
        output_dir (`str` or `Path`): Output folder of the training.
        step (`int`): Number of optimiser steps so far.
        total_limit (`int`): Number of checkpoints to keep.
        facts (`dict`): Properties that must not change when the training is resumed, see [`resume`].
    """
    checkpoint, incomplete = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"incomplete-checkpoint-{step}")
    accelerator.save_state(incomplete)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (incomplete / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _replace(checkpoint, incomplete)
        for old in sorted(_checkpoints(output_dir), key=_step)[:-total_limit]:
            _delete(old)


def make_data_loader(
    examples: torch.utils.data.Dataset, batch_size: int, num_workers: int, device: torch.device
) -> torch.utils.data.DataLoader:
    """
    Load the batches of training examples in their order: the examples are already random, and this order is the same
    after resuming.

    Args:
        examples (`torch.utils.data.Dataset`): The examples.
        batch_size (`int`): Examples of a batch; the last batch is left out if it is smaller.
        num_workers (`int`): Number of processes that make examples; with 0, the training does so itself.
        device (`torch.device`): Device that trains.
    """
    return torch.utils.data.DataLoader(
        examples, batch_size=batch_size, num_workers=num_workers, drop_last=True,
        generator=torch.Generator(),  # workers' seeds must not use the global generator, which checkpoints restore
        pin_memory=device.type == "cuda",
    )  # fmt: skip


def clip_gradients(
    accelerator: "accelerate.Accelerator",
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    step: int,
) -> None:
    """
    Clip the gradients of a network to `max_norm`. If their norm is not finite, drop them with a warning, since they
    would destroy the weights; the optimiser then changes nothing in this step.
    """
    norm = accelerator.clip_grad_norm_(network.parameters(), max_norm)
    if norm is not None and not torch.isfinite(norm):  # DeepSpeed clips by itself and may return `None`
        logger.warning("step %d: the gradient is not finite, so this step changes nothing", step)
        optimizer.zero_grad(set_to_none=True)


def resume(
    accelerator: "accelerate.Accelerator",
    ema: EMAModel,
    output_dir: str | Path,
    name: str | None,
    facts: dict,
    max_train_steps: int,
) -> int:
    """
    Resume a training from a checkpoint: load weights, optimiser, schedule, averaged weights and random states.

    Args:
        accelerator (`accelerate.Accelerator`): Holds the state.
        ema (`EMAModel`): The averaged weights, registered with the accelerator.
        output_dir (`str` or `Path`): Output folder of the training.
        name (`str`, *optional*): Checkpoint folder, by its path or its name in `output_dir`, or `"latest"`.
        facts (`dict`): Properties of this training (such as data, units and rates) that must equal the checkpoint's.
        max_train_steps (`int`): Total number of optimiser steps.

    Returns:
        `int`: Number of optimiser steps so far; 0 if `name` is `None`, or `"latest"` without any checkpoint.

    Raises:
        `FileNotFoundError`: If there is no such checkpoint.
        `FileExistsError`: If `output_dir` holds later checkpoints, which could be mistaken for those of this training.
        `ValueError`: If a fact or the network differs, the checkpoint lies beyond `max_train_steps`, or FSDP shards
            the parameters.
    """
    if name is None:
        return 0
    if accelerator.distributed_type == "FSDP":
        raise ValueError(
            "--resume_from_checkpoint does not work with FSDP, since accelerate stores only one shard of the averaged "
            "weights: start a new training."
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
            f"--resume_from_checkpoint must be `latest` or a folder checkpoint-…, but {name} is not one."
        )
    checkpoint = candidates[0]
    step = _step(checkpoint)
    if step > max_train_steps:
        raise ValueError(f"{checkpoint} lies beyond --max_train_steps {max_train_steps}: pass more than {step} steps.")
    if later := [path.name for path in sorted(_checkpoints(output_dir), key=_step) if _step(path) > step]:
        raise FileExistsError(
            f"{output_dir} holds checkpoints later than {checkpoint} ({', '.join(later)}): move them and the pipeline "
            "in best/ to another folder, or pass another --output_dir."
        )
    stored = json.loads((checkpoint / "facts.json").read_text(encoding="utf-8"))
    for fact, value in facts.items():
        if fact not in stored:
            raise ValueError(
                f"{checkpoint} was written by an earlier version with other training examples: start a new training."
            )
        same = stored[fact] == value
        if isinstance(value, float) and isinstance(stored[fact], float):
            same = math.isclose(stored[fact], value, rel_tol=1e-6)  # sums differ slightly between machines
        if not same:
            raise ValueError(
                f"{checkpoint} was trained with {fact} {stored[fact]}, not {value}: resume with the same arguments "
                "and data."
            )
    try:
        accelerator.load_state(checkpoint)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} holds the weights of another network: resume with the same network, or start a new "
            "training in another --output_dir."
        ) from error
    ema.to(accelerator.device)  # accelerate loads it to the CPU
    logger.info("resumed from %s", checkpoint)
    return step


def restore_normalized(pipeline: HazeRegressionPipeline, network: torch.nn.Module, hazy: torch.Tensor) -> torch.Tensor:
    """
    Restore hazy images `[B, C, h, w]` with gradients. Both images are in network units.

    Args:
        pipeline ([`HazeRegressionPipeline`]): Says how the network takes images.
        network (`torch.nn.Module`): Its network while it is trained, or one with averaged weights.
        hazy (`torch.Tensor`): The images.
    """
    if not pipeline.takes_state:
        return network(hazy)[-1].float()  # [B,C,h,w]
    inputs = torch.cat([torch.zeros_like(hazy), hazy], dim=1)  # [B,2,h,w]
    t = hazy.new_zeros(len(hazy))
    return predict_packed(lambda *each: network(*each).sample, inputs, t, pipeline.config.pixel_packing)


def averaged_unet(accelerator: "accelerate.Accelerator", unet: torch.nn.Module, ema: EMAModel) -> ModelMixin:
    """
    Copy a prepared network of any class with its averaged weights, in float32 and evaluation mode.

    Call it in all processes, since sharded weights are gathered. Only the main process receives the averaged weights.
    """
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    state = accelerator.get_state_dict(unet)
    original = accelerator.unwrap_model(unet, keep_torch_compile=False)
    averaged = type(original).from_config(original.config)
    if accelerator.is_main_process:
        # torch.compile adds a prefix to the names.
        averaged.load_state_dict({name.replace("_orig_mod.", ""): value.float() for name, value in state.items()})
    ema.restore(unet.parameters())
    return averaged.to(accelerator.device).eval()


def units_of(image_processor: HazeImageProcessor) -> dict:
    """Arguments of a pipeline that has the units of an image processor."""
    names = ("normalization", "input_mean", "input_std", "target_mean", "target_std")
    return {name: getattr(image_processor, name) for name in names}


def read_log(output_dir: str | Path, step: int) -> list[dict]:
    """Rows of `training_log.jsonl` up to a step. The log of a killed training may be ahead of its checkpoint."""
    log = Path(output_dir, "training_log.jsonl")
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines()) if step > 0 and log.is_file() else ()
    return [row for row in rows if row["step"] <= step]


def write_log(output_dir: str | Path, rows: list[dict]) -> None:
    """Write all rows of `training_log.jsonl`, one in each line."""
    incomplete = Path(output_dir, "incomplete-training_log.jsonl")
    incomplete.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    incomplete.replace(Path(output_dir, "training_log.jsonl"))


def save_best(pipeline: DiffusionPipeline, output_dir: str | Path, step: int, score: float) -> None:
    """Save a pipeline as `best`, with `score.json`, if its validation score exceeds that of the stored one."""
    best = Path(output_dir, "best")
    record = best / "score.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["validation_psnr"] >= score:
        return
    incomplete = Path(output_dir, "incomplete-best")
    pipeline.save_pretrained(incomplete)
    (incomplete / "score.json").write_text(
        json.dumps({"step": step, "validation_psnr": score}) + "\n", encoding="utf-8"
    )
    _replace(best, incomplete)


def save_trained(pipeline: DiffusionPipeline, output_dir: str | Path, files: dict[str, str]) -> None:
    """
    Write a pipeline and text files to the output folder of its training.

    Each part replaces that of an earlier training completely. `model_index.json` is written last; without it, the
    folder is not recognised as a pipeline.

    Args:
        pipeline (`DiffusionPipeline`): The trained pipeline.
        output_dir (`str` or `Path`): Output folder of the training.
        files (`dict[str, str]`): Texts to write, by file name.
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


def save_component(model: ModelMixin, output_dir: str | Path, name: str) -> None:
    """Write a model that is no part of the pipeline to the sub-folder `name` of the output folder of its training."""
    incomplete = Path(output_dir, f"incomplete-{name}")
    model.save_pretrained(incomplete)
    _replace(Path(output_dir, name), incomplete)


def save_baseline(pipeline: DiffusionPipeline, output_dir: str | Path, data: str, log: list[dict]) -> None:
    """
    Write the pipeline of a baseline with its card and `training.json`, see [`save_trained`].

    Args:
        pipeline (`DiffusionPipeline`): The trained pipeline.
        output_dir (`str` or `Path`): Output folder of the training.
        data (`str`): Sentence about the training data.
        log (`list[dict]`): A row for every validation.
    """
    training = {"data": data, "command": shareable_command(["accelerate", "launch", *sys.argv]), "log": log}
    card = make_baseline_card(pipeline, Path(output_dir).resolve().name, training)
    files = {"training.json": json.dumps(training, indent=2) + "\n", "README.md": str(card)}
    save_trained(pipeline, output_dir, files)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [path for path in Path(output_dir).glob("checkpoint-*") if _is_checkpoint(path)]


def _is_checkpoint(path: Path) -> bool:
    """Whether name and content are those of a complete checkpoint of [`save_checkpoint`]."""
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
    """Rename a folder, then delete it: if a kill interrupts the deletion, the rest is not taken for a checkpoint."""
    shutil.rmtree(folder.rename(folder.with_name(f"incomplete-deleted-{folder.name}")))
