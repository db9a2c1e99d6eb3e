"""Arrays that may be larger than the memory."""

import tempfile

import numpy as np
import psutil
import torch


def allocate(*shape: int) -> torch.Tensor:
    """
    Zeros of type float32 in main memory or, if they would take more than a quarter of what is free, in a temporary
    file that is mapped into memory and vanishes with the tensor.
    """
    if 4 * int(np.prod(shape)) <= psutil.virtual_memory().available // 4:
        return torch.zeros(shape)
    with tempfile.TemporaryFile(prefix="haze-") as file:  # the mapping outlives the name and the handle
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
