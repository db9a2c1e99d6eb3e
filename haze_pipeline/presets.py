"""Named combinations of steps, members and solver."""

from copy import copy
from enum import StrEnum


class Preset(StrEnum):
    """Trade of time for what can be said about the result."""

    fast = "fast"
    balanced = "balanced"
    quality = "quality"


# Steps, members and solver. `fast`: the posterior mean by one step (Liu et al. 2022), from two antithetic pairs of
# noises, or in one network call where the checkpoint has learned to do without noise, see [`choose_members`].
# `balanced`: the solver of 6 network calls fitted to the checkpoint (bench/solvers.py, bench/sampling.py). `quality`:
# the paper's 19 Euler steps and 50 posterior samples.
PRESETS = {
    Preset.fast: {"num_inference_steps": 1, "ensemble_size": 4, "solver": "euler"},
    Preset.balanced: {"num_inference_steps": 6, "ensemble_size": 8, "solver": "bespoke"},
    Preset.quality: {"num_inference_steps": 19, "ensemble_size": 50, "solver": "euler"},
}


def with_preset(pipe, preset: Preset, num_inference_steps: int | None = None, ensemble_size: int | None = None):
    """
    A copy of a pipeline, which shares its network, with the solver of a preset; its steps; and its members. The
    pipeline stays as it is, so that several threads may use it with several presets.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline.
        preset ([`Preset`]): The preset.
        num_inference_steps (`int`, *optional*): In place of the preset's.
        ensemble_size (`int`, *optional*): In place of the preset's.

    Returns:
        `tuple`: The pipeline, `num_inference_steps` and `ensemble_size`.
    """
    copied = copy(pipe)
    copied.scheduler, steps = choose_solver(pipe, preset, num_inference_steps)
    return copied, steps, ensemble_size or choose_members(pipe, preset, steps)


def choose_members(pipe, preset: Preset, num_inference_steps: int | None = None) -> int:
    """Members of a preset, or one where the mean of the checkpoint `pipe` is one step without noise."""
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    return 1 if steps == 1 and pipe.config.zero_state_mean else PRESETS[preset]["ensemble_size"]


def choose_solver(pipe, preset: Preset, num_inference_steps: int | None):
    """The scheduler of a preset for the checkpoint of `pipe`, and the number of steps where none is given."""
    from .scheduling_flow_match_ode import FlowMatchODEScheduler

    solver = PRESETS[preset]["solver"]
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    if solver != "bespoke":
        return FlowMatchODEScheduler(solver=solver), steps
    fitted = pipe.scheduler.config.get("bespoke") or {}
    if str(steps) in fitted:
        return FlowMatchODEScheduler(solver=solver, bespoke=fitted), steps
    # The best of the solvers that need no fit, by bench/solvers.py.
    return FlowMatchODEScheduler(solver="ab2", shift=2.0), num_inference_steps or 8
