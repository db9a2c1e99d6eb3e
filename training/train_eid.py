"""
Train a network without pairs, by equivariant image dehazing (EID; Wen, Xie & Chen 2026, arXiv 2601.13986).

    accelerate launch training/train_eid.py --train_data_dir hazy_images --output_dir runs/eid

`haze_pipeline/equivariance.py` has the two losses. They need an operator that adds haze (`--haze_operator`). With
`--unpaired_clear`, the first `--operator_steps` steps train the operator, so that clear images with its haze look like
the hazy ones. After that, it is frozen and the network is trained. The result is a folder for
`HazeRegressionPipeline.from_pretrained`, since restoration takes one call of the network; the operator is stored in
its sub-folder `haze_operator`.
"""

import argparse
import json
import logging
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from haze_operators import OPERATORS, SMALLEST_PATCH, Adversary, OperatorTraining, make_operator
from tqdm.auto import tqdm

from haze_pipeline.data.pairs import load_pairs
from haze_pipeline.data.unpaired import (
    Plane,
    UnpairedPatches,
    fit_unpaired_processor,
    load_planes,
    normalize_clear,
    normalize_hazy,
)
from haze_pipeline.equivariance import TRANSFORMS, draw_transform, eid_losses, relative_errors
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.training_utils import (
    averaged_unet,
    resume,
    save_best,
    save_checkpoint,
    save_component,
    save_trained,
    start_output,
    validate,
)
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.processes import PATIENCE, check_joined, meet_on_cpu


logger = get_logger(__name__)

NUM_MEASURED = 8  # number of images whose errors are logged


def parse_args():
    parser = argparse.ArgumentParser(description="Train a network without pairs, by equivariant image dehazing.")
    # 1. Images
    parser.add_argument(
        "--train_data_dir", type=Path, required=True,
        help="Folder of hazy TIFFs. Of a folder of pairs, pass the sub-folder `hazy`.",
    )  # fmt: skip
    parser.add_argument(
        "--unpaired_clear", type=Path,
        help="Folder of clear TIFFs of other specimens, from which the operator and, with --adversarial_weight, the "
        "network learn. Needs the extra `baselines`.",
    )  # fmt: skip
    parser.add_argument(
        "--validation_data_dir", type=Path,
        help="Folder of pairs in hazy/ and clear/, which are scored; or of hazy TIFFs, whose errors of consistency "
        "and equivariance are measured.",
    )  # fmt: skip
    parser.add_argument("--max_validation_pairs", type=int, default=64, help="Use at most this many of them.")
    parser.add_argument("--resolution", type=int, default=128, help="Side of the training patches in pixels.")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="Number of processes that cut patches.")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Folder for checkpoints, trained pipeline and operator."
    )
    # 2. Method
    parser.add_argument(
        "--haze_operator", choices=list(OPERATORS), default="optical",
        help="Haze of a widefield microscope; any haze, learned from --unpaired_clear; or that of the atmosphere.",
    )  # fmt: skip
    parser.add_argument(
        "--operator_config", help="Arguments of the operator as JSON, such as '{\"airy_radius\": 2.6}'."
    )
    parser.add_argument(
        "--operator_steps", type=int,
        help="Number of steps that train the operator. The default is 1000 with --unpaired_clear, otherwise 0.",
    )  # fmt: skip
    parser.add_argument(
        "--transform", choices=TRANSFORMS, default="rotation", help="Transform of the equivariance loss."
    )
    parser.add_argument("--equivariance_weight", type=float, default=1.0, help="Weight of the equivariance loss.")
    parser.add_argument(
        "--adversarial_weight", type=float, default=0.0,
        help="Weight of an adversarial loss, with which restored images must look like --unpaired_clear.",
    )  # fmt: skip
    parser.add_argument("--discriminator_features", type=int, default=64, help="Channels of the first convolution.")
    # 3. Network and optimisation
    parser.add_argument(
        "--init_from",
        help="Pipeline whose network and units the training starts from: a folder or a repository of the Hub. If it "
        "is the result of this script, its operator is used too.",
    )  # fmt: skip
    parser.add_argument("--model_config_name_or_path", help="Configuration of a ResidualUNet.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, patches and transforms.")
    parser.add_argument("--train_batch_size", type=int, default=8, help="Patches per step and process.")
    parser.add_argument("--max_train_steps", type=int, default=6000, help="Total number of steps.")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="Peak learning rate of AdamW.")
    parser.add_argument("--lr_warmup_steps", type=int, default=200, help="Steps of linear warm-up; a cosine follows.")
    parser.add_argument("--weight_decay", type=float, default=1e-4, help="Weight decay of AdamW.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="Norm to which gradients are clipped.")
    parser.add_argument("--ema_decay", type=float, default=0.999, help="Decay of the averaged weights that are saved.")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Overrides accelerate's setting.")
    parser.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints.")
    parser.add_argument("--checkpoints_total_limit", type=int, default=2, help="Number of checkpoints to keep.")
    parser.add_argument("--resume_from_checkpoint", help='A folder "checkpoint-…", or "latest".')
    parser.add_argument("--validation_steps", type=int, default=500, help="Steps between validations.")
    args = parser.parse_args()
    for name in ("max_validation_pairs", "discriminator_features", "train_batch_size", "max_train_steps",
                 "checkpointing_steps", "checkpoints_total_limit", "validation_steps"):  # fmt: skip
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}.")
    for name in ("equivariance_weight", "adversarial_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be finite and not negative, got {getattr(args, name)}.")
    if args.init_from is not None and args.model_config_name_or_path is not None:
        parser.error("--init_from sets the network: remove --model_config_name_or_path.")
    if args.unpaired_clear is None and (args.haze_operator == "learned" and args.init_from is None):
        parser.error("--haze_operator learned needs clear images: add --unpaired_clear, or use another operator.")
    if args.unpaired_clear is None and (args.adversarial_weight > 0 or args.operator_steps):
        parser.error("--adversarial_weight and --operator_steps need clear images: add --unpaired_clear.")
    if args.unpaired_clear is not None and args.resolution < SMALLEST_PATCH:
        parser.error(f"--unpaired_clear needs a --resolution of at least {SMALLEST_PATCH}, got {args.resolution}.")
    if args.operator_steps is None:
        args.operator_steps = 1000 if args.unpaired_clear is not None else 0
    if not 0 <= args.operator_steps < args.max_train_steps:
        parser.error(
            f"--operator_steps must be less than --max_train_steps {args.max_train_steps}, got {args.operator_steps}."
        )
    try:
        args.operator_config = json.loads(args.operator_config or "{}")
    except json.JSONDecodeError as error:
        parser.error(f'--operator_config is not JSON ({error}): write {{"name": value}} in single quotes.')
    return args


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


