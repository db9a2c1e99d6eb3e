"""Command-line arguments of `train_eid.py`."""

import argparse
import json
import math
from pathlib import Path

from adversarial import SMALLEST_PATCH
from data_arguments import add_training_arguments, check_training_arguments
from haze_operators import OPERATORS

from haze_pipeline.equivariance import TRANSFORMS


def parse_args() -> argparse.Namespace:
    """Parse the arguments, and end the program with an error if they contradict each other."""
    parser = argparse.ArgumentParser(description="Train a network without pairs, by equivariant image dehazing.")
    # 1. Images
    parser.add_argument(
        "--train_data_dir", type=Path,
        help="Folder of hazy TIFFs. Of a folder of pairs, pass the sub-folder `hazy`.",
    )  # fmt: skip
    parser.add_argument(
        "--dataset_name",
        help="Dataset in place of --train_data_dir: a repository of the Hub or a local folder, with the column `hazy` "
        "or `image`.",
    )
    parser.add_argument(
        "--photographs", action="store_true",
        help="All folders hold photographs in colour: PNG, JPEG or TIFF. For the operators of the atmosphere and "
        "`learned`.",
    )  # fmt: skip
    parser.add_argument(
        "--unpaired_clear", type=Path,
        help="Folder of clear images of other specimens, from which the operator and, with --adversarial_weight, the "
        "network learn. Needs the extra `baselines`.",
    )  # fmt: skip
    parser.add_argument(
        "--validation_data_dir", type=Path,
        help="Folder of pairs of micrographs in hazy/ and clear/, which are scored; or of hazy images, whose errors "
        "of consistency and equivariance are measured.",
    )  # fmt: skip
    parser.add_argument("--max_validation_pairs", type=int, default=64, help="Use at most this many of them.")
    parser.add_argument("--resolution", type=int, default=128, help="Side of the training patches in pixels.")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="Number of processes that cut patches.")
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
    parser.add_argument(
        "--guess_steps", type=int,
        help="Steps of the network in which the operator guesses the clear images for the equivariance loss: without "
        "their background for a microscope, by its formula for the atmosphere, by the inverse generator for "
        "`learned`. The default is 30 %% of these steps, 80 %% for the atmosphere, and 0 with --init_from.",
    )  # fmt: skip
    parser.add_argument("--equivariance_weight", type=float, default=1.0, help="Weight of the equivariance loss.")
    parser.add_argument(
        "--recovery_weight", type=float, default=1.0,
        help="Weight of the error with which --unpaired_clear are recovered from the haze of the operator.",
    )  # fmt: skip
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
    parser.add_argument(
        "--architecture", choices=["unet", "residual-unet"],
        help="Network: the U-Net of HazeMatching (default), or the residual U-Net of the paper (default and only one "
        "with --photographs).",
    )  # fmt: skip
    parser.add_argument("--model_config_name_or_path", help="Configuration of a network of this architecture.")
    parser.add_argument(
        "--pixel_packing", type=int,
        help="Pack N × N pixels into the channels of one pixel of the U-Net, as in train_haze_matching.py. The "
        "default is 2, or the value of --init_from.",
    )  # fmt: skip
    add_training_arguments(parser)
    parser.set_defaults(train_batch_size=8)  # every step restores twice as many patches
    args = parser.parse_args()
    check_training_arguments(parser, args)
    if (args.train_data_dir is None) == (args.dataset_name is None):
        parser.error("Pass one of --train_data_dir and --dataset_name.")
    if args.photographs and args.haze_operator == "optical":
        parser.error("--photographs needs --haze_operator atmospheric or learned.")
    if args.photographs and args.dataset_name is not None:
        parser.error("--photographs needs --train_data_dir.")
    if args.discriminator_features < 1:
        parser.error(f"--discriminator_features must be positive, got {args.discriminator_features}.")
    for name in ("equivariance_weight", "recovery_weight", "adversarial_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be finite and not negative, got {getattr(args, name)}.")
    if args.init_from is not None and args.model_config_name_or_path is not None:
        parser.error("--init_from sets the network: remove --model_config_name_or_path.")
    if args.init_from is not None and args.normalization is not None:
        parser.error("--init_from sets the normalisation: remove --normalization.")
    if args.init_from is not None and (args.architecture, args.pixel_packing) != (None, None):
        parser.error("--init_from sets the network: remove --architecture and --pixel_packing.")
    if args.architecture is None:
        args.architecture = "residual-unet" if args.photographs else "unet"
    if args.photographs and args.architecture != "residual-unet":
        parser.error(f"--photographs needs --architecture residual-unet, got {args.architecture}.")
    if args.pixel_packing is not None and not (args.architecture == "unet" and args.pixel_packing >= 1):
        parser.error(f"--pixel_packing must be 1 or more pixels and is for the U-Net, got {args.pixel_packing}.")
    if args.pixel_packing is None:
        args.pixel_packing = 2 if args.architecture == "unet" else 1
    if args.normalization == "image" and (args.haze_operator == "atmospheric" or args.photographs):
        parser.error("--normalization image is for micrographs: remove it.")
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
    network_steps = args.max_train_steps - args.operator_steps
    if args.guess_steps is None:
        share = 0.8 if args.haze_operator == "atmospheric" else 0.3
        args.guess_steps = round(share * network_steps) if args.init_from is None else 0
    if not 0 <= args.guess_steps <= network_steps:
        parser.error(
            f"--guess_steps must be 0 to {network_steps}, the number of steps of the network, got {args.guess_steps}."
        )
    try:
        args.operator_config = json.loads(args.operator_config or "{}")
    except json.JSONDecodeError as error:
        parser.error(f'--operator_config is not JSON ({error}): write {{"name": value}} in single quotes.')
    return args
