"""
Micrographs in files: opened by what they are, with their axes and physical sizes, and written in the same layout.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from haze_pipeline.utils.atomic_files import replace_when_complete

from .acquisition import Acquisition
from .file_lists import BIOIO_SUFFIXES, TIFF_SUFFIXES, ZARR_SUFFIX, list_micrographs, list_tiffs
from .micrograph import Micrograph, MicrographError, PlaneStack
from .ome_tiff_writer import OmeTiffWriter, write_ome_tiff
from .ome_zarr_collections import is_zarr, list_images
from .tiff_reader import open_tiff


__all__ = [
    "Acquisition",
    "Micrograph",
    "MicrographError",
    "PlaneStack",
    "check_address",
    "is_address",
    "is_zarr",
    "list_images",
    "list_micrographs",
    "list_tiffs",
    "open_micrograph",
    "read_micrograph",
    "replace_when_complete",
    "write_ome_tiff",
]


@contextmanager
def open_micrograph(
    path: str | os.PathLike, axes: str | None = None, series: int | None = None
) -> Iterator[Micrograph]:
    """
    Opens a TIFF of any program, an OME-Zarr of version 0.4 or 0.5 (extra `zarr`), or what `bioio` reads: CZI, ND2 and
    LIF, if it is installed with the plugin for them. Planes of stacks are read when they are asked for, while it is
    open. The page "File formats" of the documentation lists what is read of each.

    Axes of length 1 are dropped, except where the file is an OME-Zarr, or this package or `tifffile.imwrite` noted the
    shape of the array. Axes without a meaning, such as the pages of a plain TIFF, are taken as `Z`, then `T`, then
    `C`, the innermost first; Fiji, too, opens a plain stack as slices. Resolution tags of plain TIFFs are believed if
    pixels are of 10 µm or less; else they tell the dots per inch of a print.

    In a TIFF that stores 0 as white (min-is-white), values are subtracted from the greatest that their bits can hold,
    so that larger is brighter. An ImageJ TIFF is not changed: ImageJ marks so an inverting look-up table, which
    changes the display and not the measured values.

    Args:
        path (`str` or `os.PathLike`):
            The file or folder. Of an OME-Zarr also a path into it, and the address of a remote one, such as
            `https://host/image.zarr` or `s3://bucket/image.zarr`, where fsspec and its package for the protocol are
            installed.
        axes (`str`, *optional*):
            What the axes mean, such as `"TYX"`, where the file does not say so or is wrong. `"YXC"` if the channels of
            a pixel stand together; `data` has them first all the same.
        series (`int`, *optional*):
            Which of several images, from 0: scenes, images of an OME-TIFF, fields of a plate, in the order of the
            file. Thumbnails are not counted.

    Returns:
        A context manager that yields a [`Micrograph`]: the data in native byte order, and what the file says about it.
        A size is `None` where the file does not state it or its unit is not a physical one. A size that is stated and
        not kept is told in a warning.

    Raises:
        `FileNotFoundError`: If there is no such file, or no OME-Zarr at an address.
        `ImportError`: If it needs an extra that is not installed.
        `MicrographError`: If it is no such file, is a remote file of another format than OME-Zarr, is damaged or
            incomplete, needs a codec that is not installed, holds several images and none is chosen, or holds
            something else than intensities (colours, complex or binary values). Damage of a plane is found when it is
            read.
    """
    axes = axes and axes.upper()
    if is_address(path):
        from .ome_zarr import open_ome_zarr

        check_address(str(path))
        source, opened = str(path), open_ome_zarr(str(path), series)
    else:
        source = Path(path)
        if not source.exists():
            raise FileNotFoundError(f"`{source}` does not exist: check the name and the folder.")
        opened = _open(source, series, axes)
    with opened as micrograph:
        if axes is not None:
            micrograph = _with_axes(micrograph, axes, source)
        yield micrograph


def is_address(path: str | os.PathLike) -> bool:
    """Whether it is the address of a remote store, such as `s3://bucket/image.zarr`, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(path)) is not None


def check_address(address: str):
    """
    Check that an address may be that of an OME-Zarr. Files of other formats are read from this machine only.

    Raises:
        `MicrographError`: If its path ends in the suffix of another format.
    """
    path = re.split("[?#]", address)[0].rstrip("/")
    if path.lower().endswith(TIFF_SUFFIXES + BIOIO_SUFFIXES):
        raise MicrographError(
            f"`{address}` is remote, and only OME-Zarr is read from remote stores: download it, and pass the path "
            "of the copy."
        )


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
    What writes planes made from those of a micrograph to `path`, a TIFF or OME-Zarr by its suffix: [`OmeTiffWriter`]
    or [`OmeZarrWriter`]. Display ranges are measured on what is written.

    `name` is what errors call the file; `version` and `create` matter to OME-Zarr only.
    """
    if path.suffix.lower() == ZARR_SUFFIX:
        from .ome_zarr import OmeZarrWriter

        return OmeZarrWriter(
            path, micrograph, shape, dtype, version=version, name=name, create=create, measure_display=True
        )
    return OmeTiffWriter(path, micrograph, shape, dtype, name=name, measure_display=True)


def _open(path: Path, series: int | None, axes: str | None):
    """The context manager that opens files like this one."""
    if is_zarr(path):
        from .ome_zarr import open_ome_zarr

        return open_ome_zarr(path, series)
    if path.is_dir():
        raise MicrographError(f"`{path}` is a folder and no OME-Zarr: name a file in it.")
    if path.suffix.lower() in BIOIO_SUFFIXES:
        from .bioio_reader import open_with_bioio

        return open_with_bioio(path, series)
    with path.open("rb") as file:
        header = file.read(2)
    if not header:
        raise MicrographError(f"`{path}` is empty (0 bytes): copy or export it again.")
    if header not in (b"II", b"MM"):
        raise MicrographError(f"`{path}` is not a TIFF file: convert it to TIFF first, for example with Fiji.")
    return open_tiff(path, series, axes)


def _with_axes(micrograph: Micrograph, axes: str, source: Path | str) -> Micrograph:
    """The micrograph with other names for its axes; channels that stand last are put before the rows."""
    stored = micrograph.axes[:-3] + "YXC" if micrograph.channels_last else micrograph.axes
    is_last = axes.endswith("YXC")
    if (
        len(axes) != len(stored)
        or not axes.endswith(("YX", "YXC"))
        or (micrograph.channels_last and not is_last)
        or len(set(axes)) != len(axes)
        or set(axes) - set("TZCYX")
    ):
        raise MicrographError(
            f"`{source}` has the shape {micrograph.data.shape} and the axes {micrograph.axes}: name each by one of T, "
            f"Z and C, then YX, or YXC where channels stand last, not {axes!r}."
        )
    named = axes[:-3] + "CYX" if is_last else axes
    changes: dict = {"axes": named}
    if is_last and not micrograph.channels_last:
        acquisition = dataclasses.replace(micrograph.acquisition, planes=())
        changes |= {"data": np.moveaxis(np.asarray(micrograph.data), -1, -3), "channels_last": True}
        changes |= {"channel_names": None, "acquisition": acquisition.fitted(micrograph.data.shape[-1], 0)}
    elif "C" in named + micrograph.axes and named.find("C") != micrograph.axes.find("C"):
        changes["channel_names"] = None
        changes["acquisition"] = dataclasses.replace(micrograph.acquisition, channels=())
    return dataclasses.replace(micrograph, **changes)
