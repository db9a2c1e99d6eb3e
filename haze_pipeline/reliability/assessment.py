"""Checks of a result that need no clear image: is there a reason not to believe it?"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.pipeline_output import HazeMatchingOutput
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.sampling.tiling import tile_slices
from haze_pipeline.utils.noise_level import noise_deviation

from .out_of_domain import domain_distance


if TYPE_CHECKING:
    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline

# Structure is looked at between these deviations, px: without most of the noise, and without haze. What is broader
# cannot be told from haze without a clear image.
FINE, COARSE = 1.0, 10.0
BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # between clear and hazy image, px
WINDOW = 8.0  # of the local maps, px
FIELD = 128  # side of the empty field, and of the parts of a result that it is compared with, px

# Beyond these, a sentence of the verdict says so.
MAX_UNEXPLAINED = 0.5
MAX_INVENTED = 0.5
MAX_DISTANCE = 1.0
LINEARITY = (0.5, 2.0)
MAX_EXCESS = 0.1


@dataclass
class Assessment:
    """
    Args:
        unexplained (`float`):
            Re-blur test: share of the input's structure finer than some 10 px, as an amplitude, that the prediction
            does not explain when it is blurred again and anything smooth is added, less what noise explains; 0 is
            best.
        correlation (`float`): Pearson's correlation of that structure, RSP of SQUIRREL (Culley et al. 2018).
        error_map (`np.ndarray` of shape `[H, W]`): Local root mean square of what is not explained, counts (RSE).
        correlation_map (`np.ndarray` of shape `[H, W]`): Local correlation (RSP).
        linearity (`float`): Gain of dim structures over that of bright ones, 1 if intensities can be compared.
        invented (`float`, *optional*):
            Brightest structure predicted from an empty field with the noise of the input, over that of the result;
            `None` if the noise of the input cannot be measured.
        out_of_domain (`float`, *optional*):
            See [`domain_distance`]; above 1 is unusual. `None` if the checkpoint stores no domain or the image is
            small.
        pixel_size_in_range (`bool`, *optional*): Whether the pixel size is one that was trained on; `None` if either
            is not known.
        share_removed (`float`, *optional*):
            Share of the light above the darkest pixel that was taken for haze; `None` if the prediction is in another
            unit.
        excess (`float`, *optional*): Light of the prediction, blurred to 10 px, where the input has less, over all of
            the input's.
        warnings (`list[str]`): What speaks against the result, in sentences.
        not_checked (`list[str]`): What could not be looked at.
    """

    unexplained: float
    correlation: float
    error_map: np.ndarray
    correlation_map: np.ndarray
    linearity: float
    invented: float | None
    out_of_domain: float | None
    pixel_size_in_range: bool | None
    share_removed: float | None
    excess: float | None
    warnings: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The warnings, or that there is none, and what could not be checked."""
        found = " ".join(self.warnings) or "Nothing speaks against this result."
        return f"{found} Not checked: {', '.join(self.not_checked)}." if self.not_checked else found

    def to_dict(self) -> dict:
        """Everything but the maps, for JSON."""
        numbers = {key: value for key, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return {**numbers, "verdict": self.verdict}


def assess(
    pipe: "HazeMatchingPipeline",
    image: np.ndarray,
    output: HazeMatchingOutput,
    pixel_size: float | None = None,
    seed: int = 0,
) -> Assessment:
    """
    Look for reasons not to believe a result, without a clear image.

    Args:
        pipe ([`HazeMatchingPipeline`]): What predicted it.
        image (`np.ndarray` of shape `[H, W]`): The hazy input.
        output ([`HazeMatchingOutput`]): What it made of the input.
        pixel_size (`float`, *optional*): Side of a pixel in µm.
        seed (`int`, defaults to `0`): Of the empty field.

    Raises:
        `ValueError`: If the image is not a finite plane, or the shapes differ.
    """
    prediction = np.asarray(output.prediction)
    if image.ndim != 2 or image.shape != prediction.shape:
        raise ValueError(
            f"`image` and `output.prediction` must be one plane of one shape, got {image.shape} and "
            f"{prediction.shape}: assess "
            "stacks plane by plane."
        )
    hazy = pipe.image_processor.preprocess(image)[0, 0].numpy().astype(np.float64)
    prediction = prediction.astype(np.float64)
    noise = noise_deviation(hazy)
    unexplained, correlation, linearity, error_map, correlation_map = reblur(hazy, prediction, noise)
    share_removed = excess = None
    light = hazy - hazy.min()
    if pipe.config.normalization == "image" and light.any():  # in the counts of the input
        share_removed = float(1 - prediction.sum() / light.sum())
        surplus = ndimage.gaussian_filter(prediction, COARSE) - ndimage.gaussian_filter(light, COARSE)
        excess = float(np.maximum(surplus, 0).sum() / light.sum())
    span = pipe.config.training_pixel_size
    result = Assessment(
        unexplained=unexplained,
        correlation=correlation,
        error_map=error_map,
        correlation_map=correlation_map,
        invented=invented_structure(pipe, hazy, prediction, noise, seed),
        out_of_domain=None if pipe.config.domain is None else domain_distance(hazy, pipe.config.domain),
        pixel_size_in_range=None if pixel_size is None or span is None else span["min"] <= pixel_size <= span["max"],
        share_removed=share_removed,
        excess=excess,
        linearity=linearity,
    )
    checks = {
        "whether such images were trained on": result.out_of_domain,
        "whether such pixels were trained on": result.pixel_size_in_range,
        "what noise alone becomes": result.invented,
        "whether light was added": result.excess,
    }
    result.not_checked += [name for name, value in checks.items() if value is None]
    if result.out_of_domain is not None and result.out_of_domain > MAX_DISTANCE:
        result.warnings.append("The image is unlike those that the checkpoint was trained on.")
    if result.pixel_size_in_range is False:
        result.warnings.append(
            f"Its pixels of {pixel_size:.3g} µm are not among the {span['min']:.3g} to {span['max']:.3g} µm that were "
            f"trained on."
        )
    if result.invented is not None and result.invented > MAX_INVENTED:
        result.warnings.append("What it shows is hardly more than what the network makes of noise alone.")
    if result.unexplained > MAX_UNEXPLAINED:
        result.warnings.append("Blurred again, the result does not explain the structure of the input.")
    if result.excess is not None and result.excess > MAX_EXCESS:
        result.warnings.append("It holds light that the input does not have.")
    if not LINEARITY[0] <= result.linearity <= LINEARITY[1]:
        result.warnings.append("Dim and bright structures were not treated alike: do not compare their intensities.")
    return result


def reblur(
    hazy: np.ndarray, prediction: np.ndarray, noise: float
) -> tuple[float, float, float, np.ndarray, np.ndarray]:
    """
    Compare the structure of the input with that of the prediction, blurred by the Gaussian that makes them most alike.
    Haze is too smooth to count as structure, so that it need not be known.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The input.
        prediction (`np.ndarray` of shape `[H, W]`): The result.
        noise (`float`): Standard deviation of the input's noise.

    Returns:
        Share of the amplitude that is not explained; correlation; gain of the dimmer half of the structure over that
        of the brighter; map of the root mean square error in counts; map of the correlation.
    """
    found = _structure(hazy)
    candidates = [_structure(ndimage.gaussian_filter(prediction, sigma)) for sigma in BLURS]
    expected = max(candidates, key=lambda each: _correlation(found, each))
    energy = (expected**2).mean()
    gain = (found * expected).mean() / energy if energy > 0 else 0.0
    rest = found - gain * expected
    noise_energy = (noise * _band_gain()) ** 2
    signal = max((found**2).mean() - noise_energy, np.finfo(float).tiny)
    unexplained = min(1.0, float(np.sqrt(max(0.0, (rest**2).mean() - noise_energy) / signal)))

    strength = np.abs(expected)
    gains = []
    for low, high in ((0.5, 0.95), (0.95, 1.0)):  # of all pixels, most of which show no structure
        chosen = (strength >= np.quantile(strength, low)) & (strength <= np.quantile(strength, high))
        gains.append(
            (found[chosen] * expected[chosen]).sum() / max((expected[chosen] ** 2).sum(), np.finfo(float).tiny)
        )
    linearity = float(gains[0] / gains[1]) if gains[1] != 0 else 1.0

    def local(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, WINDOW)

    power = local(found**2) * local(expected**2)
    correlation_map = np.divide(local(found * expected), np.sqrt(power), out=np.zeros_like(found), where=power > 0)
    return unexplained, _correlation(found, expected), linearity, np.sqrt(local(rest**2)), correlation_map


def invented_structure(
    pipe: "HazeMatchingPipeline", hazy: np.ndarray, prediction: np.ndarray, noise: float, seed: int
) -> float | None:
    """
    Brightest structure of the posterior mean of an empty field, over that of the brightest part of the prediction of
    that size; both without the brightest thousandth of the pixels.
    """
    if noise == 0:  # more than half of the pixels are flat, so that the noise of the others is not known
        return None
    empty = hazy.min() + noise * np.random.default_rng(seed).standard_normal((FIELD, FIELD))
    generator = torch.Generator().manual_seed(seed)
    pipe, steps, members = with_preset(pipe, Preset.fast, ensemble_size=2)
    made = pipe(empty.astype(np.float32), steps, members, generator=generator).prediction
    parts = [prediction[tile] for tile in tile_slices(*prediction.shape, FIELD, 0)]
    heights = [np.quantile(part, 0.999) - np.median(part) for part in (made, *parts)]
    return float(heights[0] / max(heights[1:])) if max(heights[1:]) > 0 else 1.0


def _structure(image: np.ndarray) -> np.ndarray:
    band = ndimage.gaussian_filter(image, FINE) - ndimage.gaussian_filter(image, COARSE)
    return band - band.mean()


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    power = (one**2).mean() * (other**2).mean()
    return float((one * other).mean() / np.sqrt(power)) if power > 0 else 0.0


def _band_gain() -> float:
    """Deviation that white noise of deviation 1 has as structure."""
    impulse = np.zeros((129, 129))
    impulse[64, 64] = 1
    return float(
        np.sqrt(((ndimage.gaussian_filter(impulse, FINE) - ndimage.gaussian_filter(impulse, COARSE)) ** 2).sum())
    )
