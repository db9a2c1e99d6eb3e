"""The micrographs in a folder: every image once, however many files it is spread over."""

import logging
import os
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from .ome_metadata import companion_xml
from .ome_zarr_collections import is_zarr, list_images


TIFF_SUFFIXES = (".tif", ".tiff", ".lsm", ".stk", ".btf")  # also of .ome.tif
ZARR_SUFFIX = ".zarr"
BIOIO_SUFFIXES = (".czi", ".lif", ".nd2")


def list_tiffs(folder: str | os.PathLike) -> list[Path]:
    """
    The TIFFs in a folder and its sub-folders, relative to it and sorted. Hidden ones are leftovers of other programs.
    """
    return [path for path in list_micrographs(folder) if path.suffix.lower() in TIFF_SUFFIXES]


def list_micrographs(folder: str | os.PathLike, recursive: bool = True, expand: bool = True) -> list[Path]:
    """
    The micrographs in a folder (and its sub-folders), relative to it and sorted. Hidden ones are leftovers of other
    programs.

    An image that is spread over several OME-TIFFs is listed by its first file. Of an OME-Zarr with several images,
    such as a plate, every image is listed by its path, unless `expand` is false.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(ZARR_SUFFIX) or is_zarr(Path(parent, name))]
        for name in zarrs:
            if not name.startswith("."):
                found += list_images(Path(parent, name)) if expand else [Path(parent, name)]
        names = [name for name in files if name.lower().endswith(TIFF_SUFFIXES + BIOIO_SUFFIXES)]
        names = [name for name in names if not name.startswith(".")]
        later = later_files(Path(parent), [name for name in names if name.lower().endswith(TIFF_SUFFIXES)])
        found += [Path(parent, name) for name in names if name not in later]
        # A Zarr is a folder of chunks, not of images.
        folders[:] = [name for name in folders if name not in zarrs] if recursive else []
    return sorted(path.relative_to(folder) for path in found)


def later_files(folder: Path, names: list[str]) -> set[str]:
    """
    The TIFFs in a folder whose planes are read together with those of an earlier file.

    The OME-XML of a file, or of its companion, names the files of each of its images. The first of them that has
    OME-XML stands for the image. Micro-Manager names the continuation of `a_MMStack_Pos0.ome.tif`, which is full,
    `a_MMStack_Pos0_1.ome.tif`.
    """
    if len(names) < 2:
        return set()
    ome_xml = {name: text for name in names if (text := _ome_xml(folder / name))}
    images: dict[frozenset[str], None] = {}
    for text in set(ome_xml.values()):
        for image in _files_of_images(text):
            images[image & frozenset(names)] = None
    first, later = set(), set()
    for image in images:
        if len(image) > 1 and (readable := sorted(image & ome_xml.keys())):
            first.add(readable[0])
            later |= image - {readable[0]}
    for name in names:
        if continued := re.fullmatch(r"(.*_MMStack(?:_.+)?)_\d+(\.ome\.tiff?)", name, re.IGNORECASE):
            later |= {name} if continued[1] + continued[2] in names else set()
    return later - first


def _ome_xml(path: Path) -> str | None:
    """The OME-XML of a file or of its companion; nothing where it has none, or what it has is damaged."""
    logger = logging.getLogger("tifffile")
    logger.addFilter(_silence)
    try:
        with tifffile.TiffFile(path) as tif:
            if not tif.is_ome:
                return None
            text = tif.pages.first.description
        if "BinaryOnly" in text:
            return companion_xml(text, path, warn=False)
        return text
    except Exception:  # the file is told when it is read
        return None
    finally:
        logger.removeFilter(_silence)


def _silence(record: logging.LogRecord) -> bool:
    return False


def _files_of_images(ome_xml: str) -> list[frozenset[str]]:
    """Names of the files of every image, of those that name any."""
    images = defaultdict(set)
    try:
        root = ElementTree.fromstring(ome_xml)
    except ElementTree.ParseError:
        return []
    for number, image in enumerate(root.iterfind("{*}Image")):
        for identifier in image.iterfind("{*}Pixels/{*}TiffData/{*}UUID"):
            if name := identifier.attrib.get("FileName"):
                images[number].add(name)
    return [frozenset(names) for names in images.values()]
