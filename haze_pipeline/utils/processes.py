"""
Processes that share a run, on one machine or many: started by accelerate or torchrun, joined in accelerate's group.
"""

import atexit
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .console import require


# How long a process may wait for another, whose files may take much longer than its own.
PATIENCE = timedelta(days=30)


class Processes:
    """
    This process among those of a run; by default it is the only one.

    Attributes:
        index (`int`): Its number, from 0.
        number (`int`): How many there are.
        device (`torch.device`, *optional*): The one that the launcher gave to this process.
    """

    index = 0
    number = 1
    device = None

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def gather(self, value: Any) -> list:
        """The values of all processes, on each of them."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value of the main process, on each of them."""
        return self.gather(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the body raises on any process, all raise at its end, so that none waits for one that gave up."""
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
    """The processes that a launcher started with this one."""

    def __init__(self, use_cpu: bool):
        require("train", "accelerate")
        from accelerate import PartialState

        state = PartialState(cpu=use_cpu or meet_on_cpu(), timeout=PATIENCE)
        check_joined(state.num_processes)
        atexit.register(state.destroy_process_group)  # its threads would abort the process when it ends
        self.index, self.number = state.process_index, state.num_processes
        self.device = state.device

    def gather(self, value: Any) -> list:
        from accelerate.utils import gather_object

        return gather_object([value])


def join_processes(use_cpu: bool) -> Processes:
    """The processes of this run: those of the launcher that started it, if one did."""
    return LaunchedProcesses(use_cpu) if is_launched() else Processes()


def is_launched() -> bool:
    """Whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def meet_on_cpu() -> bool:
    """
    Whether the processes that a launcher started are to be joined on the CPU, for want of devices that can be joined.
    accelerate asks to be told (`Accelerator(cpu=True)`): otherwise each takes itself for the only one.
    """
    import torch

    return is_launched() and (not torch.accelerator.is_available() or torch.backends.mps.is_available())


def check_joined(number: int) -> None:
    """
    Check that a group of `number` processes holds all that the launcher started: single ones would do the same work
    again, and write over one another.

    Raises:
        `RuntimeError`: If it does not.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if number != launched:
        raise RuntimeError(
            f"{launched} processes were started, but accelerate joined {number} of them on these devices: start one, "
            f"or see "
            "training/accelerate_configs."
        )


def launch(number: int, arguments: list[str]) -> int:
    """
    Run `haze-pipeline` with these arguments in so many processes of this machine, as torchrun would, and return the
    exit code.
    """
    require("train", "accelerate")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong is said by the processes themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Processes that each use all cores only hinder one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "haze_pipeline", *arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
