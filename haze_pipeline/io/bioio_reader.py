"""Files of microscope makers (CZI, ND2, LIF), through `bioio` and its plugin for each."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .micrograph import Micrograph, MicrographError, PlaneStack, choose_series, is_positive


@contextmanager
def open_with_bioio(path: Path, series: int | None = None) -> Iterator[Micrograph]:
    """A scene of a file that `bioio` has a reader for: what [`open_micrograph`] does for such files."""
    if find_spec("bioio") is None:
        kind = path.suffix[1:].lower()
        raise ImportError(f"`{path}` needs `pip install bioio bioio-{kind}`: install them, or save it as OME-TIFF.")
    from bioio import BioImage

    try:
        image = BioImage(path)
        image.set_scene(choose_series(len(image.scenes), series, path))
        if "S" in image.dims.order:
            raise MicrographError(
                f"`{path}` is a colour image, not an intensity measurement: split it into grey images first."
            )
        planes = image.dask_data  # [T,C,Z,Y,X]; nothing is read yet
        if planes.dtype.kind not in "iuf" or not planes.size:
            raise MicrographError(
                f"`{path}` holds {planes.shape} values of type {planes.dtype}, no intensities: convert it to 16-bit."
            )
        metadata: dict[str, Any] = {"channel_names": [str(name) for name in image.channel_names or []] or None}
        sizes = image.physical_pixel_sizes  # µm
        if is_positive(sizes.Y) and is_positive(sizes.X):
            metadata["pixel_size"] = (float(sizes.Y), float(sizes.X))
        if is_positive(sizes.Z):
            metadata["z_step"] = float(sizes.Z)
        interval = image.time_interval
        interval = interval.total_seconds() if isinstance(interval, timedelta) else interval
        if is_positive(interval):
            metadata["time_interval"] = float(interval)
    except (MicrographError, MemoryError):
        raise
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


def _unreadable(path: Path, error: Exception) -> MicrographError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return MicrographError(f"bioio cannot read `{path}` ({reason}): install its plugin, or save it as OME-TIFF.")
