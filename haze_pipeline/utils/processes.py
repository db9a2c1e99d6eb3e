"""Processes that share a run on one or several machines. accelerate or torchrun starts them; accelerate joins them."""

import atexit
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from .console import require


# Longest time that a process waits for another one, whose files may take much longer than its own.
PATIENCE = timedelta(days=30)


class Processes:
    """
    The processes of a run, seen from one of them. By default, this process is the only one.

    Attributes:
        index (`int`): Index of this process, from 0.
        number (`int`): Number of processes.
        device (`torch.device`, *optional*): Device that the launcher assigned to this process.
    """

    index = 0
    number = 1
    device = None

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def gather(self, value: Any) -> list:
        """Return the values of all processes to each of them."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value of the main process to all processes."""
        return self.gather(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the body fails on one process, all processes raise an error, so that none waits for the failed one."""
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        failures = [each for each in self.gather(None if error is None else str(error)) if each is not None]
        if error is not None:
            raise error
        if failures:
            raise RuntimeError(failures[0])


class LaunchedProcesses(Processes):
    """The processes that a launcher started together with this one."""

    def __init__(self, use_cpu: bool):
        require("train", "accelerate")
        from accelerate import PartialState

        state = PartialState(cpu=use_cpu or meet_on_cpu(), timeout=PATIENCE)
        check_joined(state.num_processes)
        atexit.register(state.destroy_process_group)  # else its threads would abort the process at its end
        self.index, self.number = state.process_index, state.num_processes
        self.device = state.device

    def gather(self, value: Any) -> list:
        from accelerate.utils import gather_object

        return gather_object([value])


def join_processes(use_cpu: bool) -> Processes:
    """The processes of this run: all that the launcher started, or this one alone if there was no launcher."""
    return LaunchedProcesses(use_cpu) if is_launched() else Processes()


def is_launched() -> bool:
    """Whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def meet_on_cpu() -> bool:
    """
    Whether the processes that a launcher started must be joined on the CPU, because no GPU can join them. accelerate
    must then be told with `Accelerator(cpu=True)`; otherwise each process would run as if it were the only one.
    """
    import torch

    return is_launched() and (not torch.accelerator.is_available() or torch.backends.mps.is_available())


def check_joined(number: int) -> None:
    """
    Check that all processes that the launcher started were joined in a group of `number` processes. Processes that are
    not joined would repeat the same work and overwrite each other's results.

    Raises:
        `ValueError`: If they were not.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if number != launched:
        raise ValueError(
            f"{launched} processes were started, but accelerate joined only {number} of them on these devices: start "
            "one process, or see training/accelerate_configs."
        )


def available_cores() -> int:
    """Number of cores that this process may use: those it is bound to, or fewer if its container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # Linux control groups, version 2
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def launch(number: int, arguments: list[str]) -> int:
    """
    Run `haze-pipeline` with these arguments in `number` processes on this machine, as torchrun would. Return the exit
    code.
    """
    require("train", "accelerate")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes print their own errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Processes that each use all cores would slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // number)))
    # The processes find each other through a file. torchrun takes a TCP port instead, and asks for libuv there, which
    # torch for Windows lacks (pytorch/pytorch#178600).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="haze-", ignore_cleanup_errors=True) as folder:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=number,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint=str(Path(folder, "processes")),
                rdzv_configs={"store_type": "file"},
                max_restarts=0,
                monitor_interval=0.1,
            )
            elastic_launch(config, sys.executable)("-m", "haze_pipeline", *arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
