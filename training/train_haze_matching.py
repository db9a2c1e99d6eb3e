"""
Train a HazeMatching pipeline on a folder of pairs, or on pairs that are simulated meanwhile.

    haze-pipeline simulate runs/train --num-images 1600 --size 192 --seed 1
    haze-pipeline simulate runs/validation --num-images 24 --size 192 --seed 2
    accelerate launch training/train_haze_matching.py --train_data_dir runs/train --validation_data_dir runs/validation \
        --output_dir runs/first

A folder of pairs holds `hazy/` and `clear/` with single-plane TIFFs of the same names. The result is a pipeline folder for
`HazeMatchingPipeline.from_pretrained`. `training/README.md` explains the choices.
"""

import argparse
import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.hub import stored_variant
from haze_pipeline.metrics import range_invariant_psnr
from haze_pipeline.simulation import pair_generator, simulate_pair
from haze_pipeline.training_examples import (
    FolderFields,
    SimulatedFields,
    TrainingExamples,
    fit_image_processor,
    read_pairs,
)


logger = get_logger(__name__)

# HazeMatching's network for patches of 128 px as a stock UNet2DModel: 3.7 million parameters.
DEFAULT_UNET = {
    "in_channels": 2,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (32, 32, 64, 96, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}


def parse_args():
    parser = argparse.ArgumentParser(description="Train a HazeMatching pipeline on a folder of pairs.")
    # Data.
    parser.add_argument("--train_data_dir", help="Folder with hazy/ and clear/ single-plane TIFFs.")
    parser.add_argument(
        "--simulate", action="store_true", help="Train on random specimens, simulated meanwhile, in place of a folder."
    )
    parser.add_argument("--simulation_seed", type=int, default=1, help="Series of the specimens; never a test's.")
    parser.add_argument("--simulation_size", type=int, default=256, help="Side of the simulated fields in pixels.")
    parser.add_argument(
        "--patches_per_field", type=int, default=256,
        help="Patches cut from a simulated field on average; more leave more time for training.",
    )  # fmt: skip
    parser.add_argument("--validation_data_dir", help="Another such folder, of other specimens.")
    parser.add_argument("--output_dir", required=True, help="Where checkpoints and the trained pipeline go.")
    parser.add_argument("--resolution", type=int, default=64, help="Side of the training patches in pixels.")
    parser.add_argument(
        "--normalization", choices=["image", "fixed"], default="image",
        help='"image": every image by its own statistics; "fixed": by those of the training set, as in the paper.',
    )  # fmt: skip
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="Processes that cut patches.")
    # Model.
    parser.add_argument(
        "--init_from",
        help="Pipeline folder whose network, and unless --normalization is fixed statistics, to start from.",
    )
    parser.add_argument(
        "--model_config_name_or_path", help="UNet2DModel config in place of the paper's 3.7-million-parameter network."
    )
    # Optimisation.
    parser.add_argument("--seed", type=int, default=0, help="Decides initial weights, patches, times and noises.")
    parser.add_argument("--train_batch_size", type=int, default=16, help="Patches per step and process.")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimiser step.")
    parser.add_argument("--max_train_steps", type=int, default=6000, help="Optimiser steps in all.")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="Peak learning rate of AdamW.")
    parser.add_argument("--lr_scheduler", default="cosine", help="Name of a schedule in diffusers.optimization.")
    parser.add_argument("--lr_warmup_steps", type=int, default=200, help="Steps of linear warm-up.")
    parser.add_argument("--weight_decay", type=float, default=1e-4, help="Weight decay of AdamW.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm.")
    parser.add_argument("--ema_decay", type=float, default=0.999, help="Decay of the averaged weights that are kept.")
    parser.add_argument(
        "--posterior_mean_share", type=float, default=0.0,
        help="Share of patches whose time is set to 0, which trains one-step posterior means.",
    )  # fmt: skip
    parser.add_argument(
        "--t_sampling", choices=["grid", "uniform", "logit_normal"], default="grid",
        help="Times of the other patches: the paper's 20 values, uniform, or logit-normal (Esser et al. 2024).",
    )  # fmt: skip
    parser.add_argument("--gradient_checkpointing", action="store_true", help="Compute more to hold less in memory.")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Overrides accelerate's setting.")
    # Checkpoints, validation, logs.
    parser.add_argument(
        "--checkpointing_steps", type=int, default=500, help="Steps between checkpoints to resume from."
    )
    parser.add_argument("--checkpoints_total_limit", type=int, default=2, help="Older checkpoints are deleted.")
    parser.add_argument("--resume_from_checkpoint", help='A "checkpoint-…" folder, or "latest".')
    parser.add_argument("--validation_steps", type=int, default=500, help="Steps between validations.")
    parser.add_argument("--report_to", default="tensorboard", help="Tracker known to accelerate, or none.")
    args = parser.parse_args()

    if args.simulate == (args.train_data_dir is not None):
        parser.error("Pass either --train_data_dir or --simulate.")
    if args.simulate and args.simulation_size < args.resolution:
        parser.error(f"--simulation_size must be at least --resolution {args.resolution}, got {args.simulation_size}.")
    if args.patches_per_field < 1:
        parser.error(f"--patches_per_field must be positive, got {args.patches_per_field}.")
    if args.resolution < 16:
        parser.error("--resolution must be at least 16.")
    if args.init_from is not None and args.model_config_name_or_path is not None:
        parser.error("--init_from brings its own network: leave out --model_config_name_or_path.")
    if args.init_from is not None and not Path(args.init_from, "model_index.json").is_file():
        parser.error(f"--init_from must be a pipeline folder, but there is no {args.init_from}/model_index.json.")
    if not 0 <= args.posterior_mean_share <= 1:
        parser.error("--posterior_mean_share must lie between 0 and 1.")
    return args


