"""Files and folders that appear only when they are complete."""

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


PREFIX = ".haze-"


def partial_name(path: Path) -> Path:
    """A name beside `path`, with its suffix, for what is not complete."""
    return path.with_name(f"{PREFIX}{uuid.uuid4().hex}-{path.name}")


@contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yields a temporary name in the folder of `path`, with its suffix, and renames the file or folder that the body
    makes there to `path` at the end.

    Whatever ends the body early, Ctrl-C included, removes what it made and leaves an existing `path` as it was.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `IsADirectoryError`: If `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder `{path.parent}` does not exist: create it, or name another for `{path.name}`."
        )
    if path.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder: choose another name.")
    temporary = partial_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove_leftovers(path: Path):
    """Remove what runs that were killed left beside `path` when they were making it."""
    for leftover in glob.glob(f"{glob.escape(str(path.parent))}/{PREFIX}*-{glob.escape(path.name)}"):
        remove(Path(leftover))


def remove(path: Path):
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
