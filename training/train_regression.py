"""
Train a regression baseline of HazeMatching: a network predicts the clear image directly, with the mean squared error.
With `--adversarial_weight`, it also learns to mislead a discriminator, as ESRGAN does (see `adversarial.py`).

    accelerate launch training/train_regression.py --train_data_dir runs/train --validation_data_dir runs/validation \
        --output_dir runs/regression

Data and patches are those of `train_haze_matching.py`, without noise and time. By default, so is the network.
`--architecture` selects another one. MPRNet has an output after each stage, and MIMO-UNet one at each scale. The loss
is then the sum of the errors of all outputs, as in their papers, but with the mean squared error for all networks and
without the papers' terms of edges and frequencies. The result is a folder for
`HazeRegressionPipeline.from_pretrained`, which uses the last output.
"""

import argparse
import json
import logging
import math
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, set_seed
from adversarial import SMALLEST_PATCH, Adversary, content_loss
from data_arguments import add_data_arguments, add_training_arguments, check_arguments, load_data
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from haze_pipeline.data.patches import TrainingExamples, fit_image_processor
from haze_pipeline.loading import fetch_model
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.models.mprnet import MPRNet
from haze_pipeline.models.rcan import RCAN
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.models.restormer import Restormer
from haze_pipeline.models.rrdb import RRDBNet
from haze_pipeline.models.unet_haze_matching import build_unet, check_network
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.training_utils import (
    averaged_unet,
    clip_gradients,
    make_data_loader,
    read_log,
    resume,
    save_baseline,
    save_best,
    save_checkpoint,
    start_output,
    units_of,
    validate,
    write_log,
)
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.processes import PATIENCE, check_joined, meet_on_cpu


logger = get_logger(__name__)

# Classes of `--architecture`. All but the first map one hazy image to one clear image.
ARCHITECTURES = {
    "unet": UNet2DModel, "rcan": RCAN, "mprnet": MPRNet, "mimo-unet": MIMOUNet, "esrgan": RRDBNet,
    "residual-unet": ResidualUNet, "restormer": Restormer,
}  # fmt: skip


def parse_args():
    parser = argparse.ArgumentParser(description="Train a network that predicts clear images by regression.")
    add_data_arguments(parser)
    parser.add_argument(
        "--architecture", choices=list(ARCHITECTURES), default="unet",
        help="Network: that of HazeMatching, or a baseline of its paper. `restormer` needs the extra `baselines`.",
    )  # fmt: skip
    parser.add_argument(
        "--model_config_name_or_path",
        help="Configuration of a network of this architecture. The default is that of its paper.",
    )
    parser.add_argument(
        "--init_from",
        help="Pipeline whose network, normalisation and units the training starts from: a folder or a repository of "
        "the Hub.",
    )
    parser.add_argument(
        "--adversarial_weight", type=float, default=0.0,
        help="Weight of the adversarial loss; 0.005 in ESRGAN. If positive, a discriminator is trained as well, and "
        "errors of pixels and of the spectrum replace the mean squared error. Needs the extra `baselines`.",
    )  # fmt: skip
    parser.add_argument(
        "--discriminator_features", type=int, default=64, help="Channels of the discriminator's first convolution."
    )
    parser.add_argument(
        "--pixel_packing", type=int,
        help="Pack N × N pixels into the channels of one pixel of the U-Net, as in train_haze_matching.py. The "
        "default is 1, or the value of --init_from.",
    )  # fmt: skip
    add_training_arguments(parser)
    args = parser.parse_args()
    check_arguments(parser, args)
    if args.pixel_packing is not None and args.pixel_packing < 1:
        parser.error(f"--pixel_packing must be 1 or more pixels, got {args.pixel_packing}.")
    if (args.pixel_packing or 1) > 1 and args.architecture != "unet":
        parser.error(f"--pixel_packing is for the U-Net, not for --architecture {args.architecture}.")
    if args.init_from is not None and args.model_config_name_or_path is not None:
        parser.error("--init_from sets the network: remove --model_config_name_or_path.")
    if args.init_from is not None and args.normalization is not None:
        parser.error("--init_from sets the normalisation: remove --normalization.")
    if not 0 <= args.adversarial_weight < math.inf:
        parser.error(f"--adversarial_weight must be finite and not negative, got {args.adversarial_weight}.")
    if args.discriminator_features < 1:
        parser.error(f"--discriminator_features must be positive, got {args.discriminator_features}.")
    if args.adversarial_weight > 0 and args.resolution < SMALLEST_PATCH:
        parser.error(
            f"--adversarial_weight needs patches of at least {SMALLEST_PATCH} pixels, but --resolution is "
            f"{args.resolution}."
        )
    return args


def load_initial(args):
    """
    The pipeline of `--init_from`, or `None`.

    Raises:
        `ValueError`: If its network is not of the chosen architecture.
    """
    if args.init_from is None:
        return None
    initial = HazeRegressionPipeline.from_pretrained(fetch_model(args.init_from), low_cpu_mem_usage=False)
    architecture = ARCHITECTURES[args.architecture]
    if not isinstance(initial.unet, architecture):
        raise ValueError(
            f"--init_from {args.init_from} holds a {type(initial.unet).__name__}, but --architecture "
            f"{args.architecture} is a {architecture.__name__}: pass the architecture of this pipeline."
        )
    return initial


