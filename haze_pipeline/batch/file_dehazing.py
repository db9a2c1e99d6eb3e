"""Read, dehaze and write a micrograph plane by plane. Outputs are written atomically."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock

import numpy as np
import torch

from haze_pipeline.image_processing import Normalization
from haze_pipeline.io.micrograph import Micrograph, MicrographError
from haze_pipeline.io.micrograph_files import micrograph_writer, open_micrograph
from haze_pipeline.io.ome_tiff_writer import OME_DTYPES
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.reliability.assessment import assess
from haze_pipeline.reliability.benefit import choose_strength
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.background import subtract_background
from haze_pipeline.utils.devices import free_memory, map_on_cores
from haze_pipeline.utils.processes import Processes
from haze_pipeline.utils.provenance import sampling_facts, weights_digest

from .planes import channel_of, convert, evenly, spread_planes
from .tasks import Outputs, name_of


# So many planes of a file, evenly spread, are assessed if no map of unexplained structure is written.
MAX_ASSESSED_PLANES = 4

# Planes of more pixels a side than this are dehazed one after another, since their tiles keep all cores busy.
LARGE_PLANE = 2048
BYTES_PER_PIXEL = 400  # that dehazing needs at its peak

# The statistics of a stack are measured on this many of its planes, evenly spread, so that large stacks start at once.
MAX_MEASURED_PLANES = 8


class FileDehazer:
    """
    Dehazes files with fixed settings.

    Planes share one noise, so that equal planes have equal results. A plane can be dehazed again by itself. Results do
    not depend on the number of processes.

    Args:
        pipe ([`HazeMatchingPipeline`] or [`HazeRegressionPipeline`]):
            The pipeline, on its device and with the scheduler to use.
        num_inference_steps (`int`): Solver steps; 1 for a [`HazeRegressionPipeline`], as the next one.
        ensemble_size (`int`): Ensemble members per plane.
        seed (`int`): Seed of the noise.
        tile_size (`int`, *optional*): Largest side of the tiles in pixels, see the pipeline.
        normalization (`str`):
            Intensity statistics that set the network's units. `"stack"`: those of all planes of a channel, so that
            planes stay comparable. `"plane"`: those of each plane. `"percentile"`: as stack, with intensities
            clipped to their percentiles 0.1 and 99.9. `"checkpoint"`: the fixed statistics in the checkpoint.
        camera_offset (`float`): Counts of the camera in the dark, subtracted from the input.
        background_width (`int`, *optional*):
            Width in pixels. Structures that are at least this wide in both directions are subtracted from the result
            and its samples, see [`subtract_background`]. The result is assessed before.
        shared_noise (`str`): Axes along which planes share one noise. Along others, every plane has its own.
        strength (`float`): Fraction of what was taken for haze that is removed.
        protect (`bool`): Multiply the strength by [`choose_strength`] of up to 4 planes of every channel.
        mask_value (`float`, *optional*): Intensity that marks pixels without a measurement, besides NaN.
        assessed (`bool`): Assess results: of all planes if a map of unexplained structure is written, else of up to 4.
        output_dtype (`str`):
            `"same"`: the number type of the input, with values rounded and saturated. `"float32"`: values as they are.
        axes (`str`, *optional*): Axes of the files, where their metadata does not name them.
        series (`int`, *optional*): Number of the image in files that hold several.
        channel (`int`, *optional*): The only channel to take.
        z_range (`slice`, *optional*): The planes to take.
        t_range (`slice`, *optional*): The frames to take.
        model (`str`, *optional*): Name of the checkpoint in the provenance of outputs; the default one if omitted.

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
        normalization: str = "stack",
        camera_offset: float = 0.0,
        background_width: int | None = None,
        shared_noise: str = "TZC",
        strength: float = 1.0,
        protect: bool = False,
        mask_value: float | None = None,
        assessed: bool = True,
        output_dtype: str = "same",
        axes: str | None = None,
        series: int | None = None,
        channel: int | None = None,
        z_range: slice | None = None,
        t_range: slice | None = None,
        model: str | None = None,
    ):
        self.pipe = pipe
        self.samples = not isinstance(pipe, HazeRegressionPipeline)
        sampling = {"num_inference_steps": num_inference_steps, "ensemble_size": ensemble_size}
        self.sampling = sampling if self.samples else {}
        if not self.samples and pipe.num_channels > 1:
            raise ValueError(
                "This checkpoint restores colour images, and micrographs have no colours: call the pipeline in Python."
            )
        self.seed = seed
        self.tile_size = tile_size
        has_fixed = pipe.config.normalization == "fixed"
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
            "strength": strength,
            "mask_value": mask_value,
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
            source (`Path` or `str`): The file to read, or the address of a remote one.
            outputs ([`Outputs`]): The files to write. TIFFs that exist are replaced.
            processes ([`Processes`], *optional*): The processes that share the planes of this file, which needs
                OME-Zarr outputs.
            on_progress (`Callable`, *optional*): Called with the number of planes, a fraction, dehazed since the last
                call, and with the number of planes of this process.

        Returns:
            `dict`: The settings, and `source`, `planes`, `seconds`, the number of `hot_pixels` in the input, the
                numbers of pixels of the result `below_range` and `above_range` of its number type, and `assessment`, a
                list with an entry for every assessed plane.

        Raises:
            `OSError`, `ValueError` or `RuntimeError`: If the file cannot be read, dehazed or written. No output is
                left then.
        """
        processes = processes or Processes()
        started = time.perf_counter()
        with ExitStack() as stack:
            # 1. Open the file, and measure the statistics that its planes share.
            with processes.together():
                micrograph = self.open(source, stack)
                shape = micrograph.data.shape
                normalizations = self._measure_channels(micrograph, source)
                strengths = self._choose_strengths(micrograph)

            # 2. Open the outputs under temporary names.
            contents = self._contents(outputs, micrograph.data.dtype)
            partial = None
            with processes.together():
                if processes.is_main:
                    partial = {path: stack.enter_context(replace_when_complete(path)) for path in outputs.paths}
            partial = processes.broadcast(partial)
            version = micrograph.zarr_version or "0.5"
            writers = {}
            for turn_of_main in (True, False):  # the main process creates the files, then the others open them
                with processes.together():
                    if processes.is_main is turn_of_main:
                        for path, (_, dtype) in contents.items():
                            writer = micrograph_writer(
                                partial[path], micrograph, shape, dtype, path, version, create=turn_of_main
                            )
                            writers[path] = stack.enter_context(writer)

            # 3. Dehaze plane by plane. Planes are read and dehazed in the background while results are written.
            counts, assessments = Counter(), {}
            with processes.together():
                numbered = list(enumerate(np.ndindex(shape[:-2])))
                mine = numbered[processes.index :: processes.number]
                assessed = self._assessed_planes(len(numbered), outputs)
                reading, stopped = Lock(), Event()

                def on_step(pipe, *_) -> None:
                    pipe._interrupt = stopped.is_set()
                    on_progress(1 / pipe.num_timesteps, len(mine))

                def dehaze(job: tuple[int, tuple[int, ...]]) -> tuple:
                    number, index = job
                    with reading:  # readers are not made for several threads
                        plane = self._read(micrograph, index)
                    try:
                        dehazed = self._dehaze(
                            plane, micrograph, index, normalizations, strengths, outputs, number in assessed, on_step
                        )
                    except MicrographError:
                        raise
                    except ValueError as error:
                        raise ValueError(f"{source}, plane {number}: {error}") from error
                    if not self.samples:
                        on_progress(1, len(mine))
                    return plane, *dehazed

                dehazed = map_on_cores(dehaze, mine, self._planes_at_once(shape), in_background=True, stopped=stopped)
                for (number, index), (plane, results, hot_pixels, assessment) in zip(mine, dehazed, strict=True):
                    for path, result in results.items():
                        stored, below, above = convert(result, contents[path][1], self.mask_value)
                        writers[path].write(index, stored)
                        counts.update({(path, "below_range"): below, (path, "above_range"): above})
                    counts["hot_pixels"] += hot_pixels
                    if assessment is not None:
                        assessments[number] = {"plane": number, **assessment}
                    if outputs.preview is not None and number == len(numbered) // 2:
                        self._draw(plane, results, outputs, micrograph).save(partial[outputs.preview])

            # 4. Store how the outputs were made, and give them their names.
            counts = sum(processes.gather(counts), Counter())
            for part in processes.gather({path: writer.windows.ranges for path, writer in writers.items()}):
                for path, ranges in part.items():
                    writers[path].windows.merge(ranges)
            assessments = dict(sorted(item for part in processes.gather(assessments) for item in part.items()))
            facts = {**self.settings, "source": name_of(source), "hot_pixels": counts["hot_pixels"]}
            if self.protect:
                facts["strength"] = [round(self.strength * each, 3) for each in strengths.values()]
            if assessed:
                facts["assessment"] = list(assessments.values())

            def outside(path: Path) -> dict[str, int]:
                return {side: counts[path, side] for side in ("below_range", "above_range")}

            with processes.together():
                for path, (content, _) in contents.items():
                    writers[path].provenance = {**facts, "content": content, **outside(path)}
                stack.close()
        seconds = round(time.perf_counter() - started, 3)
        return {**facts, "planes": len(numbered), "seconds": seconds, **outside(outputs.prediction)}

    def open(self, source: Path | str, stack: ExitStack) -> Micrograph:
        """Open the part of a file that is to be dehazed, until `stack` closes it."""
        micrograph = stack.enter_context(open_micrograph(source, self.axes, self.series))
        try:
            return micrograph.select(**self.part)
        except MicrographError as error:
            raise MicrographError(f"`{source}`: {error}") from error

    def _contents(self, outputs: Outputs, input_dtype: np.dtype) -> dict[Path, tuple[str, np.dtype]]:
        """The content and the number type of every output."""
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

    def _assessed_planes(self, number: int, outputs: Outputs) -> set[int]:
        """Numbers of the planes to assess."""
        if outputs.unexplained is not None:
            return set(range(number))
        if not self.assessed:
            return set()
        return set(evenly(number, MAX_ASSESSED_PLANES))

    def _measure_channels(self, micrograph: Micrograph, source: Path | str) -> dict[int, Normalization]:
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
                    planes = processor.preprocess(self._read(micrograph, index), allow_masked=True)
                except MicrographError:
                    raise
                except ValueError as error:
                    number = np.ravel_multi_index(index, leading) if index else 0
                    raise ValueError(f"{source}, plane {number}: {error}") from error
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
            channel: choose_strength(self.pipe, [self._read(micrograph, index) for index in indices], self.seed)
            for channel, indices in chosen.items()
        }

    def _dehaze(
        self, plane, micrograph, index, normalizations, strengths, outputs, is_assessed, on_step
    ) -> tuple[dict, int, dict | None]:
        """The results of a plane by output, its number of hot pixels, and its assessment."""
        channel = channel_of(index, micrograph.axes)
        arguments = {
            "strength": self.strength * strengths.get(channel, 1.0),
            "tile_size": self.tile_size,
            "normalization": normalizations.get(channel),
            **self.sampling,
        }
        if self.samples:
            arguments |= {
                "generator": torch.Generator().manual_seed(self.seed + self._noise_number(micrograph, index)),
                "output_uncertainty": outputs.uncertainty is not None,
                "output_samples": bool(outputs.samples),
                "callback_on_step_end": on_step,
            }
        out = self.pipe(plane, **arguments)
        results, assessment = {outputs.prediction: out.prediction}, None
        if outputs.uncertainty is not None:
            results[outputs.uncertainty] = out.uncertainty
        if is_assessed:
            assessed = assess(self.pipe, plane, out, micrograph.pixel_size_um, self.seed)
            assessment = assessed.to_dict()
            if outputs.unexplained is not None:
                results[outputs.unexplained] = assessed.error_map
        results |= {path: out.samples[member] for member, path in enumerate(outputs.samples)}
        if self.background_width is not None:
            # The background is not subtracted from the hazy image: noise makes its estimate there too low, and the
            # network was not trained on images without a background.
            foreground = subtract_background(out.prediction, self.background_width)
            background = out.prediction - foreground
            results[outputs.prediction] = foreground
            for path in outputs.samples:
                results[path] -= background
        return results, out.hot_pixels, assessment

    def _noise_number(self, micrograph: Micrograph, index: tuple[int, ...]) -> int:
        """Number of the noise of a plane; planes along the axes of `shared_noise` have the same number."""
        number = 0
        for axis, size, position in zip(micrograph.axes, micrograph.data.shape, index, strict=False):
            if axis not in self.shared_noise:
                number = number * size + position
        return number

    def _draw(self, plane, results, outputs, micrograph):
        """The preview of a plane."""
        return self.pipe.image_processor.visualize_side_by_side(
            plane,
            results[outputs.prediction],
            results.get(outputs.uncertainty),
            pixel_size=micrograph.pixel_size and micrograph.pixel_size[1],
            unit=micrograph.pixel_size_unit,
        )
