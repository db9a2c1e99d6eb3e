"""Assessment of a result without a clear image: is there a reason to distrust it?"""

import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from haze_pipeline.notebook_display import picture
from haze_pipeline.pipeline_output import RestorationOutput
from haze_pipeline.presets import Preset, known_arguments, with_preset
from haze_pipeline.sampling.tiling import tile_slices
from haze_pipeline.utils.bad_pixels import fill_masked
from haze_pipeline.utils.noise_level import noise_deviation

from .benefit import benefit_features, predict_benefit
from .input_checks import InputChecks, check_input
from .out_of_domain import domain_distance


if TYPE_CHECKING:
    from haze_pipeline.pipeline_restoration import RestorationPipeline

# Structure is the difference of two Gaussians with these standard deviations, px. The first suppresses most of the
# noise, the second the haze. Without a clear image, wider structure cannot be distinguished from haze.
FINE, COARSE = 1.0, 10.0
BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # px, candidates for the blur between clear and hazy image
WINDOW = 8.0  # px, Gaussian window of the local maps
MIN_CONTRAST = 0.25  # fraction of the local contrast that a result must keep
FIELD = 128  # px, side of the empty field and of the parts of a result that are compared with it

# The verdict warns beyond these limits.
MAX_UNEXPLAINED = 0.5
MAX_INVENTED = 0.5
MAX_DISTANCE = 1.0
LINEARITY = (0.5, 2.0)
MAX_EXCESS = 0.1
MAX_LOST = 0.2


