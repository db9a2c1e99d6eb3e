"""
Train a HazeMatching pipeline on a folder of pairs, a dataset of the Hub, or pairs simulated during training.

    haze-pipeline simulate runs/train --num-images 1600 --size 192 --seed 1
    haze-pipeline simulate runs/validation --num-images 24 --size 192 --seed 2
    accelerate launch training/train_haze_matching.py --train_data_dir runs/train \
        --validation_data_dir runs/validation --output_dir runs/first

The result is a pipeline folder for `HazeMatchingPipeline.from_pretrained`. `docs/training.md` has recipes for
different kinds of data and explains the flags.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list, set_seed
from data_arguments import add_data_arguments, check_arguments, check_series_arguments, load_data
from diffusers import UNet2DModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from huggingface_hub import whoami
from huggingface_hub.utils import validate_repo_id
from torch.nn.functional import avg_pool2d
from tqdm.auto import tqdm

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.data.patches import TrainingExamples, fit_image_processor
from haze_pipeline.data.pinhole_series import haze_fractions, join_series
from haze_pipeline.loading import load_pipeline
from haze_pipeline.models.unet_haze_matching import add_gain, build_unet, check_network
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.reliability.out_of_domain import fit_domain
from haze_pipeline.sampling.interpolant import Interpolant
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.sharing.model_card import make_model_card, shareable_command
from haze_pipeline.sharing.publishing import push_pipeline
from haze_pipeline.training_utils import (
    averaged_unet,
    check_output,
    clip_gradients,
    make_data_loader,
    read_log,
    resume,
    save_best,
    save_checkpoint,
    save_trained,
    start_output,
    units_of,
    validate,
    write_log,
)
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.hub import create_repository
from haze_pipeline.utils.processes import PATIENCE, check_joined, meet_on_cpu


logger = get_logger(__name__)

DRY_RUN_STEPS = 3


def parse_args():
    parser = argparse.ArgumentParser(description="Train a HazeMatching pipeline.")
    add_data_arguments(parser)
    parser.add_argument("--output_dir", required=True, help="Folder for checkpoints and the trained pipeline.")
    parser.add_argument(
        "--normalization", choices=["image", "fixed"],
        help='"image" (default): each image is normalised by its own statistics; "fixed": by those of the training '
        "set, as in the paper. With --init_from, the normalisation is that of the pipeline.",
    )  # fmt: skip
    parser.add_argument(
        "--intensity_augmentation", type=float, default=0.0,
        help="Standard deviation of a random logarithmic gain of both images of a patch, and of a random offset of "
        "the hazy image in network units.",
    )  # fmt: skip
    parser.add_argument(
        "--weakened_haze", type=float, default=0.0,
        help="Fraction of patches whose haze is weakened, in part to zero, by mixing the hazy with the clear image. "
        "This and --added_haze need pairs with the same intensity unit in both images, such as simulated pairs.",
    )  # fmt: skip
    parser.add_argument(
        "--added_haze", type=float, default=0.0,
        help="Fraction of patches with added smooth haze, 20 to 100 pixels wide; none of them has weakened haze.",
    )  # fmt: skip
    # Model.
    parser.add_argument(
        "--init_from",
        help="Pipeline whose network and units the training starts from: a folder or a repository of the Hub.",
    )
    parser.add_argument(
        "--model_config_name_or_path",
        help="Configuration of a UNet2DModel. The default is the paper's network with 3.7 million parameters.",
    )
    parser.add_argument(
        "--pixel_packing", type=int,
        help="Pack N × N pixels into the channels of one pixel. The network then sees N times as far and is faster. "
        "The default is 1, or the value of --init_from.",
    )  # fmt: skip
    parser.add_argument(
        "--predict_gain", action="store_true",
        help="Let the network also predict a gain of the hazy image, so that in-focus signal passes unchanged. If the "
        "network of --init_from has no gain, one is added that starts at 0.",
    )  # fmt: skip
    # Path and prediction: those of HazeMatching by default.
    parser.add_argument(
        "--source", choices=["noise", "hazy"],
        help="Start of the path to the clear image: noise (HazeMatching), or the hazy image with noise (stochastic "
        "interpolants, InDI). The default is noise. With --init_from, this and the next three are those of the "
        "pipeline.",
    )  # fmt: skip
    parser.add_argument(
        "--source_noise", type=float,
        help="Standard deviation of the noise in the start, in network units. The default is 1 for --source noise, "
        "and 0 for --source hazy.",
    )  # fmt: skip
    parser.add_argument(
        "--prediction_type", choices=["velocity", "clear"],
        help="What the network predicts: the velocity (default) or the clear image (InDI, cold diffusion).",
    )  # fmt: skip
    parser.add_argument(
        "--unguided", action="store_true",
        help="Do not show the hazy image to the network, besides the state. Needs --source hazy.",
    )  # fmt: skip
    parser.add_argument(
        "--pinhole_series", action="store_true",
        help="The pairs are pinhole series, as of haze-pipeline simulate --pinholes. The network learns to predict "
        "the clear image from the image of any pinhole, at a time that is fitted to the haze of the series. Needs "
        "--source hazy, --prediction_type clear and --unguided.",
    )  # fmt: skip
    # Optimisation.
    parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, patches, times and noise.")
    parser.add_argument("--train_batch_size", type=int, default=16, help="Patches per step and process.")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimiser step.")
    parser.add_argument("--max_train_steps", type=int, default=6000, help="Total number of optimiser steps.")
    parser.add_argument(
        "--max_train_minutes", type=float,
        help="Write a checkpoint and stop after this many minutes; continue with --resume_from_checkpoint latest.",
    )  # fmt: skip
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="Peak learning rate of AdamW.")
    parser.add_argument(
        "--lr_scheduler", default="cosine", help="Learning-rate schedule of diffusers.optimization.",
        # The piecewise constant schedule needs rules, for which there is no flag.
        choices=[each.value for each in SchedulerType if each != SchedulerType.PIECEWISE_CONSTANT],
    )  # fmt: skip
    parser.add_argument("--lr_warmup_steps", type=int, default=200, help="Steps of linear warm-up.")
    parser.add_argument("--weight_decay", type=float, default=1e-4, help="Weight decay of AdamW.")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="Norm to which gradients are clipped.")
    parser.add_argument("--ema_decay", type=float, default=0.999, help="Decay of the averaged weights that are saved.")
    parser.add_argument(
        "--posterior_mean_share", type=float, default=0.0,
        help="Fraction of patches at time 0 that start from noise, which trains one-step posterior means.",
    )  # fmt: skip
    parser.add_argument(
        "--zero_state_share", type=float,
        help="Fraction of patches at time 0 whose state is zero instead of noise. If positive, one-step posterior "
        "means need no noise. The default is 0, or 0.5 if the pipeline of --init_from was trained with such patches.",
    )  # fmt: skip
    parser.add_argument(
        "--t_sampling", choices=["grid", "uniform", "logit_normal"], default="grid",
        help="Times of the other patches: the paper's grid of 20, uniform, or logit-normal (Esser et al. 2024).",
    )  # fmt: skip
    parser.add_argument(
        "--noise_corner_frequency", type=float,
        help="Corner frequency c of the noise in cycles per pixel: its power spectrum is 1 + (c / f)². Samples then "
        "differ where a smooth background may be haze or signal; 0.2 was tried. The default is 0 (the paper's white "
        "noise), or the value of --init_from.",
    )  # fmt: skip
    parser.add_argument(
        "--mean_error_weight", type=float, default=1.0,
        help="Weight of a patch's mean error in the loss. Below 1, offsets count less, as in metrics that fit an "
        "offset.",
    )  # fmt: skip
    parser.add_argument(
        "--balanced_loss", action="store_true",
        help="Weight the squared error of a pixel by 1 / (0.3 + local intensity) / (0.3 + standard deviation of the "
        "patch), both of the hazy image, so that bright structures and patches do not dominate. The weights depend on "
        "the input alone, so the posterior mean does not change.",
    )  # fmt: skip
    parser.add_argument(
        "--relative_loss", action="store_true",
        help="Divide the squared error of a patch by 0.05 + the variance of its haze, the difference between its hazy "
        "and its clear image in network units, so that patches with little haze count as much as hazy ones. The "
        "posterior mean then leans towards less haze.",
    )  # fmt: skip
    parser.add_argument("--gradient_checkpointing", action="store_true", help="Save memory, but compute more.")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Overrides accelerate's setting.")
    # Checkpoints, validation, logs, sharing.
    parser.add_argument(
        "--checkpointing_steps", type=int, default=500, help="Steps between checkpoints to resume from."
    )
    parser.add_argument("--checkpoints_total_limit", type=int, default=2, help="Number of checkpoints to keep.")
    parser.add_argument("--resume_from_checkpoint", help='A folder "checkpoint-…", or "latest".')
    parser.add_argument("--validation_steps", type=int, default=500, help="Steps between validations.")
    parser.add_argument("--num_validation_images", type=int, default=4, help="Number of images shown in the tracker.")
    parser.add_argument("--report_to", default="tensorboard", help="Tracker: tensorboard, wandb, trackio, …, or none.")
    parser.add_argument(
        "--dry_run", action="store_true",
        help="Train three steps, validate, write all outputs once, estimate the time of the training, and delete the "
        "outputs.",
    )  # fmt: skip
    parser.add_argument("--push_to_hub", action="store_true", help="Upload the trained pipeline to the Hub.")
    parser.add_argument("--hub_model_id", help="Repository for --push_to_hub, such as lab/microscope.")
    parser.add_argument("--hub_private_repo", action="store_true", help="Make the new repository private.")
    parser.add_argument("--license", help="Licence of the trained pipeline, such as apache-2.0, for its card.")
    args = parser.parse_args()

    check_arguments(parser, args)
    if args.init_from is not None and args.model_config_name_or_path is not None:
        parser.error("--init_from sets the network: remove --model_config_name_or_path.")
    if args.init_from is not None and not Path(args.init_from, "model_index.json").is_file():
        try:
            validate_repo_id(args.init_from)
        except ValueError:
            parser.error(f"--init_from must be a pipeline folder or a repository of the Hub, got {args.init_from}.")
    shares = (args.posterior_mean_share, args.zero_state_share or 0.0)
    if min(shares) < 0 or sum(shares) > 1:
        parser.error("--posterior_mean_share and --zero_state_share must be fractions that sum to 1 at most.")
    if args.max_train_minutes is not None and not args.max_train_minutes > 0:
        parser.error(f"--max_train_minutes must be positive, got {args.max_train_minutes}.")
    if args.pixel_packing is not None and args.pixel_packing < 1:
        parser.error(f"--pixel_packing must be 1 or more pixels, got {args.pixel_packing}.")
    if args.noise_corner_frequency is not None and not 0 <= args.noise_corner_frequency < math.inf:
        parser.error(
            f"--noise_corner_frequency must be 0 or more cycles per pixel, got {args.noise_corner_frequency}."
        )
    if args.intensity_augmentation < 0:
        parser.error(f"--intensity_augmentation must not be negative, got {args.intensity_augmentation}.")
    if not 0 <= min(args.weakened_haze, args.added_haze) <= args.weakened_haze + args.added_haze <= 1:
        parser.error("--weakened_haze and --added_haze must be fractions that sum to 1 at most.")
    if args.init_from is not None:
        for name in ("source", "source_noise", "prediction_type", "unguided"):
            if getattr(args, name):
                parser.error(f"--init_from sets the path and the prediction: remove --{name}.")
    if args.unguided and args.source != "hazy":
        parser.error("--unguided needs --source hazy: without it, the network does not see the hazy image.")
    path = (args.source, args.source_noise or 0.0, args.prediction_type, args.unguided)
    if args.pinhole_series and (args.init_from or path != ("hazy", 0.0, "clear", True)):
        parser.error("--pinhole_series needs --source hazy, --prediction_type clear and --unguided, without noise.")
    check_series_arguments(parser, args)
    try:
        choose_interpolant(args)
    except ValueError as error:
        parser.error(str(error).replace("`source_noise`", "--source_noise").replace("`source`", "--source"))
    if not 0 <= args.mean_error_weight < math.inf:
        parser.error(f"--mean_error_weight must be finite and not negative, got {args.mean_error_weight}.")
    if args.push_to_hub != (args.hub_model_id is not None):
        parser.error("--push_to_hub and --hub_model_id belong together: pass both or neither.")
    if args.init_from is not None and args.normalization is not None:
        parser.error("--init_from sets the normalisation: remove --normalization.")
    return args


def choose_interpolant(args):
    source = args.source or "noise"
    source_noise = (1.0 if source == "noise" else 0.0) if args.source_noise is None else args.source_noise
    return Interpolant(source, source_noise, args.prediction_type or "velocity", not args.unguided)


def balance(hazy):
    """
    Weights `[B, 1, h, w]` of the squared errors. They fall with the local intensity of a pixel above the darkest part
    of its patch, and with the contrast of the patch. Errors grow with both; the weights let dim regions contribute to
    the loss as well.
    """
    intensity = avg_pool2d(hazy, 9, stride=1, padding=4, count_include_pad=False)
    intensity = intensity - intensity.amin(dim=(2, 3), keepdim=True)
    return 1 / ((0.3 + intensity) * (0.3 + hazy.std(dim=(2, 3), keepdim=True)))


def relative_weight(hazy, clear):
    """
    Weights `[B, 1, 1, 1]` of patches. They are about inverse to the variance of the haze, so that the loss changes
    with the errors as their decibels do.
    """
    return 0.1 / (0.05 + (hazy - clear).var(dim=(2, 3), keepdim=True))


def predict_mean(pipeline, hazy):
    """Posterior mean `[H, W]` of the pipeline with the preset `fast`."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    members = choose_members(pipeline, Preset.fast)
    return pipeline(hazy, num_inference_steps=1, ensemble_size=members, generator=generator).prediction


