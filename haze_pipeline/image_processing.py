"""From micrographs to the planes and units of the network and back, and from results to pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from haze_pipeline.utils.arrays import allocate


# Rows that are worked on at once, so that temporary arrays of large planes stay small.
BAND_ROWS = 1024

CLIP_PERCENTILES = (0.1, 99.9)


@dataclass
class Normalization:
    """
    Affine maps between image units and network units, each a float32 tensor of shape `[N, 1, 1, 1]`:
    hazy' = (hazy − input_mean) / input_std and clear' = (clear − target_mean) / target_std.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    target_mean: torch.Tensor
    target_std: torch.Tensor


class HazeImageProcessor:
    """
    Checks images, cuts them into planes and knows how the checkpoint normalises them.

    Args:
        normalization (`str`, defaults to `"image"`):
            `"image"`: the plane less its mean, and its target less `target_mean`, both in units of `target_std` times
            the plane's band-passed standard deviation, the size of its fine structure, which haze does not raise.
            Light counts alike in both, and the prediction is in the counts of the input. `"fixed"`: the four
            statistics of the training set, as in the HazeMatching reference.
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
        """What the absence of light in the clear image is in network units."""
        return -self.target_mean / self.target_std

    def preprocess(self, image: np.ndarray | torch.Tensor) -> torch.Tensor:
        """
        Check an image and cut it into planes.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`): Intensities, of any real dtype but bool.

        Returns:
            `torch.Tensor` of shape `[N, 1, H, W]`, float32, on the CPU, N being the product of the leading axes.

        Raises:
            `ValueError`: If the image has fewer than two dimensions, no pixels, another dtype, NaNs or infinities.
        """
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = image.float().numpy() if image.dtype == torch.bfloat16 else image.numpy()
        if not isinstance(image, np.ndarray):
            raise ValueError(f"`image` must be an array, a tensor or a list of them, got {type(image).__name__}.")
        if image.dtype.kind not in "uif":
            raise ValueError(f"`image` must hold integers or real floating-point numbers, got dtype {image.dtype}.")
        if image.ndim < 2:
            raise ValueError(f"`image` must have at least two dimensions [..., H, W], got shape {image.shape}.")
        if image.size == 0:
            raise ValueError(f"`image` must not be empty, got shape {image.shape}.")
        planes = allocate(*image.shape).reshape(-1, 1, *image.shape[-2:])  # [N,1,H,W]
        with np.errstate(over="ignore"):  # what overflows is reported below
            planes.numpy()[:] = image.reshape(planes.shape)
        low, high = (float(value) for value in planes.aminmax())  # NaN where there is one
        if not np.isfinite([low, high]).all():
            raise ValueError("`image` must be finite in float32, got NaN or infinite values.")
        # float32 has 24 bits: a signal on an offset millions of times larger would be rounded away.
        rounding = max(-low, high) * 2.0**-23
        if image.dtype.itemsize >= 4 and 0 < image.std(dtype=np.float64) < 10 * rounding:
            raise ValueError(
                "`image` must fit float32, but its contrast is lost beside its offset; subtract the offset."
            )
        return planes

    def compute_normalization(self, planes: torch.Tensor) -> Normalization:
        """The maps between image and network units for planes `[N, 1, H, W]`, of each by itself."""
        return self.normalization_from(self.measure(planes))

    def measure(self, planes: torch.Tensor, clipped: bool = False) -> torch.Tensor:
        """
        Mean and band-passed standard deviation of planes.

        Args:
            planes (`torch.Tensor` of shape `[N, 1, H, W]`): As from `preprocess`.
            clipped (`bool`, defaults to `False`):
                Take what lies below the 0.1th or above the 99.9th percentile of its plane for that percentile, so that
                hot pixels and debris do not decide.

        Returns:
            `torch.Tensor` of shape `[N, 2]`, float64, in counts.
        """
        statistics = []
        for plane in planes[:, 0]:
            if clipped:
                low, high = np.percentile(plane.numpy(), CLIP_PERCENTILES)
                plane = plane.clamp(float(low), float(high))
            statistics.append([_mean(plane), _band_pass_std(plane.numpy())])
        return torch.tensor(statistics, dtype=torch.float64).reshape(-1, 2)

    @staticmethod
    def pool(statistics: torch.Tensor) -> torch.Tensor:
        """Of the statistics `[N, 2]` of planes of one size, those `[1, 2]` of their stack."""
        mean, band_pass = statistics.unbind(dim=1)
        return torch.stack([mean.mean(), band_pass.square().mean().sqrt()])[None]

    def normalization_from(self, statistics: torch.Tensor) -> Normalization:
        """
        The maps between image and network units for planes with such statistics `[N, 2]`, see `measure`. One row may
        serve many
        planes: a stack whose brightness shall be comparable between planes.

        A plane without any contrast has no in-focus light that could be told from haze: its scale is 0 and so is its
        prediction.
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

    @staticmethod
    def visualize_intensity(
        image: np.ndarray, low: float | None = None, high: float | None = None, colormap: str = "gray"
    ) -> Image.Image:
        """
        One plane as an 8-bit picture, for the eye only: values live in the output arrays.

        Args:
            image (`np.ndarray` of shape `[H, W]`): Intensities or deviations.
            low (`float`, *optional*): Value shown as black; the 0.5th percentile by default.
            high (`float`, *optional*): Value shown brightest; the 99.8th percentile by default.
            colormap (`str`, defaults to `"gray"`): `"gray"`, or `"fire"` for maps that are not intensities.
        """
        if image.ndim != 2:
            raise ValueError(f"`image` must be one plane [H, W], got shape {image.shape}.")
        low = float(np.percentile(image, 0.5)) if low is None else low
        high = float(np.percentile(image, 99.8)) if high is None else high
        scaled = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
        if colormap == "gray":
            return Image.fromarray((255 * scaled).round().astype(np.uint8))
        if colormap != "fire":
            raise ValueError(f'`colormap` must be "gray" or "fire", got {colormap!r}.')
        # Black, red, yellow, white: lightness rises all the way, so that the order of values is kept in print.
        channels = [np.clip(3 * scaled - shift, 0, 1) for shift in (0, 1, 2)]
        return Image.fromarray((255 * np.stack(channels, axis=-1)).round().astype(np.uint8))

    def visualize_together(
        self, images: dict[str, np.ndarray], same_contrast: bool = True
    ) -> tuple[list[Image.Image], str]:
        """
        Pictures of planes to be compared, at least 512 px high or wide, each from its own 0.5th percentile on.

        Args:
            images (`dict`): Planes `[H, W]` by name.
            same_contrast (`bool`, defaults to `True`):
                Show as many counts between black and white as of the first plane, up to its 99.8th percentile. Every
                plane has a contrast of its own otherwise, and where predictions are not in the units of the input.

        Returns:
            The pictures, and a sentence that says which values they show as black and as white.
        """
        pictures, captions, span = [], [], None
        for name, image in images.items():
            low, high = (float(np.percentile(image, share)) for share in (0.5, 99.8))
            if span is None or not same_contrast or self.normalization != "image":
                span = high - low
            picture = self.visualize_intensity(image, low, low + span)
            if max(picture.size) < 512:  # whole magnifications, so that pixels stay pixels
                zoom = -(-512 // max(picture.size))
                picture = picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST)
            pictures.append(picture)
            black, white = (np.format_float_positional(v, 3, fractional=False, trim="-") for v in (low, low + span))
            captions.append(f"{name} {black} to {white}")
        return pictures, f"Counts from black to white: {'; '.join(captions)}."

    @classmethod
    def visualize_side_by_side(
        cls,
        hazy: np.ndarray,
        prediction: np.ndarray,
        uncertainty: np.ndarray | None = None,
        pixel_size: float | None = None,
        unit: str = "µm",
    ) -> Image.Image:
        """
        Input and result (and uncertainty) of one plane in a row. Every panel states the values that it shows as black
        and as white; a scale bar is drawn where the pixel size is known.

        Args:
            hazy (`np.ndarray` of shape `[H, W]`): The input.
            prediction (`np.ndarray` of shape `[H, W]`): The result.
            uncertainty (`np.ndarray` of shape `[H, W]`, *optional*): Its standard deviation.
            pixel_size (`float`, *optional*): Width of a pixel in `unit`.
            unit (`str`, defaults to `"µm"`): Unit of `pixel_size`.
        """
        panels = [("hazy input", hazy, "gray"), ("prediction", prediction, "gray")]
        if uncertainty is not None:
            panels.append(("standard deviation", uncertainty, "fire"))

        # Panels between 384 and 1024 px high or wide: whole magnifications of small images, so that pixels stay
        # pixels.
        longest = max(hazy.shape)
        zoom = max(1, -(-384 // longest)) if longest < 384 else min(1.0, 1024 / longest)
        height, width = (max(1, round(side * zoom)) for side in hazy.shape)
        panel_width = max(width, 320)  # narrow images still need room for their caption
        gap, caption = 8, 48
        canvas = Image.new("RGB", ((panel_width + gap) * len(panels) - gap, height + caption), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
        for index, (name, plane, colormap) in enumerate(panels):
            low, high = float(np.percentile(plane, 0.5)), float(np.percentile(plane, 99.8))
            picture = cls.visualize_intensity(plane, low, high, colormap).convert("RGB")
            method = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
            left = index * (panel_width + gap)
            canvas.paste(picture.resize((width, height), method), (left, caption))
            draw.text((left + 2, 4), name, fill="black", font=font)
            draw.text((left + 2, 24), f"black {low:.4g}, white {high:.4g}", fill="dimgray", font=font)

        if pixel_size is not None and width >= 64:
            length = round_length(0.25 * width / zoom * pixel_size)
            right, bottom = width - 12, caption + height - 12
            left = right - round(length / pixel_size * zoom)
            draw.rectangle((left, bottom - 4, right, bottom), fill="white", outline="black")
            label = f"{length:g} {unit.replace('µ', 'u')}"  # Pillow's font has no µ
            text_left = (left + right) / 2 - draw.textlength(label, font=font) / 2
            text_left = min(text_left, right - draw.textlength(label, font=font))
            draw.text((text_left, bottom - 26), label, fill="white", font=font, stroke_width=1, stroke_fill="black")
        return canvas


def round_length(available: float) -> float:
    """The longest of …, 1, 2, 5, 10, … that fits: what a scale bar stands for."""
    decade = 10.0 ** np.floor(np.log10(available))
    return next(step * decade for step in (5, 2, 1) if step * decade <= available)


def _mean(plane: torch.Tensor) -> float:
    """Mean of a plane in double precision."""
    return sum(float(band.double().sum()) for band in plane.split(BAND_ROWS)) / plane.numel()


def subtract_background(plane: np.ndarray, width: int) -> np.ndarray:
    """
    A plane without what is at least `width` pixels broad in both directions: its white top-hat (Serra 1982).

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Intensities.
        width (`int`): Side of the square that the background has room for, pixels.

    Returns:
        `np.ndarray` of shape `[H, W]`, float32, nowhere negative.

    Raises:
        `ValueError`: If the plane is no image or not finite.
    """
    plane = HazeImageProcessor().preprocess(plane)[0, 0].numpy()
    result = allocate(*plane.shape).numpy()
    margin = 2 * width  # more than the opening sees on either side
    for start in range(0, len(plane), BAND_ROWS):
        first = max(0, start - margin)
        band = ndimage.white_tophat(plane[first : start + BAND_ROWS + margin], size=width)
        result[start : start + BAND_ROWS] = band[start - first :][:BAND_ROWS]
    return result


def _band_pass_std(plane: np.ndarray) -> float:
    """
    Standard deviation of a plane between Gaussians of 1 px and 10 px: fine structure, without most of the noise and of
    the haze.
    """
    total = squares = 0.0
    margin = 40  # what SciPy's Gaussian of 10 px sees on either side
    for start in range(0, len(plane), BAND_ROWS):
        stop = min(start + BAND_ROWS, len(plane))
        first = max(0, start - margin)
        band = plane[first : stop + margin]
        fine = ndimage.gaussian_filter(band, 1.0, mode="reflect")
        coarse = ndimage.gaussian_filter(band, 10.0, mode="reflect")
        difference = (fine - coarse)[start - first : stop - first].astype(np.float64)
        total += difference.sum()
        squares += np.square(difference).sum()
    deviation = float(np.sqrt(max(0.0, squares / plane.size - (total / plane.size) ** 2)))
    # What rounding leaves of a constant plane is not structure.
    return deviation if deviation > 1e-6 * float(max(-plane.min(), plane.max())) else 0.0
