"""OME-TIFFs, written plane by plane."""

import math
import os

import numpy as np
import tifffile

from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.version import __version__

from .acquisition import lut_of_color
from .contrast import ContrastWindows
from .micrograph import Micrograph, MicrographError, PlaneStack
from .ome_xml import OmeXmlDescription
from .pyramid import halve, pyramid_levels


OME_DTYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")

TILE = 512  # px, of planes that are large enough for smaller versions


def write_ome_tiff(path: str | os.PathLike, micrograph: Micrograph, provenance: dict | None = None) -> None:
    """
    Writes an OME-TIFF, and puts it in its place only when it is complete; see [`OmeTiffWriter`].

    Args:
        path (`str` or `os.PathLike`): The file, conventionally named `*.ome.tif`. One that exists is replaced.
        micrograph ([`Micrograph`]): What to write. Axes without a meaning in OME are renamed, see [`open_micrograph`].
        provenance (`dict`, *optional*): How the image was made. Defaults to `micrograph.provenance`.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `MicrographError`: If the data type, the axes, a size, a unit or the channel names do not fit OME-TIFF.
    """
    data = micrograph.data if isinstance(micrograph.data, PlaneStack) else np.asarray(micrograph.data)
    provenance = micrograph.provenance if provenance is None else provenance
    with replace_when_complete(path) as temporary:
        with OmeTiffWriter(temporary, micrograph, data.shape, data.dtype, provenance, name=path) as writer:
            for index in np.ndindex(data.shape[:-2]):
                writer.write(index, data[index])


class OmeTiffWriter:
    """
    Writes the planes of an OME-TIFF one after the other, losslessly compressed. Planes of more than 2048 pixels a side
    are stored in tiles and with smaller versions of themselves, so that viewers open them at once.

    Args:
        path (`str` or `os.PathLike`): The file.
        micrograph ([`Micrograph`]): Source of axes, sizes, units and names. Its data are not read.
        shape (`tuple[int, ...]`): Shape `[..., Y, X]` of the image to write.
        dtype (`np.dtype`): Number type of the image to write.
        provenance (`dict`, *optional*):
            How the image was made, as names and values that JSON can hold. It is stored as key-value pairs, which Fiji
            and OMERO show. May be replaced until the end.
        name (`str` or `os.PathLike`, *optional*): What errors call the file, if not `path`.
        measure_display (`bool`, defaults to `False`): Whether display ranges, where the micrograph has some, are
            measured on the planes that are written, since they are of other intensities.

    Attributes:
        windows ([`ContrastWindows`]): Display ranges of what was written.

    Raises:
        `MicrographError`: If something does not fit OME-TIFF.
    """

    def __init__(
        self,
        path,
        micrograph: Micrograph,
        shape,
        dtype,
        provenance: dict | None = None,
        name=None,
        measure_display: bool = False,
    ):
        self.path, self.name = path, name or path
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.provenance = provenance
        if self.dtype.name not in OME_DTYPES:
            raise MicrographError(
                f"`{self.name}` cannot store {self.dtype}: convert the data to one of {', '.join(OME_DTYPES)}."
            )
        if not math.prod(self.shape):
            raise MicrographError(f"`{self.name}` would hold no pixels: the shape of the data is {self.shape}.")
        self._description = OmeXmlDescription(micrograph, self.shape, self.dtype, self.name)
        self._described = self._description.with_provenance(provenance)
        self.windows = ContrastWindows(micrograph.axes)
        self._display = _Display(micrograph, self.shape, measure_display)
        self._remaining = np.ndindex(self.shape[:-2])
        # Channels of a pixel that stand together are written together.
        self._together: list[np.ndarray] = []
        self._samples = self.shape[-3] if micrograph.channels_last else 1
        self._levels = pyramid_levels(self.shape[-2:])
        # The size after compression is not known in advance. Noise grows by less than 1 % and tags are small, so a
        # sixteenth of the 4 GiB of a classic TIFF is room enough; smaller versions of a plane add a third to it.
        nbytes = math.prod(self.shape) * self.dtype.itemsize * (4 / 3 if self._levels else 1)
        self._file = tifffile.TiffWriter(path, bigtiff=nbytes > 2**32 - 2**28, byteorder="<")

    def write(self, index: tuple[int, ...], plane: np.ndarray):
        """Write the next plane; `index` must count over the leading axes with the last the fastest."""
        if index != next(self._remaining, None):
            raise ValueError(f"Planes of a TIFF must be written in order, got {index} out of order.")
        self.windows.add(index, plane)
        self._together.append(np.ascontiguousarray(plane, self.dtype))
        if len(self._together) < self._samples:
            return
        page = np.stack(self._together, axis=-1) if self._samples > 1 else plane
        self._together.clear()
        is_first = not any(index[: -1 if self._samples > 1 else None])
        options = {
            "photometric": "minisblack",  # or else a plane 3 or 4 pixels wide may be taken for colours
            "planarconfig": "contig" if self._samples > 1 else None,
            "compression": "zlib",
            "metadata": None,
            "tile": (TILE, TILE) if self._levels else None,
        }
        self._file.write(
            np.ascontiguousarray(page, self.dtype),
            description=self._described if is_first else None,
            software=f"haze-pipeline {__version__}",
            subifds=self._levels or None,
            extratags=self._display.tags(self.windows) if is_first else (),
            **options,
        )
        for _ in range(self._levels):
            page = halve(page)
            self._file.write(page, subfiletype=1, **options)

    def close(self):
        """Finish the file."""
        self._file.close()
        described = self._description.with_provenance(self.provenance)
        if described != self._described:
            tifffile.tiffcomment(self.path, described)
        if tags := self._display.tags(self.windows):
            with tifffile.TiffFile(self.path, mode="r+") as tif:
                tif.pages.first.tags[tags[0][0]].overwrite(tags[0][3])

    def __enter__(self) -> "OmeTiffWriter":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self._file.close()


class _Display:
    """
    Look-up tables and ranges as ImageJ notes them, in a tag of their own, for which OME-XML has no place. There are
    none where the micrograph has none.
    """

    def __init__(self, micrograph: Micrograph, shape: tuple[int, ...], is_measured: bool):
        self._count = shape[micrograph.axes.index("C")] if "C" in micrograph.axes else 1
        self._channels = micrograph.acquisition.fitted(self._count, 0).channels
        self._is_measured = is_measured

    def tags(self, windows: ContrastWindows) -> tuple:
        """As `extratags` of `tifffile.TiffWriter.write`; always of the same length."""
        noted: dict = {}
        if any(channel.lut for channel in self._channels):
            tables = [channel.lut or lut_of_color(channel.color or "FFFFFF") for channel in self._channels]
            noted["LUTs"] = [np.frombuffer(table, np.uint8).reshape(3, 256) for table in tables]
        if any(channel.display_range for channel in self._channels):
            ranges = [
                windows.of(number) if self._is_measured or channel.display_range is None else channel.display_range
                for number, channel in enumerate(self._channels)
            ]
            noted["Ranges"] = [limit for each in ranges for limit in each]
        return tifffile.imagej_metadata_tag(noted, "<") if noted else ()
