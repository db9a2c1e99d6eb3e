"""Training without pairs: images of folders or datasets, and patches of hazy ones and, at random, of clear ones."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from haze_pipeline.image_processing import CLIP_PERCENTILES, HazeImageProcessor
from haze_pipeline.io.micrograph_files import list_tiffs, read_micrograph

from .hub_datasets import decode_plane, stream_split


DARKEST = 1.0  # percentile of a clear image that is its dark level
PHOTOGRAPHS = (".jpeg", ".jpg", ".png", ".tif", ".tiff")  # suffixes of their files


@dataclass
class Plane:
    """
    An image without a partner.

    Args:
        image (`np.ndarray` of shape `[H, W]`, or `[3, H, W]` with colours): Its intensities.
        source (`str`): Where it comes from; error messages name it.
        pixel_size_um (`float`, *optional*): Side of a pixel in µm.
    """

    image: np.ndarray
    source: str
    pixel_size_um: float | None = None


def load_planes(folder: str | Path) -> Iterator[Plane]:
    """
    Read all planes of all TIFFs of a folder and its sub-folders.

    Raises:
        `FileNotFoundError`: If there are none.
        `ValueError`: If a file cannot be read or holds channels or colours.
    """
    names = list_tiffs(folder)
    if not names:
        raise FileNotFoundError(f"{folder} holds no TIFFs: name a folder of images.")
    for name in names:
        micrograph = read_micrograph(Path(folder, name))
        if dict(zip(micrograph.axes, micrograph.data.shape, strict=True)).get("C", 1) > 1:
            raise ValueError(f"{Path(folder, name)} holds several channels: save each in its own file.")
        planes = micrograph.data.reshape(-1, *micrograph.data.shape[-2:])
        for index, plane in enumerate(planes):
            source = name.as_posix() if len(planes) == 1 else f"{name.as_posix()}, plane {index}"
            yield Plane(plane, source, micrograph.pixel_size_um)


def load_dataset_planes(name: str) -> Iterator[Plane]:
    """
    Read the split `train` of a dataset: the column `hazy`, or else `image`. A column `clear` is not read.

    Args:
        name (`str`): The dataset, a folder or a repository on the Hub.

    Raises:
        `ImportError`: If the library `datasets` is missing.
        `ValueError`: If there is no such dataset, it has neither column, or an image is not a grey plane.
    """
    for number, row in enumerate(stream_split(name, "train")):
        source = row.get("source") or f"row {number} of {name}"
        if not row.keys() & {"hazy", "image"}:
            raise ValueError(f"{name} must have a column `hazy` or `image`, but has only {', '.join(row)}.")
        try:
            image = decode_plane(row["hazy"] if "hazy" in row else row["image"])
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        yield Plane(image, source, row.get("pixel_size_um"))


def load_photographs(folder: str | Path) -> Iterator[Plane]:
    """
    Read all photographs of a folder and its sub-folders: PNG, JPEG and TIFF with three colours of 8 bits.

    Raises:
        `FileNotFoundError`: If there are none.
        `ValueError`: If a file cannot be read or has other colours.
    """
    folder = Path(folder)
    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTOGRAPHS)
    if not names:
        raise FileNotFoundError(f"{folder} holds no photographs: name a folder of PNG, JPEG or TIFF files.")
    for name in names:
        yield Plane(read_photograph(name), name.relative_to(folder).as_posix())


def read_photograph(path: Path) -> np.ndarray:
    """
    Read a photograph with three colours of 8 bits, `[3, H, W]`.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it cannot be read or has other colours.
    """
    try:
        with Image.open(path) as picture:
            mode, image = picture.mode, np.asarray(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: name a photograph.") from None
    except OSError as error:
        raise ValueError(f"{path} could not be read: {error}") from error
    if mode != "RGB":
        raise ValueError(f"{path} must have three colours of 8 bits, but its mode is {mode}: convert it to RGB.")
    return np.moveaxis(image, -1, 0)


def to_picture(photograph: np.ndarray) -> Image.Image:
    """A photograph `[3, H, W]` from 0 to 255, rounded to 8 bits; values beyond are clipped."""
    return Image.fromarray(np.moveaxis(np.clip(photograph, 0, 255).round().astype(np.uint8), 0, -1))


def fit_unpaired_processor(normalization: str, planes: Sequence[Plane]) -> HazeImageProcessor:
    """
    Make an image processor for which hazy and clear images have the same unit, with the statistics of hazy images.
    Results are affine functions of the network's output, and thus stay in counts. With `"image"`, a gain of the input
    is a gain of the result, and an offset of the input is background. With `"fixed"`, the statistics of images with
    another gain and offset have this gain and offset too, and so have the results.

    Args:
        normalization (`str`):
            `"image"`: every image has its own statistics. The zero of clear images is zero intensity, and the unit is
            chosen so that hazy images have the variance 1 on average. `"fixed"`: for hazy and clear images alike, the
            mean of all hazy images, and the range between their 0.1th and 99.9th percentiles. Dense haze leaves so
            little standard deviation that clear images would have large values in units of it.
        planes (sequence of [`Plane`]): Hazy planes.

    Raises:
        `ValueError`: If a plane is not finite, or none has any contrast.
    """
    if normalization == "fixed":
        pixels = np.concatenate([plane.image.ravel() for plane in planes])
        mean, unit = float(pixels.mean(dtype=np.float64)), float(np.diff(np.percentile(pixels, CLIP_PERCENTILES))[0])
        if not (math.isfinite(unit) and unit > 0):
            raise ValueError(f"The hazy images must be finite and not constant, got a range of {unit}.")
        return HazeImageProcessor("fixed", input_mean=mean, input_std=unit, target_mean=mean, target_std=unit)
    unit = HazeImageProcessor("image")
    number = squares = 0
    for plane in planes:
        fields, scale, mean = _measure(plane, unit)
        if scale > 0:
            number += fields.numel()
            squares += ((fields.double() - mean) / scale).square().sum().item()
    if number == 0:
        raise ValueError("No hazy training image has any contrast.")
    return HazeImageProcessor("image", target_mean=0.0, target_std=math.sqrt(squares / number))


def normalize_hazy(plane: Plane, image_processor: HazeImageProcessor) -> torch.Tensor | None:
    """Convert a hazy image to network units, `[C, H, W]`; `None` if it has no contrast."""
    fields, scale, _ = _measure(plane, image_processor)
    if scale == 0:
        return None
    maps = image_processor.compute_normalization(fields)
    return ((fields - maps.input_mean) / maps.input_std)[:, 0]


def normalize_clear(plane: Plane, image_processor: HazeImageProcessor) -> torch.Tensor | None:
    """
    Convert a clear image to network units, `[C, H, W]`; `None` if it has no contrast. With the normalization
    `"image"`, its unit is that of a hazy image with the same fine structure, and its dark level becomes zero
    intensity.
    """
    fields, scale, _ = _measure(plane, image_processor)
    if scale == 0:
        return None
    if image_processor.normalization == "fixed":
        return ((fields - image_processor.target_mean) / image_processor.target_std)[:, 0]
    dark = float(np.percentile(plane.image, DARKEST))
    return ((fields - dark) / scale + image_processor.target_dark_level)[:, 0]


def _measure(plane: Plane, image_processor: HazeImageProcessor) -> tuple[torch.Tensor, float, float]:
    """An image as a tensor `[C, 1, H, W]`, the size of a network unit in its counts, and its mean."""
    try:
        fields = image_processor.preprocess(plane.image)
    except ValueError as error:
        raise ValueError(f"{plane.source}: {error}") from error
    maps = image_processor.compute_normalization(fields)
    has_contrast = fields.max() > fields.min()
    return fields, maps.target_std[0].item() if has_contrast else 0.0, fields.mean(dtype=torch.float64).item()


class UnpairedPatches(torch.utils.data.Dataset):
    """
    The sequence of training examples: patches `[C, h, w]` of a random hazy field and of a random clear one, if there
    are any, each in a random orientation.

    Example `index` depends only on the seed and `index`. The examples are therefore the same for any number of
    processes and workers, and after an interruption.

    Args:
        hazy (sequence of `torch.Tensor` of shape `[C, H, W]`): Hazy fields in network units.
        clear (sequence of `torch.Tensor` of shape `[C, H, W]`): Clear fields in network units; may be empty.
        resolution (`int`): Side of the patches, pixels.
        seed (`int`): Seed of the sequence.
        length (`int`): Number of examples.

    Raises:
        `ValueError`: If a field is smaller than the patches, or there are no hazy fields.
    """

    def __init__(
        self, hazy: Sequence[torch.Tensor], clear: Sequence[torch.Tensor], resolution: int, seed: int, length: int
    ):
        if not hazy:
            raise ValueError("No hazy training image has any contrast.")
        for field in (*hazy, *clear):
            if min(field.shape[1:]) < resolution:
                raise ValueError(
                    f"An image of shape {tuple(field.shape[1:])} is smaller than the patches of {resolution} pixels: "
                    "leave it out, or use smaller patches."
                )
        self.hazy, self.clear = hazy, clear
        self.resolution, self.seed, self.length = resolution, seed, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        example = {"hazy": self._cut(self.hazy, rng)}
        if self.clear:
            example["clear"] = self._cut(self.clear, rng)
        return example

    def _cut(self, fields: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
        field = fields[rng.integers(len(fields))]
        y, x = (rng.integers(side - self.resolution + 1) for side in field.shape[1:])
        patch = field[:, y : y + self.resolution, x : x + self.resolution]
        patch = torch.rot90(patch, int(rng.integers(4)), dims=(1, 2))
        return patch.flip(2) if rng.integers(2) else patch
