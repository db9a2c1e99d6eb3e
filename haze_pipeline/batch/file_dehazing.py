"""
From file to file: a micrograph is read, dehazed and written plane by plane, and its results are complete or not there.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from haze_pipeline.image_processing import Normalization, subtract_background
from haze_pipeline.io.micrograph import Micrograph, MicrographError
from haze_pipeline.io.micrograph_files import micrograph_writer, open_micrograph
from haze_pipeline.io.ome_tiff_writer import OME_DTYPES
from haze_pipeline.reliability.assessment import assess
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.processes import Processes
from haze_pipeline.utils.provenance import sampling_facts, weights_digest

from .tasks import Outputs, name_of


# The statistics of a stack are those of so many of its planes, evenly spread, so that large ones start at once.
MAX_MEASURED_PLANES = 8


class FileDehazer:
    """
    Dehazes files, all with the same settings.

    Every plane has a noise of its own, that of `seed` plus its number, so that a plane can be made again alone and no
    result depends on how many processes share the work.

    Args:
        pipe ([`HazeMatchingPipeline`]): On its device, with its scheduler.
        num_inference_steps (`int`): Solver steps.
        ensemble_size (`int`): Noises per plane.
        seed (`int`): Of the noise of the first plane.
        tile_size (`int`, *optional*): See the pipeline.
        normalization (`str`):
            What network units are made from: `"stack"`, the mean and deviations of all planes of a channel, so that
            brightness does not flicker; `"plane"`, those of each plane; `"percentile"`, as stack, without the most
            extreme 0.1 % of pixels on either side; `"checkpoint"`, the fixed ones that the checkpoint stores.
        camera_offset (`float`): Counts that the camera adds in the dark; they are taken off the input.
        background_width (`int`, *optional*):
            Pixels. What of a result is at least so broad in both directions is taken off it, and off its samples, as
            the specimen is known not to be; see [`subtract_background`]. The result is assessed before.
        shared_noise (`str`): Axes along which planes share one noise, such as `"TZ"`, so that samples are coherent.
        output_dtype (`str`): `"same"`, rounded and saturated to the number type of the input, or `"float32"`.
        axes (`str`, *optional*): What the axes of the files mean, where they don't say so.
        series (`int`, *optional*): Which of several images in a file.
        channel (`int`, *optional*): The only channel to take.
        z_range (`slice`, *optional*): The planes to take.
        t_range (`slice`, *optional*): The frames to take.
        model (`str`, *optional*): What provenance calls the checkpoint; the default one if omitted.
    """

    def __init__(
        self,
        pipe,
        num_inference_steps: int,
        ensemble_size: int,
        seed: int = 0,
        tile_size: int | None = None,
        normalization: str = "stack",
        camera_offset: float = 0.0,
        background_width: int | None = None,
        shared_noise: str = "",
        output_dtype: str = "same",
        axes: str | None = None,
        series: int | None = None,
        channel: int | None = None,
        z_range: slice | None = None,
        t_range: slice | None = None,
        model: str | None = None,
    ):
        self.pipe = pipe
        self.num_inference_steps = num_inference_steps
        self.ensemble_size = ensemble_size
        self.seed = seed
        self.tile_size = tile_size
        has_fixed = pipe.config.normalization == "fixed"
        if has_fixed != (normalization == "checkpoint"):
            stores = (
                "stores fixed statistics: choose checkpoint"
                if has_fixed
                else "stores no fixed statistics: choose another"
            )
            raise ValueError(f"The normalization {normalization!r} does not suit this checkpoint, which {stores}.")
        self.normalization = normalization
        self.camera_offset = camera_offset
        self.background_width = background_width
        self.shared_noise = shared_noise
        self.output_dtype = output_dtype
        self.axes, self.series = axes, series
        self.part = {"channel": channel, "z_range": z_range, "t_range": t_range}
        self.settings = {
            **sampling_facts(pipe, model, weights_digest(pipe), seed, num_inference_steps, ensemble_size),
            "tile_size": tile_size,
            "normalization": normalization,
            "camera_offset": camera_offset,
            "background_width": background_width,
            "shared_noise": shared_noise,
        }

    def __call__(
        self,
        source: Path | str,
        outputs: Outputs,
        processes: Processes | None = None,
        on_progress: Callable[[float, int], None] = lambda planes, total: None,
    ) -> dict:
        """
        Dehaze a file.

        Args:
            source (`Path` or `str`): What to dehaze: a file, or the address of a remote one.
            outputs ([`Outputs`]): The files to write. TIFFs that exist are replaced.
            processes ([`Processes`], *optional*): Those that share the planes of this file; only where outputs are
                OME-Zarr.
            on_progress (`Callable`, *optional*): Called with the planes done since the last time, a fraction, and
                their number.

        Returns:
            `dict`: The settings, and `source`, `planes`, `seconds`, `clipped_pixels` and `assessment`, a list with an
                entry per plane.

        Raises:
            `OSError`, `ValueError` or `RuntimeError`: If the file cannot be read, dehazed or written. No output is
            left then.
        """
        processes = processes or Processes()
        started = time.perf_counter()
        with ExitStack() as stack:
            # 1. Open the file, and measure it if its planes share statistics.
            with processes.together():
                micrograph = self.open(source, stack)
                shape = micrograph.data.shape
                normalizations = self._measure_channels(micrograph, source)

            # 2. Open the outputs under temporary names.
            contents = self._contents(outputs, micrograph.data.dtype)
            partial = None
            with processes.together():
                if processes.is_main:
                    partial = {path: stack.enter_context(replace_when_complete(path)) for path in outputs.paths}
            partial = processes.broadcast(partial)
            version = micrograph.zarr_version or "0.5"
            writers = {}
            for turn_of_main in (True, False):  # what the main process makes, the others open
                with processes.together():
                    if processes.is_main is turn_of_main:
                        for path, (_, dtype) in contents.items():
                            writer = micrograph_writer(
                                partial[path], micrograph, shape, dtype, path, version, create=turn_of_main
                            )
                            writers[path] = stack.enter_context(writer)

            # 3. Plane by plane.
            clipped, assessments = Counter(), {}
            with processes.together():
                numbered = list(enumerate(np.ndindex(shape[:-2])))
                mine = numbered[processes.index :: processes.number]
                for number, index in mine:
                    try:
                        plane = self._read(micrograph, index)
                        results, assessment = self._dehaze(
                            plane,
                            micrograph,
                            index,
                            normalizations,
                            outputs,
                            lambda part: on_progress(part, len(mine)),
                        )
                    except MicrographError:
                        raise
                    except ValueError as error:
                        raise ValueError(f"{source}, plane {number}: {error}") from error
                    for path, result in results.items():
                        stored, beyond = convert(result, contents[path][1])
                        writers[path].write(index, stored)
                        clipped[path] += beyond
                    assessments[number] = assessment
                    if outputs.preview is not None and number == len(numbered) // 2:
                        self._draw(plane, results, outputs, micrograph).save(partial[outputs.preview])

            # 4. Say how it was made, and give the outputs their names.
            clipped = sum(processes.gather(clipped), Counter())
            for part in processes.gather({path: writer.windows.ranges for path, writer in writers.items()}):
                for path, ranges in part.items():
                    writers[path].windows.merge(ranges)
            assessments = dict(sorted(item for part in processes.gather(assessments) for item in part.items()))
            facts = {**self.settings, "source": name_of(source)}
            if outputs.unexplained is not None:
                facts["assessment"] = list(assessments.values())
            with processes.together():
                for path, (content, _) in contents.items():
                    writers[path].provenance = {**facts, "content": content, "clipped_pixels": clipped[path]}
                stack.close()
        seconds = round(time.perf_counter() - started, 3)
        return {**facts, "planes": len(numbered), "seconds": seconds, "clipped_pixels": clipped[outputs.prediction]}

    def open(self, source: Path | str, stack: ExitStack) -> Micrograph:
        """The part of a file that will be dehazed, open until the stack is closed."""
        micrograph = stack.enter_context(open_micrograph(source, self.axes, self.series))
        try:
            return micrograph.select(**self.part)
        except MicrographError as error:
            raise MicrographError(f"`{source}`: {error}") from error

    def _contents(self, outputs: Outputs, input_dtype: np.dtype) -> dict[Path, tuple[str, np.dtype]]:
        """What every output holds, and in which number type."""
        same = self.output_dtype == "same" and input_dtype.name in OME_DTYPES
        intensity = np.dtype(input_dtype if same else np.float32)
        contents = {outputs.prediction: ("prediction", intensity)}
        if outputs.uncertainty is not None:
            contents[outputs.uncertainty] = ("standard deviation", np.dtype(np.float32))
        if outputs.unexplained is not None:
            content = "root mean square of the structure that is not explained"
            contents[outputs.unexplained] = (content, np.dtype(np.float32))
        contents |= {path: (f"posterior sample {member}", intensity) for member, path in enumerate(outputs.samples)}
        return contents

    def _read(self, micrograph: Micrograph, index: tuple[int, ...]) -> np.ndarray:
        plane = np.asarray(micrograph.data[index])
        return plane - np.float32(self.camera_offset) if self.camera_offset else plane

    def _measure_channels(self, micrograph: Micrograph, source: Path | str) -> dict[int, Normalization]:
        """
        Maps to network units for the stack of every channel; none where each plane has its own, or the checkpoint
        fixed ones.
        """
        if self.normalization not in ("stack", "percentile"):
            return {}
        leading, axes = micrograph.data.shape[:-2], micrograph.axes
        channels = leading[axes.index("C")] if "C" in axes else 1
        processor = self.pipe.image_processor
        normalizations = {}
        for channel in range(channels):
            indices = [index for index in np.ndindex(leading) if _channel_of(index, axes) == channel]
            chosen = np.linspace(0, len(indices) - 1, min(len(indices), MAX_MEASURED_PLANES)).round().astype(int)
            statistics = []
            for index in (indices[each] for each in chosen):
                try:
                    planes = processor.preprocess(self._read(micrograph, index))
                except MicrographError:
                    raise
                except ValueError as error:
                    number = np.ravel_multi_index(index, leading) if index else 0
                    raise ValueError(f"{source}, plane {number}: {error}") from error
                statistics.append(processor.measure(planes, clipped=self.normalization == "percentile"))
            normalizations[channel] = processor.normalization_from(processor.pool(torch.cat(statistics)))
        return normalizations

    def _dehaze(self, plane, micrograph, index, normalizations, outputs, on_progress) -> tuple[dict, dict | None]:
        """The results of a plane by output, and what speaks against them."""
        out = self.pipe(
            plane,
            num_inference_steps=self.num_inference_steps,
            ensemble_size=self.ensemble_size,
            tile_size=self.tile_size,
            generator=torch.Generator().manual_seed(self.seed + self._noise_number(micrograph, index)),
            normalization=normalizations.get(_channel_of(index, micrograph.axes)),
            output_uncertainty=outputs.uncertainty is not None,
            output_samples=bool(outputs.samples),
            callback_on_step_end=lambda pipe, *_: on_progress(1 / pipe.num_timesteps),
        )
        results, assessment = {outputs.prediction: out.prediction}, None
        if outputs.uncertainty is not None:
            results[outputs.uncertainty] = out.uncertainty
        if outputs.unexplained is not None:
            assessed = assess(self.pipe, plane, out, micrograph.pixel_size_um, self.seed)
            results[outputs.unexplained] = assessed.error_map
            assessment = assessed.to_dict()
        results |= {path: out.samples[member] for member, path in enumerate(outputs.samples)}
        if self.background_width is not None:
            # Not of the hazy image, whose noise lets the background fall too low and which the network would not know.
            foreground = subtract_background(out.prediction, self.background_width)
            background = out.prediction - foreground
            results[outputs.prediction] = foreground
            for path in outputs.samples:
                results[path] -= background
        return results, assessment

    def _noise_number(self, micrograph: Micrograph, index: tuple[int, ...]) -> int:
        """Number of a plane among those that don't share their noise."""
        number = 0
        for axis, size, position in zip(micrograph.axes, micrograph.data.shape, index, strict=False):
            if axis not in self.shared_noise:
                number = number * size + position
        return number

    def _draw(self, plane, results, outputs, micrograph):
        """The picture of a plane."""
        return self.pipe.image_processor.visualize_side_by_side(
            plane,
            results[outputs.prediction],
            results.get(outputs.uncertainty),
            pixel_size=micrograph.pixel_size and micrograph.pixel_size[1],
            unit=micrograph.pixel_size_unit,
        )


def convert(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """
    Values in another number type, and how many of them it cannot hold. For integers they are rounded to the nearest,
    and those beyond its range become its least or greatest value.
    """
    if dtype.kind == "f":
        return values.astype(dtype), 0
    limits = np.iinfo(dtype)
    rounded = np.rint(values.astype(np.float64))
    beyond = int(np.count_nonzero((rounded < limits.min) | (rounded > limits.max)))
    return rounded.clip(limits.min, limits.max).astype(dtype), beyond


def _channel_of(index: tuple[int, ...], axes: str) -> int:
    return index[axes.index("C")] if "C" in axes else 0
