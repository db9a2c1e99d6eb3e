"""Arrays that may be larger than the main memory."""

import tempfile
from collections.abc import Iterator

import numpy as np
import psutil
import torch


BAND_ROWS = 1024  # rows of a plane processed at once, so that temporary arrays of large planes stay small


def row_bands(length: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """
    Divide the `length` rows of a plane into bands of 1024 rows.

    Yields:
        The rows of a band, the same with up to `margin` rows more on either side, and the band within the latter.
    """
    for start in range(0, length, BAND_ROWS):
        stop, first = min(start + BAND_ROWS, length), max(0, start - margin)
        yield slice(start, stop), slice(first, min(stop + margin, length)), slice(start - first, stop - first)


def allocate(*shape: int) -> torch.Tensor:
    """
    Zeros of type float32. They lie in main memory or, if they need more than a quarter of the free memory, in a
    temporary file that is mapped into memory and deleted together with the tensor.
    """
    if 4 * int(np.prod(shape)) <= psutil.virtual_memory().available // 4:
        return torch.zeros(shape)
    with tempfile.TemporaryFile(prefix="haze-") as file:  # the mapping stays valid after the file is closed
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
