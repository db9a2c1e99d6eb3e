"""What the commands share: progress bars and folders."""

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_display(stack: ExitStack, visible: bool = True) -> Progress:
    """Progress bars on standard error that vanish when done and show only on a terminal."""
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
    A progress bar as of [`progress_display`]. Returns its `advance(by)`; parts of the whole may be fractions. `total`
    is `None` where it is not known.
    """
    progress = progress_display(stack)
    task = progress.add_task(description, total=total)
    return lambda by: progress.advance(task, by)


def require(extra: str, *modules: str):
    """Raise an `ImportError` that names the extra if one of its modules is not installed, before any work is done."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"This needs {', '.join(missing)}: pip install 'haze-pipeline[{extra}]'.")


def one_line(error: BaseException) -> str:
    """The message of an error in one line; the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def make_parents(path: Path):
    """Make the folders above `path`; a file among them is an error that names it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path.parent} is not a folder; choose another place.") from error