def load_validation(args, image_processor, hazy: list[torch.Tensor]):
    """The pairs to score, and the hazy fields in network units whose errors are measured."""
    folder, pairs = args.validation_data_dir, []
    if folder is None:
        return pairs, hazy[:NUM_MEASURED]
    if (folder / "hazy").is_dir():
        pairs = list(load_pairs(folder, "validation"))[: args.max_validation_pairs]
        planes = [Plane(pair.hazy, pair.source) for pair in pairs]
    else:
        planes = list(load_planes(folder))[: args.max_validation_pairs]
    fields = (normalize_hazy(plane, image_processor) for plane in planes)
    return pairs, [field for field in fields if field is not None][:NUM_MEASURED]


def main():
    args = parse_args()
    accelerator = Accelerator(
        cpu=meet_on_cpu(), mixed_precision=args.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],  # all processes wait for the main one to validate
    )  # fmt: skip
    check_joined(accelerator.num_processes)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    if accelerator.is_main_process:
        start_output(args.output_dir, resume=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()

    # 1. Images in network units
    initial = load_initial(args.init_from) if args.init_from is not None else None
    planes = list(load_planes(args.train_data_dir))
    if initial is not None:
        image_processor = initial.image_processor
    else:
        image_processor = fit_unpaired_processor("fixed" if args.haze_operator == "atmospheric" else "image", planes)
    same_units = (image_processor.input_mean, image_processor.input_std) == (
        image_processor.target_mean, image_processor.target_std
    )  # fmt: skip
    if args.haze_operator == "atmospheric" and not same_units:
        raise ValueError(
            f"--init_from {args.init_from} has other units for hazy than for clear images, but --haze_operator "
            "atmospheric needs the same: start from a result of this operator."
        )
    hazy = [field for plane in planes if (field := normalize_hazy(plane, image_processor)) is not None]
    clear_planes = load_planes(args.unpaired_clear) if args.unpaired_clear is not None else ()
    clear = [field for plane in clear_planes if (field := normalize_clear(plane, image_processor)) is not None]
    if args.unpaired_clear is not None and not clear:
        raise ValueError(f"No image of --unpaired_clear {args.unpaired_clear} has any contrast.")
    pairs, measured = load_validation(args, image_processor, hazy)
    length = args.max_train_steps * args.train_batch_size * accelerator.num_processes
    dataloader = torch.utils.data.DataLoader(
        UnpairedPatches(hazy, clear, args.resolution, args.seed, length), batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers, drop_last=True,
        generator=torch.Generator(),  # workers' seeds must not use the global generator, which checkpoints restore
    )  # fmt: skip

    # 2. Network and operator
    if initial is not None:
        unet = initial.unet
    elif args.model_config_name_or_path is not None:
        unet = ResidualUNet.from_config(ResidualUNet.load_config(args.model_config_name_or_path))
    else:
        unet = ResidualUNet()
    takes_state = isinstance(unet, UNet2DModel)
    packing = initial.config.pixel_packing if initial is not None else 1
    multiple = initial.unet_scale_factor if initial is not None else unet.scale_factor
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
    clear_adversary = operator_training = None
    if args.adversarial_weight > 0 or (args.haze_operator == "learned" and args.operator_steps > 0):
        clear_adversary = Adversary(accelerator, args.discriminator_features, learning_rate=2e-4)
    if args.operator_steps > 0:
        hazy_adversary = Adversary(accelerator, args.discriminator_features, learning_rate=2e-4)
        operator_training = OperatorTraining(accelerator, operator, hazy_adversary, clear_adversary)

    def restore(hazy: torch.Tensor, network: torch.nn.Module = unet) -> torch.Tensor:
        if not takes_state:
            return network(hazy)[-1].float()  # [B,1,h,w]
        inputs = torch.cat([torch.zeros_like(hazy), hazy], dim=1)  # [B,2,h,w]
        return predict_packed(lambda *each: network(*each).sample, inputs, hazy.new_zeros(len(hazy)), packing)

    def averaged_pipeline() -> HazeRegressionPipeline:
        sizes = [plane.pixel_size_um for plane in planes if plane.pixel_size_um is not None]
        pipeline = HazeRegressionPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            normalization=image_processor.normalization,
            input_mean=image_processor.input_mean,
            input_std=image_processor.input_std,
            target_mean=image_processor.target_mean,
            target_std=image_processor.target_std,
            pixel_packing=packing,
            training_patch_size=args.resolution,
            training_pixel_size={"min": min(sizes), "max": max(sizes)} if sizes else None,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def mean_errors(network: torch.nn.Module) -> dict[str, float]:
        """Mean errors of consistency and equivariance over `measured`."""
        errors = []
        for number, field in enumerate(measured):
            rows, columns = (side // multiple * multiple for side in field.shape[1:])
            rng = np.random.default_rng([args.seed, number])
            transform = draw_transform(args.transform, rng)
            field = field[None, :, :rows, :columns].to(accelerator.device)  # [1,1,h,w]
            errors.append(relative_errors(partial(restore, network=network), operator, field, transform, rng))
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
        "weights": [args.equivariance_weight, args.adversarial_weight],
        "patches per step": args.train_batch_size * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "seed": args.seed,
        "resolution": args.resolution,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "decay of averages": args.ema_decay,
    }
    step = resume(accelerator, ema, args.output_dir, args.resume_from_checkpoint, facts, args.max_train_steps)

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
            consistency, equivariance = eid_losses(restore, operator, batch["hazy"], transform, rng)
            loss = consistency + args.equivariance_weight * equivariance
            if args.adversarial_weight > 0:
                restored = restore(batch["hazy"])
                loss = loss + args.adversarial_weight * clear_adversary.generator_loss(restored)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            if args.adversarial_weight > 0:
                clear_adversary.step(batch["clear"], restored)
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
                logger.info("%s", json.dumps(record))
            losses = []
        if step % args.checkpointing_steps == 0 or last:
            save_checkpoint(accelerator, args.output_dir, step, args.checkpoints_total_limit, facts)
    progress_bar.close()

    pipeline = averaged_pipeline()
    if accelerator.is_main_process:
        save_component(operator, args.output_dir, "haze_operator")
        save_trained(pipeline, args.output_dir, {})
    accelerator.end_training()


if __name__ == "__main__":
    with errors_in_one_line():
        main()
