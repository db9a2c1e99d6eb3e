"""Reading, writing and simulation of micrographs for napari, by the same functions as on the command line."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from uuid import uuid4

import numpy as np

from haze_pipeline.io.acquisition import Acquisition, Channel
from haze_pipeline.io.file_lists import BIOIO_SUFFIXES, TIFF_SUFFIXES
from haze_pipeline.io.micrograph import Micrograph, MicrographError, SeveralImagesError
from haze_pipeline.io.micrograph_files import is_zarr, micrograph_writer, open_micrograph, replace_when_complete

from .layers import contrast_limits, to_attributes, to_micrograph


MAX_IN_MEMORY = 2**28  # bytes; the planes of larger stacks are read when they are shown


def get_reader(path: str | list[str]) -> Callable | None:
    """The reader of a file; `None` for files that it cannot read."""
    if not isinstance(path, str):
        return None
    suffix = Path(path).suffix.lower()
    if suffix in BIOIO_SUFFIXES and find_spec("bioio") is None:
        return None
    return read if suffix in (*TIFF_SUFFIXES, *BIOIO_SUFFIXES) or is_zarr(Path(path)) else None


def read(path: str) -> list[tuple]:
    """
    Layers of a file, one for every channel, with its sizes, names, colours and display ranges. Of a file with several
    images, the first is shown and the others are hidden; a warning names images that cannot be read.

    Raises:
        `OSError`, `MicrographError` or `ImportError`: As [`open_micrograph`], if the file has no image to show.
    """
    name = Path(path).name
    try:
        return _to_layers(open_lazily(path), name)
    except SeveralImagesError as error:
        count = error.count
    layers: list[tuple] = []
    for number in range(count):
        try:
            image = open_lazily(path, number, MAX_IN_MEMORY // count)
        except MicrographError as error:
            if not layers and number == count - 1:
                raise
            warnings.warn(f"Image {number} is not opened: {error}", stacklevel=1)
            continue
        is_first = not layers
        for data, attributes, kind in _to_layers(image, name):
            shown = {"name": f"image {number}, {attributes['name']}", "visible": is_first}
            layers.append((data, {**attributes, **shown}, kind))
    return layers


def open_lazily(path: str | Path, series: int | None = None, in_memory: int | None = None) -> Micrograph:
    """
    A micrograph whose data are an array in memory, up to `in_memory` bytes (256 MB if omitted), or a dask array that
    reads a plane when it is needed. `series` and errors are those of [`open_micrograph`].
    """
    opened = open_micrograph(path, series=series)
    micrograph = opened.__enter__()
    data, lock = micrograph.data, Lock()
    most = MAX_IN_MEMORY if in_memory is None else in_memory
    if math.prod(data.shape) * data.dtype.itemsize <= most or data.ndim == 2:
        micrograph.data = np.asarray(data)
        opened.__exit__(None, None, None)
        return micrograph

    import dask.array

    def read_plane(block_id: tuple[int, ...], opened=opened) -> np.ndarray:  # `opened` keeps the file open
        with lock:  # readers are not made for several threads
            return np.asarray(data[block_id[:-2]])[(None,) * (data.ndim - 2)]

    chunks = (*((1,) * length for length in data.shape[:-2]), *data.shape[-2:])
    planes = dask.array.map_blocks(
        read_plane,
        chunks=chunks,
        dtype=data.dtype,
        meta=np.empty((0,) * data.ndim, data.dtype),
        token=uuid4().hex,  # else dask would pickle the reader to name the array
    )
    return dataclasses.replace(micrograph, data=planes)


def _to_layers(whole: Micrograph, name: str) -> list[tuple]:
    """The layers of an image, one for every channel."""
    channels = whole.data.shape[whole.axes.index("C")] if "C" in whole.axes else 1
    return [_to_layer(whole.select(channel=number), name, number, channels) for number in range(channels)]


def _to_layer(micrograph: Micrograph, name: str, number: int, channels: int) -> tuple:
    """The layer of a channel."""
    attributes = {
        **to_attributes(micrograph),
        "name": micrograph.channel_names[0] if micrograph.channel_names else name,
        "metadata": {"acquisition": micrograph.acquisition, "provenance": micrograph.provenance},
    }
    shown = micrograph.acquisition.channels[0] if micrograph.acquisition.channels else None
    middle = tuple(length // 2 for length in micrograph.data.shape[:-2])
    attributes["contrast_limits"] = (shown and shown.display_range) or contrast_limits(
        np.asarray(micrograph.data[middle])
    )
    if channels > 1:
        color = shown.color if shown and shown.color else ("00FF00", "FF00FF", "00FFFF", "FFFF00")[number % 4]
        attributes |= {"colormap": f"#{color}", "blending": "additive"}
    return micrograph.data, attributes, "image"


def write_images(path: str, layers: list[tuple]) -> list[str]:
    """
    Write image layers of one size as the channels of an OME-TIFF or OME-Zarr.

    Args:
        path (`str`): File that ends in .tif, .tiff or .zarr. A TIFF that exists is replaced.
        layers (`list[tuple]`): Layer data tuples.

    Raises:
        `MicrographError`: If the layers differ in size or number type, or their type cannot be stored.
        `OSError`: If the file cannot be written.
    """
    target = Path(path)
    images = [to_micrograph(data, attributes) for data, attributes, _ in layers]
    first = images[0]
    kinds = {(image.data.shape, np.dtype(image.data.dtype), image.axes) for image in images}
    if len(kinds) > 1 or (len(images) > 1 and "C" in first.axes):
        raise MicrographError(
            f"`{target.name}` cannot hold layers of different sizes, axes or number types as its channels: save them "
            "one by one."
        )
    shape, axes, place = first.data.shape, first.axes, 0
    if len(images) > 1:
        place = int(axes.startswith("T"))
        shape, axes = (*shape[:place], len(images), *shape[place:]), axes[:place] + "C" + axes[place:]
    names = None if "C" in first.axes else [image.channel_names[0] for image in images]
    described = [image.acquisition.channels for image in images]
    channels = tuple(each[0] for each in described if each) if "C" not in first.axes else first.acquisition.channels
    acquisition = dataclasses.replace(first.acquisition, channels=channels, planes=())
    whole = dataclasses.replace(first, axes=axes, channel_names=names, acquisition=acquisition)
    with (
        replace_when_complete(target) as partial,
        micrograph_writer(partial, whole, shape, first.data.dtype, target) as writer,
    ):
        for index in np.ndindex(shape[:-2]):
            image, rest = (
                (images[index[place]], index[:place] + index[place + 1 :]) if len(images) > 1 else (first, index)
            )
            writer.write(index, np.asarray(image.data[rest]))
        writer.provenance = first.provenance
    return [path]


def simulated_membranes() -> list[tuple]:
    """A hazy micrograph of simulated membranes, and the signal in focus."""
    from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair

    pair = simulate_pair(256, pair_generator(12, 0))
    optics = pair.parameters
    channel = Channel(emission_wavelength=round(1000 * optics["emission_wavelength"]))
    acquisition = Acquisition(numerical_aperture=round(optics["numerical_aperture"], 2), channels=(channel,))
    images = {"in focus (truth)": pair.clear.numpy(), "hazy": pair.hazy.numpy().astype(np.uint16)}
    layers = []
    for name, data in images.items():
        side = round(optics["pixel_size"], 4)
        micrograph = Micrograph(data, "YX", (side, side), channel_names=[name], acquisition=acquisition)
        data, attributes, kind = _to_layer(micrograph, name, 0, 1)
        layers.append((data, {**attributes, "visible": name == "hazy"}, kind))
    return layers
