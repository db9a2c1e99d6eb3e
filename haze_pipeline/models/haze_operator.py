"""Operators that add haze to clear images: what they have in common, and the haze of a widefield microscope."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from scipy.fft import next_fast_len
from torch import nn

from haze_pipeline.simulation.optics import Optics, otf_to_psf, widefield_otf


class HazeOperator:
    r"""
    The operator H of equivariant image dehazing, see [`eid_losses`]. A subclass is also a `ModelMixin` and a
    `ConfigMixin` of diffusers, so that it is stored beside the network that was trained with it.

    All images are in network units. The haze of an image is a map `[B, 1, h, w]`. Its meaning depends on the operator.
    """

    def forward(self, clear: torch.Tensor, haze: torch.Tensor) -> torch.Tensor:
        """Add haze to clear images `[B, C, h, w]`."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward`.")

    def limit(self, clear: torch.Tensor) -> torch.Tensor:
        """Limit clear images `[B, C, h, w]` to possible values."""
        return clear

    def guess(self, hazy: torch.Tensor) -> torch.Tensor:
        """Restore hazy images `[B, C, h, w]` roughly, without the network, as the first targets of its training."""
        raise NotImplementedError(f"{type(self).__name__} must define `guess`.")

    def explain(self, hazy: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        """The haze with which the clear image, made hazy, comes closest to the hazy image."""
        return torch.zeros_like(hazy[:, :1])

    def imagine(self, clear: torch.Tensor, hazy: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Haze that the clear images could have, at random. The hazy images are others, of the same kind."""
        return torch.zeros_like(clear[:, :1])

    def freeze(self) -> None:
        """Keep the parameters as they are from now on."""
        self.requires_grad_(False).eval()


class OpticalHaze(HazeOperator, ModelMixin, ConfigMixin):
    r"""
    The haze of a widefield microscope, in which layers out of focus add to the one in focus:

        H(x) = blur * x + haze,    haze = Σₖ weightₖ · defocusₖ * layerₖ + background

    The clear image x is the in-focus intensity, in the counts of the hazy image and never negative. The layers are
    other images of the same kind. The kernels `defocusₖ` are PSFs of [`widefield_otf`], each with the sum 1. Blur,
    distances and weights are parameters that can be learned from unpaired clear images. They stay positive.

    Args:
        airy_radius (`float`, defaults to `3.0`): Airy radius in pixels, 0.61 · emission wavelength / NA.
        blur (`float`, defaults to `0.5`):
            Standard deviation of a Gaussian in pixels. By this blur, the in-focus part of the hazy image is less sharp
            than the clear image.
        distances (`tuple[float, ...]`, defaults to `(4.0, 8.0, 16.0)`):
            Distances of the layers from the focus, in units of the depth of field (wavelength · refractive index /
            NA²), each above 1.
        weights (`tuple[float, ...]`, defaults to `(1.5, 1.5, 1.5)`):
            Median intensities of the layers relative to that in focus.
        weight_spread (`float`, defaults to `1.0`): Standard deviation of the logarithm of the intensities.
        background_width (`int`, defaults to `64`):
            Width of the background in pixels. Every square of this side must have a place without in-focus intensity.
        dark_level (`float`, defaults to `0.0`): Value of clear images where there is no intensity, in network units.
        kernel_size (`int`, defaults to `128`): Side in pixels of the grid on which PSFs are computed.

    Raises:
        `ValueError`: If an argument is out of range, or there is not one weight for every distance.
    """

    @register_to_config
    def __init__(
        self,
        airy_radius: float = 3.0,
        blur: float = 0.5,
        distances: tuple[float, ...] = (4.0, 8.0, 16.0),
        weights: tuple[float, ...] = (1.5, 1.5, 1.5),
        weight_spread: float = 1.0,
        background_width: int = 64,
        dark_level: float = 0.0,
        kernel_size: int = 128,
    ):
        super().__init__()
        if not len(distances) == len(weights) > 0:
            raise ValueError(f"`distances` and `weights` must be equally many, got {distances} and {weights}.")
        if not (min(distances) > 1 and min(*weights, blur, airy_radius) > 0 and weight_spread >= 0):
            raise ValueError(
                "`distances` must exceed 1, `airy_radius`, `blur` and `weights` must be positive, and `weight_spread` "
                f"not negative, got {distances}, {airy_radius}, {blur}, {weights} and {weight_spread}."
            )
        if background_width < 1 or kernel_size < 8:
            raise ValueError(
                f"`background_width` must be positive and `kernel_size` at least 8 pixels, got {background_width} and "
                f"{kernel_size}."
            )
        # In focus, a scalar PSF depends only on the Airy radius in pixels, and out of focus nearly so.
        self.optics = Optics(0.5, 0.5, 0.5, 1.0, pixel_size=0.61 / airy_radius)
        self.raw_blur = nn.Parameter(_inverse_softplus(torch.tensor(blur)))
        self.raw_distances = nn.Parameter(_inverse_softplus(torch.tensor(distances) - 1))
        self.raw_weights = nn.Parameter(_inverse_softplus(torch.tensor(weights)))
        self.frozen = None

    @property
    def distances(self) -> torch.Tensor:
        """Distances `[K]` of the layers from the focus, in units of the depth of field."""
        return 1 + F.softplus(self.raw_distances)

    @property
    def weights(self) -> torch.Tensor:
        """Median intensities `[K]` of the layers relative to that in focus."""
        return F.softplus(self.raw_weights)

    def kernels(self) -> torch.Tensor:
        """
        Kernels `[1 + K, k, k]` of the layer in focus and of the others, centred at `[k // 2, k // 2]`. All are
        positive and have the sum 1.
        """
        if self.frozen is not None:
            return self.frozen
        size = self.config.kernel_size
        otfs = widefield_otf(self.optics, size, self.distances * self.optics.depth_of_field)  # [K,k,k//2+1]
        offsets = torch.arange(size, device=otfs.device) - size // 2
        profile = torch.exp(-0.5 * (offsets / F.softplus(self.raw_blur)) ** 2)
        focus = profile[:, None] * profile / profile.sum() ** 2
        return torch.cat([focus[None], torch.fft.fftshift(otf_to_psf(otfs), dim=(-2, -1))])

    def freeze(self) -> None:
        """Keep the parameters, and with them the kernels, as they are from now on."""
        super().freeze()
        self.frozen = self.kernels()

    def forward(self, clear: torch.Tensor, haze: torch.Tensor) -> torch.Tensor:
        """Add haze to clear images `[B, 1, h, w]`."""
        return convolve(clear - self.config.dark_level, self.kernels()[0]) + haze

    def limit(self, clear: torch.Tensor) -> torch.Tensor:
        """Intensities are never negative."""
        return clear.clamp(min=self.config.dark_level)

    def guess(self, hazy: torch.Tensor) -> torch.Tensor:
        """The hazy images above their background."""
        return self.limit(hazy - self.background(hazy) + self.config.dark_level)

    def explain(self, hazy: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        """
        What the clear image does not explain, as smooth as the nearest layer out of focus and no less than the
        background.
        """
        focus, nearest = self.kernels()[:2]
        difference = hazy - convolve(clear - self.config.dark_level, focus)
        return torch.maximum(convolve(difference, nearest), self.background(hazy))

    def background(self, hazy: torch.Tensor) -> torch.Tensor:
        """
        The darkest places within `background_width` of hazy images `[B, 1, h, w]`, smoothed over this width. The image
        is first smoothed against noise.
        """
        width = min(self.config.background_width, *hazy.shape[-2:]) // 2 * 2 + 1  # px, odd
        darkest = minimum_filter(box_filter(box_filter(hazy, 5), 5), width)
        return box_filter(box_filter(darkest, width), width)

    def imagine(self, clear: torch.Tensor, hazy: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """
        Haze of layers that are other clear images of the batch, in random orientation and position. The background is
        a constant. With it, the images get the means of the hazy images. The haze contains the noise of the hazy
        images, as if all of it were shot noise.
        """
        haze = torch.zeros_like(clear)
        for weight, kernel in zip(self.weights, self.kernels()[1:], strict=True):
            layer = clear - self.config.dark_level
            if len(layer) > 1:
                layer = layer.roll(int(rng.integers(1, len(layer))), dims=0)
            layer = layer.flip([(), (-2,), (-1,), (-2, -1)][rng.integers(4)])
            layer = layer.roll([int(shift) for shift in rng.integers(layer.shape[-2:])], dims=(-2, -1))
            factors = np.exp(self.config.weight_spread * rng.standard_normal((len(layer), 1, 1, 1)))
            haze = haze + weight * torch.from_numpy(factors).to(layer) * convolve(layer, kernel)
        haze = haze + (hazy - haze - clear).mean(dim=(-2, -1), keepdim=True) + self.config.dark_level
        noise = torch.from_numpy(rng.standard_normal(tuple(haze.shape), dtype=np.float32)).to(haze)
        signal = clear + haze
        signal = signal - signal.amin(dim=(-2, -1), keepdim=True)  # the variance of shot noise rises with it
        signal = signal / signal.mean(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
        return haze + noise_level(hazy) * signal.clamp(min=0.05).sqrt() * noise


def noise_level(images: torch.Tensor) -> torch.Tensor:
    """
    Standard deviation `[B, C, 1, 1]` of white Gaussian noise in images `[B, C, h, w]` of at least 3 × 3 pixels
    (Immerkær 1996, doi 10.1006/cviu.1996.0060). [`noise_deviation`] estimates it for a single plane, by the median.
    """
    height, width = images.shape[-2:]
    second_difference = torch.tensor([1.0, -2.0, 1.0]).to(images)
    kernel = second_difference[:, None] * second_difference  # of which the squares have the sum 36
    differences = F.conv2d(images.reshape(-1, 1, height, width), kernel[None, None]).reshape(
        *images.shape[:2], height - 2, width - 2
    )
    return differences.abs().mean(dim=(-2, -1), keepdim=True) * math.sqrt(math.pi / 2) / 6


def convolve(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """
    Convolve images `[B, C, h, w]` with a kernel `[k, k]` that is centred at `[k // 2, k // 2]`. At their edges, the
    images are mirrored.
    """
    kernel = kernel.to(images)
    margin, (height, width) = len(kernel) // 2, images.shape[-2:]
    rows, columns = (torch.from_numpy(np.pad(np.arange(side), margin, mode="symmetric")) for side in (height, width))
    mirrored = images[..., rows[:, None].to(images.device), columns.to(images.device)]
    shape = [next_fast_len(side, real=True) for side in mirrored.shape[-2:]]
    spectrum = torch.fft.rfft2(mirrored, s=shape) * torch.fft.rfft2(kernel, s=shape)
    convolved = torch.fft.irfft2(spectrum, s=shape)
    return convolved[..., 2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width]


def box_filter(images: torch.Tensor, width: int) -> torch.Tensor:
    """Means `[B, C, h, w]` over squares of an odd side of `width` pixels; beyond an edge, its pixels are repeated."""
    padded = F.pad(images, [width // 2] * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (width, 1), stride=1), (1, width), stride=1)


def minimum_filter(images: torch.Tensor, width: int) -> torch.Tensor:
    """Minima `[B, C, h, w]` over squares of an odd side of `width` pixels."""
    in_columns = -F.max_pool2d(-images, (width, 1), stride=1, padding=(width // 2, 0))
    return -F.max_pool2d(-in_columns, (1, width), stride=1, padding=(0, width // 2))


def _inverse_softplus(values: torch.Tensor) -> torch.Tensor:
    return values + torch.log(-torch.expm1(-values))
