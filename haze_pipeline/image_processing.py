"""Conversion of micrographs to planes in network units and of results to counts, and display of planes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn, idctn

from haze_pipeline.utils.arrays import allocate, row_bands
from haze_pipeline.utils.bad_pixels import fill_masked, replace_hot_pixels

from .visualization import VisualizationMixin


CLIP_PERCENTILES = (0.1, 99.9)  # limits for robust statistics


@dataclass
class Normalization:
    """
    Affine maps between image units and network units, as float32 tensors of shape `[N, 1, 1, 1]`.

    hazy' = (hazy − input_mean) / input_std and clear' = (clear − target_mean) / target_std.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    target_mean: torch.Tensor
    target_std: torch.Tensor

    def expand(self, number: int) -> "Normalization":
        """Repeat a single map for `number` planes; `number` maps stay."""
        return Normalization(*(each.expand(number, 1, 1, 1).clone() for each in vars(self).values()))

    def followed_by(self, other: "Normalization") -> "Normalization":
        """The maps of both, in this order."""
        return Normalization(*map(torch.cat, zip(vars(self).values(), vars(other).values(), strict=True)))

    def without(self, is_blank: list[bool]) -> "Normalization":
        """One map for each element of `is_blank`, such that every prediction of a blank plane is 0."""
        maps = self.expand(len(is_blank))
        maps.target_mean[is_blank], maps.target_std[is_blank] = 0, 0
        return maps

    def is_blank(self, plane: int) -> bool:
        """Whether every prediction of plane number `plane` is 0."""
        return self.target_std[plane % len(self.target_std)].item() == 0


class HazeImageProcessor(VisualizationMixin):
    """
    Checks images, cuts them into planes and normalises these as the checkpoint requires.

    Args:
        normalization (`str`, defaults to `"image"`):
            `"image"`: every plane is normalised by itself. The mean of the plane, or `target_mean` for its target, is
            subtracted. The unit of both is `target_std` times the plane's band-passed standard deviation, which
            measures the fine structure and does not increase with haze. Input and target thus have the same unit of
            intensity, and predictions are in the counts of the input. `"fixed"`: the four statistics of the training
            set, as in the HazeMatching reference.
        input_mean (`float`, *optional*): Mean of hazy training images; only for `"fixed"`.
        input_std (`float`, *optional*): Standard deviation of hazy training images; only for `"fixed"`.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images, in counts or band-pass units.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images, likewise.
    """

    def __init__(
        self,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ):
        if normalization not in ("image", "fixed"):
            raise ValueError(f'`normalization` must be "image" or "fixed", got {normalization!r}.')
        if normalization == "fixed" and (input_mean is None or input_std is None):
            raise ValueError('`normalization="fixed"` needs `input_mean` and `input_std`.')
        if target_std <= 0 or (input_std is not None and input_std <= 0):
            raise ValueError(f"Standard deviations must be positive, got {input_std} and {target_std}.")
        self.normalization = normalization
        self.input_mean = input_mean
        self.input_std = input_std
        self.target_mean = target_mean
        self.target_std = target_std

    @property
    def target_dark_level(self) -> float:
        """Zero intensity of the clear image in network units."""
        return -self.target_mean / self.target_std

    def preprocess(self, image: np.ndarray | torch.Tensor, allow_masked: bool = False) -> torch.Tensor:
        """
        Check an image and cut it into planes.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or an object that NumPy converts to one):
                Intensities of any real dtype except bool.
            allow_masked (`bool`, defaults to `False`):
                Accept NaN as the mark of pixels without a measurement, such as the border of a registered image.

        Returns:
            `torch.Tensor` of shape `[N, 1, H, W]`, float32, on the CPU, N being the product of the leading axes; NaN
            where the image is NaN.

        Raises:
            `ValueError`: If the image has fewer than two dimensions, no pixels, another dtype, infinities, NaNs that
                are not allowed, or a contrast that float32 cannot resolve.
        """
        image = _as_array(image)
        planes = allocate(*image.shape).reshape(-1, 1, *image.shape[-2:])  # [N,1,H,W]
        with np.errstate(over="ignore"):  # overflow is reported below
            planes.numpy()[:] = image.reshape(planes.shape)
        low, high = (float(value) for value in planes.aminmax())  # NaN if the image has any
        is_masked = bool(np.isnan(low))
        if is_masked:
            low, high = (float(reduce(planes.numpy(), axis=None)) for reduce in (np.fmin.reduce, np.fmax.reduce))
        if np.isinf([low, high]).any() or (is_masked and not allow_masked):
            raise ValueError("`image` must be finite in float32, got NaN or infinite values.")
        # float32 has 24 bits: a signal on an offset millions of times larger would be rounded away.
        rounding = max(-low, high) * 2.0**-23
        std = np.nanstd if is_masked else np.std
        if image.dtype.itemsize >= 4 and 0 < std(image, dtype=np.float64) < 10 * rounding:
            raise ValueError(
                "`image` has an offset so large that float32 would lose the contrast: subtract the offset."
            )
        return planes

    @staticmethod
    def replace_hot_pixels(planes: torch.Tensor) -> int:
        """
        Replace isolated outliers of planes `[N, 1, H, W]` by the median of their neighbours, in place, and return
        their number. See [`find_hot_pixels`].
        """
        number = 0
        for plane in planes[:, 0].numpy():
            filled, valid = fill_masked(plane)
            number += replace_hot_pixels(filled)
            if valid is not None:
                plane[valid] = filled[valid]
        return number

    def compute_normalization(self, planes: torch.Tensor) -> Normalization:
        """Maps between image and network units for planes `[N, 1, H, W]`, each plane by itself."""
        return self.normalization_from(self.measure(planes))

    def measure(self, planes: torch.Tensor, clipped: bool = False) -> torch.Tensor:
        """
        Mean and band-passed standard deviation of planes.

        Args:
            planes (`torch.Tensor` of shape `[N, 1, H, W]`): As from `preprocess`.
            clipped (`bool`, defaults to `False`):
                Clip every plane to its 0.1th and 99.9th percentiles, to limit the effect of hot pixels and debris.

        Returns:
            `torch.Tensor` of shape `[N, 2]`, float64, in counts.
        """
        statistics = []
        for plane in planes[:, 0]:
            values, valid = fill_masked(plane.numpy())
            if clipped:
                low, high = np.percentile(values[valid] if valid is not None else values, CLIP_PERCENTILES)
                values = values.clip(low, high)
            mean, band_pass = _mean(values, valid), _band_pass_std(values, valid)
            statistics.append([mean, band_pass])
        return torch.tensor(statistics, dtype=torch.float64).reshape(-1, 2)

    @staticmethod
    def pool(statistics: torch.Tensor) -> torch.Tensor:
        """Statistics `[1, 2]` of a stack, from the statistics `[N, 2]` of its planes, which have one size."""
        mean, band_pass = statistics.unbind(dim=1)
        return torch.stack([mean.mean(), band_pass.square().mean().sqrt()])[None]

    def normalization_from(self, statistics: torch.Tensor) -> Normalization:
        """
        Maps between image and network units for planes with the statistics `[N, 2]`, see [`measure`]. One row may
        serve many planes, such as those of a stack whose intensities must stay comparable.

        A plane without contrast has no in-focus signal that could be distinguished from haze. Its scale and its
        prediction are 0.
        """
        if self.normalization == "fixed":
            values = (self.input_mean, self.input_std, self.target_mean, self.target_std)
            return Normalization(*(torch.full((len(statistics), 1, 1, 1), float(value)) for value in values))
        input_mean, band_pass = statistics.float().reshape(-1, 2, 1, 1, 1).unbind(dim=1)
        return Normalization(
            input_mean=input_mean,
            input_std=torch.where(band_pass > 0, self.target_std * band_pass, 1.0),
            target_mean=self.target_mean * band_pass,
            target_std=self.target_std * band_pass,
        )