@dataclass
class Assessment:
    """
    Results of [`assess`].

    Args:
        unexplained (`float`):
            Re-blur test: fraction of the amplitude of the input's structure finer than about 10 px that the blurred
            prediction does not explain, after the contribution of noise is subtracted; 0 is best.
        correlation (`float`):
            Pearson correlation of this structure in input and blurred prediction, RSP of SQUIRREL (Culley et al.
            2018).
        error_map (`np.ndarray` of shape `[H, W]`): Local root mean square of the unexplained structure, counts (RSE).
        correlation_map (`np.ndarray` of shape `[H, W]`): Local correlation (RSP).
        linearity (`float`): Gain of dim structures relative to that of bright ones; 1 if intensities can be compared.
        lost (`float`):
            Fraction of the area with fine structure where the result keeps less than a quarter of the contrast.
        invented (`float`, *optional*):
            Height of the structure predicted from an empty field with the noise of the input, relative to that in the
            result; `None` if the noise of the input cannot be measured.
        predicted_gain (`float`, *optional*):
            Expected gain from dehazing, dB of range-invariant PSNR, see [`predict_benefit`]; `None` if the checkpoint
            stores no regression for it.
        out_of_domain (`float`, *optional*):
            Distance from the training images, see [`domain_distance`]; more than 1 is unusual. `None` if the
            checkpoint stores no domain or the image is less than 128 px a side.
        pixel_size_in_range (`bool`, *optional*):
            Whether the pixel size is in the range of the training images; `None` if either is unknown.
        fraction_removed (`float`, *optional*):
            Fraction of the intensity above the darkest pixel that was removed as haze; `None` if the prediction is in
            another unit.
        excess (`float`, *optional*):
            Intensity of the prediction above that of the input, both blurred by a Gaussian of 10 px, relative to the
            total intensity of the input; `None` if the prediction is in another unit.
        input ([`InputChecks`]): Checks of the input itself.
        warnings (`list[str]`): Reasons to distrust the result, in sentences.
        not_checked (`list[str]`): Checks that could not be made.
    """

    unexplained: float
    correlation: float
    error_map: np.ndarray
    correlation_map: np.ndarray
    linearity: float
    lost: float
    invented: float | None
    predicted_gain: float | None
    out_of_domain: float | None
    pixel_size_in_range: bool | None
    fraction_removed: float | None
    excess: float | None
    input: InputChecks
    warnings: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The warnings, or a sentence that no check found a fault; then the checks that could not be made."""
        if self.warnings:
            found = " ".join(self.warnings)
        elif self.not_checked:
            found = "The checks that could be made found no fault."
        else:
            found = "No check found a fault."
        return f"{found} Not checked: {', '.join(self.not_checked)}." if self.not_checked else found

    def _repr_html_(self) -> str:
        """The verdict as a list and the map of unexplained structure, for notebooks."""
        reasons = self.warnings or [self.verdict]
        if self.warnings and self.not_checked:
            reasons = [*reasons, f"Not checked: {', '.join(self.not_checked)}."]
        listed = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
        return f"<div><p>Can it be trusted?</p><ul>{listed}</ul>{picture('unexplained', self.error_map, 'fire')}</div>"

    def to_dict(self) -> dict:
        """All values except the maps, for JSON."""
        numbers = {key: value for key, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return {**numbers, "input": vars(self.input), "verdict": self.verdict}


def assess(
    pipe: "RestorationPipeline",
    image: np.ndarray,
    output: RestorationOutput,
    pixel_size: float | None = None,
    seed: int = 0,
) -> Assessment:
    """
    Check a result for reasons to distrust it, without a clear image.

    Args:
        pipe ([`RestorationPipeline`]): The pipeline that predicted the result.
        image (`np.ndarray` of shape `[H, W]`): The hazy input; NaN marks pixels without a measurement.
        output ([`RestorationOutput`]): The result.
        pixel_size (`float`, *optional*): Side of a pixel in µm.
        seed (`int`, defaults to `0`): Seed of the noise of the empty field and of predictions.

    Raises:
        `ValueError`: If the image is not a single plane, or the shapes differ.
    """
    image = np.asarray(image)
    prediction = np.asarray(output.prediction)
    if image.ndim != 2 or image.shape != prediction.shape:
        raise ValueError(
            f"`image` and `output.prediction` must be single planes of the same shape, got {image.shape} and "
            f"{prediction.shape}: assess stacks plane by plane."
        )
    planes = pipe.image_processor.preprocess(image, allow_masked=True)
    hot_pixels = pipe.image_processor.replace_hot_pixels(planes)
    hazy = fill_masked(planes[0, 0].numpy())[0].astype(np.float64)
    prediction = fill_masked(prediction)[0].astype(np.float64)
    noise = noise_deviation(hazy)
    unexplained, correlation, linearity, lost, error_map, correlation_map = reblur(hazy, prediction, noise)
    fraction_removed = excess = predicted_gain = None
    intensity = hazy - hazy.min()
    if pipe.config.normalization == "image" and intensity.any():  # in the counts of the input
        fraction_removed = float(1 - prediction.sum() / intensity.sum())
        surplus = ndimage.gaussian_filter(prediction, COARSE) - ndimage.gaussian_filter(intensity, COARSE)
        excess = float(np.maximum(surplus, 0).sum() / intensity.sum())
    benefit, domain = pipe.config.get("benefit"), pipe.config.get("domain")
    if benefit is not None and intensity.any():
        features = benefit_features(pipe, hazy, prediction, seed)
        predicted_gain = float(predict_benefit(features[None], benefit)[0])
    span = pipe.config.training_pixel_size
    result = Assessment(
        unexplained=unexplained,
        correlation=correlation,
        error_map=error_map,
        correlation_map=correlation_map,
        lost=lost,
        invented=invented_structure(pipe, hazy, prediction, noise, seed) if intensity.any() else None,
        predicted_gain=predicted_gain,
        out_of_domain=None if domain is None else domain_distance(hazy, domain),
        pixel_size_in_range=None if pixel_size is None or span is None else span["min"] <= pixel_size <= span["max"],
        fraction_removed=fraction_removed,
        excess=excess,
        linearity=linearity,
        input=check_input(image, hot_pixels),
    )
    result.warnings += result.input.warnings
    if not result.input.is_blank:
        _judge(result, pipe, pixel_size)
    return result


def join_verdicts(verdicts: Iterable[str]) -> str | None:
    """The verdicts on the planes of a stack in one text, the most frequent first; `None` if there are none."""
    counts = Counter(verdicts)
    if len(counts) <= 1:
        return next(iter(counts), None)
    return " ".join(f"{count} of {counts.total()} planes: {verdict}" for verdict, count in counts.most_common())


def _judge(result: Assessment, pipe: "RestorationPipeline", pixel_size: float | None):
    """Add warnings for values beyond the limits, and the names of the checks that could not be made."""
    checks = {
        "whether dehazing such images helps": result.predicted_gain,
        "whether such images were trained on": result.out_of_domain,
        "whether such pixel sizes were trained on": result.pixel_size_in_range,
        "which structure the network predicts from noise alone": result.invented,
        "whether intensity was added": result.excess,
    }
    result.not_checked += [name for name, value in checks.items() if value is None]
    if result.predicted_gain is not None and result.predicted_gain < pipe.config.benefit["limit"]:
        result.warnings.append(
            "Dehazing probably degrades this image: compare the result with the input before you measure in it."
        )
    if result.out_of_domain is not None and result.out_of_domain > MAX_DISTANCE:
        result.warnings.append("The image is unlike those in the training of the checkpoint.")
    if result.pixel_size_in_range is False:
        span = pipe.config.training_pixel_size
        result.warnings.append(
            f"The checkpoint was trained on pixels of {span['min']:.3g} to {span['max']:.3g} µm, "
            f"but these have {pixel_size:.3g} µm."
        )
    if result.invented is not None and result.invented > MAX_INVENTED:
        result.warnings.append("The structure in the result is hardly stronger than that predicted from noise alone.")
    if result.unexplained > MAX_UNEXPLAINED:
        result.warnings.append("The blurred result does not explain the structure of the input.")
    if result.lost > MAX_LOST:
        result.warnings.append(f"Fine structure is missing in {result.lost:.0%} of the area where the input has it.")
    if result.excess is not None and result.excess > MAX_EXCESS:
        result.warnings.append("The result has intensity where the input has none.")
    if not LINEARITY[0] <= result.linearity <= LINEARITY[1]:
        result.warnings.append("Dim and bright structures have different gains: do not compare their intensities.")


def reblur(
    hazy: np.ndarray, prediction: np.ndarray, noise: float
) -> tuple[float, float, float, float, np.ndarray, np.ndarray]:
    """
    Compare the fine structure of the input with that of the prediction, blurred by the Gaussian that maximises their
    correlation. Haze is too smooth to contribute.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The input.
        prediction (`np.ndarray` of shape `[H, W]`): The result.
        noise (`float`): Standard deviation of the input's noise.

    Returns:
        Unexplained fraction of the amplitude; correlation; gain of dim structure relative to that of bright structure;
        fraction of the area with structure that lost its contrast; map of the root mean square error in counts; map of
        the correlation.
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
    for low, high in ((0.5, 0.95), (0.95, 1.0)):  # quantiles of all pixels, most of which show no structure
        chosen = (strength >= np.quantile(strength, low)) & (strength <= np.quantile(strength, high))
        gains.append(
            (found[chosen] * expected[chosen]).sum() / max((expected[chosen] ** 2).sum(), np.finfo(float).tiny)
        )
    linearity = float(gains[0] / gains[1]) if gains[1] != 0 else 1.0

    def local(values: np.ndarray, sigma: float = WINDOW) -> np.ndarray:
        return ndimage.gaussian_filter(values, sigma)

    power = local(found**2) * local(expected**2)
    correlation_map = np.divide(local(found * expected), np.sqrt(power), out=np.zeros_like(found), where=power > 0)
    # Structure has clearly more power than the noise, and more than a ten-thousandth of the power of the strongest.
    found_power, expected_power = local(found**2, WINDOW / 2), local(expected**2, WINDOW / 2)
    has_structure = found_power > 3 * noise_energy + 1e-4 * found_power.max()
    is_lost = gain**2 * expected_power < MIN_CONTRAST**2 * (found_power - noise_energy)
    lost = float((has_structure & is_lost).sum() / max(1, has_structure.sum()))
    error_map = np.sqrt(local(rest**2))
    return unexplained, _correlation(found, expected), linearity, lost, error_map, correlation_map


def invented_structure(
    pipe: "RestorationPipeline", hazy: np.ndarray, prediction: np.ndarray, noise: float, seed: int
) -> float | None:
    """
    Height of the structure in the posterior mean of an empty field, relative to that in the brightest part of the
    prediction of the same size. The height is that of the 99.9th percentile above the median.
    """
    if noise == 0:  # more than half of the pixels are flat, so that the noise of the others is unknown
        return None
    empty = hazy.min() + noise * np.random.default_rng(seed).standard_normal((FIELD, FIELD))
    pipe, steps, _ = with_preset(pipe, Preset.fast)
    generator = torch.Generator().manual_seed(seed)
    sampling = known_arguments(pipe, num_inference_steps=steps, ensemble_size=2, generator=generator)
    made = pipe(empty.astype(np.float32), **sampling).prediction
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
    """Standard deviation of the structure in white noise of standard deviation 1."""
    impulse = np.zeros((129, 129))
    impulse[64, 64] = 1
    return float(
        np.sqrt(((ndimage.gaussian_filter(impulse, FINE) - ndimage.gaussian_filter(impulse, COARSE)) ** 2).sum())
    )
