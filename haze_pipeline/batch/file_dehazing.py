"""Read, dehaze and write a micrograph plane by plane. Outputs are written atomically."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import numpy as np

from haze_pipeline.io.micrograph import Micrograph, MicrographError
from haze_pipeline.io.micrograph_files import micrograph_writer, open_micrograph
from haze_pipeline.io.ome_tiff_writer import OME_DTYPES
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.processes import Processes

from .plane_dehazing import DehazedPlane, PlaneDehazer, Wanted
from .planes import convert
from .tasks import Outputs, name_of


class FileDehazer(PlaneDehazer):
    """
    Dehazes files with fixed settings. Results do not depend on the number of processes.

    Args:
        args, kwargs: Those of [`PlaneDehazer`].
        output_dtype (`str`):
            `"same"`: the number type of the input, with values rounded and saturated. `"float32"`: values as they are.
        axes (`str`, *optional*): Axes of the files, where their metadata does not name them.
        series (`int`, *optional*): Number of the image in files that hold several.
        channel (`int`, *optional*): The only channel to take.
        z_range (`slice`, *optional*): The planes to take.
        t_range (`slice`, *optional*): The frames to take.
    """

    def __init__(
        self,
        *args,
        output_dtype: str = "same",
        axes: str | None = None,
        series: int | None = None,
        channel: int | None = None,
        z_range: slice | None = None,
        t_range: slice | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.output_dtype = output_dtype
        self.axes, self.series = axes, series
        self.part = {"channel": channel, "z_range": z_range, "t_range": t_range}

    def __call__(
        self,
        source: Path | str | Micrograph,
        outputs: Outputs,
        processes: Processes | None = None,
        on_progress: Callable[[float, int], None] = lambda planes, total: None,
        stopped: Event | None = None,
        name: str | None = None,
    ) -> dict:
        """
        Dehaze a file.

        Args:
            source (`Path`, `str` or [`Micrograph`]):
                The file to read, the address of a remote one, or an image that is open already.
            outputs ([`Outputs`]): The files to write. TIFFs that exist are replaced.
            processes ([`Processes`], *optional*): The processes that share the planes of this file, which needs
                OME-Zarr outputs.
            on_progress (`Callable`, *optional*): Called with the number of planes, a fraction, dehazed since the last
                call, and with the number of planes of this process.
            stopped (`Event`, *optional*): Set to stop; the call then raises a `RuntimeError`.
            name (`str`, *optional*): Name of the image in messages; that of the file if omitted.

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
        name = name or str(source)
        with ExitStack() as stack:
            # 1. Open the file, and measure the statistics that its planes share.
            with processes.together():
                micrograph = self.open(source, stack)
                shape = micrograph.data.shape
                units = self.measure(micrograph, name)

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
            wanted = Wanted(outputs.uncertainty is not None, outputs.unexplained is not None, bool(outputs.samples))
            with processes.together():
                count = int(np.prod(shape[:-2]))
                mine = range(count)[processes.index :: processes.number]
                planes = self.dehaze_planes(micrograph, name, units, mine, wanted, on_progress, stopped)
                for number, index, plane in planes:
                    results = self._results(plane, outputs)
                    for path, result in results.items():
                        stored, below, above = convert(result, contents[path][1], self.mask_value)
                        writers[path].write(index, stored)
                        counts.update({(path, "below_range"): below, (path, "above_range"): above})
                    counts["hot_pixels"] += plane.hot_pixels
                    if plane.assessment is not None:
                        assessments[number] = {"plane": number, **plane.assessment.to_dict()}
                    if outputs.preview is not None and number == count // 2:
                        self._draw(plane, micrograph).save(partial[outputs.preview])

            # 4. Store how the outputs were made, and give them their names.
            counts = sum(processes.gather(counts), Counter())
            for part in processes.gather({path: writer.windows.ranges for path, writer in writers.items()}):
                for path, ranges in part.items():
                    writers[path].windows.merge(ranges)
            assessments = dict(sorted(item for part in processes.gather(assessments) for item in part.items()))
            facts = {
                **self.settings,
                "source": name if isinstance(source, Micrograph) else name_of(source),
                "hot_pixels": counts["hot_pixels"],
            }
            if self.protect:
                facts["strength"] = [round(self.strength * each, 3) for each in units.strengths.values()]
            if self.assessed_planes(count, wanted):
                facts["assessment"] = list(assessments.values())

            def outside(path: Path) -> dict[str, int]:
                return {side: counts[path, side] for side in ("below_range", "above_range")}

            with processes.together():
                for path, (content, _) in contents.items():
                    writers[path].provenance = {**facts, "content": content, **outside(path)}
                stack.close()
        seconds = round(time.perf_counter() - started, 3)
        return {**facts, "planes": count, "seconds": seconds, **outside(outputs.prediction)}

    def open(self, source: Path | str | Micrograph, stack: ExitStack) -> Micrograph:
        """Open the part of a file that is to be dehazed, until `stack` closes it."""
        if isinstance(source, Micrograph):
            return source.select(**self.part)
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

    def _results(self, plane: DehazedPlane, outputs: Outputs) -> dict[Path, np.ndarray]:
        """The results of a plane by output."""
        results = {outputs.prediction: plane.prediction}
        if outputs.uncertainty is not None:
            results[outputs.uncertainty] = plane.uncertainty
        if outputs.unexplained is not None:
            results[outputs.unexplained] = plane.assessment.error_map
        return results | {path: plane.samples[member] for member, path in enumerate(outputs.samples)}

    def _draw(self, plane: DehazedPlane, micrograph: Micrograph):
        """The preview of a plane."""
        return self.pipe.image_processor.visualize_side_by_side(
            plane.hazy,
            plane.prediction,
            plane.uncertainty,
            pixel_size=micrograph.pixel_size and micrograph.pixel_size[1],
            unit=micrograph.pixel_size_unit,
        )
