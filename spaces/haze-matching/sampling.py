"""The pipeline that all visitors share. It processes one image at a time."""

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


try:
    from spaces import GPU  # on Hugging Face's ZeroGPU, lends a GPU to the function that it decorates
except ImportError:  # on other machines, the decorator does nothing

    def GPU(function):
        return function


import numpy as np
import torch

from haze_pipeline import HazeMatchingOutput
from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import Preset, choose_members, with_preset
from haze_pipeline.reliability.assessment import Assessment, assess
from haze_pipeline.utils.provenance import sampling_facts, weights_digest


MODEL = os.environ.get("HAZE_MODEL")  # a pipeline folder; by default the checkpoint in the package
PIPE = load_pipeline(MODEL)
REVISION = weights_digest(PIPE)
PIPE = place_pipeline(PIPE, Device.auto, DType.auto)
PIPE.set_progress_bar_config(disable=True)
NETWORK = ThreadPoolExecutor(1)  # one at a time: a cancelled request may still run its last step when the next begins


@GPU
def sample(
    hazy: np.ndarray, preset: Preset, members: int, seed: int, pixel_size: float | None, strength: float = 1.0
) -> Iterator[tuple]:
    """
    Dehaze a plane and report the progress.

    Yields `((step, steps, state), None)` after every step of the ODE solver, with the state as an image; `(None,
    None)` while a step takes long; and `(None, (output, assessment, provenance))` at the end.
    """
    # A copy, so that the solver and the request to stop do not affect other requests.
    pipe, steps, _ = with_preset(PIPE, preset)
    states, stopped = queue.SimpleQueue(), threading.Event()

    def on_step(pipe, step: int, timestep: torch.Tensor, tensors: dict):
        pipe._interrupt = stopped.is_set()
        stride = -(-max(hazy.shape) // 512)
        state = tensors["latents"][0, 0, : hazy.shape[0] : stride, : hazy.shape[1] : stride]
        states.put((step + 1, pipe.num_timesteps, state.float().cpu().numpy()))

    def solve() -> tuple[HazeMatchingOutput, Assessment]:
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
        return output, assess(pipe, hazy, output, pixel_size, seed)

    future = NETWORK.submit(solve)
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
    output, assessment = future.result()
    provenance = {
        **sampling_facts(pipe, MODEL, REVISION, seed, steps, members),
        "strength": strength,
        "assessment": assessment.to_dict(),
    }
    yield None, (output, assessment, provenance)


def describe_uncertainty(output: HazeMatchingOutput, members: int, steps: int, strength: float) -> str:
    """Tell what the standard deviation of a result includes, and whether it is calibrated."""
    if output.uncertainty is None:
        return (
            "The preset fast gives only the mean. The presets balanced and quality also give a standard deviation for "
            "every pixel."
        )
    note = "Not calibrated for this number of members and steps: errors may be several times larger."
    if PIPE.config.calibrated_for == {"ensemble_size": members, "num_inference_steps": steps}:
        note = "Calibrated on average over images like those of the calibration."
    if strength < 1:
        note += " The standard deviation is multiplied by the strength. It does not include the haze that remains."
    return note


def posterior_mean(hazy: np.ndarray) -> np.ndarray:
    """The result of the preset `fast`."""
    *_, (_, (output, _, _)) = sample(hazy, Preset.fast, choose_members(PIPE, Preset.fast), 0, None)
    return output.prediction
