"""Sampling with a checkpoint. All visitors share the network, which processes one image at a time."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


try:
    from spaces import GPU  # on Hugging Face's ZeroGPU, lends a GPU to the function that it decorates
except ImportError:  # on other machines, the decorator does nothing

    def GPU(function):
        return function


import numpy as np
import torch
from checkpoints import load_checkpoint

from haze_pipeline.batch.plane_dehazing import PlaneDehazer, Wanted
from haze_pipeline.io.micrograph_files import Micrograph
from haze_pipeline.presets import Preset, choose_members, with_preset
from haze_pipeline.reliability.assessment import Assessment, assess
from haze_pipeline.utils.provenance import sampling_facts


NETWORK = ThreadPoolExecutor(1)  # one at a time: a cancelled request may still run its last step when the next begins


@dataclass
class Dehazed:
    """
    A dehazed plane or stack.

    Args:
        prediction (`np.ndarray` of shape `[..., H, W]`): The result, counts.
        uncertainty (`np.ndarray` of shape `[..., H, W]`, *optional*): Its standard deviation.
        samples (`np.ndarray` of shape `[E, H, W]`, *optional*): Posterior samples of a single plane.
        assessments (`dict[int, Assessment]`): By number of the plane, from 1; of a stack, up to 4 planes.
        provenance (`dict`): How the result was made.
    """

    prediction: np.ndarray
    uncertainty: np.ndarray | None = None
    samples: np.ndarray | None = None
    assessments: dict[int, Assessment] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)


def compute(work: Callable[[Callable, threading.Event], Any]) -> Iterator[tuple]:
    """
    Run `work(report, stopped)` when the network is free.

    Yields `(state, None)` for the latest reported state; `(None, None)` while a state takes long; and `(None, result)`
    at the end. The event `stopped` is set if the visitor cancels or leaves.
    """
    states, stopped = queue.SimpleQueue(), threading.Event()
    future = NETWORK.submit(work, states.put, stopped)
    future.add_done_callback(states.put)
    try:
        state = None
        while state is not future:
            if states.empty():  # only the latest state, in case the connection is slow
                yield state, None
            try:
                state = states.get(timeout=1)
            except queue.Empty:  # yield now: a request can be cancelled only where it yields
                state = None
    finally:  # also if the user cancels or leaves
        stopped.set()
    yield None, future.result()


@GPU
def sample(
    checkpoint: str,
    hazy: np.ndarray,
    preset: Preset,
    members: int,
    seed: int,
    pixel_size: float | None,
    strength: float = 1.0,
) -> Iterator[tuple]:
    """
    Dehaze a plane and report the progress.

    Yields `((step, steps, state), None)` after steps of the ODE solver, with the state as an image; `(None, None)`
    while a step takes long; and `(None, result)` at the end, a [`Dehazed`].
    """
    pipe, model, revision = load_checkpoint(checkpoint)
    # A copy, so that the solver and the request to stop do not affect other requests.
    pipe, steps, _ = with_preset(pipe, preset)

    def solve(report: Callable, stopped: threading.Event) -> Dehazed:
        def on_step(pipe, step: int, timestep: torch.Tensor, tensors: dict):
            pipe._interrupt = stopped.is_set()
            stride = -(-max(hazy.shape) // 512)
            state = tensors["latents"][0, 0, : hazy.shape[0] : stride, : hazy.shape[1] : stride]
            report((step + 1, pipe.num_timesteps, state.float().cpu().numpy()))

        output = pipe(
            hazy,
            num_inference_steps=steps,
            ensemble_size=members,
            strength=strength,
            generator=torch.Generator().manual_seed(seed),
            output_uncertainty=steps > 1 and members > 1,
            output_samples=steps > 1,
            callback_on_step_end=on_step,
        )
        assessment = assess(pipe, hazy, output, pixel_size, seed)
        provenance = {
            **sampling_facts(pipe, model, revision, seed, steps, members),
            "strength": strength,
            "assessment": assessment.to_dict(),
        }
        return Dehazed(output.prediction, output.uncertainty, output.samples, {1: assessment}, provenance)

    yield from compute(solve)


@GPU
def sample_stack(
    checkpoint: str, stack: Micrograph, name: str, preset: Preset, members: int, seed: int, strength: float = 1.0
) -> Iterator[tuple]:
    """
    Dehaze all planes of a stack in memory, one after another, as the command `haze-pipeline dehaze` does. The planes
    share one normalization, so that their intensities stay comparable. `name` is that of the stack in messages.

    Yields `((planes, of, prediction), None)` after planes, with the latest one; `(None, None)` while a plane takes
    long; and `(None, result)` at the end, a [`Dehazed`].
    """
    pipe, model, _ = load_checkpoint(checkpoint)
    pipe, steps, _ = with_preset(pipe, preset)

    def solve(report: Callable, stopped: threading.Event) -> Dehazed:
        dehazer = PlaneDehazer(pipe, steps, members, seed, strength=strength, model=model)
        shape = stack.data.shape
        with_uncertainty = steps > 1 and members > 1
        result = Dehazed(np.empty(shape, np.float32), np.empty(shape, np.float32) if with_uncertainty else None)
        count = int(np.prod(shape[:-2]))
        units, wanted = dehazer.measure(stack, name), Wanted(uncertainty=with_uncertainty)
        for number, index, plane in dehazer.dehaze_planes(stack, name, units, range(count), wanted, stopped=stopped):
            result.prediction[index] = plane.prediction
            if with_uncertainty:
                result.uncertainty[index] = plane.uncertainty
            if plane.assessment is not None:
                result.assessments[number + 1] = plane.assessment
            report((number + 1, count, plane.prediction))
        assessed = [{"plane": number - 1, **each.to_dict()} for number, each in result.assessments.items()]
        result.provenance = {**dehazer.settings, "assessment": assessed}
        return result

    yield from compute(solve)


def describe_uncertainty(checkpoint: str, result: Dehazed, members: int) -> str:
    """Tell what the standard deviation of a result includes, and whether it is calibrated."""
    if result.uncertainty is None:
        return (
            "The preset fast gives only the mean. The presets balanced and quality also give a standard deviation for "
            "every pixel."
        )
    note = "Not calibrated for this number of members and steps: errors may be several times larger."
    made, config = result.provenance, load_checkpoint(checkpoint).pipe.config
    if config.calibrated_for == {"ensemble_size": members, "num_inference_steps": made["num_inference_steps"]}:
        note = "Calibrated on average over images like those of the calibration."
    if made["strength"] < 1:
        note += " The standard deviation is multiplied by the strength. It does not include the haze that remains."
    return note


def posterior_mean(checkpoint: str, hazy: np.ndarray) -> np.ndarray:
    """The result of the preset `fast`."""
    members = choose_members(load_checkpoint(checkpoint).pipe, Preset.fast)
    *_, (_, result) = sample(checkpoint, hazy, Preset.fast, members, 0, None)
    return result.prediction
