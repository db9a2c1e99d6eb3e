"""Many files in one run: shared between processes, whatever becomes of any, with a log."""

import csv
import io
import json
import math
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.console import make_parents, progress_display
from haze_pipeline.utils.processes import Processes

from .file_dehazing import FileDehazer
from .tasks import Task, name_of


# Of the log.
COLUMNS = ("source", "status", "planes", "seconds", "seed", "clipped_pixels", "verdict", "error", "written")


def dehaze_files(
    dehazer: FileDehazer, tasks: list[Task], processes: Processes, log: Path | None, stop_at_failure: bool
) -> list[dict]:
    """
    Do all tasks that are not skipped, whatever becomes of any.

    Args:
        dehazer ([`FileDehazer`]): What does them.
        tasks (`list[Task]`): The same on all processes. OME-Zarrs are done by all of them together, plane by plane;
            other files by one process each.
        processes ([`Processes`]): Those that share the work.
        log (`Path`, *optional*): CSV or JSON file that says what became of every file. If the run is interrupted, it
            holds what the main process has done.
        stop_at_failure (`bool`): Raise what goes wrong with a file, instead of noting it.

    Returns:
        `list[dict]`: For every task its `source`, `status` (done, skipped or failed), `written`, `planes`, `seconds`,
        `seed`, `clipped_pixels`, `verdict` and `error`, and whatever the dehazer says, on all processes.
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
                    message = " ".join(str(error).split()) or type(error).__name__
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
    """Write what became of every file as a table (.csv) or as a list of objects (.json)."""
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
        temporary.write_text(text)


def print_plan(dehazer: FileDehazer, tasks: list[Task]):
    """
    What would be done, and about how long one process would take, from the time of a small field and the number of
    pixels.
    """
    pixels = 0
    for task in tasks:
        if task.is_skipped:
            print(f"{task.source} is done already")
            continue
        try:
            with ExitStack() as stack:
                pixels += math.prod(dehazer.open(task.source, stack).data.shape)
            print(f"{task.source} -> {', '.join(map(str, task.outputs.paths))}")
        except (OSError, ValueError, ImportError) as error:
            print(f"{task.source} cannot be done: {error}")
    side = 256
    small = np.random.default_rng(0).poisson(100, (side, side)).astype(np.float32)
    for _ in range(2):  # the first call also warms up
        started = time.perf_counter()
        dehazer.pipe(small, dehazer.num_inference_steps, dehazer.ensemble_size)
        seconds = time.perf_counter() - started
    print(f"about {seconds * pixels / side**2:.0f} s with one process", file=sys.stderr)


def _record(task: Task, status: str, **facts) -> dict:
    """What became of a file."""
    assessments = [each["verdict"] for each in facts.get("assessment", [])]
    verdicts = Counter(assessments)
    counted = [f"{count} of {len(assessments)} planes: {verdict}" for verdict, count in verdicts.most_common()]
    return {
        "planes": None,
        "seconds": None,
        "seed": None,
        "clipped_pixels": None,
        "error": None,
        **facts,
        "source": str(task.source),
        "status": status,
        "verdict": " ".join(counted if len(verdicts) > 1 else verdicts) or None,
        "written": [str(path) for path in task.outputs.paths] if status == "done" else [],
    }
