"""
Train a network without pairs, by equivariant image dehazing (EID; Wen, Xie & Chen 2026, arXiv 2601.13986).

    accelerate launch training/train_eid.py --train_data_dir hazy_images --output_dir runs/eid

`haze_pipeline/equivariance.py` has the two losses. They need an operator that adds haze (`--haze_operator`). With
`--unpaired_clear`, the first `--operator_steps` steps train the operator, so that clear images with its haze look like
the hazy ones. After that, it is frozen and the network is trained. The result is a folder for
`HazeRegressionPipeline.from_pretrained`, since restoration takes one call of the network; the operator is stored in
its sub-folder `haze_operator`.
"""

import json
import logging
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, set_seed
from adversarial import Adversary, least_squares_loss
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from eid_arguments import parse_args
from haze_operators import GENERATOR_RATE, OperatorTraining, make_operator
from tqdm.auto import tqdm

from haze_pipeline.data.pairs import Pair, load_pairs
from haze_pipeline.data.unpaired import (
    Plane,
    UnpairedPatches,
    fit_unpaired_processor,
    load_dataset_planes,
    load_photographs,
    load_planes,
    normalize_clear,
    normalize_hazy,
)
from haze_pipeline.equivariance import draw_transform, eid_losses, recovery_loss, relative_errors
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.models.unet_haze_matching import build_unet, check_network
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.reliability.assessment import assess
from haze_pipeline.sharing.model_card import shareable_command
from haze_pipeline.sharing.unpaired_card import make_unpaired_card
from haze_pipeline.training_utils import (
    averaged_unet,
    clip_gradients,
    make_data_loader,
    read_log,
    restore_normalized,
    resume,
    save_best,
    save_checkpoint,
    save_component,
    save_trained,
    start_output,
    units_of,
    validate,
    write_log,
)
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.processes import PATIENCE, check_joined, meet_on_cpu


logger = get_logger(__name__)

NUM_MEASURED = 8  # number of images whose errors are logged


def load_initial(name: str) -> HazeRegressionPipeline:
    """
    The pipeline of `--init_from`. From a flow that was trained with states of zeros, it is that of its posterior mean.

    Raises:
        `ValueError`: If it does not restore an image with one call of its network.
    """
    initial = load_pipeline(name, PIPELINES)
    if isinstance(initial, HazeRegressionPipeline):
        return initial
    if not getattr(initial.config, "zero_state_mean", False):
        raise ValueError(
            f"--init_from {name} does not restore an image with one call of its network: name a pipeline of "
            "train_regression.py or train_eid.py, or a flow trained with --zero_state_share."
        )
    shared = ("normalization", "input_mean", "input_std", "target_mean", "target_std", "pixel_packing",
              "training_patch_size", "training_pixel_size")  # fmt: skip
    return HazeRegressionPipeline(initial.unet, **{key: initial.config[key] for key in shared})


def read_images(args) -> tuple[list[Plane], list[Plane], list[Pair], list[Plane]]:
    """Hazy images, clear images, the pairs to score, and the hazy images whose errors are measured."""
    load = load_photographs if args.photographs else load_planes
    hazy = list(load_dataset_planes(args.dataset_name) if args.dataset_name is not None else load(args.train_data_dir))
    clear = [] if args.unpaired_clear is None else list(load(args.unpaired_clear))
    folder, pairs = args.validation_data_dir, []
    if folder is None:
        return hazy, clear, pairs, hazy[:NUM_MEASURED]
    if not args.photographs and (folder / "hazy").is_dir():
        pairs = list(islice(load_pairs(folder, "validation"), args.max_validation_pairs))
        return hazy, clear, pairs, [Plane(pair.hazy, pair.source) for pair in pairs[:NUM_MEASURED]]
    return hazy, clear, pairs, list(islice(load(folder), NUM_MEASURED))


def make_network(args, num_channels: int) -> torch.nn.Module:
    """A new network of the chosen architecture, or of the chosen configuration."""
    if args.architecture == "unet":
        unet = build_unet(pixel_packing=args.pixel_packing)
    else:
        unet = ResidualUNet(num_channels=num_channels)
    if args.model_config_name_or_path is not None:
        config = unet.load_config(args.model_config_name_or_path)
        if config.get("_class_name") != type(unet).__name__:
            raise ValueError(
                f"--model_config_name_or_path {args.model_config_name_or_path} is of a {config.get('_class_name')}, "
                f"but --architecture {args.architecture} is a {type(unet).__name__}: pass the one of this network."
            )
        unet = type(unet).from_config(config)
    if args.architecture == "unet":
        unet.register_to_config(sample_size=args.resolution)
        check_network(unet, args.resolution, args.pixel_packing)
    elif unet.config.num_channels != num_channels:
        raise ValueError(
            f"The network of --model_config_name_or_path has {unet.config.num_channels} channel(s), but the images "
            f"have {num_channels}: change `num_channels` in its configuration."
        )
    return unet


