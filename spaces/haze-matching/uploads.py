"""Files of visitors: what is too large is refused before it is read, and all of them expire."""

import math
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from haze_pipeline.microscopy_io import Micrograph, read_micrograph


MAX_FILE = 100 * 2**20  # bytes
MAX_UNPACKED = 2**30  # bytes
MAX_PIXELS = 2048**2  # of a plane
EXPIRY = int(os.environ.get("HAZE_EXPIRY", 3600))  # seconds

FILES = TemporaryDirectory(prefix="haze-space-")  # of nobody else, and gone with the server
os.environ["GRADIO_TEMP_DIR"] = FILES.name


def delete_expired_files():
    """
    Delete what is older than `EXPIRY`, for ever, but not the examples, which are there from the start. Gradio's own `delete_cache`
    overlooks the files of components that were updated.
    """
    examples = set(Path(FILES.name).rglob("*"))
    while True:
        time.sleep(EXPIRY / 6)
        for path in Path(FILES.name).rglob("*"):
            with suppress(OSError):  # Gradio may be at work on it
                if path.is_file() and path not in examples and time.time() - path.stat().st_ctime > EXPIRY:
                    path.unlink()


def read_stack(path: str | None) -> tuple[Micrograph, np.ndarray]:
    """A micrograph and its planes `[P, C, H, W]`."""
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
    micrograph = read_micrograph(path)
    data = micrograph.data
    data = np.moveaxis(data, micrograph.axes.index("C"), -3) if "C" in micrograph.axes else data[..., None, :, :]
    if math.prod(data.shape[-2:]) > MAX_PIXELS:
        size = " × ".join(map(str, data.shape[-2:]))
        raise ValueError(f"`{name}` has planes of {size} pixels, more than 2048 × 2048: crop it.")
    return micrograph, data.reshape(-1, *data.shape[-3:])


def read_plane(path: str | None, plane: int, channel: int) -> Micrograph:
    """One plane of a file. Planes, of all axes but the channels, and channels are counted from 1, as in Fiji."""
    micrograph, planes = read_stack(path)
    if not (1 <= plane <= planes.shape[0] and 1 <= channel <= planes.shape[1]):
        raise ValueError(
            f"`{Path(path).name}` has planes 1 to {planes.shape[0]} and channels 1 to {planes.shape[1]}, but plane {plane} "
            f"of channel {channel} was asked for."
        )
    names = micrograph.channel_names and [micrograph.channel_names[channel - 1]]
    chosen = planes[plane - 1, channel - 1]
    return replace(micrograph, data=chosen, axes="YX", z_step=None, time_interval=None, channel_names=names)
