"""Files of visitors: what is too large is refused before it is read, and all of them expire."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from haze_pipeline.io.micrograph_files import Micrograph, open_micrograph


MAX_FILE = 100 * 2**20  # bytes
MAX_UNPACKED = 2**30  # bytes
MAX_PIXELS = 2048**2  # of a plane
EXPIRY = int(os.environ.get("HAZE_EXPIRY", 3600))  # seconds

FILES = TemporaryDirectory(prefix="haze-space-")  # of nobody else, and gone with the server
os.environ["GRADIO_TEMP_DIR"] = FILES.name


def delete_expired_files():
    """
    Delete what is older than `EXPIRY`, for ever, but not the examples, which are there from the start. Gradio's own
    `delete_cache` overlooks the files of components that were updated.
    """
    examples = set(Path(FILES.name).rglob("*"))
    while True:
        time.sleep(EXPIRY / 6)
        for path in Path(FILES.name).rglob("*"):
            with suppress(OSError):  # Gradio may be at work on it
                if path.is_file() and path not in examples and time.time() - path.stat().st_ctime > EXPIRY:
                    path.unlink()


@contextmanager
def open_upload(path: str | None) -> Iterator[Micrograph]:
    """A micrograph, of which planes are read when they are asked for."""
    if path is None:
        raise ValueError("There is no image: choose a TIFF file or an example.")
    name = Path(path).name
    if os.path.getsize(path) > MAX_FILE:
        raise ValueError(f"`{name}` is larger than {MAX_FILE >> 20} MB: crop it or save fewer planes.")
    unpacked = 0
    with suppress(Exception), tifffile.TiffFile(path) as tif:  # what is wrong with a file is said when it is read
        unpacked = sum(series.nbytes for series in tif.series)
    if unpacked > MAX_UNPACKED:
        raise ValueError(
            f"`{name}` unpacks to {unpacked >> 20} MB, more than {MAX_UNPACKED >> 20}: save fewer planes."
        )
    with open_micrograph(path) as micrograph:
        if math.prod(micrograph.data.shape[-2:]) > MAX_PIXELS:
            size = " × ".join(map(str, micrograph.data.shape[-2:]))
            raise ValueError(f"`{name}` has planes of {size} pixels, more than 2048 × 2048: crop it.")
        yield micrograph


def count_planes(micrograph: Micrograph) -> tuple[int, int]:
    """Number of planes, over all axes but the channels, and of channels."""
    channels = micrograph.data.shape[micrograph.axes.index("C")] if "C" in micrograph.axes else 1
    return math.prod(micrograph.data.shape[:-2]) // channels, channels


def choose_plane(micrograph: Micrograph, plane: int, channel: int) -> Micrograph:
    """
    One plane, read from its file. Planes, of all axes but the channels, and channels are counted from 1, as in Fiji.
    """
    planes, channels = count_planes(micrograph)
    if not (1 <= plane <= planes and 1 <= channel <= channels):
        raise ValueError(
            f"There are planes 1 to {planes} and channels 1 to {channels}, but plane {plane} of channel {channel} was "
            f"asked for."
        )
    chosen = micrograph.select(channel=channel - 1)
    index = np.unravel_index(plane - 1, chosen.data.shape[:-2])
    return replace(chosen, data=chosen.data[index], axes="YX", z_step=None, time_interval=None)


def read_plane(path: str | None, plane: int, channel: int) -> Micrograph:
    """One plane of a file, see [`choose_plane`]."""
    with open_upload(path) as micrograph:
        return choose_plane(micrograph, plane, channel)
