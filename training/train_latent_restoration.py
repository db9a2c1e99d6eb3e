"""
Train the restoration of latents, and their learned degradation, on pinhole series:

    accelerate launch training/train_latent_restoration.py --train_data_dir runs/series --autoencoder runs/vae \
        --validation_data_dir runs/validation --output_dir runs/latent

`--autoencoder` is a hierarchical VAE from `train_hierarchical_vae.py --target input --pinhole_series`. Its weights
stay as they are. The first steps train the restoration R(zₜ, t) of the latents of all levels t with the mean squared
error. The last `--degradation_steps` train a pair of maps for every level: G from the estimate R(zₜ, t) of the clear
latents to zₜ₋₁, and F back. Their loss is

    GAN(G, D_Y) + GAN(F, D_X) + cycle weight · cycle + cosine weight · (1 - cosine similarity of G and zₜ₋₁)

with least-squares discriminators D_Y of hazier and D_X of clear latents, and the mean absolute error after a cycle
through both maps. The result is a folder for `LatentRestorationPipeline.from_pretrained`.

The iteration starts each step from estimates, but R was trained with true images. To train it further with states of
its own, for the variant `reprojection`:

    accelerate launch training/train_latent_restoration.py --train_data_dir runs/series --init_from runs/latent \
        --own_states 0.5 --degradation_steps 0 --output_dir runs/latent_own
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
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from data_arguments import (
    add_data_arguments,
    add_training_arguments,
    check_arguments,
    check_series_arguments,
    load_data,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from latent_adversaries import LatentAdversaries
from tqdm.auto import tqdm

from haze_pipeline.data.patches import TrainingExamples
from haze_pipeline.data.pinhole_series import center_levels, haze_fractions, join_series
from haze_pipeline.loading import load_pipeline
from haze_pipeline.models.latent_restoration import LatentRestoration, to_grid
from haze_pipeline.pipeline_latent_restoration import LatentRestorationPipeline
from haze_pipeline.training_utils import (
    averaged_unet,
    clip_gradients,
    make_data_loader,
    read_log,
    resume,
    save_baseline,
    save_checkpoint,
    start_output,
    units_of,
    validate,
    write_log,
)
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.processes import PATIENCE, check_joined, meet_on_cpu


logger = get_logger(__name__)

STATISTICS_FIELDS = 64  # clear images from which the unit of the latents is computed


def parse_args():
    parser = argparse.ArgumentParser(description="Train restoration and degradation in the latents of a VAE.")
    add_data_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument(
        "--autoencoder", help="VAE of pinhole series: a folder or a repository of the Hub. It sets the normalisation."
    )
    parser.add_argument(
        "--init_from",
        help="Pipeline whose training goes on, in place of --autoencoder: a folder or a repository of the Hub.",
    )
    parser.add_argument(
        "--own_states", type=float, default=0.0,
        help="Fraction of the steps that train R with states of the variant `reprojection` instead of true images.",
    )  # fmt: skip
    parser.add_argument(
        "--block_out_channels", type=int, nargs="+", default=[64, 96, 128], help="Channels of the U-Net that restores."
    )
    parser.add_argument("--layers_per_block", type=int, default=1, help="Its residual blocks per level.")
    parser.add_argument(
        "--degradation_features", type=int, default=64, help="Channels of the maps, and of the discriminators."
    )
    parser.add_argument(
        "--degradation_steps", type=int, default=2000,
        help="Number of the last steps, which train the degradation instead of the restoration.",
    )  # fmt: skip
    parser.add_argument("--cycle_weight", type=float, default=10.0, help="Weight of the error after a cycle.")
    parser.add_argument("--cosine_weight", type=float, default=1.0, help="Weight of the cosine similarity.")
    args = parser.parse_args()
    check_arguments(parser, args)
    args.pinhole_series = True
    check_series_arguments(parser, args)
    if args.normalization is not None:
        parser.error("--autoencoder sets the normalisation: remove --normalization.")
    if (args.autoencoder is None) == (args.init_from is None):
        parser.error("Pass one of --autoencoder and --init_from.")
    if not 0 <= args.own_states <= 1:
        parser.error(f"--own_states must lie between 0 and 1, got {args.own_states}.")
    fewest = 1 if args.init_from is None else 0
    if not fewest <= args.degradation_steps < args.max_train_steps:
        parser.error(
            f"--degradation_steps must lie between {fewest} and --max_train_steps - 1, got {args.degradation_steps} "
            f"of {args.max_train_steps}."
        )
    for name in ("cycle_weight", "cosine_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be finite and not negative, got {getattr(args, name)}.")
    return args


@torch.no_grad()
def fit_units(unet: LatentRestoration, clear_images: list[torch.Tensor]):
    """
    Set the mean and the standard deviation of latents to those of samples of the posteriors of clear images `[H, W]`.
    Latents that carry no information have narrow means, and thus hardly count in these units.
    """
    means, variances = [], []
    for image in clear_images:
        height, width = (side // unet.scale_factor * unet.scale_factor for side in image.shape)
        posteriors = unet.autoencoder.encode(image[None, None, :height, :width]).posteriors
        means.append(to_grid([each.mean for each in posteriors]).flatten(2)[0])  # [C,h·w]
        variances.append(to_grid([each.var for each in posteriors]).flatten(2)[0])
    mean, variance = torch.cat(means, dim=1), torch.cat(variances, dim=1)
    unet.latent_mean.copy_(mean.mean(dim=1)[:, None, None])
    unet.latent_std.copy_((mean.var(dim=1) + variance.mean(dim=1)).sqrt()[:, None, None])


def main():
    args = parse_args()
    accelerator = Accelerator(
        cpu=meet_on_cpu(), mixed_precision=args.mixed_precision,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),  # all processes wait for the main one to validate
            DistributedDataParallelKwargs(find_unused_parameters=True),  # a step trains one part of the network
        ],
    )  # fmt: skip
    check_joined(accelerator.num_processes)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    set_seed(args.seed)
    if accelerator.is_main_process:
        start_output(args.output_dir, resume=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()

    # Data, in the units of the autoencoder or of the pipeline to start from.
    if args.init_from is None:
        initial = load_pipeline(args.autoencoder, ("HDNPipeline",))
        if not initial.config.reconstructs_input:
            raise ValueError(
                f"--autoencoder {args.autoencoder} restores hazy images instead of reconstructing its input: train "
                "one with `train_hierarchical_vae.py --target input --pinhole_series`."
            )
    else:
        initial = load_pipeline(args.init_from, ("LatentRestorationPipeline",))
    data = load_data(args)
    data.pairs = join_series(data.pairs)
    num_levels, fractions = len(data.pairs[0].pinholes), haze_fractions(data.pairs)
    logger.info("haze of the pinholes: %s", ", ".join(f"{fraction:.2f}" for fraction in fractions))
    # Pairs of smaller pinholes are less hazy than the pipeline expects.
    data.validation = join_series(data.validation) if data.validation else []
    image_processor = initial.image_processor
    fields = data.normalize(image_processor)
    center_levels(fields.fields)

    # Model.
    if args.init_from is None:
        unet = LatentRestoration(
            autoencoder_config={name: value for name, value in initial.unet.config.items() if name[0] != "_"},
            num_levels=num_levels,
            block_out_channels=args.block_out_channels,
            layers_per_block=args.layers_per_block,
            degradation_features=args.degradation_features,
        )
        unet.autoencoder.load_state_dict(initial.unet.state_dict())
        fit_units(unet, [field[1] for field in fields.fields[:STATISTICS_FIELDS]])
    else:
        unet = initial.unet
        if unet.config.num_levels != num_levels:
            raise ValueError(
                f"--init_from {args.init_from} has {unet.config.num_levels} levels of haze, but the series have "
                f"{num_levels} pinholes: use the series that it was trained with."
            )
    if args.resolution % unet.scale_factor:
        raise ValueError(
            f"--resolution must be a multiple of {unet.scale_factor} for this network, got {args.resolution}."
        )
    num_channels = unet.latent_mean.shape[1]
    logger.info("%d parameters, %d process(es)", unet.num_parameters(), accelerator.num_processes)

    length = args.max_train_steps * args.train_batch_size * accelerator.num_processes
    dataset = TrainingExamples(
        fields, args.resolution, posterior_mean_share=1.0, t_sampling="grid", seed=args.seed, length=length,
        level_times=(num_levels, *range(1, num_levels)),
    )  # fmt: skip
    dataloader = make_data_loader(dataset, args.train_batch_size, args.dataloader_num_workers, accelerator.device)
    if data.validation:
        score = validate(lambda hazy: hazy, data.validation)[0]
        logger.info("validation: %d series, %.2f dB before the network", len(data.validation), score)

    # Optimisers, schedules, averaged weights. Both parts of the training have a schedule of their own.
    restoration_steps = args.max_train_steps - args.degradation_steps
    optimizers = [
        torch.optim.AdamW(part.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        for part in (unet.restoration, unet.degradation)
    ]
    # accelerate advances the schedule once per process and step, so its lengths are steps × processes.
    make_schedule = partial(get_scheduler, "cosine", num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes)
    schedules = [
        make_schedule(optimizer, num_training_steps=steps * accelerator.num_processes)
        for optimizer, steps in zip(optimizers, (restoration_steps, max(1, args.degradation_steps)), strict=True)
    ]
    unet, dataloader, *optimizers = accelerator.prepare(unet, dataloader, *optimizers)
    schedules = [accelerator.prepare(schedule) for schedule in schedules]
    network = accelerator.unwrap_model(unet)
    adversaries = LatentAdversaries(
        accelerator, num_channels, args.degradation_features, args.learning_rate,
        partial(make_schedule, num_training_steps=max(1, args.degradation_steps) * accelerator.num_processes),
    )  # fmt: skip
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=3 / 4)
    accelerator.register_for_checkpointing(ema)

    def averaged_pipeline():
        pipeline = LatentRestorationPipeline(
            unet=averaged_unet(accelerator, unet, ema),
            **units_of(image_processor),
            haze_fractions=fractions,
            training_patch_size=args.resolution,
            training_pixel_size=data.pixel_size_span,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    # These facts must not change when the training is resumed.
    facts = {
        "script": "train_latent_restoration.py",
        **data.facts,
        "patches per step": args.train_batch_size * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "seed": args.seed,
        "resolution": args.resolution,
        "steps of the restoration": restoration_steps,
        "own states": args.own_states,
        "weight of the cycle": args.cycle_weight,
        "weight of the cosine similarity": args.cosine_weight,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "decay of averages": args.ema_decay,
        "target mean": image_processor.target_mean,
        "target deviation": image_processor.target_std,
    }
    step = resume(accelerator, ema, args.output_dir, args.resume_from_checkpoint, facts, args.max_train_steps)
    log = read_log(args.output_dir, step)

    def own_state(batch, t: int) -> torch.Tensor:
        """Latents `[B, C, h, w]` of level t that the variant `reprojection` reaches from the haziest level."""
        hazy = batch["series"][:, -1:]  # [B,1,h,w]
        latents = network.encode(hazy)
        for level in range(num_levels, t, -1):
            estimate, fraction = network.decode(network.restore(latents, level)), fractions[level - 2]
            image = (1 - fraction) * estimate.float() + fraction * hazy
            # The pipeline centres whole fields. The mean of a patch is that of the true image.
            image += (batch["series"][:, [level - 2]] - image).mean(dim=(2, 3), keepdim=True)
            latents = network.encode(image)
        return latents

    def restoration_loss(batch) -> tuple[torch.Tensor, dict]:
        """
        Loss of R and its parts for the log: at the levels of the examples, or at the haziest level and one of the
        states that follow from it.
        """
        rng = np.random.default_rng([args.seed, step])
        with torch.no_grad(), accelerator.autocast():
            clear = network.encode(batch["clear"])  # [B,C,h,w]
            if rng.random() >= args.own_states:
                states, t = network.encode(batch["state"]), batch["t"]
            else:
                level = int(rng.integers(1, num_levels))
                states = torch.cat([own_state(batch, num_levels), own_state(batch, level)])  # [2B,C,h,w]
                t = torch.cat([torch.full_like(batch["t"], each) for each in (num_levels, level)])
                clear = torch.cat([clear, clear])
        (restored,) = unet(states, t)
        loss = F.mse_loss(restored.float(), clear)
        return loss, {"restoration": loss}

    def degradation_loss(batch, t: int) -> tuple[torch.Tensor, dict, tuple]:
        """Loss of the maps of level t, its parts, and what the discriminators learn from."""
        with torch.no_grad(), accelerator.autocast():
            hazy, hazier = (network.encode(batch["series"][:, [level - 1]]) for level in (t, t - 1))  # [B,C,h,w]
            clear = network.restore(hazy, t).float()
        degraded, cleared, cycled_clear, cycled_hazier = (each.float() for each in unet(hazier, t, clear))
        level = t / num_levels
        parts = {
            "adversarial": adversaries.generator_loss(degraded, cleared, level),
            "cycle": F.l1_loss(cycled_clear, clear) + F.l1_loss(cycled_hazier, hazier),
            "cosine": 1 - F.cosine_similarity(degraded, hazier, dim=1).mean(),
        }
        loss = parts["adversarial"] + args.cycle_weight * parts["cycle"] + args.cosine_weight * parts["cosine"]
        return loss, parts, ((hazier, degraded), (clear, cleared), level)

    # Train.
    progress_bar = tqdm(
        total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process, mininterval=10
    )
    unet.train()
    started, losses = time.monotonic(), []
    for batch in accelerator.skip_first_batches(dataloader, step):
        if step == restoration_steps:
            ema.copy_to(unet.parameters())  # the degradation learns from the averaged restoration
        stage = int(step >= restoration_steps)
        if stage == 0:
            loss, parts = restoration_loss(batch)
        else:
            level = int(np.random.default_rng([args.seed, step]).integers(2, num_levels + 1))
            loss, parts, judged = degradation_loss(batch, level)
        accelerator.backward(loss)
        clip_gradients(accelerator, unet, optimizers[stage], args.max_grad_norm, step + 1)
        optimizers[stage].step()
        schedules[stage].step()
        optimizers[stage].zero_grad()
        if stage == 1:
            parts["discriminators"] = adversaries.step(*judged)
        ema.step(unet.parameters())
        step += 1
        progress_bar.update()
        losses.append({name: accelerator.reduce(part.detach(), "mean").item() for name, part in parts.items()})
        last = step == args.max_train_steps
        if step % args.validation_steps == 0 or step in (restoration_steps, args.max_train_steps):
            names = losses[-1]
            row = {"step": step, "seconds": time.monotonic() - started}
            row |= {name: float(np.mean([each[name] for each in losses if name in each])) for name in names}
            pipeline = averaged_pipeline() if data.validation else None
            if accelerator.is_main_process:
                if data.validation:
                    variant = "direct" if stage == 1 else "reprojection" if args.own_states > 0 else "one_step"
                    row[f"validation_psnr_{variant}"] = validate(
                        lambda hazy, pipeline=pipeline, variant=variant: pipeline(hazy, variant).prediction,
                        data.validation,
                    )[0]
                log.append(row)
                write_log(args.output_dir, log)
                logger.info("%s", json.dumps(row))
            losses = []
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
