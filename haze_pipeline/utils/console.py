"""Functions that the commands share: errors, progress bars, checks of installed extras, and folders."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """
    Run a program. `OSError`, `ValueError`, `MemoryError` and `ImportError`, which its user can mostly correct, end it
    with one sentence on standard error instead of a traceback. The traceback is logged at level DEBUG. Other errors
    keep it.

    Exit codes: 1 after an error, 130 if interrupted.
    """
    try:
        yield
    except (OSError, ValueError, MemoryError, ImportError) as error:  # ImportError: an extra is not installed
        logging.getLogger(__name__).debug("The error came from here:", exc_info=True)
        print(f"Error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)  # the terminal has written ^C in the line
        sys.exit(130)


def progress_display(stack: ExitStack, visible: bool = True) -> Progress:
    """Progress bars on standard error. They are shown only on a terminal, and removed when they are complete."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return stack.enter_context(
        Progress(*columns, console=console, transient=True, disable=not (visible and console.is_terminal))
    )


def progress_bar(description: str, total: int | None, stack: ExitStack):
    """
    Show a progress bar, see [`progress_display`], and return the function `advance(by)` that advances it. `by` may be
    a fraction of a step. `total` is `None` if the number of steps is unknown.
    """
    progress = progress_display(stack)
    task = progress.add_task(description, total=total)
    return lambda by: progress.advance(task, by)


def require(extra: str, *modules: str):
    """Raise an `ImportError` that names the extra if one of its modules is not installed. Call it before any work."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"This needs {', '.join(missing)}: pip install 'haze-pipeline[{extra}]'.")


def one_line(error: BaseException) -> str:
    """The message of an error in one line; the name of its type where it has none."""
    # torch puts the traceback of a process that loads data before the message.
    of_worker = r"Caught \w+ in DataLoader worker.*\n[\w.]*(?:Error|Exception|Interrupt): "
    message = re.sub(of_worker, "", str(error), flags=re.DOTALL)
    return " ".join(message.split()) or type(error).__name__


def make_parents(path: Path):
    """
    Create the parent folders of `path`.

    Raises:
        `NotADirectoryError`: If one of them is a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path.parent} is not a folder: choose another path for {path.name}.") from error
