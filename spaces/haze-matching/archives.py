"""Uploaded zip archives, each of which holds one OME-Zarr."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from haze_pipeline.io.micrograph_files import is_zarr


MAX_ENTRIES = 20_000  # files of an archive


@contextmanager
def unpacked(path: str, most: int) -> Iterator[Path]:
    """
    Unpack the OME-Zarr in a zip archive to a temporary folder: the archive holds either a folder `name.zarr` or the
    files in it.

    Args:
        path (`str`): The archive.
        most (`int`): Bytes to which it may unpack.

    Raises:
        `ValueError`: If the archive is damaged, too large, encrypted, would write outside of the folder, or does not
            hold exactly one Zarr.
    """
    name = Path(path).name
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _check(archive, name, most)
                archive.extractall(folder)  # no more bytes of a file than were checked
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"`{name}` is damaged or not a zip archive: pack the OME-Zarr again.") from error
        root = Path(folder)
        found = [root] if is_zarr(root) else [each for each in sorted(root.iterdir()) if is_zarr(each)]
        if len(found) != 1:
            raise ValueError(f"`{name}` must hold one OME-Zarr, but holds {len(found)}: pack one folder `name.zarr`.")
        try:
            yield found[0]
        except ValueError as error:  # visitors know the archive, not the temporary folder
            raise ValueError(str(error).replace(str(found[0]), name)) from error


def _check(archive: zipfile.ZipFile, name: str, most: int):
    """Refuse archives that unpack to too much or outside of their folder, or that cannot be unpacked."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"`{name}` holds {len(entries)} files, more than {MAX_ENTRIES}: save larger chunks.")
    size = sum(entry.file_size for entry in entries)
    if size > most:
        raise ValueError(f"`{name}` unpacks to {size >> 20} MB, more than {most >> 20} MB: save fewer planes.")
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(entry.external_attr >> 16)
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename or is_link:
            raise ValueError(f"`{name}` holds a link or a path out of its folder: pack the OME-Zarr again.")
        if entry.flag_bits & 1:
            raise ValueError(f"`{name}` is encrypted: pack it without a password.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"`{name}` is compressed in a way that is not read here: pack an ordinary zip archive.")
