"""The data arguments that all training scripts share, and the pairs that they name."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.simulation.simulated_pairs import PIXEL_SIZES

from .hub_datasets import import_datasets
from .pairs import (
    Pair,
    describe_simulation,
    has_hazematching_split,
    load_pairs,
    pairs_from_hazematching,
    pairs_from_rows,
    simulation_notes,
)
from .patches import (
    COARSEST_PIXEL,
    WINDOW,
    FieldsInMemory,
    FieldsInSeries,
    simulated_series,
    specimen_series,
    streamed_series,
)
from .specimen_datasets import specimens_from_rows


# Pairs of real specimens that statistics are taken of, and the series of those that validate.
SPECIMEN_PAIRS = 96
VALIDATION_SEED = 2


@dataclass
class TrainingData:
    """
    Args:
        pairs (`list[Pair]`): All pairs, or the first ones of `series`, for the statistics.
        series (`Callable`, *optional*): Yields the pairs of an endless series from a number on.
        validation (`list[Pair]`): Pairs of other specimens; may be empty.
        description (`str`): Sentence for a card.
        pixel_size_span (`dict`, *optional*): `{"min": …, "max": …}` in µm, of a stream that of `pairs`; `None` if
            unknown.
        facts (`dict`): What tells these data from others when a training is resumed, of a series by its first pairs.
    """

    pairs: list[Pair]
    series: Callable[[int], Iterator[Pair]] | None
    validation: list[Pair]
    description: str
    pixel_size_span: dict | None
    facts: dict

    def normalize(
        self, image_processor: HazeImageProcessor, args: argparse.Namespace
    ) -> FieldsInMemory | FieldsInSeries:
        """The pairs in network units, to cut patches from. `pairs` are let go, since they are in them."""
        if self.series is None:
            fields = FieldsInMemory(self.pairs, image_processor, args.resolution)
        else:
            fields = FieldsInSeries(self.series, image_processor, args.resolution, args.patches_per_field, self.pairs)
        self.pairs.clear()
        return fields


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that [`load_training_data`] reads."""
    parser.add_argument(
        "--train_data_dir", type=Path,
        help="Folder with TIFFs of equal names in hazy/ and clear/, or a published HazeMatching folder, such as "
        "zebrafish.",
    )  # fmt: skip
    parser.add_argument(
        "--dataset_name",
        help="Dataset of the Hub, or folder of one, with the columns `hazy` and `clear`, or of haze-free specimens in "
        "the column "
        "`image`, of which pairs are made meanwhile.",
    )
    parser.add_argument("--dataset_config_name", help="Configuration of the dataset, if it has several.")
    parser.add_argument(
        "--streaming", action="store_true", help="Read the dataset while training instead of holding it in memory."
    )
    parser.add_argument(
        "--simulate", action="store_true", help="Train on random specimens, simulated meanwhile, in place of data."
    )
    parser.add_argument(
        "--simulated_fraction", type=float, default=0.0,
        help="Fraction of pairs from random specimens among those from a dataset of specimens.",
    )  # fmt: skip
    parser.add_argument("--simulation_seed", type=int, default=1, help="Series of the specimens; never a test's.")
    parser.add_argument("--simulation_size", type=int, default=256, help="Side of the simulated fields in pixels.")
    parser.add_argument(
        "--patches_per_field", type=int, default=512,
        help="Patches cut from a simulated or streamed field on average; more leave more time for training.",
    )  # fmt: skip
    parser.add_argument(
        "--validation_data_dir", type=Path,
        help="Folder as --train_data_dir, of other specimens; the split `validation` of the training data if omitted.",
    )  # fmt: skip
    parser.add_argument(
        "--max_validation_pairs", type=int, default=64, help="Only so many validation pairs are looked at."
    )
    parser.add_argument("--resolution", type=int, default=64, help="Side of the training patches in pixels.")
    parser.add_argument(
        "--dataloader_num_workers", type=int, default=0,
        help="Processes that cut patches; with --simulate, every one of them makes all fields.",
    )  # fmt: skip


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot be trained before anything is read."""
    if sum([args.train_data_dir is not None, args.dataset_name is not None, args.simulate]) != 1:
        parser.error("Pass one of --train_data_dir, --dataset_name and --simulate.")
    if args.streaming and args.dataset_name is None:
        parser.error("--streaming needs --dataset_name.")
    if args.streaming and args.dataloader_num_workers > 1:  # `datasets` would give each worker other rows
        parser.error("--streaming goes with at most one --dataloader_num_workers.")
    if not 0 <= args.simulated_fraction <= 1:
        parser.error(f"--simulated_fraction must lie between 0 and 1, got {args.simulated_fraction}.")
    if args.simulated_fraction > 0 and args.dataset_name is None:
        parser.error("--simulated_fraction is for a dataset of specimens: add --dataset_name.")
    if args.simulate and args.simulation_size < args.resolution:
        parser.error(f"--simulation_size must be at least --resolution {args.resolution}, got {args.simulation_size}.")
    for name in ("patches_per_field", "max_validation_pairs", "train_batch_size", "gradient_accumulation_steps",
        "max_train_steps",
                 "checkpointing_steps", "checkpoints_total_limit", "validation_steps"):  # fmt: skip
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}.")
    if args.resolution < 16:
        parser.error("--resolution must be at least 16.")
    if not args.max_grad_norm > 0:
        parser.error(f"--max_grad_norm must be positive, got {args.max_grad_norm}; 1e9 clips nothing.")
    if not 0 <= args.ema_decay <= 1:
        parser.error(f"--ema_decay must lie between 0 and 1, got {args.ema_decay}.")


def load_training_data(args: argparse.Namespace) -> TrainingData:
    """
    Read the pairs that the data arguments name.

    Raises:
        `FileNotFoundError`: If a folder holds no pairs.
        `ValueError`: If an image cannot be read or has no partner of its size.
    """
    series, splits, validation, num_first = None, {}, None, WINDOW
    pixel_sizes = PIXEL_SIZES if args.simulate else None
    if args.simulate:
        series = partial(simulated_series, args.simulation_seed, args.simulation_size)
        description = (
            f"pairs of {args.simulation_size} px, simulated meanwhile with "
            f"`haze_pipeline.simulation.simulated_pairs`, seed "
            f"{args.simulation_seed}."
        )
    elif args.dataset_name is not None:
        # A folder is read itself: `datasets` would take the cached copy of any other of its name, card and size for
        # it.
        streaming = args.streaming or Path(args.dataset_name).is_dir()
        splits = import_datasets().load_dataset(args.dataset_name, args.dataset_config_name, streaming=streaming)
        if "train" not in splits:
            raise ValueError(f"{args.dataset_name} has no split `train`, only {', '.join(splits)}.")
        if "image" in (splits["train"].column_names or []):
            if args.simulation_size < args.resolution:
                raise ValueError(
                    f"--simulation_size must be at least --resolution {args.resolution}, got {args.simulation_size}."
                )
            pixel_sizes = {**PIXEL_SIZES, "max": COARSEST_PIXEL} if args.simulated_fraction > 0 else PIXEL_SIZES
            make_series = partial(specimen_series, specimens_from_rows(splits["train"]), args.simulated_fraction)
            series, num_first = partial(make_series, args.simulation_seed, args.simulation_size), SPECIMEN_PAIRS
            if "validation" in splits and args.validation_data_dir is None:
                held_out = specimens_from_rows(splits["validation"])
                validation = specimen_series(held_out, 0.0, VALIDATION_SEED, args.simulation_size, 0)
        elif args.streaming:
            # Not decoded by `datasets`, which would be in vain for the rows before a resumed training's.
            series = partial(streamed_series, splits["train"].decode(False))
        description = f"the split `train` of the dataset `{_shareable_name(args.dataset_name)}`."
    else:
        description = f"the pairs of the folder `{args.train_data_dir.resolve().name}`."
        if notes := simulation_notes(args.train_data_dir):
            description += f" {describe_simulation(notes)}"

    if series is not None:
        pairs = list(islice(series(0), num_first))
    elif args.dataset_name is not None:
        pairs = list(pairs_from_rows(splits["train"]))
    else:
        pairs = list(load_pairs(args.train_data_dir, "train"))

    if args.validation_data_dir is not None:
        validation = load_pairs(args.validation_data_dir, "validation")
    elif validation is not None:
        pass
    elif "validation" in splits:
        validation = pairs_from_rows(splits["validation"])
    elif args.train_data_dir is not None and has_hazematching_split(args.train_data_dir, "validation"):
        validation = pairs_from_hazematching(args.train_data_dir, "validation")
    else:
        validation = iter(())
    sizes = [pair.pixel_size_um for pair in pairs if pair.pixel_size_um is not None]
    span = {"min": min(sizes), "max": max(sizes)} if sizes else None
    validation = list(islice(validation, args.max_validation_pairs))
    for pair in validation:
        for name, image in (("hazy", pair.hazy), ("clear", pair.clear)):
            if not np.isfinite(image).all() or image.min() == image.max():
                raise ValueError(
                    f"{pair.source}: the {name} image of a validation pair must be finite and not constant."
                )
    facts = {
        "pairs": len(pairs) if series is None else None,
        "mean of hazy images": float(np.mean([pair.hazy.mean(dtype=np.float64) for pair in pairs])),
        "mean of clear images": float(np.mean([pair.clear.mean(dtype=np.float64) for pair in pairs])),
        "patches per field": args.patches_per_field if series is not None else None,
        "simulated fraction": args.simulated_fraction,
    }
    return TrainingData(pairs, series, validation, description, pixel_sizes or span, facts)


def _shareable_name(dataset_name: str) -> str:
    """The name of a dataset, but not where a folder lies."""
    return Path(dataset_name).resolve().name if Path(dataset_name).is_dir() else dataset_name
