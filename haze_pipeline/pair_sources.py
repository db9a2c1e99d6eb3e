"""Where pairs come from: folders of TIFFs, the published HazeMatching data, simulation. All are read while they are used."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .microscopy_io import Micrograph, read_micrograph
from .pair_datasets import pair_row


# Folders of the published HazeMatching data. `train_crops_fid` repeats training images for another purpose.
HAZEMATCHING_FOLDERS = {"train": ("train_crop", "train"), "validation": ("val_crop", "val"), "test": ("test",)}

MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def pairs_from_folder(folder: str | Path, level: float | None = None) -> Iterator[dict]:
    """
    Rows of a folder with TIFFs of equal names in `hazy/` and `clear/`, one for each plane.

    A specimen is a file, or a sub-folder (`hazy/fish3/left.tif` belongs to `fish3`). All planes of a stack share it.

    Args:
        folder (`str` or `Path`): The folder that holds `hazy/` and `clear/`.
        level (`float`, *optional*): Pinhole of the hazy images in Airy units, see [`pair_row`].

    Raises:
        `FileNotFoundError`: If an image has no partner, or there are none.
        `ValueError`: If a file cannot be read, holds channels or colours, or does not fit its partner.
    """
    folder = Path(folder)
    names = {kind: _tiffs(folder / kind) for kind in ("hazy", "clear")}
    if not names["hazy"]:
        raise FileNotFoundError(f"{folder} holds no TIFFs in hazy/: put pairs of equal names in hazy/ and clear/.")
    for kind, other in (("hazy", "clear"), ("clear", "hazy")):
        for name in names[kind]:
            if name not in names[other]:
                raise FileNotFoundError(f"{folder / kind / name} has no partner: {folder / other / name} is missing.")
    for name in names["hazy"]:
        hazy, clear = read_micrograph(folder / "hazy" / name), read_micrograph(folder / "clear" / name)
        for kind, micrograph in (("hazy", hazy), ("clear", clear)):
            if dict(zip(micrograph.axes, micrograph.data.shape, strict=True)).get("C", 1) > 1:
                raise ValueError(f"{folder / kind / name} holds several channels: save each as a file of its own.")
        if hazy.data.shape != clear.data.shape:
            raise ValueError(
                f"{folder / 'hazy' / name} and its partner in clear/ must be of one shape, got {hazy.data.shape} and "
                f"{clear.data.shape}: crop or register them."
            )
        planes = [micrograph.data.reshape(-1, *micrograph.data.shape[-2:]) for micrograph in (hazy, clear)]
        specimen = name.parts[0] if len(name.parts) > 1 else _stem(name)
        pixel_size = _pixel_size_um(hazy) or _pixel_size_um(clear)
        for index, (hazy_plane, clear_plane) in enumerate(zip(*planes, strict=True)):
            source = name.as_posix() if len(planes[0]) == 1 else f"{name.as_posix()}, plane {index}"
            yield pair_row(hazy_plane, clear_plane, specimen, source, level, pixel_size)


def pairs_from_hazematching(folder: str | Path, split: str) -> Iterator[dict]:
    """
    Rows of one split of a published HazeMatching dataset: TIFFs of two channels, the confocal target and the widefield image.

    The files don't say which of them show one specimen, so that every file counts as one.

    Args:
        folder (`str` or `Path`): The folder of a subset, such as `zebrafish`.
        split (`str`): `"train"`, `"validation"` or `"test"`, made of the [`HAZEMATCHING_FOLDERS`] that there are.

    Raises:
        `ValueError`: If a file cannot be read or is not an image of two channels, [2, H, W].
    """
    for name in HAZEMATCHING_FOLDERS[split]:
        for path in _tiffs(Path(folder, name)):
            source = f"{name}/{path.as_posix()}"
            micrograph = read_micrograph(Path(folder, source))
            if micrograph.data.ndim != 3 or len(micrograph.data) != 2:
                raise ValueError(
                    f"{Path(folder, source)} has shape {micrograph.data.shape}, not [2, H, W]: HazeMatching files hold the "
                    "clear image as the first and the hazy one as the second channel."
                )
            clear, hazy = micrograph.data
            yield pair_row(hazy, clear, f"{name}/{_stem(path)}", source, None, _pixel_size_um(micrograph))


def hazematching_splits(folder: str | Path) -> list[str]:
    """The splits of a published HazeMatching dataset that are in a folder, such as `zebrafish`."""
    splits = [
        split for split, names in HAZEMATCHING_FOLDERS.items() if any(Path(folder, name).is_dir() for name in names)
    ]
    if not splits:
        expected = ", ".join(name for names in HAZEMATCHING_FOLDERS.values() for name in names)
        raise FileNotFoundError(
            f"{folder} holds none of the HazeMatching folders {expected}: name the one above them."
        )
    return splits


def pairs_from_simulation(num_images: int, size: int, seed: int) -> Iterator[dict]:
    """Rows of simulated pairs of `size` × `size` pixels, each of a specimen of its own, as `haze-pipeline simulate` makes."""
    from .simulation import pair_generator, simulate_pair

    for index in range(num_images):
        pair = simulate_pair(size, pair_generator(seed, index))
        hazy, clear = pair.hazy.numpy().astype(np.uint16), pair.clear.numpy()
        source = f"simulated, seed {seed}, index {index}"
        yield pair_row(hazy, clear, f"{seed}-{index:06d}", source, None, pair.parameters["pixel_size"])


def _tiffs(folder: Path) -> list[Path]:
    """The TIFFs in a folder and its sub-folders, relative to it. Hidden ones are leftovers of other programs."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in (".tif", ".tiff")]
    return sorted(path.relative_to(folder) for path in paths if not path.name.startswith("."))


def _stem(name: Path) -> str:
    return name.with_suffix("").as_posix().removesuffix(".ome")


def _pixel_size_um(micrograph: Micrograph) -> float | None:
    if micrograph.pixel_size is None or not math.isclose(*micrograph.pixel_size, rel_tol=1e-3):
        return None
    return micrograph.pixel_size[1] * MICROMETRES[micrograph.pixel_size_unit]
