"""Named combinations of steps, members and solver."""

from enum import StrEnum


class Preset(StrEnum):
    """Trade of time for what can be said about the result."""

    fast = "fast"
    balanced = "balanced"
    quality = "quality"


# Steps, members and solver. `fast`: posterior means by one step from two pairs of opposite noises (Liu et al. 2022).
# `balanced`: the solver of 6 network calls fitted to the checkpoint (bench/solvers.py, bench/sampling.py). `quality`: the
# paper's 19 Euler steps and 50 posterior samples.
PRESETS = {
    Preset.fast: {"num_inference_steps": 1, "ensemble_size": 4, "solver": "euler"},
    Preset.balanced: {"num_inference_steps": 6, "ensemble_size": 8, "solver": "bespoke"},
    Preset.quality: {"num_inference_steps": 19, "ensemble_size": 50, "solver": "euler"},
}


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
