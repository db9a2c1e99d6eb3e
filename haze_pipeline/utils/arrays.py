"""Arrays that may be larger than the main memory."""

import tempfile

import numpy as np
import psutil
import torch


BAND_ROWS = 1024  # rows of a plane processed at once, so that temporary arrays of large planes stay small


def allocate(*shape: int) -> torch.Tensor:
    """
    Zeros of type float32. They lie in main memory or, if they need more than a quarter of the free memory, in a
    temporary file that is mapped into memory and deleted together with the tensor.
    """
    if 4 * int(np.prod(shape)) <= psutil.virtual_memory().available // 4:
        return torch.zeros(shape)
    with tempfile.TemporaryFile(prefix="haze-") as file:  # the mapping stays valid after the file is closed
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
