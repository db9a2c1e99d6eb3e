"""Command-line arguments that training scripts share."""

import argparse
from pathlib import Path

from haze_pipeline.data.training_data import TrainingData, load_training_data


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that [`load_data`] reads, and the number of processes that cut patches."""
    parser.add_argument(
        "--train_data_dir", type=Path,
        help="Folder with TIFFs of the same names in hazy/ and clear/, or a published HazeMatching folder, such as "
        "zebrafish.",
    )  # fmt: skip
    parser.add_argument(
        "--dataset_name",
        help="Dataset: a repository of the Hub or a local folder. It has the columns `hazy` and `clear`, or the "
        "column `image` with haze-free specimens, from which training simulates pairs.",
    )
    parser.add_argument("--dataset_config_name", help="Configuration of the dataset, if it has several.")
    parser.add_argument(
        "--streaming", action="store_true", help="Read the dataset during training instead of holding it in memory."
    )
    parser.add_argument(
        "--simulate", action="store_true", help="Simulate pairs of random specimens during training; no data needed."
    )
    parser.add_argument(
        "--simulated_fraction", type=float, default=0.0,
        help="With a dataset of haze-free specimens: fraction of pairs that show random specimens instead.",
    )  # fmt: skip
    parser.add_argument(
        "--simulation_seed", type=int, default=1, help="Seed of the simulated pairs; never use the seed of a test set."
    )
    parser.add_argument("--simulation_size", type=int, default=256, help="Side of the simulated images in pixels.")
    parser.add_argument(
        "--patches_per_field", type=int, default=512,
        help="Mean number of patches cut from each simulated or streamed image. With a larger number, training waits "
        "less for new images.",
    )  # fmt: skip
    parser.add_argument(
        "--validation_data_dir", type=Path,
        help="Folder laid out as --train_data_dir, with other specimens. Default: the split `validation` of the "
        "training data, if there is one.",
    )  # fmt: skip
    parser.add_argument("--max_validation_pairs", type=int, default=64, help="Use at most this many validation pairs.")
    parser.add_argument("--resolution", type=int, default=64, help="Side of the training patches in pixels.")
    parser.add_argument(
        "--dataloader_num_workers", type=int, default=0,
        help="Number of processes that cut patches. They share the work of simulating images.",
    )  # fmt: skip


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the optimisation, validation and checkpoints of `train_regression.py` and others."""
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Folder for checkpoints and the trained pipeline."
    )
    parser.add_argument(
        "--normalization", choices=["image", "fixed"],
        help='"image" (default): each image is normalised by its own statistics; "fixed": by those of the training '
        "set.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights and patches.")
    parser.add_argument("--train_batch_size", type=int, default=16, help="Patches per step and process.")
    parser.add_argument("--max_train_steps", type=int, default=6000, help="Total number of optimiser steps.")
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


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with an error if a training with these arguments is impossible, before any data are read."""
    if sum([args.train_data_dir is not None, args.dataset_name is not None, args.simulate]) != 1:
        parser.error("Pass one of --train_data_dir, --dataset_name and --simulate.")
    if args.streaming and args.dataset_name is None:
        parser.error("--streaming needs --dataset_name.")
    if args.streaming and args.dataloader_num_workers > 1:  # `datasets` would give each worker different rows
        parser.error("--streaming works with at most one worker: pass --dataloader_num_workers 0 or 1.")
    if not 0 <= args.simulated_fraction <= 1:
        parser.error(f"--simulated_fraction must lie between 0 and 1, got {args.simulated_fraction}.")
    if args.simulated_fraction > 0 and args.dataset_name is None:
        parser.error("--simulated_fraction needs a dataset of specimens: add --dataset_name.")
    if args.simulate and args.simulation_size < args.resolution:
        parser.error(f"--simulation_size must be at least --resolution {args.resolution}, got {args.simulation_size}.")
    check_training_arguments(parser, args)


def check_training_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """As [`check_arguments`], for the arguments of [`add_training_arguments`] and the sizes of data."""
    counts = (
        "patches_per_field", "max_validation_pairs", "train_batch_size", "gradient_accumulation_steps",
        "max_train_steps", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
    )  # fmt: skip
    for name in counts:
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}.")
    if args.resolution < 16:
        parser.error(f"--resolution must be at least 16, got {args.resolution}.")
    if not args.max_grad_norm > 0:
        parser.error(f"--max_grad_norm must be positive, got {args.max_grad_norm}; 1e9 turns clipping off.")
    if not 0 <= args.ema_decay <= 1:
        parser.error(f"--ema_decay must lie between 0 and 1, got {args.ema_decay}.")


def check_series_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with an error if the data cannot be pinhole series, which are read as a whole."""
    if args.pinhole_series and (args.simulate or args.streaming):
        parser.error("--pinhole_series needs --train_data_dir, or --dataset_name without --streaming.")


def load_data(args: argparse.Namespace) -> TrainingData:
    """Load the data that the arguments name, see [`load_training_data`]."""
    return load_training_data(
        train_data_dir=args.train_data_dir,
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        streaming=args.streaming,
        simulate=args.simulate,
        simulated_fraction=args.simulated_fraction,
        simulation_seed=args.simulation_seed,
        simulation_size=args.simulation_size,
        patches_per_field=args.patches_per_field,
        validation_data_dir=args.validation_data_dir,
        max_validation_pairs=args.max_validation_pairs,
        resolution=args.resolution,
        num_workers=args.dataloader_num_workers,
    )
