"""Load the pairs that a training learns from, and the pairs that validate it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

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


SPECIMEN_PAIRS = 96  # number of pairs of real specimens from which statistics are computed
VALIDATION_SEED = 2  # seed of the validation pairs of real specimens


@dataclass
class TrainingData:
    """
    The data of a training.

    Args:
        pairs (`list[Pair]`): All training pairs, or the first pairs of `series`; statistics are computed from them.
        series (`Callable`, *optional*): For simulated or streamed data: yields pairs without end, from a given number
            on, with a given step.
        validation (`list[Pair]`): Pairs of other specimens; may be empty.
        description (`str`): Sentence about the data for a model card.
        pixel_size_span (`dict`, *optional*): Range of pixel sizes, `{"min": …, "max": …}` in µm; for streamed data,
            the range in `pairs`. `None` if unknown.
        facts (`dict`): Properties that must not change when a training is resumed. Those of a series describe its
            first pairs.
        resolution (`int`): Side of the training patches, pixels.
        patches_per_field (`int`): Mean number of patches cut from each pair of `series`.
    """

    pairs: list[Pair]
    series: Callable[..., Iterator[Pair]] | None
    validation: list[Pair]
    description: str
    pixel_size_span: dict | None
    facts: dict
    resolution: int
    patches_per_field: int

    def normalize(self, image_processor: HazeImageProcessor) -> FieldsInMemory | FieldsInSeries:
        """Convert the training pairs to network units, ready for cutting patches, and empty `pairs` to free memory."""
        if self.series is None:
            fields = FieldsInMemory(self.pairs, image_processor, self.resolution)
        else:
            fields = FieldsInSeries(self.series, image_processor, self.resolution, self.patches_per_field, self.pairs)
        self.pairs.clear()
        return fields


def load_training_data(
    *,
    train_data_dir: Path | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    streaming: bool = False,
    simulate: bool = False,
    simulated_fraction: float = 0.0,
    simulation_seed: int = 1,
    simulation_size: int = 256,
    patches_per_field: int = 512,
    validation_data_dir: Path | None = None,
    max_validation_pairs: int = 64,
    resolution: int = 64,
    num_workers: int = 0,
) -> TrainingData:
    """
    Load training and validation pairs from exactly one source: `train_data_dir`, `dataset_name` or `simulate`.

    Args:
        train_data_dir (`Path`, *optional*): Folder of pairs, see [`load_pairs`].
        dataset_name (`str`, *optional*): Dataset of pairs or of haze-free specimens: a repository of the Hub or a
            local folder.
        dataset_config_name (`str`, *optional*): Configuration of the dataset, if it has several.
        streaming (`bool`, defaults to `False`): Read the dataset of pairs during training, not into memory.
        simulate (`bool`, defaults to `False`): Simulate pairs of random specimens during training.
        simulated_fraction (`float`, defaults to `0.0`): With a dataset of haze-free specimens: fraction of pairs that
            show random specimens instead.
        simulation_seed (`int`, defaults to `1`): Seed of the simulated pairs.
        simulation_size (`int`, defaults to `256`): Side of the simulated images, pixels.
        patches_per_field (`int`, defaults to `512`): Mean number of patches from each simulated or streamed pair.
        validation_data_dir (`Path`, *optional*): Folder of validation pairs. By default, the split `validation` of the
            training data, if there is one.
        max_validation_pairs (`int`, defaults to `64`): Largest number of validation pairs. Pinhole series stay whole.
        resolution (`int`, defaults to `64`): Side of the training patches, pixels.
        num_workers (`int`, defaults to `0`): Number of processes that will cut patches, and of those that simulate the
            first pairs.

    Raises:
        `FileNotFoundError`: If a folder holds no pairs.
        `ValueError`: If not exactly one source is named, an image cannot be read or has no partner of its size, the
            dataset has no split `train`, or pairs made from specimens would be smaller than the patches.
    """
    if sum([train_data_dir is not None, dataset_name is not None, simulate]) != 1:
        raise ValueError("Training data need exactly one source: pass `train_data_dir`, `dataset_name` or `simulate`.")
    series, splits, validation, num_first = None, {}, None, WINDOW
    pixel_sizes = PIXEL_SIZES if simulate else None
    if simulate:
        series = partial(simulated_series, simulation_seed, simulation_size)
        description = (
            f"pairs of {simulation_size} px, simulated during training with "
            f"`haze_pipeline.simulation.simulated_pairs`, seed {simulation_seed}."
        )
    elif dataset_name is not None:
        # A local folder is always streamed. `datasets` identifies cached copies by name, card and size only, so it
        # could return the copy of another folder.
        stream = streaming or Path(dataset_name).is_dir()
        splits = import_datasets().load_dataset(dataset_name, dataset_config_name, streaming=stream)
        if "train" not in splits:
            raise ValueError(f"{dataset_name} has no split `train`, only {', '.join(splits)}.")
        if "image" in (splits["train"].column_names or []):
            if simulation_size < resolution:
                raise ValueError(
                    f"`simulation_size` must be at least `resolution` {resolution}, got {simulation_size}."
                )
            pixel_sizes = {**PIXEL_SIZES, "max": COARSEST_PIXEL} if simulated_fraction > 0 else PIXEL_SIZES
            specimens = specimens_from_rows(splits["train"])
            series = partial(specimen_series, specimens, simulated_fraction, simulation_seed, simulation_size)
            num_first = SPECIMEN_PAIRS
            if "validation" in splits and validation_data_dir is None:
                held_out = specimens_from_rows(splits["validation"])
                validation = specimen_series(held_out, 0.0, VALIDATION_SEED, simulation_size, 0)
        elif streaming:
            # Images are decoded later, so that a resumed training skips earlier rows without decoding them.
            series = partial(streamed_series, splits["train"].decode(False))
        description = f"the split `train` of the dataset `{_shareable_name(dataset_name)}`."
    else:
        description = f"the pairs of the folder `{train_data_dir.resolve().name}`."
        if notes := simulation_notes(train_data_dir):
            description += f" {describe_simulation(notes)}"

    if series is not None:
        if num_workers > 1:
            first = _FirstPairs(series, num_first)
            loader = torch.utils.data.DataLoader(
                first, batch_size=None, collate_fn=_unchanged, num_workers=num_workers, generator=torch.Generator()
            )
            pairs = list(loader)
        else:
            pairs = list(islice(series(0), num_first))
    elif dataset_name is not None:
        pairs = list(pairs_from_rows(splits["train"]))
    else:
        pairs = list(load_pairs(train_data_dir, "train"))

    if validation_data_dir is not None:
        validation = load_pairs(validation_data_dir, "validation")
    elif validation is not None:
        pass
    elif "validation" in splits:
        validation = pairs_from_rows(splits["validation"])
    elif train_data_dir is not None and has_hazematching_split(train_data_dir, "validation"):
        validation = pairs_from_hazematching(train_data_dir, "validation")
    else:
        validation = iter(())
    sizes = [pair.pixel_size_um for pair in pairs if pair.pixel_size_um is not None]
    span = {"min": min(sizes), "max": max(sizes)} if sizes else None
    validation = _take(validation, max_validation_pairs)
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
        "patches per field": patches_per_field if series is not None else None,
        "simulated fraction": simulated_fraction,
        "workers that share a series": max(1, num_workers) if series is not None else None,
    }
    return TrainingData(
        pairs, series, validation, description, pixel_sizes or span, facts, resolution, patches_per_field
    )


class _FirstPairs(torch.utils.data.Dataset):
    """The first pairs of a series. Data loaders with several workers make them side by side."""

    def __init__(self, series: Callable[..., Iterator[Pair]], number: int):
        self.series, self.number = series, number

    def __len__(self):
        return self.number

    def __getitem__(self, index: int) -> Pair:
        return next(self.series(index))


def _unchanged(pair: Pair) -> Pair:
    return pair


def _take(pairs: Iterable[Pair], number: int) -> list[Pair]:
    """The first pairs, and those that complete the last pinhole series."""
    taken = []
    for pair in pairs:
        is_same_series = bool(taken) and taken[-1].specimen_id == pair.specimen_id and taken[-1].level != pair.level
        if len(taken) >= number and not is_same_series:
            break
        taken.append(pair)
    return taken


def _shareable_name(dataset_name: str) -> str:
    """The name of a dataset without the path of a local folder."""
    return Path(dataset_name).resolve().name if Path(dataset_name).is_dir() else dataset_name