def _as_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """Image as a real array `[..., H, W]` with pixels. Raises a `ValueError` for anything else."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image
    elif isinstance(image, Image.Image) and len(image.getbands()) > 1:
        raise ValueError(f"`image` is a picture of mode {image.mode!r}: convert it to one channel of intensities.")
    elif not (hasattr(image, "__array__") or hasattr(image, "__array_interface__")):
        raise ValueError(f"`image` must be an array, a tensor or a list of them, got {type(image).__name__}.")
    image = np.asarray(image)
    if image.dtype.kind not in "uif":
        raise ValueError(f"`image` must hold integers or real floating-point numbers, got dtype {image.dtype}.")
    if image.ndim < 2:
        raise ValueError(f"`image` must have at least two dimensions [..., H, W], got shape {image.shape}.")
    if image.size == 0:
        raise ValueError(f"`image` must not be empty, got shape {image.shape}.")
    return image


def _mean(plane: np.ndarray, valid: np.ndarray | None) -> float:
    """Mean over the valid pixels of a plane, in double precision; 0 if there are none."""
    if valid is None:
        return float(plane.mean(dtype=np.float64))
    return float(plane[valid].mean(dtype=np.float64)) if valid.any() else 0.0


def _band_pass_std(plane: np.ndarray, valid: np.ndarray | None) -> float:
    """
    Standard deviation of the difference of two Gaussians, 1 px and 10 px, over the valid pixels of a plane. It
    measures the fine structure, without most of the noise and of the haze.
    """
    total = squares = 0.0
    margin = 40  # px, reach of the Gaussian of 10 px
    for rows, wider, inner in row_bands(len(plane), margin):
        difference = _difference_of_gaussians(plane[wider])[inner]
        if valid is not None:
            difference = difference[valid[rows]]
        total += difference.sum(dtype=np.float64)
        squares += np.square(difference).sum(dtype=np.float64)
    size = plane.size if valid is None else max(1, np.count_nonzero(valid))
    std = float(np.sqrt(max(0.0, squares / size - (total / size) ** 2)))
    # Rounding errors of a constant plane are not structure.
    return std if std > 1e-6 * float(max(-plane.min(), plane.max())) else 0.0


def _difference_of_gaussians(plane: np.ndarray) -> np.ndarray:
    """
    Difference of a plane filtered with Gaussians of 1 px and of 10 px, as with the mode `reflect` of
    `scipy.ndimage.gaussian_filter`: the cosine transform mirrors planes in the same way, and is several times as fast.
    """
    workers = torch.get_num_threads()
    spectrum = dctn(plane, norm="ortho", workers=workers)
    fine, coarse = ([_gaussian_response(side, sigma) for side in plane.shape] for sigma in (1.0, 10.0))
    spectrum *= fine[0][:, None] * fine[1] - coarse[0][:, None] * coarse[1]
    return idctn(spectrum, norm="ortho", overwrite_x=True, workers=workers)


@lru_cache(maxsize=32)
def _gaussian_response(length: int, sigma: float) -> np.ndarray:
    """Factors `[length]` of a Gaussian, cut off at 4 σ, at the frequencies of the cosine transform."""
    offsets = np.arange(1, int(4 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    cosines = np.cos(np.pi / length * np.outer(np.arange(length), offsets))
    return ((1 + 2 * cosines @ weights) / (1 + 2 * weights.sum())).astype(np.float32)
