"""Dehazing of a layer while napari stays responsive: in memory, plane by plane as shown, or to an OME-Zarr."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event, Lock
from typing import Any
from uuid import uuid4

import numpy as np

from haze_pipeline.batch.file_dehazing import FileDehazer
from haze_pipeline.batch.plane_dehazing import PREDICTION, DehazedPlane, StackUnits, Wanted
from haze_pipeline.batch.tasks import plan
from haze_pipeline.io.micrograph import Micrograph
from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.reliability.assessment import join_verdicts
from haze_pipeline.utils.console import one_line

from .files import open_lazily


POLL = 0.05  # s, between two reports of the progress


@dataclass(frozen=True)
class Settings:
    """
    What to do with a layer.

    Args:
        model (`str`, *optional*): Folder or repository of a checkpoint; that in the package if omitted.
        preset ([`Preset`]): Steps, ensemble members and solver.
        wanted ([`Wanted`]): What to compute besides the result.
        background_width (`int`, *optional*): See [`PlaneDehazer`].
        zarr (`Path`, *optional*): OME-Zarr to write, for results that do not fit in memory.
    """

    model: str | None = None
    preset: Preset = Preset.fast
    wanted: Wanted = PREDICTION
    background_width: int | None = None
    zarr: Path | None = None


@dataclass
class Results:
    """
    Results of a layer.

    Args:
        images (`dict`): Arrays of the shape of the layer by name, "samples" with a further first axis.
        verdict (`str`): Reasons to distrust the result.
        provenance (`dict`): How the result was made.
        error (`str`): Why there are no results, in one sentence; empty if there are.
    """

    images: dict[str, Any]
    verdict: str = ""
    provenance: dict | None = None
    error: str = ""


@lru_cache(maxsize=1)
def load(model: str | None):
    """The pipeline of a checkpoint, on the fastest device. The latest one is kept."""
    pipe = place_pipeline(load_pipeline(model), Device.auto, DType.auto)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dehaze(micrograph: Micrograph, name: str, settings: Settings, shown: tuple[int, ...], stopped: Event):
    """
    Dehaze the image of a layer.

    A generator for `thread_worker`: it yields the fraction that is done, and returns [`Results`]. An error that a user
    can correct is part of the results, since napari would show others with a traceback.

    Args:
        micrograph ([`Micrograph`]): The image. If its data are a dask array, the results are dask arrays whose planes
            are dehazed when they are shown.
        name (`str`): Name of the layer.
        settings ([`Settings`]): What to do.
        shown (`tuple[int, ...]`): Index of the plane that is shown, along the leading axes.
        stopped (`Event`): Set to stop at the next solver step.
    """
    parts: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            _dehaze, micrograph, name, settings, shown, lambda part, total: parts.append(part / total), stopped
        )
        try:
            while not future.done():
                wait([future], POLL)
                yield min(1.0, sum(parts))
        finally:  # also if napari closes
            stopped.set()
    try:
        return future.result()
    except (OSError, ValueError, RuntimeError, MemoryError, ImportError) as error:
        return Results({}, error=one_line(error))


def _dehaze(
    micrograph: Micrograph,
    name: str,
    settings: Settings,
    shown: tuple[int, ...],
    on_progress: Callable[[float, int], None],
    stopped: Event,
) -> Results:
    pipe, steps, members = with_preset(load(settings.model), settings.preset)
    dehazer = FileDehazer(pipe, steps, members, background_width=settings.background_width, model=settings.model)
    if settings.zarr is not None:
        return _to_zarr(dehazer, micrograph, name, settings, on_progress, stopped)
    units = dehazer.measure(micrograph, name)
    if isinstance(micrograph.data, np.ndarray):
        images, assessments = _in_memory(dehazer, micrograph, name, settings.wanted, units, on_progress, stopped)
        verdict = join_verdicts(each.verdict for each in assessments)
    else:

        def on_step(pipe, *_):
            pipe._interrupt = stopped.is_set()
            on_progress(1 / pipe.num_timesteps, 1)

        planes = PlanesAsShown(dehazer, micrograph, settings.wanted, units)
        verdict = f"The plane that was shown: {planes(shown, True, on_step).assessment.verdict}"
        images = planes.arrays()
    return Results(images, verdict, {**dehazer.settings, "source": name})


def _by_name(plane: DehazedPlane, wanted: Wanted) -> Iterator[tuple[str, np.ndarray]]:
    """The results of a plane, `[H, W]`, and the samples, `[E, H, W]`."""
    yield "dehazed", plane.prediction
    if wanted.uncertainty:
        yield "standard deviation", plane.uncertainty
    if wanted.unexplained:
        yield "unexplained", plane.assessment.error_map
    if wanted.samples:
        yield "samples", plane.samples


def _in_memory(dehazer, micrograph, name, wanted, units, on_progress, stopped) -> tuple[dict[str, np.ndarray], list]:
    """The results of all planes, and the assessments."""
    shape = micrograph.data.shape
    images: dict[str, np.ndarray] = {}
    assessments = []
    numbers = range(int(np.prod(shape[:-2])))
    for _, index, plane in dehazer.dehaze_planes(micrograph, name, units, numbers, wanted, on_progress, stopped):
        for kind, image in _by_name(plane, wanted):
            whole = images.setdefault(kind, np.empty((*image.shape[:-2], *shape), np.float32))
            whole[(..., *index, slice(None), slice(None))] = image
        if plane.assessment is not None:
            assessments.append(plane.assessment)
    return images, assessments


def _to_zarr(dehazer, micrograph, name, settings, on_progress, stopped) -> Results:
    """Write the results as OME-Zarrs and open them, with their planes on disk."""
    if settings.zarr.suffix.lower() != ".zarr":
        raise ValueError(f"{settings.zarr.name} must end in .zarr: choose such a name for the OME-Zarr.")
    wanted = settings.wanted
    samples = dehazer.ensemble_size if wanted.samples else 0
    [task] = plan([(name, settings.zarr)], False, wanted.uncertainty, wanted.unexplained, samples, None)
    outputs = task.outputs
    facts = dehazer(micrograph, outputs, None, on_progress, stopped, name)
    kinds = {"dehazed": outputs.prediction, "standard deviation": outputs.uncertainty}
    kinds["unexplained"] = outputs.unexplained
    images = {kind: open_lazily(path).data for kind, path in kinds.items() if path is not None}
    if samples:
        import dask.array

        images["samples"] = dask.array.stack([open_lazily(path).data for path in outputs.samples])
    verdict = join_verdicts(each["verdict"] for each in facts["assessment"])
    return Results(images, verdict, {key: facts[key] for key in (*dehazer.settings, "source")})


class PlanesAsShown:
    """Planes of a stack that are dehazed when they are needed. The latest ones are kept."""

    MAX_KEPT = 16

    def __init__(self, dehazer: FileDehazer, micrograph: Micrograph, wanted: Wanted, units: StackUnits):
        self.dehazer, self.micrograph, self.wanted, self.units = dehazer, micrograph, wanted, units
        self._kept: dict[tuple[int, ...], DehazedPlane] = {}
        self._lock = Lock()  # one plane at a time, on all cores

    def __call__(self, index: tuple[int, ...], is_assessed: bool = False, on_step=None) -> DehazedPlane:
        with self._lock:
            if index not in self._kept:
                plane = self.dehazer.read(self.micrograph, index)
                self._kept[index] = self.dehazer.dehaze_plane(
                    plane,
                    self.micrograph,
                    index,
                    self.units,
                    self.wanted,
                    is_assessed or self.wanted.unexplained,
                    on_step,
                )
                for oldest in list(self._kept)[: -self.MAX_KEPT]:
                    del self._kept[oldest]
            return self._kept[index]

    def arrays(self) -> dict[str, Any]:
        """The results of all planes as dask arrays."""
        import dask.array

        leading, size = self.micrograph.data.shape[:-2], self.micrograph.data.shape[-2:]
        axes = tuple((1,) * length for length in leading)

        def array(kind: str, *first: int):
            def block(block_id: tuple[int, ...]) -> np.ndarray:
                index = block_id[len(first) : -2]
                image = dict(_by_name(self(index), self.wanted))[kind]
                return image.reshape(*first, *(1,) * len(index), *size).astype(np.float32)

            return dask.array.map_blocks(
                block,
                chunks=(*first, *axes, *size),
                dtype=np.float32,
                meta=np.empty((0,) * (len(first) + len(leading) + 2), np.float32),
                token=uuid4().hex,  # else dask would pickle the pipeline to name the array
            )

        arrays = {"dehazed": array("dehazed")}
        if self.wanted.uncertainty:
            arrays["standard deviation"] = array("standard deviation")
        if self.wanted.unexplained:
            arrays["unexplained"] = array("unexplained")
        if self.wanted.samples:
            arrays["samples"] = array("samples", self.dehazer.ensemble_size)
        return arrays
