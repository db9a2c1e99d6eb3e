"""Atomic writing: files and folders appear under their name only when they are complete."""

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


PREFIX = ".haze-"


def partial_name(path: Path) -> Path:
    """A temporary name in the folder of `path`, with its suffix, for an incomplete file or folder."""
    return path.with_name(f"{PREFIX}{uuid.uuid4().hex}-{path.name}")


@contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yield a temporary name in the folder of `path`, with its suffix. At the end, the file or folder that the body wrote
    there is renamed to `path`.

    If the body fails or is interrupted with Ctrl-C, the temporary file or folder is deleted, and an existing `path`
    stays unchanged.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `IsADirectoryError`: If `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder `{path.parent}` does not exist: create it, or choose another folder for `{path.name}`."
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
    """Remove the temporary files and folders that killed runs left beside `path` while they wrote it."""
    for leftover in glob.glob(f"{glob.escape(str(path.parent))}/{PREFIX}*-{glob.escape(path.name)}"):
        remove(Path(leftover))


def remove(path: Path):
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