def main():
    args = parse_args()
    accelerator = Accelerator(
        cpu=meet_on_cpu(), mixed_precision=args.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],  # all processes wait for the main one to validate
    )  # fmt: skip
    check_joined(accelerator.num_processes)
    if args.adversarial_weight > 0 and accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"--adversarial_weight does not work with {accelerator.distributed_type}: choose a configuration of "
            "accelerate without it."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    if accelerator.is_main_process:
        start_output(args.output_dir, resume=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()

    initial, data = load_initial(args), load_data(args)
    if initial is not None:
        image_processor = initial.image_processor
    else:
        image_processor = fit_image_processor(args.normalization or "image", data.pairs)
    fields = data.normalize(image_processor)
    length = args.max_train_steps * args.train_batch_size * accelerator.num_processes
    # Times and noise are not used.
    dataset = TrainingExamples(
        fields, args.resolution, posterior_mean_share=1.0, t_sampling="grid", seed=args.seed, length=length
    )
    dataloader = make_data_loader(dataset, args.train_batch_size, args.dataloader_num_workers, accelerator.device)
    if data.validation:
        logger.info(
            "validation: %d pairs, %.2f dB before dehazing",
            len(data.validation),
            validate(lambda hazy: hazy, data.validation)[0],
        )

    architecture, takes_state = ARCHITECTURES[args.architecture], args.architecture == "unet"
    pixel_packing = args.pixel_packing or (1 if initial is None else initial.config.pixel_packing)
    if initial is not None:
        unet = initial.unet
    else:
        unet = build_unet(pixel_packing=pixel_packing) if takes_state else architecture()
    if args.model_config_name_or_path is not None:
        unet = architecture.from_config(architecture.load_config(args.model_config_name_or_path))
    if takes_state:
        unet.register_to_config(sample_size=args.resolution)
        check_network(unet, args.resolution, pixel_packing)
    elif args.resolution % unet.scale_factor:
        raise ValueError(
            f"--resolution must be a multiple of {unet.scale_factor} for this network, got {args.resolution}."
        )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerate advances the schedule once per process and step, so its lengths are steps × processes.
    make_schedule = partial(
        get_scheduler,
        "cosine",
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        unet, optimizer, dataloader, make_schedule(optimizer)
    )
    adversary, image_loss = None, F.mse_loss
    if args.adversarial_weight > 0:
        adversary = Adversary(accelerator, args.discriminator_features, args.learning_rate, make_schedule)
        image_loss = content_loss
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    accelerator.register_for_checkpointing(ema)

    def averaged_pipeline():
        pipeline = HazeRegressionPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            **units_of(image_processor),
            pixel_packing=pixel_packing,
            training_patch_size=args.resolution,
            training_pixel_size=data.pixel_size_span,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    # These facts must not change when the training is resumed.
    facts = {
        "script": "train_regression.py",
        **data.facts,
        "patches per step": args.train_batch_size * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "seed": args.seed,
        "resolution": args.resolution,
        "pixel packing": pixel_packing,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "adversarial weight": args.adversarial_weight,
        "decay of averages": args.ema_decay,
        "unit of hazy images": "that of clear ones",  # in earlier versions, their own standard deviation
        "target mean": image_processor.target_mean,
        "target deviation": image_processor.target_std,
    }
    step = resume(accelerator, ema, args.output_dir, args.resume_from_checkpoint, facts, args.max_train_steps)
    log = read_log(args.output_dir, step)

    progress_bar = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    started, losses, discriminator_losses = time.monotonic(), [], []
    for batch in accelerator.skip_first_batches(dataloader, step):
        # Train the network.
        if takes_state:
            inputs = torch.cat([torch.zeros_like(batch["hazy"]), batch["hazy"]], dim=1)  # [B,2,h,w]
            t = torch.zeros_like(batch["t"])
            predictions = [predict_packed(lambda *each: unet(*each).sample, inputs, t, pixel_packing)]  # [B,1,h,w]
        else:
            predictions = unet(batch["hazy"])  # the last one is [B,1,h,w], others may be smaller
        loss = 0.0
        for prediction in predictions:
            clear = F.interpolate(batch["clear"], size=prediction.shape[-2:])  # [B,1,h,w]
            loss = loss + image_loss(prediction.float(), clear)
        if adversary is not None:
            loss = loss + args.adversarial_weight * adversary.generator_loss(predictions[-1], batch["clear"])
        accelerator.backward(loss)
        clip_gradients(accelerator, unet, optimizer, args.max_grad_norm, step + 1)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        # Train the discriminator with the same predictions.
        if adversary is not None:
            discriminator_losses.append(adversary.step(predictions[-1], batch["clear"]))
        step += 1
        progress_bar.update()
        losses.append(loss.item())
        last = step == args.max_train_steps
        if data.validation and (step % args.validation_steps == 0 or last):
            pipeline = averaged_pipeline()
            if accelerator.is_main_process:
                score, _ = validate(lambda hazy, pipeline=pipeline: pipeline(hazy).prediction, data.validation)
                save_best(pipeline, args.output_dir, step, score)
                record = {"step": step, "seconds": time.monotonic() - started, "loss": float(np.mean(losses))}
                if adversary is not None:
                    record["discriminator_loss"] = float(np.mean(discriminator_losses))
                log.append({**record, "validation_psnr": score})
                write_log(args.output_dir, log)
                logger.info("%s", json.dumps(log[-1]))
            losses, discriminator_losses = [], []
        if step % args.checkpointing_steps == 0 or last:
            save_checkpoint(accelerator, args.output_dir, step, args.checkpoints_total_limit, facts)
    progress_bar.close()

    pipeline = averaged_pipeline()
    if accelerator.is_main_process:
        save_baseline(pipeline, args.output_dir, data.description, log)
    accelerator.end_training()


if __name__ == "__main__":
    with errors_in_one_line():
        main()
