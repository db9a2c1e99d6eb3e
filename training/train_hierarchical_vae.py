"""
Train HDN, a hierarchical variational autoencoder (VAE) that encodes hazy images and decodes clear ones:

    accelerate launch training/train_hierarchical_vae.py --train_data_dir runs/train \
        --validation_data_dir runs/validation --output_dir runs/hdn

With `--target input`, the clear images are both input and target, which trains a VAE of clear images. With
`--pinhole_series` as well, so are the images of all pinholes; `train_latent_restoration.py` needs such a VAE.

Data and patches are those of `train_regression.py`. The loss is the negative evidence lower bound in nats per pixel,
as in HDN (Prakash et al. 2022, arXiv 2104.01374): the error of the reconstruction, and the Kullback–Leibler divergence
(KL) of every group of latents from its prior. `training_log.jsonl` holds the KL of every group: a group without KL
carries no information about the image (posterior collapse). The result is a folder for `HDNPipeline.from_pretrained`.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, set_seed
from data_arguments import (
    add_data_arguments,
    add_training_arguments,
    check_arguments,
    check_series_arguments,
    load_data,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from haze_pipeline.data.pairs import Pair
from haze_pipeline.data.patches import TrainingExamples, fit_image_processor
from haze_pipeline.data.pinhole_series import center_levels, join_series
from haze_pipeline.data.training_data import TrainingData
from haze_pipeline.models.autoencoder_hierarchical import (
    AutoencoderHierarchical,
    evidence_lower_bound,
    log_likelihood,
)
from haze_pipeline.pipeline_hdn import HDNPipeline
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

VALIDATION_SAMPLES = 4  # samples of an image whose mean is validated
# A single parameter of the size of a logarithm has a long way to go at the rate of the weights.
VARIANCE_LEARNING_RATE = 1e-2


def parse_args():
    parser = argparse.ArgumentParser(description="Train a hierarchical VAE that restores or reconstructs images.")
    add_data_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument(
        "--target", choices=["clear", "input"], default="clear",
        help="`clear`: encode the hazy image and decode the clear one. `input`: encode and decode the clear image.",
    )  # fmt: skip
    parser.add_argument(
        "--pinhole_series", action="store_true",
        help="With --target input: also encode and decode an image of a random pinhole for every clear one.",
    )  # fmt: skip
    parser.add_argument(
        "--model_config_name_or_path",
        help="Configuration of an AutoencoderHierarchical. The default is that of HDN, with 7.3 million parameters.",
    )
    parser.add_argument(
        "--free_bits", type=float, default=1.0,
        help="KL in nats per patch that every group of latents may have at no cost, which keeps it from collapsing.",
    )  # fmt: skip
    parser.add_argument(
        "--kl_weight", type=float, default=1.0,
        help="Weight of the KL (Higgins et al. 2017). Below 1, the latents say more about the image, and results are "
        "sharper and vary less.",
    )  # fmt: skip
    args = parser.parse_args()
    check_arguments(parser, args)
    if args.pinhole_series and args.target != "input":
        parser.error("--pinhole_series needs --target input.")
    check_series_arguments(parser, args)
    if not args.kl_weight > 0:
        parser.error(f"--kl_weight must be positive, got {args.kl_weight}.")
    if not args.free_bits >= 0:
        parser.error(f"--free_bits must not be negative, got {args.free_bits}.")
    return args


def clear_alone(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Pairs whose hazy image is replaced by the clear one."""
    return (replace(pair, hazy=pair.clear) for pair in pairs)


def clear_series(series: Callable[[int, int], Iterator[Pair]], start: int, step: int = 1) -> Iterator[Pair]:
    """The same of an endless series. A function of the module, which can be sent to worker processes."""
    return clear_alone(series(start, step))


def without_haze(data: TrainingData) -> TrainingData:
    """The same data with the clear image in place of the hazy one."""
    return replace(
        data,
        pairs=list(clear_alone(data.pairs)),
        series=data.series and partial(clear_series, data.series),
        validation=list(clear_alone(data.validation)),
    )


