"""Capabilities of this machine: free memory, the fastest arithmetic, and parallel work on all cores."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Free memory of `device` in bytes. For a device that shares the main memory, the free main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fastest_dtype(device: torch.device) -> torch.dtype:
    """
    The number type in which a convolutional network runs fastest on `device` without a relevant loss of quality:
    bfloat16 if a GPU or CPU supports it natively (float16 on older CUDA GPUs), else float32. CPUs without AVX512-BF16
    or AMX emulate bfloat16, which is many times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out: on a GPU, in torch's CPU allocator, or in oneDNN."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # oneDNN raises the last message if a convolution does not fit into memory. The same message with "descriptor"
    # means that it does not support the operation.
    messages = r"can't allocate memory|not enough memory|out of memory|could not create a primitive(?! descriptor)"
    return isinstance(error, RuntimeError) and re.search(messages, str(error), re.IGNORECASE) is not None


def map_on_cores(
    function: Callable, jobs: Iterable, workers: int, in_background: bool = False, stopped: Event | None = None
) -> Iterator:
    """
    Apply `function` to every job on `workers` threads, and yield the results in order. The threads share the cores
    evenly. For networks on small tiles, one tile per core is faster than all cores on one tile.

    Args:
        function (`Callable`): What to apply.
        jobs (iterable): Its arguments, one each.
        workers (`int`): Number of threads. One worker means the calling thread, unless `in_background`.
        in_background (`bool`, defaults to `False`): Work on the next jobs while the caller handles a result.
        stopped (`Event`, *optional*): Set when no further results are wanted, so that running jobs may end early.
    """
    jobs = list(jobs)
    workers = min(workers, len(jobs))
    if workers < 1 or (workers == 1 and not in_background):
        yield from map(function, jobs)
        return
    threads = torch.get_num_threads()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def initialize():
        torch.set_num_threads(max(1, threads // workers))  # applies to the calling thread only

    def run(job):
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):  # these modes are per thread
            return function(job)

    pool = ThreadPoolExecutor(workers, initializer=initialize)
    results: deque[Future] = deque()
    try:
        for job in jobs:
            results.append(pool.submit(run, job))
            if len(results) > workers + 1:  # results that wait take memory
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        if stopped is not None:
            stopped.set()
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, jobs that have not begun are dropped
        torch.set_num_threads(threads)  # the setting above also became the default of new threads
