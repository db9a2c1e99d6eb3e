"""Where the images are in an OME-Zarr that holds several: plates, series of bioformats2raw, groups of images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


ZARR_MARKERS = ("zarr.json", ".zgroup", ".zattrs")
MAX_DEPTH = 3  # of groups without a description, in which images are looked for


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr, of whatever name."""
    return path.is_dir() and any((path / marker).exists() for marker in ZARR_MARKERS)


def describe_group(group) -> dict[str, Any]:
    """The attributes of a Zarr group; those of version 0.5 stand under `ome`."""
    attributes = group.attrs.asdict()
    return attributes | attributes.get("ome", {})


def find_images(group, depth: int = MAX_DEPTH) -> Iterator[tuple[str, int]]:
    """
    The images in an OME-Zarr, in the order of its description.

    Args:
        group (`zarr.Group`): An image, a plate, a well, what bioformats2raw writes, or any group of these.
        depth (`int`): How deep images are looked for in groups that do not list them.

    Yields:
        `tuple[str, int]`: Path in the group, `""` for itself, and number in the list of `multiscales` there.
    """
    attributes = describe_group(group)
    if "multiscales" in attributes:
        yield from (("", number) for number in range(len(attributes["multiscales"])))
        return
    if "plate" in attributes:
        inner = [well["path"] for well in attributes["plate"]["wells"]]
    elif "well" in attributes:
        inner = [image["path"] for image in attributes["well"]["images"]]
    elif "bioformats2raw.layout" in attributes:
        inner = _series_of_bioformats2raw(group)
    elif depth:  # as they are listed, which a server of web pages does not do
        names = [name for name in group.group_keys() if name not in ("OME", "labels")]
        inner = sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    else:
        inner = []
    for name in inner:
        if name in group:
            yield from ((f"{name}/{path}".rstrip("/"), number) for path, number in find_images(group[name], depth - 1))


def _series_of_bioformats2raw(group) -> list[str]:
    """Names of the images: listed in the group `OME`, or else numbers from 0."""
    if "OME" in group:
        listed = describe_group(group["OME"]).get("series")
        if listed:
            return [str(name) for name in listed]
    names: list[str] = []
    while str(len(names)) in group:
        names.append(str(len(names)))
    return names


def list_images(path: Path) -> list[Path]:
    """The images in an OME-Zarr folder; the folder itself if it is one, or if what it holds cannot be listed."""
    try:
        import zarr

        group = zarr.open_group(path, mode="r")
        inner = list(dict.fromkeys(name for name, _ in find_images(group)))
    except Exception:  # what is wrong with it, or that zarr is not installed, is told when it is opened
        return [path]
    return [path / name for name in inner] or [path]