def validate(pipeline, hazy, clear):
    """Mean range-invariant PSNR in dB of one-step posterior means of 4 noises, through the real pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    scores = []
    for hazy_image, clear_image in zip(hazy, clear, strict=True):
        generator = torch.Generator().manual_seed(0)
        out = pipeline(hazy_image, num_inference_steps=1, ensemble_size=4, generator=generator)
        scores.append(range_invariant_psnr(clear_image, out.prediction))
    return float(np.mean(scores))


def main():
    args = parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=Path(args.output_dir, "logs")),
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    if accelerator.is_main_process:
        os.makedirs(args.output_dir, exist_ok=True)

    initial = None
    if args.init_from is not None:
        initial = HazeMatchingPipeline.from_pretrained(args.init_from, variant=stored_variant(args.init_from))

    # Data: all pairs of a folder are held in memory. Of simulated ones, the first tell the statistics.
    if args.simulate:
        pairs = [
            simulate_pair(args.simulation_size, pair_generator(args.simulation_seed, index))
            for index in range(SimulatedFields.WINDOW)
        ]
        hazy, clear = [pair.hazy.numpy() for pair in pairs], [pair.clear.numpy() for pair in pairs]
        pixel_sizes = [pair.parameters["pixel_size"] for pair in pairs]
    else:
        hazy, clear, pixel_sizes = read_pairs(args.train_data_dir)
    if initial is not None and initial.config.normalization == args.normalization == "image":
        image_processor = initial.image_processor  # whose units the network has learned
    else:
        image_processor = fit_image_processor(args.normalization, hazy, clear)
    if args.simulate:
        fields = SimulatedFields(
            image_processor, args.simulation_seed, args.simulation_size, args.patches_per_field, pairs
        )
    else:
        fields = FolderFields(hazy, clear, image_processor, args.resolution)
    examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    length = args.max_train_steps * examples_per_step
    dataset = TrainingExamples(fields, args.resolution, args.posterior_mean_share, args.t_sampling, args.seed, length)
    logger.info(
        "statistics of %d pairs: target mean %.4g, deviation %.4g",
        len(hazy),
        image_processor.target_mean,
        image_processor.target_std,
    )
    validation_hazy, validation_clear = [], []
    if args.validation_data_dir is not None:
        validation_hazy, validation_clear, _ = read_pairs(args.validation_data_dir)
        inputs = [range_invariant_psnr(c, h) for h, c in zip(validation_hazy, validation_clear, strict=True)]
        logger.info("validation: %d pairs, %.2f dB before dehazing", len(inputs), np.mean(inputs))
    # Not shuffled: the examples are random in themselves, and this order is the same after a resume.
    dataloader = torch.utils.data.DataLoader(
        dataset, batch_size=args.train_batch_size, num_workers=args.dataloader_num_workers, drop_last=True
    )

    # Model, averaged weights, optimiser, schedule.
    config = DEFAULT_UNET
    if args.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(args.model_config_name_or_path)
    unet = UNet2DModel.from_config({**config, "sample_size": args.resolution}) if initial is None else initial.unet
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    factor = 2 ** (len(unet.config.block_out_channels) - 1)
    if args.resolution % factor:
        raise ValueError(f"--resolution must be a multiple of {factor} for this network, got {args.resolution}.")
    logger.info(
        "%d parameters, %d process(es), %d patches per step",
        unet.num_parameters(),
        accelerator.num_processes,
        examples_per_step,
    )
    ema = EMAModel(
        unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4,
        model_cls=UNet2DModel, model_config=unet.config,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerate steps the schedule once per process, so that its lengths are counted in steps × processes.
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    if args.report_to != "none":
        accelerator.init_trackers("haze_matching", config=vars(args))

    def build_pipeline():
        return HazeMatchingPipeline(
            unet=accelerator.unwrap_model(unet),
            scheduler=FlowMatchODEScheduler(),
            normalization=image_processor.normalization,
            input_mean=image_processor.input_mean,
            input_std=image_processor.input_std,
            target_mean=image_processor.target_mean,
            target_std=image_processor.target_std,
            training_patch_size=args.resolution,
            training_pixel_size={"min": min(pixel_sizes), "max": max(pixel_sizes)} if pixel_sizes else None,
        )

    # Resume: weights, optimiser, schedule, averaged weights, random states; then skip the examples already seen.
    step, best = 0, -math.inf
    if args.resume_from_checkpoint is not None:
        checkpoint = Path(args.resume_from_checkpoint)
        if args.resume_from_checkpoint == "latest":
            checkpoints = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
            checkpoint = checkpoints[-1] if checkpoints else None
        if checkpoint is None:
            logger.info("no checkpoint in %s, starting from scratch", args.output_dir)
        else:
            accelerator.load_state(checkpoint)
            step = int(checkpoint.name.split("-")[1])
            if Path(args.output_dir, "best", "score.json").exists():
                best = json.loads(Path(args.output_dir, "best", "score.json").read_text())["validation_psnr"]
            logger.info("resumed from %s", checkpoint)
    batches = accelerator.skip_first_batches(dataloader, step * args.gradient_accumulation_steps)

    # Train.
    progress_bar = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    for batch in batches:
        with accelerator.accumulate(unet):
            t = batch["t"].view(-1, 1, 1, 1)
            latents = (1 - t) * batch["noise"] + t * batch["clear"]  # [B,1,h,w]
            velocity = unet(torch.cat([latents, batch["hazy"]], dim=1), batch["t"], return_dict=False)[0]  # [B,1,h,w]
            loss = F.mse_loss(velocity.float(), batch["clear"] - batch["noise"])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        ema.step(unet.parameters())
        step += 1
        progress_bar.update()
        last = step == args.max_train_steps
        accelerator.log({"loss": loss.item(), "learning_rate": lr_scheduler.get_last_lr()[0]}, step=step)

        if step % args.checkpointing_steps == 0 or last:
            # Under a temporary name until complete: a checkpoint that a kill cuts short must not be resumed from.
            checkpoint = Path(args.output_dir, f"checkpoint-{step}")
            incomplete = Path(args.output_dir, f"incomplete-checkpoint-{step}")
            accelerator.save_state(incomplete)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(checkpoint, ignore_errors=True)
                incomplete.rename(checkpoint)
                checkpoints = sorted(
                    Path(args.output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])
                )
                for old in checkpoints[: -args.checkpoints_total_limit]:
                    shutil.rmtree(old)

        if validation_hazy and accelerator.is_main_process and (step % args.validation_steps == 0 or last):
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            unet.eval()
            pipeline = build_pipeline()
            score = validate(pipeline, validation_hazy, validation_clear)
            accelerator.log({"validation_psnr": score}, step=step)
            logger.info("step %d: loss %.4f, validation %.2f dB", step, loss.item(), score)
            if score > best:
                best = score
                pipeline.save_pretrained(Path(args.output_dir, "best"))
                Path(args.output_dir, "best", "score.json").write_text(
                    json.dumps({"step": step, "validation_psnr": score})
                )
            ema.restore(unet.parameters())
            unet.train()

    # Keep the averaged weights.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(unet.parameters())
        build_pipeline().save_pretrained(args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
