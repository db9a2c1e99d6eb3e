"""
Micrographs in files: opened by what they are, with their axes and physical sizes, and written in the same layout.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from haze_pipeline.utils.atomic_files import replace_when_complete

from .micrograph import Micrograph, MicrographError, PlaneStack
from .ome_tiff_writer import OmeTiffWriter, write_ome_tiff
from .tiff_reader import open_tiff


__all__ = [
    "Micrograph",
    "MicrographError",
    "PlaneStack",
    "list_micrographs",
    "list_tiffs",
    "open_micrograph",
    "read_micrograph",
    "replace_when_complete",
    "write_ome_tiff",
]

TIFF_SUFFIXES = (".tif", ".tiff")  # also of .ome.tif
ZARR_SUFFIX = ".zarr"
BIOIO_SUFFIXES = (".czi", ".lif", ".nd2")


def list_tiffs(folder: str | os.PathLike) -> list[Path]:
    """
    The TIFFs in a folder and its sub-folders, relative to it and sorted. Hidden ones are leftovers of other programs.
    """
    return [path for path in list_micrographs(folder) if path.suffix.lower() in TIFF_SUFFIXES]


def list_micrographs(folder: str | os.PathLike, recursive: bool = True) -> list[Path]:
    """
    The micrographs in a folder (and its sub-folders), relative to it and sorted. Hidden ones are leftovers of other
    programs.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        images = [name for name in folders if name.lower().endswith(ZARR_SUFFIX)]
        suffixes = TIFF_SUFFIXES + BIOIO_SUFFIXES
        images += [name for name in files if name.lower().endswith(suffixes)]
        found += [Path(parent, name).relative_to(folder) for name in images if not name.startswith(".")]
        # A Zarr is a folder of chunks, not of images.
        folders[:] = [name for name in folders if not name.lower().endswith(ZARR_SUFFIX)] if recursive else []
    return sorted(found)


@contextmanager
def open_micrograph(
    path: str | os.PathLike, axes: str | None = None, series: int | None = None
) -> Iterator[Micrograph]:
    """
    Opens a TIFF, an ImageJ TIFF, an OME-TIFF, an OME-Zarr of version 0.4 or 0.5 (extra `zarr`), or what `bioio` reads:
    CZI, ND2 and LIF, if it is installed with the plugin for them. Planes of stacks are read when they are asked for,
    while it is open.

    Axes of length 1 are dropped, except where the file is an OME-Zarr, or this package or `tifffile.imwrite` noted the
    shape of the array. Axes without a meaning, such as the pages of a plain TIFF, are taken as `Z`, then `T`, then
    `C`, the innermost first; Fiji, too, opens a plain stack as slices. Resolution tags of plain TIFFs are ignored:
    they mostly tell the dots per inch of a print.

    Args:
        path (`str` or `os.PathLike`): The file or folder.
        axes (`str`, *optional*): What the axes mean, such as `"TYX"`, where the file does not say so or is wrong.
        series (`int`, *optional*): Which of several images, from 0.

    Returns:
        A context manager that yields a [`Micrograph`]: the data in native byte order, and what the file says about it.
        A size is `None` where the file does not state it or its unit is not a physical one; `pixel_size` also where
        its two units differ.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ImportError`: If it needs an extra that is not installed.
        `MicrographError`: If it is no such file, is damaged or incomplete, needs a codec that is not installed, holds
            several images and none is chosen, or holds something else than intensities (colours, complex or binary
            values). Damage of a plane is found when it is read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist: check the name and the folder.")
    with _opener(path)(path, series) as micrograph:
        if axes is not None:
            micrograph = _with_axes(micrograph, axes.upper(), path)
        yield micrograph


def read_micrograph(path: str | os.PathLike, axes: str | None = None, series: int | None = None) -> Micrograph:
    """As [`open_micrograph`], with all planes in memory."""
    with open_micrograph(path, axes, series) as micrograph:
        micrograph.data = np.asarray(micrograph.data)
        return micrograph


def micrograph_writer(
    path: Path,
    micrograph: Micrograph,
    shape: tuple[int, ...],
    dtype,
    name: Path,
    version: str = "0.5",
    create: bool = True,
):
    """
    What writes the planes of a micrograph to `path`, a TIFF or OME-Zarr by its suffix: [`OmeTiffWriter`] or
    [`OmeZarrWriter`].

    `name` is what errors call the file; `version` and `create` matter to OME-Zarr only.
    """
    if path.suffix.lower() == ZARR_SUFFIX:
        from .ome_zarr import OmeZarrWriter

        return OmeZarrWriter(path, micrograph, shape, dtype, version=version, name=name, create=create)
    return OmeTiffWriter(path, micrograph, shape, dtype, name=name)


def _opener(path: Path):
    """What opens files like this one."""
    if path.is_dir():
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
            raise MicrographError(f"`{path}` is a folder: name a TIFF file in it.")
        from .ome_zarr import open_ome_zarr

        return open_ome_zarr
    if path.suffix.lower() in BIOIO_SUFFIXES:
        from .bioio_reader import open_with_bioio

        return open_with_bioio
    with path.open("rb") as file:
        header = file.read(2)
    if not header:
        raise MicrographError(f"`{path}` is empty (0 bytes): copy or export it again.")
    if header not in (b"II", b"MM"):
        raise MicrographError(f"`{path}` is not a TIFF file: convert it to TIFF first, for example with Fiji.")
    return open_tiff


def _with_axes(micrograph: Micrograph, axes: str, path: Path) -> Micrograph:
    """The micrograph with other names for its axes."""
    stated = micrograph.axes
    if len(axes) != len(stated) or not axes.endswith("YX") or len(set(axes)) != len(axes) or set(axes) - set("TZCYX"):
        raise MicrographError(
            f"`{path}` has the shape {micrograph.data.shape} and the axes {stated}: name each by one of T, Z and C, "
            f"then YX, "
            f"not {axes!r}."
        )
    changes = {"axes": axes}
    if "C" in axes + stated and (axes.find("C") != stated.find("C")):
        changes["channel_names"] = None
    return dataclasses.replace(micrograph, **changes)
