"""What the commands share: progress bars and folders."""

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(description: str, total: int | None, stack: ExitStack):
    """
    A progress bar on standard error that vanishes when done and shows only on a terminal. Returns its `advance(by)`; parts
    of the whole may be fractions. `total` is `None` where it is not known.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = stack.enter_context(
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    )
    task = progress.add_task(description, total=total)
    return lambda by: progress.advance(task, by)


def require(extra: str, *modules: str):
    """Raise an `ImportError` that names the extra if one of its modules is not installed, before any work is done."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"This needs {', '.join(missing)}: pip install 'haze-pipeline[{extra}]'.")


def make_parents(path: Path):
    """Make the folders above `path`; a file among them is an error that names it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path.parent} is not a folder; choose another place.") from error
