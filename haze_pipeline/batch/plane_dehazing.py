"""Dehaze the planes of a micrograph with settings that they share."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import torch

from haze_pipeline.image_processing import Normalization
from haze_pipeline.io.micrograph import Micrograph, MicrographError
from haze_pipeline.presets import known_arguments
from haze_pipeline.reliability.assessment import Assessment, assess
from haze_pipeline.reliability.benefit import choose_strength
from haze_pipeline.utils.background import subtract_background
from haze_pipeline.utils.devices import free_memory, map_on_cores
from haze_pipeline.utils.provenance import sampling_facts, weights_digest

from .planes import channel_of, evenly, spread_planes


# So many planes of a stack, evenly spread, are assessed if no map of unexplained structure is wanted.
MAX_ASSESSED_PLANES = 4

# Planes of more pixels a side than this are dehazed one after another, since their tiles keep all cores busy.
LARGE_PLANE = 2048
BYTES_PER_PIXEL = 400  # that dehazing needs at its peak

# The statistics of a stack are measured on this many of its planes, evenly spread, so that large stacks start at once.
MAX_MEASURED_PLANES = 8


class Wanted(NamedTuple):
    """What is wanted of every plane besides the prediction."""

    uncertainty: bool = False
    unexplained: bool = False
    samples: bool = False


PREDICTION = Wanted()  # and nothing else


@dataclass
class StackUnits:
    """
    What the planes of a stack share, by channel.

    Args:
        normalizations (`dict[int, Normalization]`):
            The maps between counts and network units; empty if each plane is normalized by itself.
        strengths (`dict[int, float]`): Strengths that protect from harm; empty if that was not requested.
    """

    normalizations: dict[int, Normalization] = field(default_factory=dict)
    strengths: dict[int, float] = field(default_factory=dict)


@dataclass
class DehazedPlane:
    """
    The results of a plane `[H, W]`. What is not wanted is `None`.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The input without the camera's offset; NaN marks missing pixels.
        prediction (`np.ndarray` of shape `[H, W]`): The result.
        hot_pixels (`int`): Number of isolated outliers in the input.
        uncertainty (`np.ndarray` of shape `[H, W]`, *optional*): Standard deviation of the result.
        samples (`np.ndarray` of shape `[E, H, W]`, *optional*): The members of the ensemble.
        assessment ([`Assessment`], *optional*): Reasons to distrust the result.
    """

    hazy: np.ndarray
    prediction: np.ndarray
    hot_pixels: int
    uncertainty: np.ndarray | None = None
    samples: np.ndarray | None = None
    assessment: Assessment | None = None


class PlaneDehazer:
    """
    Dehazes planes with fixed settings.

    Planes share one noise, so that equal planes have equal results. A plane can be dehazed again by itself.

    Args:
        pipe ([`RestorationPipeline`]): The pipeline, on its device and with the scheduler to use.
        num_inference_steps (`int`): Solver steps, if it takes any.
        ensemble_size (`int`): Ensemble members per plane, if it samples.
        seed (`int`): Seed of the noise.
        tile_size (`int`, *optional*): Largest side of the tiles in pixels, see the pipeline.
        normalization (`str`, *optional*):
            Intensity statistics that set the network's units. `"stack"`: those of all planes of a channel, so that
            planes stay comparable. `"plane"`: those of each plane. `"percentile"`: as stack, with intensities
            clipped to their percentiles 0.1 and 99.9. `"checkpoint"`: the fixed statistics in the checkpoint. If
            omitted, `"checkpoint"` if it has fixed statistics, else `"stack"`.
        camera_offset (`float`): Counts of the camera in the dark, subtracted from the input.
        background_width (`int`, *optional*):
            Width in pixels. Structures that are at least this wide in both directions are subtracted from the result
            and its samples, see [`subtract_background`]. The result is assessed before.
        shared_noise (`str`): Axes along which planes share one noise. Along others, every plane has its own.
        strength (`float`): Fraction of what was taken for haze that is removed.
        protect (`bool`): Multiply the strength by [`choose_strength`] of up to 4 planes of every channel.
        mask_value (`float`, *optional*): Intensity that marks pixels without a measurement, besides NaN.
        assessed (`bool`): Assess results: of all planes if a map of unexplained structure is wanted, else of up to 4.
        model (`str`, *optional*): Name of the checkpoint in the provenance of results; the default one if omitted.

    Raises:
        `ValueError`: If `normalization` does not suit the checkpoint, the checkpoint cannot `protect`, or it restores
            colour images.
    """

    def __init__(
        self,
        pipe,
        num_inference_steps: int,
        ensemble_size: int,
        seed: int = 0,
        tile_size: int | None = None,
        normalization: str | None = None,
        camera_offset: float = 0.0,
        background_width: int | None = None,
        shared_noise: str = "TZC",
        strength: float = 1.0,
        protect: bool = False,
        mask_value: float | None = None,
        assessed: bool = True,
        model: str | None = None,
    ):
        if getattr(pipe, "num_channels", 1) > 1:
            raise ValueError(
                "This checkpoint restores colour images, and micrographs have no colours: use "
                "`haze-pipeline dehaze-photographs`."
            )
        self.pipe = pipe
        self.ensemble_size = ensemble_size
        self.sampling = known_arguments(pipe, num_inference_steps=num_inference_steps, ensemble_size=ensemble_size)
        self.seed = seed
        self.tile_size = tile_size
        has_fixed = pipe.config.normalization == "fixed"
        normalization = normalization or ("checkpoint" if has_fixed else "stack")
        if has_fixed and normalization != "checkpoint":
            raise ValueError(
                "`normalization` must be checkpoint for this checkpoint, which stores fixed statistics, "
                f"got {normalization}."
            )
        if normalization == "checkpoint" and not has_fixed:
            raise ValueError(
                "`normalization` checkpoint needs fixed statistics, which this checkpoint does not store: choose "
                "stack, plane or percentile."
            )
        self.normalization = normalization
        if protect:
            choose_strength(pipe, [])  # raises an error if the checkpoint cannot
        self.camera_offset = camera_offset
        self.background_width = background_width
        self.shared_noise = shared_noise
        self.strength, self.protect = strength, protect
        self.mask_value = mask_value
        self.assessed = assessed
        self.settings = {
            **sampling_facts(pipe, model, weights_digest(pipe), seed, num_inference_steps, ensemble_size),
            "tile_size": tile_size,
            "normalization": normalization,
            "camera_offset": camera_offset,
            "background_width": background_width,
            "shared_noise": shared_noise,
            "strength": strength,
            "mask_value": mask_value,
        }

    def measure(self, micrograph: Micrograph, name: str) -> StackUnits:
        """
        Measure what the planes of a micrograph share.

        Raises:
            `ValueError`: If a plane cannot be dehazed. The message starts with `name` and the number of the plane.
        """
        return StackUnits(self._measure_channels(micrograph, name), self._choose_strengths(micrograph))

    def dehaze_planes(
        self,
        micrograph: Micrograph,
        name: str,
        units: StackUnits,
        numbers: Collection[int],
        wanted: Wanted = PREDICTION,
        on_progress: Callable[[float, int], None] = lambda planes, total: None,
        stopped: Event | None = None,
    ) -> Iterator[tuple[int, tuple[int, ...], DehazedPlane]]:
        """
        Dehaze planes in the background, one after another or several at once.

        Args:
            micrograph ([`Micrograph`]): The stack.
            name (`str`): Name of the stack in messages.
            units ([`StackUnits`]): What the planes share, from [`measure`].
            numbers (`Collection[int]`): Numbers of the planes, counted over the leading axes.
            wanted ([`Wanted`]): What is wanted besides the prediction.
            on_progress (`Callable`): Called with the number of planes, a fraction, dehazed since the last call, and
                with the number of planes.
            stopped (`Event`, *optional*): Set to stop; the iteration then raises a `RuntimeError`.

        Yields:
            Number, index along the leading axes, and results of every plane, in order.

        Raises:
            `ValueError` or `RuntimeError`: If a plane cannot be dehazed.
        """
        shape = micrograph.data.shape
        indices = list(np.ndindex(shape[:-2]))
        assessed = self.assessed_planes(len(indices), wanted)
        reading, stopped = Lock(), stopped or Event()

        def on_step(pipe, *_) -> None:
            pipe._interrupt = stopped.is_set()
            on_progress(1 / pipe.num_timesteps, len(numbers))

        def dehaze(number: int) -> DehazedPlane:
            with reading:  # readers are not made for several threads
                plane = self.read(micrograph, indices[number])
            try:
                dehazed = self.dehaze_plane(
                    plane, micrograph, indices[number], units, wanted, number in assessed, on_step
                )
            except MicrographError:
                raise
            except ValueError as error:
                raise ValueError(f"{name}, plane {number}: {error}") from error
            if not known_arguments(self.pipe, callback_on_step_end=on_step):
                on_progress(1, len(numbers))
            return dehazed

        planes_at_once = self._planes_at_once(shape)
        dehazed = map_on_cores(dehaze, numbers, planes_at_once, in_background=True, stopped=stopped)
        for number, plane in zip(numbers, dehazed, strict=True):
            yield number, indices[number], plane

    def dehaze_plane(
        self,
        plane: np.ndarray,
        micrograph: Micrograph,
        index: tuple[int, ...],
        units: StackUnits,
        wanted: Wanted = PREDICTION,
        is_assessed: bool = False,
        on_step: Callable | None = None,
    ) -> DehazedPlane:
        """Dehaze the plane `[H, W]` at an index of the leading axes of a micrograph, as [`read`] returns it."""
        channel = channel_of(index, micrograph.axes)
        known = known_arguments(
            self.pipe,
            generator=torch.Generator().manual_seed(self.seed + self._noise_number(micrograph, index)),
            output_uncertainty=wanted.uncertainty,
            output_samples=wanted.samples,
            callback_on_step_end=on_step,
        )
        out = self.pipe(
            plane,
            strength=self.strength * units.strengths.get(channel, 1.0),
            tile_size=self.tile_size,
            normalization=units.normalizations.get(channel),
            **self.sampling,
            **known,
        )
        result = DehazedPlane(plane, out.prediction, out.hot_pixels, out.uncertainty, out.samples)
        if is_assessed:
            result.assessment = assess(self.pipe, plane, out, micrograph.pixel_size_um, self.seed)
        if self.background_width is not None:
            # The background is not subtracted from the hazy image: noise makes its estimate there too low, and the
            # network was not trained on images without a background.
            result.prediction = subtract_background(out.prediction, self.background_width)
            if out.samples is not None:
                result.samples -= out.prediction - result.prediction
        return result

    def read(self, micrograph: Micrograph, index: tuple[int, ...]) -> np.ndarray:
        """A plane without the camera's offset; NaN where it has the value of the mask."""
        plane = np.asarray(micrograph.data[index])
        masked = None if self.mask_value is None else plane == self.mask_value
        if self.camera_offset:
            plane = plane - np.float32(self.camera_offset)
        return plane if masked is None or not masked.any() else np.where(masked, np.float32(np.nan), plane)

    def _planes_at_once(self, shape: tuple[int, ...]) -> int:
        """Number of planes to dehaze at once: one per core if they are small, so that each core has its own plane."""
        if self.pipe.device.type != "cpu":
            return 1
        fitting = free_memory(self.pipe.device) // 2 // (BYTES_PER_PIXEL * shape[-2] * shape[-1])
        return max(1, min(torch.get_num_threads(), fitting)) if max(shape[-2:]) <= LARGE_PLANE else 1

    def assessed_planes(self, number: int, wanted: Wanted) -> set[int]:
        """Numbers of the planes to assess, of a stack of `number` planes."""
        if wanted.unexplained:
            return set(range(number))
        return set(evenly(number, MAX_ASSESSED_PLANES)) if self.assessed else set()

    def _measure_channels(self, micrograph: Micrograph, name: str) -> dict[int, Normalization]:
        """
        The normalization of every channel, from the statistics of its stack. Empty if each plane is normalized by
        itself, or by the fixed statistics in the checkpoint.
        """
        if self.normalization not in ("stack", "percentile"):
            return {}
        leading = micrograph.data.shape[:-2]
        processor = self.pipe.image_processor
        normalizations = {}
        for channel, chosen in spread_planes(micrograph, MAX_MEASURED_PLANES).items():
            statistics = []
            for index in chosen:
                try:
                    planes = processor.preprocess(self.read(micrograph, index), allow_masked=True)
                except MicrographError:
                    raise
                except ValueError as error:
                    number = np.ravel_multi_index(index, leading) if index else 0
                    raise ValueError(f"{name}, plane {number}: {error}") from error
                processor.replace_hot_pixels(planes)
                statistics.append(processor.measure(planes, clipped=self.normalization == "percentile"))
            statistics = torch.cat(statistics)
            has_contrast = statistics[:, 1] > 0  # blank planes say nothing about the others
            statistics = statistics[has_contrast] if has_contrast.any() else statistics
            normalizations[channel] = processor.normalization_from(processor.pool(statistics))
        return normalizations

    def _choose_strengths(self, micrograph: Micrograph) -> dict[int, float]:
        """The strength of every channel that protects it from harm. Empty if that was not requested."""
        chosen = spread_planes(micrograph, MAX_ASSESSED_PLANES) if self.protect else {}
        return {
            channel: choose_strength(self.pipe, [self.read(micrograph, index) for index in indices], self.seed)
            for channel, indices in chosen.items()
        }

    def _noise_number(self, micrograph: Micrograph, index: tuple[int, ...]) -> int:
        """Number of the noise of a plane; planes along the axes of `shared_noise` have the same number."""
        number = 0
        for axis, size, position in zip(micrograph.axes, micrograph.data.shape, index, strict=False):
            if axis not in self.shared_noise:
                number = number * size + position
        return number
