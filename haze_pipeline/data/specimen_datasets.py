"""
Hub datasets of haze-free specimens. Each row holds one plane with its source and licence. Pairs are simulated from the
planes during training.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.simulation.real_specimens import RealSpecimen, channels_of, is_stack

from .hub_datasets import decode_plane, encode_plane, import_datasets, stream_split, write_rows


if TYPE_CHECKING:
    import datasets

# Columns of each row beside `image`: those that reading requires, and texts from the table of specimens.
COLUMNS = ("specimen_id", "channel", "plane", "pixel_size_um", "z_step_um", "quality")
FACTS = ("structure", "modality", "licence", "origin", "notes")


def specimen_rows(path: str | Path, facts: dict) -> Iterator[dict]:
    """
    Yield the planes of a micrograph as rows of a dataset, with unchanged counts.

    Args:
        path (`str` or `Path`): A TIFF with any of the axes T, Z and C.
        facts (`dict`):
            `file`, the file's name in the dataset; `quality`, from 2 (poor) to 5 (clean); `pixel_size_um` and
            `z_step_um`, `None` where unknown; and the texts [`FACTS`].

    Raises:
        `MicrographError`: If the file cannot be read.
        `ValueError`: If a plane cannot be stored exactly.
    """
    micrograph = read_micrograph(path)
    for channel, planes in enumerate(channels_of(micrograph)):
        for plane, image in enumerate(planes):
            yield {
                "image": encode_plane(image),
                "specimen_id": facts["file"],
                "channel": channel,
                "plane": plane,
                "pixel_size_um": facts["pixel_size_um"],
                "z_step_um": facts["z_step_um"] if is_stack(micrograph) else None,
                "quality": facts["quality"],
                **{name: facts[name] for name in FACTS},
            }


def specimens_from_rows(rows: Iterable[dict]) -> list[tuple[RealSpecimen, int]]:
    """
    Collect the specimens of a dataset with their quality. Each channel of a file is a specimen.

    Args:
        rows (iterable of `dict`): Rows made by [`specimen_rows`]. The planes of a channel follow one another.

    Raises:
        `ValueError`: If there are no rows, a column is missing, or a specimen has no contrast.
    """
    specimens, rows = [], iter(rows)
    first = next(rows, {})
    if missing := [name for name in ("image", *COLUMNS) if name not in first]:
        raise ValueError(
            f"A dataset of specimens needs the columns image, {', '.join(COLUMNS)}; this one lacks {missing[0]}."
        )
    rows = itertools.chain([first], rows)
    for (name, channel), group in itertools.groupby(rows, key=lambda row: (row["specimen_id"], row["channel"])):
        planes = list(group)
        first = planes[0]
        spacing = None
        if first["pixel_size_um"] and first["z_step_um"]:
            spacing = first["z_step_um"] / first["pixel_size_um"]
        counts = np.stack([decode_plane(row["image"]) for row in planes])
        specimens.append((RealSpecimen.from_counts(counts, spacing, name, channel), first["quality"]))
    return specimens


def load_specimens(source: str, split: str) -> dict[str, list[RealSpecimen]]:
    """
    Load the specimens of one split of a dataset, grouped by file.

    Args:
        source (`str`): The dataset: a local folder or a repository of the Hub.
        split (`str`): `"train"`, `"validation"` or `"test"`.

    Raises:
        `ValueError`: If there is no such dataset, or it has no such split, or no column `image`.
        `OSError`: If `source` is not a folder, and the Hub cannot be reached.
    """
    files: dict[str, list[RealSpecimen]] = {}
    for specimen, _ in specimens_from_rows(stream_split(source, split)):
        files.setdefault(specimen.file, []).append(specimen)
    return files


def build_specimen_dataset(rows: Iterable[dict], path: str | Path) -> "datasets.Dataset":
    """
    Build a dataset from the rows of [`specimen_rows`], which are written one by one to the Arrow file `path`.

    Raises:
        `ImportError`: If the library `datasets` is missing.
        `ValueError`: If there are no rows.
    """
    datasets = import_datasets()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "specimen_id": datasets.Value("string"),
            "channel": datasets.Value("int64"),
            "plane": datasets.Value("int64"),
            "pixel_size_um": datasets.Value("float64"),
            "z_step_um": datasets.Value("float64"),
            "quality": datasets.Value("int64"),
            **{name: datasets.Value("string") for name in FACTS},
        }
    )
    return write_rows(rows, features, path, "specimen")
