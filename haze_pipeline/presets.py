"""Presets: named combinations of the number of steps, the number of ensemble members, and the solver."""

import inspect
from copy import copy
from enum import StrEnum


class Preset(StrEnum):
    """Presets from the fastest to the most thorough."""

    fast = "fast"
    balanced = "balanced"
    quality = "quality"


# `fast`: the posterior mean by one step (Liu et al. 2022) from two antithetic pairs of noises. A checkpoint that was
# trained to need no noise takes a single network call, see [`choose_members`]. Copies for dim regions take more calls.
# `balanced`: the solver with 6 network calls that was fitted to the checkpoint (bench/solvers.py, bench/sampling.py).
# `quality`: 19 Euler steps and 50 posterior samples, as in the paper.
PRESETS = {
    Preset.fast: {"num_inference_steps": 1, "ensemble_size": 4, "solver": "euler"},
    Preset.balanced: {"num_inference_steps": 6, "ensemble_size": 8, "solver": "bespoke"},
    Preset.quality: {"num_inference_steps": 19, "ensemble_size": 50, "solver": "euler"},
}


def with_preset(pipe, preset: Preset, num_inference_steps: int | None = None, ensemble_size: int | None = None):
    """
    Prepare a pipeline for a preset. The result is a copy that has the solver of the preset and shares the network. The
    original pipeline stays unchanged, so that several threads can use it with different presets.

    Args:
        pipe ([`RestorationPipeline`]): The pipeline.
        preset ([`Preset`]): The preset.
        num_inference_steps (`int`, *optional*): Number of steps instead of the preset's.
        ensemble_size (`int`, *optional*): Number of members instead of the preset's.

    Returns:
        `tuple`: The copy of the pipeline, `num_inference_steps` and `ensemble_size`. A pipeline that takes no steps is
            returned as it is, with 1 step, and with 1 member if it does not sample.

    Raises:
        `ValueError`: If a pipeline is to take steps or to sample that does neither.
    """
    if not known_arguments(pipe, num_inference_steps=1):
        return pipe, 1, _members_without_steps(pipe, preset, num_inference_steps, ensemble_size)
    copied = copy(pipe)
    copied.scheduler, steps = choose_solver(pipe, preset, num_inference_steps)
    return copied, steps, ensemble_size or choose_members(pipe, preset, steps)


def known_arguments(pipe, **arguments) -> dict:
    """Those of the arguments that a call of the pipeline has. Not every kind takes steps, or samples."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _members_without_steps(pipe, preset: Preset, num_inference_steps: int | None, ensemble_size: int | None) -> int:
    """The number of ensemble members of a pipeline that takes no steps."""
    name = type(pipe).__name__
    if (num_inference_steps or 1) > 1:
        raise ValueError(f"A {name} does not take the steps of a solver: leave out their number.")
    if known_arguments(pipe, ensemble_size=1):
        return ensemble_size or PRESETS[preset]["ensemble_size"]
    if preset is not Preset.fast or (ensemble_size or 1) > 1:
        raise ValueError(
            f"A {name} gives one estimate and no samples: choose the preset fast, and leave out steps and ensemble "
            "members."
        )
    return 1


def choose_members(pipe, preset: Preset, num_inference_steps: int | None = None) -> int:
    """
    The number of ensemble members of a preset. It is 1 for a single step of a checkpoint that gives the posterior mean
    without noise.
    """
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    return 1 if steps == 1 and pipe.config.zero_state_mean else PRESETS[preset]["ensemble_size"]


def choose_solver(pipe, preset: Preset, num_inference_steps: int | None):
    """
    The scheduler of a preset for the checkpoint of `pipe`, and the number of steps (the preset's if omitted). Networks
    that predict clear images, as of InDI and cold diffusion, keep scheduler and steps of their checkpoint if a preset
    has more than one step.
    """
    from .scheduling_flow_match_ode import FlowMatchODEScheduler

    solver = PRESETS[preset]["solver"]
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    if steps > 1 and pipe.config.prediction_type == "clear":
        return pipe.scheduler, num_inference_steps or pipe.config.default_num_inference_steps
    if solver != "bespoke":
        return FlowMatchODEScheduler(solver=solver), steps
    fitted = pipe.scheduler.config.get("bespoke") or {}
    if str(steps) in fitted:
        return FlowMatchODEScheduler(solver=solver, bespoke=fitted), steps
    # The most accurate of the solvers that need no fit, see bench/solvers.py.
    return FlowMatchODEScheduler(solver="ab2", shift=2.0), num_inference_steps or 8
