"""Run many files across processes; failures are isolated and logged."""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from haze_pipeline.reliability.assessment import join_verdicts
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.console import make_parents, progress_display
from haze_pipeline.utils.processes import Processes

from .file_dehazing import FileDehazer
from .tasks import Task, name_of


# Columns of the log.
COLUMNS = (
    "source",
    "status",
    "planes",
    "seconds",
    "seed",
    "hot_pixels",
    "below_range",
    "above_range",
    "verdict",
    "error",
    "written",
)


def dehaze_files(
    dehazer: FileDehazer,
    tasks: list[Task],
    processes: Processes,
    log: Path | None,
    stop_at_failure: bool,
    describe_error: Callable[[Exception], str],
) -> list[dict]:
    """
    Dehaze the files of all tasks that are not skipped. A file that fails does not stop the others.

    Args:
        dehazer ([`FileDehazer`]): Dehazes one file.
        tasks (`list[Task]`): The same list on all processes. All processes share the planes of an OME-Zarr; any other
            file is dehazed by one process.
        processes ([`Processes`]): The processes that share the work.
        log (`Path`, *optional*): CSV or JSON file for the outcome of every file. If the run is interrupted, it holds
            the files that the main process has finished.
        stop_at_failure (`bool`): Raise the error of a file instead of recording it.
        describe_error (`Callable`): Words the error of a file for the terminal and the log.

    Returns:
        `list[dict]`: The record of every task, on all processes: `source`, `status` (done, skipped or failed),
        `written`, `planes`, `seconds`, `seed`, `hot_pixels`, `below_range`, `above_range`, `verdict`, `error`, and
        what the dehazer returned.
    """
    records = {number: _record(task, "skipped") for number, task in enumerate(tasks) if task.is_skipped}
    waiting = [(number, task) for number, task in enumerate(tasks) if not task.is_skipped]
    shared = [each for each in waiting if each[1].is_shared]
    alone = [each for each in waiting if not each[1].is_shared][processes.index :: processes.number]
    try:
        with ExitStack() as stack:
            progress = progress_display(stack, visible=processes.is_main)
            files = progress.add_task("Files", total=len(shared + alone), visible=len(shared + alone) > 1)
            for number, task in shared + alone:
                planes = progress.add_task(f"Dehazing {name_of(task.source)}", total=None)
                try:
                    facts = dehazer(
                        task.source,
                        task.outputs,
                        processes if task.is_shared else Processes(),
                        lambda part, total, planes=planes: progress.update(planes, advance=part, total=total),
                    )
                    records[number] = _record(task, "done", **facts)
                except (OSError, ValueError, RuntimeError, MemoryError, ImportError) as error:
                    if stop_at_failure:
                        raise
                    message = describe_error(error)
                    records[number] = _record(task, "failed", seed=dehazer.seed, error=message)
                    if processes.is_main or not task.is_shared:
                        progress.console.print(f"Error: {message}", highlight=False, markup=False, soft_wrap=True)
                progress.remove_task(planes)
                progress.advance(files)
        for part in processes.gather(records):
            records |= part
        return [record for _, record in sorted(records.items())]
    finally:
        if log is not None and processes.is_main:
            write_log(log, [record for _, record in sorted(records.items())])


def write_log(path: Path, records: list[dict]):
    """Write the outcome of every file as a table (.csv) or as a list of objects (.json)."""
    make_parents(path)
    rows = [{name: record[name] for name in COLUMNS} for record in records]
    if path.suffix.lower() == ".json":
        text = json.dumps(rows, indent=2) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "written": " ".join(row["written"])} for row in rows)
        text = buffer.getvalue()
    with replace_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")  # csv has written the ends of lines


def print_plan(dehazer: FileDehazer, tasks: list[Task]):
    """
    Print the outputs of every task, and an estimate of the time that one process needs, from the time for a small
    field and the number of pixels.
    """
    pixels = 0
    for task in tasks:
        if task.is_skipped:
            print(f"{task.source} would be skipped, since its outputs exist")
            continue
        try:
            with ExitStack() as stack:
                pixels += math.prod(dehazer.open(task.source, stack).data.shape)
            print(f"{task.source} -> {', '.join(map(str, task.outputs.paths))}")
        except (OSError, ValueError, ImportError) as error:
            print(f"{task.source} cannot be dehazed: {error}")
    side = 256
    small = np.random.default_rng(0).poisson(100, (side, side)).astype(np.float32)
    for _ in range(2):  # the first call also warms up
        started = time.perf_counter()
        dehazer.pipe(small, **dehazer.sampling)
        seconds = time.perf_counter() - started
    print(f"about {seconds * pixels / side**2:.0f} s with one process", file=sys.stderr)


def print_findings(record: dict, is_folder_run: bool, also_good: bool):
    """Print to standard error what a user should know about the results of a file."""
    name = f"{record['source']}: " if is_folder_run else ""

    def say(text: str):
        print(f"{name}{text}", file=sys.stderr)

    if record["status"] == "skipped" and not is_folder_run:
        say(f"{record['source']} was skipped, since its outputs exist; leave out --skip-existing to dehaze it again")
    if record["hot_pixels"]:
        say(f"{record['hot_pixels']} hot pixel(s): the network saw the median of their neighbours instead")
    if record["below_range"]:
        say(
            f"{record['below_range']} pixels of the result were below the range of the number type, as noise around "
            "zero makes them, and set to its smallest value; --output-dtype float32 keeps them"
        )
    if record["above_range"]:
        say(
            f"warning: {record['above_range']} pixels of the result are saturated, since they exceed the number type; "
            "--output-dtype float32 keeps them"
        )
    strengths = record.get("strength")
    if isinstance(strengths, list) and min(strengths) < 1:  # with --protect
        say(f"strength by channel: {', '.join(map(str, strengths))}, since dehazing is predicted to gain little")
    assessments = record.get("assessment", [])
    told = [each for each in assessments if each["warnings"] or also_good]
    if is_folder_run and told:
        say(record["verdict"])
    elif not is_folder_run:
        for each in told:
            say(f"plane {each['plane']}: {each['verdict']}" if record["planes"] > 1 else each["verdict"])


def _record(task: Task, status: str, **facts) -> dict:
    """The outcome of a task."""
    return {
        "planes": None,
        "seconds": None,
        "seed": None,
        "hot_pixels": None,
        "below_range": None,
        "above_range": None,
        "error": None,
        **facts,
        "source": str(task.source),
        "status": status,
        "verdict": join_verdicts(each["verdict"] for each in facts.get("assessment", [])),
        "written": [str(path) for path in task.outputs.paths] if status == "done" else [],
    }
