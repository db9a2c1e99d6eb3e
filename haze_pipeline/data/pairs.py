"""
Read pairs from folders of TIFFs, the published HazeMatching data, or datasets of the Hub. Every function yields one
pair at a time, so that a source need not fit in memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from haze_pipeline.io.micrograph import Micrograph
from haze_pipeline.io.micrograph_files import list_tiffs, read_micrograph

from .hub_datasets import decode_plane, stream_split


@dataclass
class Pair:
    """
    A hazy and a clear plane with their metadata: the columns of a dataset, see [`pair_row`].

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The hazy plane.
        clear (`np.ndarray` of shape `[H, W]`): The clear plane, aligned with `hazy` pixel by pixel.
        specimen_id (`str`): The same for all planes of one specimen.
        source (`str`): Where the pair comes from; error messages name it.
        level (`float`, *optional*): Pinhole of the hazy image in Airy units; `None` for a widefield image.
        pixel_size_um (`float`, *optional*): Side of a pixel in µm.
        airy_radius (`float`, *optional*): Airy radius of the widefield microscope, 0.61 · emission wavelength / NA, in
            pixels, if the metadata of the image state the optics.
    """

    hazy: np.ndarray
    clear: np.ndarray
    specimen_id: str
    source: str
    level: float | None = None
    pixel_size_um: float | None = None
    airy_radius: float | None = None


# Folders of the published HazeMatching data. `train_crops_fid` repeats training images and is not read.
HAZEMATCHING_FOLDERS = {"train": ("train_crop", "train"), "validation": ("val_crop", "val"), "test": ("test",)}


def load_pairs(source: str | Path, split: str) -> Iterator[Pair]:
    """
    Read pairs from any kind of source: a folder with `hazy/` and `clear/`, which has no splits, so all its pairs are
    read; one split of a published HazeMatching folder; or one split of a dataset.

    Args:
        source (`str` or `Path`): Folder of images, or dataset (a local folder or a repository of the Hub). A `Path` is
            always a folder of images.
        split (`str`): `"train"`, `"validation"` or `"test"`.

    Raises:
        `FileNotFoundError`: If there are no pairs.
        `ValueError`: If an image cannot be read or has no partner of its size, there is no such dataset, or it has no
            such split.
        `OSError`: If `source` is not a folder, and the Hub cannot be reached.
    """
    folder = Path(source)
    if isinstance(source, Path) or (folder.is_dir() and not any(folder.rglob("*.parquet"))):
        is_published = not (folder / "hazy").is_dir() and any(
            has_hazematching_split(folder, s) for s in HAZEMATCHING_FOLDERS
        )
        if is_published and not has_hazematching_split(folder, split):
            raise ValueError(f"{folder} has no split {split}, only {', '.join(hazematching_splits(folder))}.")
        return pairs_from_hazematching(folder, split) if is_published else pairs_from_folder(folder)
    return pairs_from_rows(stream_split(source, split))


def pairs_from_folder(folder: str | Path, level: float | None = None) -> Iterator[Pair]:
    """
    Read pairs from a folder with TIFFs of the same names in `hazy/` and `clear/`. Every plane of a stack is a pair.

    A specimen is a file with all its planes, or a sub-folder (`hazy/fish3/left.tif` belongs to `fish3`). For images
    made by `haze-pipeline simulate`, specimen and level are read from `parameters.jsonl`.

    Args:
        folder (`str` or `Path`): The folder that holds `hazy/` and `clear/`.
        level (`float`, *optional*): Pinhole of the hazy images in Airy units, see [`Pair`].

    Raises:
        `FileNotFoundError`: If an image has no partner, or there are no images.
        `ValueError`: If a file cannot be read, holds channels or colours, or differs in shape from its partner.
    """
    folder = Path(folder)
    names = {kind: list_tiffs(folder / kind) for kind in ("hazy", "clear")}
    if not names["hazy"]:
        raise FileNotFoundError(f"{folder} holds no TIFFs in hazy/: put pairs of the same names in hazy/ and clear/.")
    for kind, other in (("hazy", "clear"), ("clear", "hazy")):
        for name in names[kind]:
            if name not in names[other]:
                raise FileNotFoundError(f"{folder / kind / name} has no partner: {folder / other / name} is missing.")
    notes = {note["image"]: note for note in simulation_notes(folder)}
    for name in names["hazy"]:
        hazy, clear = read_micrograph(folder / "hazy" / name), read_micrograph(folder / "clear" / name)
        for kind, micrograph in (("hazy", hazy), ("clear", clear)):
            if dict(zip(micrograph.axes, micrograph.data.shape, strict=True)).get("C", 1) > 1:
                raise ValueError(f"{folder / kind / name} holds several channels: save each in its own file.")
        if hazy.data.shape != clear.data.shape:
            raise ValueError(
                f"{folder / 'hazy' / name} and its partner in clear/ must have the same shape, got {hazy.data.shape} "
                f"and {clear.data.shape}: crop or register them."
            )
        planes = [micrograph.data.reshape(-1, *micrograph.data.shape[-2:]) for micrograph in (hazy, clear)]
        note = notes.get(_stem(name), {})
        specimen = note.get("specimen_id") or (name.parts[0] if len(name.parts) > 1 else _stem(name))
        pixel_size = hazy.pixel_size_um or clear.pixel_size_um
        for index, (hazy_plane, clear_plane) in enumerate(zip(*planes, strict=True)):
            source = name.as_posix() if len(planes[0]) == 1 else f"{name.as_posix()}, plane {index}"
            yield Pair(
                hazy_plane, clear_plane, specimen, source, note.get("level") if level is None else level, pixel_size,
                _airy_radius(note, hazy),
            )  # fmt: skip


def _airy_radius(note: dict, hazy: Micrograph) -> float | None:
    """Airy radius in pixels from the parameters of a simulation, or else from the metadata of a micrograph."""
    channels = hazy.acquisition.channels
    nanometres = channels[0].emission_wavelength if channels else None
    emission = note.get("emission_wavelength") or (nanometres and nanometres / 1000)  # µm
    aperture = note.get("numerical_aperture") or hazy.acquisition.numerical_aperture
    pixel_size = note.get("pixel_size") or hazy.pixel_size_um
    return 0.61 * emission / aperture / pixel_size if emission and aperture and pixel_size else None


def simulation_notes(folder: str | Path) -> list[dict]:
    """Read the parameters that `haze-pipeline simulate` stored for each image of a folder; empty for other images."""
    path = Path(folder, "parameters.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def describe_simulation(notes: list[dict]) -> str:
    """Describe simulated images for a dataset card, from their [`simulation_notes`]."""

    def span(key: str) -> str:
        values = [note[key] for note in notes]
        return f"{min(values):.3g}" + (f" to {max(values):.3g}" if max(values) > min(values) else "")

    if "haze_ratio" in notes[0]:
        files = {note["specimen_id"] for note in notes}
        made = (
            f"The clear images are parts of {len(files)} haze-free micrographs, in counts of simulated cameras. Haze, "
            "optics and camera of the hazy images were computed with `haze-pipeline simulate --from-images`, not "
            "measured"
        )
    elif "plane" in notes[0]:
        made = (
            "The clear images are planes of confocal stacks, in counts of simulated cameras. The hazy images were "
            "computed from them with `haze-pipeline simulate --from-stack`, not measured"
        )
    else:
        kinds = sorted({kind for note in notes for kind in note["specimens"]})
        made = f"The images were simulated with `haze-pipeline simulate`, not measured. Structures: {', '.join(kinds)}"
    return (
        f"{made}. Seed {span('seed')}; numerical aperture {span('numerical_aperture')}, emission "
        f"{span('emission_wavelength')} µm, excitation {span('excitation_wavelength')} µm, refractive index "
        f"{span('refractive_index')}, pinhole of the clear images {span('pinhole')} Airy units."
    )


def pairs_from_hazematching(folder: str | Path, split: str) -> Iterator[Pair]:
    """
    Read pairs from one split of a published HazeMatching dataset. Its TIFFs have two channels: the confocal target and
    the widefield image.

    The files do not state which of them show the same specimen, so each file counts as one specimen.

    Args:
        folder (`str` or `Path`): The folder of a subset, such as `zebrafish`.
        split (`str`): `"train"`, `"validation"` or `"test"`. Its [`HAZEMATCHING_FOLDERS`] are read, as far as they
            exist.

    Raises:
        `ValueError`: If a file cannot be read or is not a two-channel image `[2, H, W]`.
    """
    for name in HAZEMATCHING_FOLDERS[split]:
        for path in list_tiffs(Path(folder, name)):
            source = f"{name}/{path.as_posix()}"
            micrograph = read_micrograph(Path(folder, source))
            if micrograph.data.ndim != 3 or len(micrograph.data) != 2:
                raise ValueError(
                    f"{Path(folder, source)} has shape {micrograph.data.shape}, not [2, H, W]: store the clear image "
                    "as the first channel and the hazy image as the second."
                )
            clear, hazy = micrograph.data
            yield Pair(hazy, clear, f"{name}/{_stem(path)}", source, None, micrograph.pixel_size_um)


def hazematching_splits(folder: str | Path) -> list[str]:
    """
    List the splits of a published HazeMatching dataset that a folder, such as `zebrafish`, contains.

    Raises:
        `FileNotFoundError`: If it contains none.
    """
    splits = [
        split for split, names in HAZEMATCHING_FOLDERS.items() if any(Path(folder, name).is_dir() for name in names)
    ]
    if not splits:
        expected = ", ".join(name for names in HAZEMATCHING_FOLDERS.values() for name in names)
        raise FileNotFoundError(
            f"{folder} holds none of the HazeMatching folders {expected}: pass the folder that contains them."
        )
    return splits


def has_hazematching_split(folder: str | Path, split: str) -> bool:
    """Whether a folder holds a published HazeMatching dataset with this split."""
    if Path(folder, "hazy").is_dir():
        return False
    try:
        return split in hazematching_splits(folder)
    except FileNotFoundError:
        return False


def pairs_from_rows(rows: Iterable[dict], start: int = 0) -> Iterator[Pair]:
    """
    Read pairs from the rows of a dataset. The columns `hazy` and `clear` must hold single planes; the other columns of
    [`pair_row`] are optional.

    Args:
        rows (`datasets.Dataset`, `datasets.IterableDataset` or another iterable of `dict`): The rows.
        start (`int`): Number of the first row, for error messages.

    Raises:
        `ValueError`: If a row lacks `hazy` or `clear`, or they are not planes of the same shape.
    """
    for number, row in enumerate(rows, start):
        source = row.get("source") or f"row {number}"
        for name in ("hazy", "clear"):
            if row.get(name) is None:
                raise ValueError(
                    f"{source} of the dataset has no image in the column `{name}`; it has {', '.join(row)}."
                )
        try:
            hazy, clear = decode_plane(row["hazy"]), decode_plane(row["clear"])
        except ValueError as error:
            raise ValueError(f"{source} of the dataset: {error}") from error
        if hazy.shape != clear.shape:
            raise ValueError(
                f"{source}: `hazy` and `clear` must have the same shape, got {hazy.shape} and {clear.shape}: crop or "
                "register them."
            )
        specimen = row.get("specimen_id") or source
        yield Pair(hazy, clear, specimen, source, row.get("level"), row.get("pixel_size_um"), row.get("airy_radius"))


def _stem(name: Path) -> str:
    return name.with_suffix("").as_posix().removesuffix(".ome")
