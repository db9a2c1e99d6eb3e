"""Files of visitors. Files that are too large are refused before they are read. All files are deleted after a time."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
import zarr
from archives import unpacked

from haze_pipeline.io.micrograph_files import Micrograph, open_micrograph
from haze_pipeline.io.ome_zarr_collections import find_images
from haze_pipeline.io.tiff_reader import list_series


MAX_FILE = 100 * 2**20  # bytes
MAX_UNPACKED = 2**30  # bytes
MAX_PIXELS = 2048**2  # of a plane
MAX_WORK = 2**25  # pixels of all planes × members
EXPIRY = int(os.environ.get("HAZE_EXPIRY", 3600))  # seconds

# Without this script, Gradio would show an error without a message. The server refuses such files anyway.
REFUSE_LARGE_FILES = f"""() => {{
    for (const kind of ["change", "drop"]) document.addEventListener(kind, event => {{
        const files = [...(event.target.files ?? event.dataTransfer?.files ?? [])];
        if (!files.some(file => file.size > {MAX_FILE})) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        if (event.target.files) event.target.value = "";
        document.querySelector("#too_large").click();
    }}, true);
}}"""

FILES = TemporaryDirectory(prefix="haze-space-")  # private, and deleted when the server ends
os.environ["GRADIO_TEMP_DIR"] = FILES.name


def delete_expired_files():
    """
    Delete files older than `EXPIRY`, in an endless loop. The examples, which exist from the start, are kept. Gradio's
    own `delete_cache` misses the files of components that were updated.
    """
    examples = set(Path(FILES.name).rglob("*"))
    while True:
        time.sleep(EXPIRY / 6)
        for path in Path(FILES.name).rglob("*"):
            with suppress(OSError):  # Gradio may be using the file
                if path.is_file() and path not in examples and time.time() - path.stat().st_ctime > EXPIRY:
                    path.unlink()


@contextmanager
def open_upload(path: str | None, image_number: int = 1) -> Iterator[tuple[Micrograph, int]]:
    """
    Open one image of a TIFF, or of the OME-Zarr in a zip archive. Its planes are read only when they are accessed.
    Images are counted from 1.

    Yields the image and the number of images in the file.
    """
    if path is None:
        raise ValueError("There is no image: choose a TIFF file, a zipped OME-Zarr or an example.")
    name = Path(path).name
    if os.path.getsize(path) > MAX_FILE:
        raise ValueError(f"`{name}` is larger than {MAX_FILE >> 20} MB: crop it or save fewer planes.")
    with ExitStack() as stack:
        source, images, size = path, 1, 0
        if path.lower().endswith(".zip"):
            source = stack.enter_context(unpacked(path, MAX_UNPACKED))
            with suppress(Exception):  # errors of the file are reported below
                images = max(1, len(list(find_images(zarr.open_group(source, mode="r")))))
        else:
            with suppress(Exception), tifffile.TiffFile(path) as tif:  # likewise
                size = sum(series.nbytes for series in tif.series)
                images = max(1, len(list_series(tif)))
        _check_size(name, size)
        if not 1 <= image_number <= images:
            raise ValueError(f"`{name}` has no image {image_number}: choose from images 1 to {images}.")
        micrograph = stack.enter_context(open_micrograph(source, series=image_number - 1 if images > 1 else None))
        shape = micrograph.data.shape
        _check_size(name, math.prod(shape) * micrograph.data.dtype.itemsize)
        if math.prod(shape[-2:]) > MAX_PIXELS:
            raise ValueError(
                f"`{name}` has planes of {' × '.join(map(str, shape[-2:]))} pixels, more than 2048 × 2048: crop it."
            )
        yield micrograph, images


def _check_size(name: str, size: int):
    if size > MAX_UNPACKED:
        raise ValueError(f"`{name}` unpacks to {size >> 20} MB, more than {MAX_UNPACKED >> 20} MB: save fewer planes.")


def count_planes(micrograph: Micrograph) -> tuple[int, int]:
    """The number of planes along all axes except the channel axis, and the number of channels."""
    channels = micrograph.data.shape[micrograph.axes.index("C")] if "C" in micrograph.axes else 1
    return math.prod(micrograph.data.shape[:-2]) // channels, channels


def choose_plane(micrograph: Micrograph, plane: int, channel: int) -> Micrograph:
    """
    Read one plane from its file. Planes and channels are counted from 1, as in Fiji. All axes except the channel axis
    count as planes.
    """
    planes, channels = count_planes(micrograph)
    if not (1 <= plane <= planes and 1 <= channel <= channels):
        raise ValueError(
            f"Plane {plane} of channel {channel} does not exist: choose from planes 1 to {planes} and channels 1 to "
            f"{channels}."
        )
    chosen = micrograph.select(channel=channel - 1)
    index = np.unravel_index(plane - 1, chosen.data.shape[:-2])
    return replace(chosen, data=chosen.data[index], axes="YX", z_step=None, time_interval=None)


def choose_stack(micrograph: Micrograph, channel: int, members: int) -> Micrograph:
    """
    Read all planes of one channel from their file. Channels are counted from 1.

    Raises:
        `ValueError`: If there is no such channel, or the planes are too many for the number of ensemble members.
    """
    planes, channels = count_planes(micrograph)
    if not 1 <= channel <= channels:
        raise ValueError(f"Channel {channel} does not exist: choose from channels 1 to {channels}.")
    height, width = micrograph.data.shape[-2:]
    if planes * height * width * members > MAX_WORK:
        most = MAX_WORK // (height * width * members)
        raise ValueError(
            f"{planes} planes of {height} × {width} pixels are too many for {members} members: choose fewer members, "
            f"upload at most {most} planes, or dehaze a single plane."
        )
    chosen = micrograph.select(channel=channel - 1)
    return replace(chosen, data=np.asarray(chosen.data))


def read_plane(path: str | None, plane: int, channel: int, image_number: int = 1) -> Micrograph:
    """Read one plane of a file, see [`open_upload`] and [`choose_plane`]."""
    with open_upload(path, image_number) as (micrograph, _):
        return choose_plane(micrograph, plane, channel)


def read_stack(path: str | None, channel: int, image_number: int, members: int) -> Micrograph:
    """Read all planes of one channel of a file, see [`open_upload`] and [`choose_stack`]."""
    with open_upload(path, image_number) as (micrograph, _):
        return choose_stack(micrograph, channel, members)