def is_doubtful(pipeline: HazeRegressionPipeline, plane: Plane) -> bool:
    """Whether [`assess`] finds a reason to distrust the restored plane."""
    return bool(assess(pipeline, plane.image, pipeline(plane.image), plane.pixel_size_um).warnings)


def main():
    args = parse_args()
    accelerator = Accelerator(
        cpu=meet_on_cpu(), mixed_precision=args.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],  # all processes wait for the main one to validate
    )  # fmt: skip
    check_joined(accelerator.num_processes)
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"train_eid.py does not work with {accelerator.distributed_type}: choose a configuration of accelerate "
            "without it."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    if accelerator.is_main_process:
        start_output(args.output_dir, resume=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()

    # 1. Images in network units
    initial = load_initial(args.init_from) if args.init_from is not None else None
    planes, clear_planes, pairs, measured_planes = read_images(args)
    num_channels = 3 if args.photographs else 1
    if initial is not None:
        image_processor = initial.image_processor
        if initial.num_channels != num_channels:
            raise ValueError(
                f"--init_from {args.init_from} restores images of {initial.num_channels} channel(s), but these have "
                f"{num_channels}: {'remove' if args.photographs else 'add'} --photographs, or name another pipeline."
            )
    else:
        default = "fixed" if args.haze_operator == "atmospheric" or args.photographs else "image"
        image_processor = fit_unpaired_processor(args.normalization or default, planes)
    same_units = (image_processor.input_mean, image_processor.input_std) == (
        image_processor.target_mean, image_processor.target_std
    )  # fmt: skip
    if args.haze_operator == "atmospheric" and not same_units:
        raise ValueError(
            f"--init_from {args.init_from} has other units for hazy than for clear images, but --haze_operator "
            "atmospheric needs the same: start from a result of this operator."
        )
    hazy, clear, measured = (
        [field for plane in each if (field := normalize(plane, image_processor)) is not None]
        for each, normalize in (
            (planes, normalize_hazy), (clear_planes, normalize_clear), (measured_planes, normalize_hazy)
        )
    )  # fmt: skip
    if args.unpaired_clear is not None and not clear:
        raise ValueError(f"No image of --unpaired_clear {args.unpaired_clear} has any contrast.")
    if hazy and not measured:
        raise ValueError(f"No image of --validation_data_dir {args.validation_data_dir} has any contrast.")
    length = args.max_train_steps * args.train_batch_size * accelerator.num_processes
    examples = UnpairedPatches(hazy, clear, args.resolution, args.seed, length)
    dataloader = make_data_loader(examples, args.train_batch_size, args.dataloader_num_workers, accelerator.device)

    # 2. Network and operator
    if initial is None:
        units = units_of(image_processor)
        initial = HazeRegressionPipeline(make_network(args, num_channels), **units, pixel_packing=args.pixel_packing)
    unet, packing, multiple = initial.unet, initial.config.pixel_packing, initial.unet_scale_factor
    if args.resolution % multiple:
        raise ValueError(f"--resolution must be a multiple of {multiple} for this network, got {args.resolution}.")
    operator = make_operator(args.haze_operator, args.operator_config, args.init_from, image_processor, hazy)
    operator.to(accelerator.device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerate advances the schedule once per process and step, so its lengths are steps × processes.
    lr_scheduler = get_scheduler(
        "cosine",
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=(args.max_train_steps - args.operator_steps) * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    accelerator.register_for_checkpointing(ema)
    make_adversary = partial(
        Adversary, accelerator, args.discriminator_features, GENERATOR_RATE, partial(get_scheduler, "constant"),
        least_squares_loss, num_channels,
    )  # fmt: skip
    clear_adversary = operator_training = None
    if args.adversarial_weight > 0 or (args.haze_operator == "learned" and args.operator_steps > 0):
        clear_adversary = make_adversary()
    if args.operator_steps > 0:
        hazy_adversary = make_adversary()
        operator_training = OperatorTraining(accelerator, operator, hazy_adversary, clear_adversary)

    restore = partial(restore_normalized, initial, unet)
    sizes = [plane.pixel_size_um for plane in planes if plane.pixel_size_um is not None]

    def averaged_pipeline() -> HazeRegressionPipeline:
        pipeline = HazeRegressionPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            **units_of(image_processor),
            pixel_packing=packing,
            training_patch_size=args.resolution,
            training_pixel_size={"min": min(sizes), "max": max(sizes)} if sizes else None,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def mean_errors(network: torch.nn.Module) -> dict[str, float]:
        """Mean errors of consistency and equivariance over `measured`."""
        averaged, errors = partial(restore_normalized, initial, network), []
        for number, field in enumerate(measured):
            rows, columns = (side // multiple * multiple for side in field.shape[1:])
            rng = np.random.default_rng([args.seed, number])
            transform = draw_transform(args.transform, rng)
            field = field[None, :, :rows, :columns].to(accelerator.device)  # [1,C,h,w]
            errors.append(relative_errors(averaged, operator, field, transform, rng))
        return dict(zip(("consistency_error", "equivariance_error"), np.mean(errors, axis=0).tolist(), strict=True))

    # These facts must not change when the training is resumed.
    facts = {
        "script": "train_eid.py",
        "hazy images": len(hazy),
        "clear images": len(clear),
        "unit of the images": image_processor.target_std,
        "operator": {"class": type(operator).__name__, **args.operator_config},
        "operator steps": args.operator_steps,
        "transform": args.transform,
        "guess steps": args.guess_steps,
        "weights": [args.equivariance_weight, args.recovery_weight, args.adversarial_weight],
        "pixel packing": packing,
        "patches per step": args.train_batch_size * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "seed": args.seed,
        "resolution": args.resolution,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "decay of averages": args.ema_decay,
    }
    step = resume(accelerator, ema, args.output_dir, args.resume_from_checkpoint, facts, args.max_train_steps)
    log = read_log(args.output_dir, step)

    # 3. Training
    progress_bar = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    if step >= args.operator_steps:
        operator.freeze()
    started, losses = time.monotonic(), []
    for batch in accelerator.skip_first_batches(dataloader, step):
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        if step < args.operator_steps:
            losses.append([operator_training.step(batch["hazy"], batch["clear"], rng)])
        else:
            transform = draw_transform(args.transform, rng)
            guess = step < args.operator_steps + args.guess_steps
            consistency, equivariance = eid_losses(restore, operator, batch["hazy"], transform, rng, guess)
            loss = consistency + args.equivariance_weight * equivariance
            if args.unpaired_clear is not None and args.recovery_weight > 0:
                recovery = recovery_loss(restore, operator, batch["clear"], batch["hazy"], rng)
                loss = loss + args.recovery_weight * recovery
            if args.adversarial_weight > 0:
                restored = restore(batch["hazy"])
                loss = loss + args.adversarial_weight * clear_adversary.generator_loss(restored, batch["clear"])
            accelerator.backward(loss)
            clip_gradients(accelerator, unet, optimizer, args.max_grad_norm, step + 1)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            if args.adversarial_weight > 0:
                clear_adversary.step(restored, batch["clear"])
            losses.append([consistency.item(), equivariance.item()])
        step += 1
        progress_bar.update()
        last = step == args.max_train_steps
        if step == args.operator_steps:
            operator.freeze()
            logger.info("the operator is trained: loss %.4f", np.mean(losses))
            losses = []
        elif step > args.operator_steps and (step % args.validation_steps == 0 or last):
            pipeline = averaged_pipeline()
            if accelerator.is_main_process:
                means = dict(zip(("consistency", "equivariance"), np.mean(losses, axis=0).tolist(), strict=True))
                record = {"step": step, "seconds": time.monotonic() - started, **means, **mean_errors(pipeline.unet)}
                if pairs:
                    score, _ = validate(lambda hazy, pipeline=pipeline: pipeline(hazy).prediction, pairs)
                    save_best(pipeline, args.output_dir, step, score)
                    record["validation_psnr"] = score
                elif not args.photographs:
                    record["doubtful"] = float(np.mean([is_doubtful(pipeline, plane) for plane in measured_planes]))
                log.append(record)
                write_log(args.output_dir, log)
                logger.info("%s", json.dumps(record))
            losses = []
        if step % args.checkpointing_steps == 0 or last:
            save_checkpoint(accelerator, args.output_dir, step, args.checkpoints_total_limit, facts)
    progress_bar.close()

    pipeline = averaged_pipeline()
    if accelerator.is_main_process:
        training = {
            "command": shareable_command(["accelerate", "launch", *sys.argv]),
            "hazy_images": len(hazy),
            "clear_images": len(clear),
            "base_model": args.init_from
            and (Path(args.init_from).name if Path(args.init_from).is_dir() else args.init_from),
            "transform": args.transform,
            "operator": {"class": type(operator).__name__, **args.operator_config},
            "log": log,
        }
        card = make_unpaired_card(pipeline, args.output_dir.resolve().name, training)
        save_component(operator, args.output_dir, "haze_operator")
        save_trained(
            pipeline, args.output_dir, {"training.json": json.dumps(training, indent=2) + "\n", "README.md": str(card)}
        )
    accelerator.end_training()


if __name__ == "__main__":
    with errors_in_one_line():
        main()