def log_images(accelerator, pipeline, pairs, means, step):
    """Send hazy, dehazed and clear images side by side, each with its own contrast, to trackers that show images."""
    picture = pipeline.image_processor.visualize_intensity
    rows = [
        np.concatenate([np.asarray(picture(image)) for image in (pair.hazy, mean, pair.clear)], axis=1)
        for pair, mean in zip(pairs, means, strict=True)
    ]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for number, row in enumerate(rows):
                tracker.writer.add_image(f"validation/{number}", row, step, dataformats="HW")
        elif tracker.name == "wandb":
            tracker.log_images({"validation": rows}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({f"validation/{number}": trackio.Image(row) for number, row in enumerate(rows)}, step=step)


def main():
    args = parse_args()
    command = shareable_command(["accelerate", "launch", *sys.argv])
    accelerator = Accelerator(
        cpu=meet_on_cpu(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=Path(args.output_dir, "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],  # all processes wait for the main one to validate
    )
    check_joined(accelerator.num_processes)
    if args.report_to != "none" and not accelerator.log_with:
        raise ValueError(
            f"--report_to {args.report_to} needs a package that is not installed: install it or pass --report_to none."
        )
    if accelerator.gradient_accumulation_steps != args.gradient_accumulation_steps:  # DeepSpeed's file overrides it
        raise ValueError(
            f"accelerate's configuration has gradient_accumulation_steps {accelerator.gradient_accumulation_steps}, "
            f"but --gradient_accumulation_steps is {args.gradient_accumulation_steps}: pass the same number."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    resumes = args.resume_from_checkpoint is not None
    if not args.dry_run:
        if accelerator.is_main_process:
            if args.push_to_hub:  # before the training, so that a refusal by the Hub is seen at once
                args.hub_model_id = create_repository(
                    args.hub_model_id, "model", args.hub_private_repo or None
                ).repo_id
            start_output(args.output_dir, resumes)
        accelerator.wait_for_everyone()
        train(args, command, accelerator, Path(args.output_dir))
        return

    # All processes, on all machines, write to a temporary folder that the main process makes beside the output.
    folder = [None]
    if accelerator.is_main_process:
        if args.push_to_hub:
            whoami()
        check_output(args.output_dir, resumes)
        existing = next(parent for parent in Path(args.output_dir).absolute().parents if parent.is_dir())
        folder = [tempfile.mkdtemp(prefix="dry-run-", dir=existing)]
    broadcast_object_list(folder)
    try:
        seconds_per_step, seconds_per_validation = train(args, command, accelerator, Path(folder[0]))
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder[0])
    steps, validations = args.max_train_steps, args.max_train_steps // args.validation_steps
    logger.info(
        "dry run: everything works; %.2f s per step and %.0f s per validation make %.2f hours for %d steps",
        seconds_per_step,
        seconds_per_validation,
        (steps * seconds_per_step + validations * seconds_per_validation) / 3600,
        steps,
    )


def train(args, command, accelerator, output_dir):
    """Train and write all outputs to `output_dir`. Returns the seconds per step and per validation."""
    max_train_steps = DRY_RUN_STEPS if args.dry_run else args.max_train_steps

    # Data, in the units of the initial pipeline or, without one, in units computed from the data.
    initial = None if args.init_from is None else load_pipeline(args.init_from)
    data = load_data(args)
    sigmas = None  # the straight path
    if args.pinhole_series:
        data.pairs = join_series(data.pairs)
        data.validation = join_series(data.validation) if data.validation else []
        sigmas = haze_fractions(data.pairs)[::-1]
        logger.info("haze of the pinholes, from the largest: %s", ", ".join(f"{sigma:.2f}" for sigma in sigmas))
    if initial is not None:
        image_processor = initial.image_processor
    else:
        image_processor = fit_image_processor(args.normalization or "image", data.pairs)
    logger.info(
        "statistics of %d pairs: target mean %.4g, standard deviation %.4g",
        len(data.pairs),
        image_processor.target_mean,
        image_processor.target_std,
    )
    domain = fit_domain([pair.hazy for pair in data.pairs])
    fields = data.normalize(image_processor)
    validation_input = validate(lambda hazy: hazy, data.validation)[0] if data.validation else None
    if data.validation:
        logger.info("validation: %d pairs, %.2f dB before dehazing", len(data.validation), validation_input)
    interpolant = choose_interpolant(args) if initial is None else initial.interpolant
    zero_state_share = args.zero_state_share
    if zero_state_share is None:
        zero_state_share = 0.5 if initial is not None and initial.config.zero_state_mean else 0.0
    if args.posterior_mean_share + zero_state_share > 1:
        raise ValueError(
            f"--posterior_mean_share {args.posterior_mean_share} and the --zero_state_share {zero_state_share} of "
            f"{args.init_from} sum to more than 1: pass --posterior_mean_share 0.5 or less, or --zero_state_share."
        )
    noise_corner_frequency = args.noise_corner_frequency
    if noise_corner_frequency is None:
        noise_corner_frequency = 0.0 if initial is None else initial.config.noise_corner_frequency
    examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    dataset = TrainingExamples(
        fields, args.resolution, posterior_mean_share=args.posterior_mean_share, zero_state_share=zero_state_share,
        t_sampling=args.t_sampling, seed=args.seed, length=max_train_steps * examples_per_step,
        intensity_augmentation=args.intensity_augmentation, weakened_haze=args.weakened_haze,
        added_haze=args.added_haze, noise_corner_frequency=noise_corner_frequency,
        level_times=[1.0 - sigmas[0], *(1 - sigma for sigma in sigmas[:0:-1])] if sigmas else (),
    )  # fmt: skip
    dataloader = make_data_loader(dataset, args.train_batch_size, args.dataloader_num_workers, accelerator.device)

    # Model, averaged weights, optimiser, schedule.
    pixel_packing = args.pixel_packing or (1 if initial is None else initial.config.pixel_packing)
    if initial is not None:
        unet = initial.unet
    elif args.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(args.model_config_name_or_path)
        unet = UNet2DModel.from_config({**config, "sample_size": args.resolution})
    else:
        unet = build_unet(pixel_packing=pixel_packing, guided=interpolant.guided)
        unet.register_to_config(sample_size=args.resolution)
    if args.predict_gain and unet.config.out_channels == pixel_packing**2:
        add_gain(unet)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    check_network(unet, args.resolution, pixel_packing, interpolant.guided)
    logger.info(
        "%d parameters, %d process(es), %d patches per step",
        unet.num_parameters(),
        accelerator.num_processes,
        examples_per_step,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerate advances the schedule once per process and step, so its lengths are steps × processes.
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=max_train_steps * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    # Average the prepared network, whose parameters may be sharded.
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    accelerator.register_for_checkpointing(ema)
    if accelerator.log_with and not args.dry_run:
        accelerator.init_trackers("haze_matching", config={name: str(value) for name, value in vars(args).items()})

    def averaged_pipeline():
        return HazeMatchingPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            scheduler=FlowMatchODEScheduler(solver="cold", sigmas=sigmas) if sigmas else FlowMatchODEScheduler(),
            **units_of(image_processor),
            domain=domain,
            noise_corner_frequency=noise_corner_frequency,
            pixel_packing=pixel_packing,
            zero_state_mean=zero_state_share > 0,
            **asdict(interpolant),
            default_num_inference_steps=len(sigmas) if sigmas else 19,
            training_patch_size=args.resolution,
            training_pixel_size=data.pixel_size_span,
        )

    # These facts must not change when the training is resumed.
    facts = {
        "script": "train_haze_matching.py",
        **data.facts,
        "patches per step": examples_per_step,
        "processes": accelerator.num_processes,
        "gradient accumulation": args.gradient_accumulation_steps,
        "seed": args.seed,
        "resolution": args.resolution,
        "noise corner frequency": noise_corner_frequency,
        "pixel packing": pixel_packing,
        **asdict(interpolant),
        "haze of pinholes": sigmas and [round(sigma, 6) for sigma in sigmas],
        "predicts gain": args.predict_gain,
        "schedule": f"{args.lr_scheduler} after {args.lr_warmup_steps} steps",
        "weakened haze": args.weakened_haze,
        "added haze": args.added_haze,
        "intensity augmentation": args.intensity_augmentation,
        "posterior mean share": args.posterior_mean_share,
        "zero state share": zero_state_share,
        "t sampling": args.t_sampling,
        "balanced loss": args.balanced_loss,
        "relative loss": args.relative_loss,
        "mean error weight": args.mean_error_weight,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "decay of averages": args.ema_decay,
        "normalization": image_processor.normalization,
        "unit of hazy images": "that of clear ones",  # in earlier versions, their own standard deviation
        "target mean": image_processor.target_mean,
        "target deviation": image_processor.target_std,
    }

    # Resume weights, optimiser, schedule, averaged weights and random states, and skip the examples already used.
    checkpoint = None if args.dry_run else args.resume_from_checkpoint
    step = resume(accelerator, ema, output_dir, checkpoint, facts, max_train_steps)
    log = read_log(output_dir, step)
    batches = accelerator.skip_first_batches(dataloader, step * args.gradient_accumulation_steps)

    # Train.
    progress_bar = tqdm(
        total=max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    elapsed_file = output_dir / f"checkpoint-{step}" / "seconds.json"
    seconds_before = (
        json.loads(elapsed_file.read_text(encoding="utf-8")) if step > 0 and elapsed_file.is_file() else 0.0
    )
    started = time.monotonic()
    step_loss, losses = 0.0, []
    seconds_per_step = seconds_per_validation = 0.0
    most_seconds = 60 * args.max_train_minutes if args.max_train_minutes and not args.dry_run else math.inf
    for batch in batches:
        with accelerator.accumulate(unet):
            t = batch["t"].view(-1, 1, 1, 1)
            start = interpolant.start(batch["noise"], batch["hazy"])  # [B,1,h,w]
            latents = batch["state"] if sigmas else (1 - t) * start + t * batch["clear"]  # [B,1,h,w]
            inputs = interpolant.network_input(latents, batch["hazy"])  # [B,1 or 2,h,w]
            prediction = predict_packed(lambda *each: unet(*each).sample, inputs, batch["t"], pixel_packing)
            error = prediction - interpolant.target(start, batch["clear"])  # [B,1,h,w]
            weight = balance(batch["hazy"]) if args.balanced_loss else torch.ones_like(error)  # [B,1,h,w]
            if args.relative_loss:
                weight = weight * relative_weight(batch["hazy"], batch["clear"])
            mean_error = (weight * error).mean(dim=(1, 2, 3)) / weight.mean(dim=(1, 2, 3))
            mean_part = weight.mean(dim=(1, 2, 3)) * mean_error.square()  # part of the loss due to the mean error
            loss = (weight * error.square()).mean() + (args.mean_error_weight - 1) * mean_part.mean()
            step_loss += accelerator.reduce(loss.detach(), "mean").item() / args.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                clip_gradients(accelerator, unet, optimizer, args.max_grad_norm, step + 1)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        ema.step(unet.parameters())
        step += 1
        progress_bar.update()
        accelerator.log({"loss": step_loss, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=step)
        losses.append(step_loss)
        step_loss = 0.0
        last = step == max_train_steps
        if args.dry_run and step == 1:
            started = time.monotonic()  # the first step also allocates memory
        # Only dry runs, which start at step 0, use this number.
        seconds_per_step = (time.monotonic() - started) / max(1, step - 1)

        validation_started = time.monotonic()
        if data.validation and (step % args.validation_steps == 0 or last):
            pipeline = averaged_pipeline()
            if accelerator.is_main_process:
                score, means = validate(partial(predict_mean, pipeline), data.validation)
                accelerator.log({"validation_psnr": score}, step=step)
                shown = slice(args.num_validation_images)
                log_images(accelerator, pipeline, data.validation[shown], means[shown], step)
                save_best(pipeline, output_dir, step, score)
                seconds = seconds_before + time.monotonic() - started
                log.append(
                    {"step": step, "seconds": seconds, "loss": float(np.mean(losses)), "validation_psnr": score}
                )
                write_log(output_dir, log)
                logger.info("step %d: loss %.4f, validation %.2f dB", step, log[-1]["loss"], score)
            losses = []
        seconds_per_validation = time.monotonic() - validation_started
        # The mean over the processes decides, so that all of them stop at the same step.
        seconds = torch.tensor(time.monotonic() - started, device=accelerator.device)
        is_out_of_time = not last and accelerator.reduce(seconds, "mean").item() > most_seconds
        if step % args.checkpointing_steps == 0 or last or is_out_of_time:
            save_checkpoint(accelerator, output_dir, step, args.checkpoints_total_limit, facts)
            if accelerator.is_main_process:
                seconds = seconds_before + time.monotonic() - started
                (output_dir / f"checkpoint-{step}" / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
        if is_out_of_time:
            logger.info(
                "stopped after %d of %d steps; continue with --resume_from_checkpoint latest", step, max_train_steps
            )
            accelerator.end_training()
            return seconds_per_step, seconds_per_validation
    progress_bar.close()

    # Save the averaged weights with a model card.
    pipeline = averaged_pipeline()
    if accelerator.is_main_process:
        threads = torch.get_num_threads()
        # Facts for the card, also when the folder is uploaded later.
        training = {
            "data": data.description,
            "command": command,
            "seed": args.seed,
            "dataset_name": args.dataset_name if args.dataset_name and not os.path.isdir(args.dataset_name) else None,
            "base_model": args.init_from
            and (Path(args.init_from).name if os.path.isdir(args.init_from) else args.init_from),
            "license": args.license,
            "validation_pairs": len(data.validation),
            "validation_input": validation_input,
            "processes": accelerator.num_processes,
            "examples_per_step": examples_per_step,
            "device": torch.cuda.get_device_name(accelerator.device)
            if accelerator.device.type == "cuda"
            else f"a processor with {threads} {'thread' if threads == 1 else 'threads'} a process",
            "versions": {name: version(name) for name in ("haze-pipeline", "diffusers", "torch")},
            "log": log,
        }
        record, best = json.dumps(training, indent=2) + "\n", output_dir / "best"
        if best.is_dir():
            with replace_when_complete(best / "training.json") as temporary:
                temporary.write_text(record, encoding="utf-8")
        title = args.hub_model_id or Path(args.output_dir).name
        card = make_model_card(pipeline, title, {"training": training}, args.license)
        save_trained(pipeline, output_dir, {"training.json": record, "README.md": str(card)})
        if args.push_to_hub and not args.dry_run:
            url = push_pipeline(pipeline, args.hub_model_id, folder=output_dir)
            logger.info("uploaded to %s", url)
    accelerator.end_training()
    return seconds_per_step, seconds_per_validation


if __name__ == "__main__":
    with errors_in_one_line():
        main()
