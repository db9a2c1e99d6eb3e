"""Files of microscope makers (CZI, ND2, LIF), through `bioio` and its plugin for each."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .acquisition import Acquisition
from .micrograph import Micrograph, MicrographError, PlaneStack, choose_series, is_positive
from .ome_metadata import image_metadata


@contextmanager
def open_with_bioio(path: Path, series: int | None = None) -> Iterator[Micrograph]:
    """A scene of a file that `bioio` has a reader for: what [`open_micrograph`] does for such files."""
    kind = path.suffix[1:].lower()
    if find_spec("bioio") is None:
        raise ImportError(f"`{path}` needs `pip install bioio bioio-{kind}`: install them, or save it as OME-TIFF.")
    from bioio import BioImage
    from bioio_base.exceptions import UnsupportedFileFormatError

    try:
        image = BioImage(path)
        scene = choose_series(len(image.scenes), series, path)
        image.set_scene(scene)
        if "S" in image.dims.order:
            raise MicrographError(
                f"`{path}` is a colour image, not an intensity measurement: split it into grey images first."
            )
        planes = image.dask_data  # [T,C,Z,Y,X]; nothing is read yet
        if planes.dtype.kind not in "iuf" or not planes.size:
            raise MicrographError(
                f"`{path}` holds {planes.shape} values of type {planes.dtype}, no intensities: convert it to 16-bit."
            )
        metadata = _metadata(image, scene, planes.shape)
    except (MicrographError, MemoryError):
        raise
    except UnsupportedFileFormatError as error:
        if find_spec(f"bioio_{kind}") is not None:
            raise _unreadable(path, error) from error
        raise MicrographError(
            f"`{path}` is of no format that bioio has a plugin for here: `pip install bioio-{kind}`, or save it as "
            f"OME-TIFF."
        ) from error
    except Exception as error:
        raise _unreadable(path, error) from error

    leading, plane_shape = planes.shape[:-2], planes.shape[-2:]
    kept = [i for i, size in enumerate(leading) if size > 1]
    native = planes.dtype.newbyteorder("=")

    def read(number: int) -> np.ndarray:
        try:
            return np.asarray(planes[np.unravel_index(number, leading)]).astype(native, copy=False)
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error

    stack = PlaneStack(read, (*(leading[i] for i in kept), *plane_shape), native)
    yield Micrograph(stack, "".join("TCZ"[i] for i in kept) + "YX", **metadata)


def _metadata(image: Any, scene: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the file says about a scene, as arguments of [`Micrograph`]; readers that give OME-XML tell most."""
    try:
        ome = image.ome_metadata
    except Exception:  # most readers have none, and some fail on what they do not know
        ome = None
    metadata: dict[str, Any] = {}
    if ome is not None and scene < len(ome.images):
        metadata = image_metadata(ome, ome.images[scene], "TCZYX", shape)
        for name in ("axes", "not_kept"):
            metadata.pop(name, None)
        metadata["acquisition"] = metadata["acquisition"].fitted(shape[1], math.prod(shape[:-2]))
    metadata["channel_names"] = [str(name) for name in image.channel_names or []] or None
    sizes = image.physical_pixel_sizes  # µm
    if is_positive(sizes.Y) and is_positive(sizes.X):
        metadata |= {"pixel_size": (float(sizes.Y), float(sizes.X)), "pixel_size_unit": "µm"}
    if is_positive(sizes.Z):
        metadata |= {"z_step": float(sizes.Z), "z_step_unit": "µm"}
    interval = image.time_interval
    interval = interval.total_seconds() if isinstance(interval, timedelta) else interval
    if is_positive(interval):
        metadata |= {"time_interval": float(interval), "time_interval_unit": "s"}
    return {"acquisition": Acquisition(), **metadata}


def _unreadable(path: Path, error: Exception) -> MicrographError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return MicrographError(
        f"`{path}` holds something that its reader in bioio cannot read ({reason}): open it in Fiji and save it as "
        f"OME-TIFF."
    )
