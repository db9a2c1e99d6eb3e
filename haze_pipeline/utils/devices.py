"""What the machine at hand allows: free memory, fast arithmetic, and work on all cores at once."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that a program may still take on `device`; of the main memory where a device shares it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fastest_dtype(device: torch.device) -> torch.dtype:
    """
    Arithmetic in which a convolutional network runs fastest on `device` without harm: bfloat16 where a GPU or CPU
    multiplies it natively (float16 on older CUDA GPUs), else float32. CPUs without AVX512-BF16 or AMX emulate
    bfloat16, which is many times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how torch says that memory ran out: on a GPU, in the allocator of the CPU or in oneDNN."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The last one is oneDNN's where there is no room for a convolution; without a "descriptor", of which it can't do
    # the kind.
    says_so = r"can't allocate memory|not enough memory|out of memory|could not create a primitive(?! descriptor)"
    return isinstance(error, RuntimeError) and re.search(says_so, str(error), re.IGNORECASE) is not None


def map_on_cores(function: Callable, jobs: Iterable, workers: int) -> Iterator:
    """
    `function` of every job, in order, on `workers` threads that share the cores evenly. Networks on small tiles use
    several cores better one tile each than all on one tile.
    """
    jobs = list(jobs)
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    threads = torch.get_num_threads()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def initialize():
        torch.set_num_threads(max(1, threads // workers))  # of the calling thread only

    def run(job):
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):  # are kept per thread
            return function(job)

    pool = ThreadPoolExecutor(workers, initializer=initialize)
    try:
        yield from pool.map(run, jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the jobs not yet begun
        torch.set_num_threads(threads)  # which torch also takes as the number for threads to come