def warn_of_collapse(kl: np.ndarray, free_bits: float, first_step: int, step: int):
    """Warn of groups whose mean KL `[n]`, in nats per patch, is below the free bits."""
    collapsed = [str(group) for group, nats in enumerate(kl, start=1) if nats < free_bits]
    if collapsed:
        logger.warning(
            "group(s) %s (1 is the finest) had a KL below the free bits of %g nats per patch from step %d to %d, and "
            "carry next to no information",
            ", ".join(collapsed), free_bits, first_step, step,
        )  # fmt: skip


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

    # Model.
    if args.model_config_name_or_path is None:
        unet = AutoencoderHierarchical()
    else:
        unet = AutoencoderHierarchical.from_config(AutoencoderHierarchical.load_config(args.model_config_name_or_path))
    if args.resolution % unet.scale_factor:
        raise ValueError(
            f"--resolution must be a multiple of {unet.scale_factor} for this network, got {args.resolution}."
        )
    logger.info("%d parameters, %d process(es)", unet.num_parameters(), accelerator.num_processes)

    # Data. The noise of the latents belongs to the example, so that it is the same for any number of processes.
    data = load_data(args)
    if args.pinhole_series:
        data.pairs, data.validation = join_series(data.pairs), list(clear_alone(data.validation))
        num_levels = len(data.pairs[0].pinholes)
    elif args.target == "input":
        data = without_haze(data)
    image_processor = fit_image_processor(args.normalization or "image", data.pairs)
    fields = data.normalize(image_processor)
    if args.pinhole_series:
        center_levels(fields.fields)
    length = args.max_train_steps * args.train_batch_size * accelerator.num_processes
    dataset = TrainingExamples(
        fields, args.resolution, posterior_mean_share=1.0, t_sampling="grid", seed=args.seed, length=length,
        noise_channels=unet.noise_channels * (2 if args.pinhole_series else 1),
        level_times=range(num_levels) if args.pinhole_series else (),
    )  # fmt: skip
    dataloader = make_data_loader(dataset, args.train_batch_size, args.dataloader_num_workers, accelerator.device)
    if data.validation:
        score = validate(lambda hazy: hazy, data.validation)[0]
        logger.info("validation: %d pairs, %.2f dB before the network", len(data.validation), score)

    # Optimiser, schedule, averaged weights.
    weights = [parameter for name, parameter in unet.named_parameters() if name != "log_variance"]
    groups = [{"params": weights}, {"params": [unet.log_variance], "lr": VARIANCE_LEARNING_RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)
    # accelerate advances the schedule once per process and step, so its lengths are steps × processes.
    lr_scheduler = get_scheduler(
        "cosine",
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    unet, optimizer, dataloader, lr_scheduler = accelerator.prepare(unet, optimizer, dataloader, lr_scheduler)
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    accelerator.register_for_checkpointing(ema)

    def averaged_pipeline():
        pipeline = HDNPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            **units_of(image_processor),
            reconstructs_input=args.target == "input",
            training_patch_size=args.resolution,
            training_pixel_size=data.pixel_size_span,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    # These facts must not change when the training is resumed.
    facts = {
        "script": "train_hierarchical_vae.py",
        **data.facts,
        "target": args.target,
        "pinhole series": args.pinhole_series,
        "patches per step": args.train_batch_size * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "seed": args.seed,
        "resolution": args.resolution,
        "free bits": args.free_bits,
        "weight of the KL": args.kl_weight,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "decay of averages": args.ema_decay,
        "target mean": image_processor.target_mean,
        "target deviation": image_processor.target_std,
    }
    step = resume(accelerator, ema, args.output_dir, args.resume_from_checkpoint, facts, args.max_train_steps)
    log = read_log(args.output_dir, step)

    # Train.
    progress_bar = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    pixels = args.resolution**2
    started, first_step, losses, divergences = time.monotonic(), step + 1, [], []
    for batch in accelerator.skip_first_batches(dataloader, step):
        image, target, noise = (
            batch["hazy"] if args.target == "clear" else batch["clear"],
            batch["clear"],
            batch["noise"],
        )
        if args.pinhole_series:
            image = target = torch.cat([batch["clear"], batch["state"]])  # [2B,1,h,w]
            noise = torch.cat(noise.chunk(2, dim=1))  # [2B,C,h,w]
        output = unet(torch.cat([noise, image], dim=1))  # [B,C+1,h,w]
        reconstruction = log_likelihood(target, output.prediction.float(), output.log_variance)  # [B]
        bound = evidence_lower_bound(reconstruction, output.kl, args.free_bits, args.kl_weight)  # [B]
        loss = -bound.mean() / pixels
        accelerator.backward(loss)
        clip_gradients(accelerator, unet, optimizer, args.max_grad_norm, step + 1)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        step += 1
        progress_bar.update()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
        divergences.append(accelerator.reduce(output.kl.detach().mean(dim=0), "mean").cpu().numpy())  # [n]
        last = step == args.max_train_steps
        if step % args.validation_steps == 0 or last:
            kl = np.mean(divergences, axis=0)  # [n], nats per patch
            row = {
                "step": step,
                "seconds": time.monotonic() - started,
                "loss": float(np.mean(losses)),
                "standard_deviation": float(output.log_variance.detach().exp().sqrt()),
                "kl_per_pixel": (kl / pixels).tolist(),  # the finest group comes first
            }
            pipeline = averaged_pipeline() if data.validation else None
            if accelerator.is_main_process:
                if data.validation:
                    row["validation_psnr"] = validate(
                        lambda hazy, pipeline=pipeline: (
                            pipeline(hazy, VALIDATION_SAMPLES, generator=torch.Generator().manual_seed(0)).prediction
                        ),
                        data.validation,
                    )[0]
                    save_best(pipeline, args.output_dir, step, row["validation_psnr"])
                log.append(row)
                write_log(args.output_dir, log)
                logger.info("%s", json.dumps(row))
                warn_of_collapse(kl, args.free_bits, first_step, step)
            first_step, losses, divergences = step + 1, [], []
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
