"""Fixed-step solver of the probability-flow ODE of flow matching, with the interface of diffusers' schedulers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput


# For every solver: the positions of its stages, as fractions of the step, and the weights of their slopes. Most are
# explicit Runge–Kutta methods, in which a stage starts from the slope of the previous one (Hairer, Nørsett & Wanner,
# Solving Ordinary Differential Equations I, ch. II.1). Adams–Bashforth, "ab2" (ch. III.1), has one stage and adds the
# slope of the previous step, with weights that depend on the grid. A bespoke solver uses all slopes. Cold diffusion
# uses the start of the path. See `step`.
SOLVERS = {
    "euler": ((0.0,), (1.0,)),
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "ab2": ((0.0,), (1.0,)),
    "bespoke": ((0.0,), (1.0,)),
    "cold": ((0.0,), (1.0,)),
    "cold_naive": ((0.0,), (1.0,)),
}
NEED_ALL_STEPS = ("bespoke", "cold", "cold_naive")  # solvers that cannot begin in the middle of a grid


@dataclass
class FlowMatchODESchedulerOutput(BaseOutput):
    """
    Args:
        prev_sample (`torch.Tensor` of the shape of the sample):
            State at the next, less noisy point of the grid. It is the input of the next step.
    """

    prev_sample: torch.Tensor


class FlowMatchODEScheduler(SchedulerMixin, ConfigMixin):
    """
    Integrates dx/dσ = u(x, σ) from noise at σ = 1 to data at σ = 0 (Lipman et al. 2023, arXiv 2210.02747).

    The convention is that of diffusers' own flow-matching schedulers, so that both kinds work in the same pipeline:
    x_σ = σ·noise + (1 − σ)·data, `timesteps` are 1000·σ in descending order, and `model_output` is u = noise − data.
    The time of HazeMatching runs the other way, t = 1 − σ, and its velocity is −u. The pipeline converts them.

    `set_timesteps(19)` gives the 19 equal steps of the HazeMatching reference; its `linspace(0, 1, 20)` counts points.

    `timesteps` has one element per network call. A step of a method with several stages takes several calls of
    [`step`]. All but the last return the state for the next evaluation of the network.

    Args:
        num_train_timesteps (`int`, defaults to `1000`): Factor between σ and `timesteps`.
        solver (`str`, defaults to `"euler"`):
            `"euler"` (first order, one network call per step), `"midpoint"` and `"heun"` (second order, two calls),
            `"ab2"` (Adams–Bashforth; second order, one call), `"rk4"` (fourth order, four calls) or `"bespoke"`
            (fitted to a network; one call). `"cold"` and `"cold_naive"` are not solvers of an ODE, but the iterations
            of cold diffusion (Bansal et al. 2022, arXiv 2208.09392, algorithms 2 and 1; one call) on the straight path
            D(x̂, σ) = σ·x_start + (1 − σ)·x̂ to the present estimate x̂ of the data: x + D(x̂, σ_next) − D(x̂, σ), and
            D(x̂, σ_next). Euler's step moves straight from the present state to x̂ instead. The three are equal where
            the state lies on the path from the start to x̂.
        shift (`float`, defaults to `1.0`):
            Warps every grid, also a given one, by σ → shift·σ / (1 + (shift − 1)·σ) as diffusers' schedulers do (Esser
            et al. 2024, arXiv 2403.03206). Values above 1 shorten the steps near the noise, values below 1 those near
            the data.
        bespoke (`dict`, *optional*):
            Non-stationary solvers for `solver="bespoke"` (Shaul et al. 2024, arXiv 2403.01329), which
            `training/fit_bespoke_solver.py` fits to the network of a checkpoint. Keys are numbers of steps, as
            strings. Values are `{"sigmas": [1, σ_1, …], "weights": [[w_00], [w_10, w_11], …]}`. Step i adds the sum of
            w_ij·u_j over all slopes j so far. Its weights sum to σ_(i+1) − σ_i, so that a constant velocity is
            integrated exactly.
        sigmas (`list[float]`, *optional*):
            Grid for as many steps as it has values, instead of equal steps; see [`set_timesteps`].
    """

    _compatibles: ClassVar[list[str]] = ["FlowMatchEulerDiscreteScheduler"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver: str = "euler",
        shift: float = 1.0,
        bespoke: dict[str, dict] | None = None,
        sigmas: list[float] | None = None,
    ):
        if solver not in SOLVERS:
            raise ValueError(f"`solver` must be one of {', '.join(SOLVERS)}, got {solver!r}.")
        if not shift > 0:
            raise ValueError(f"`shift` must be positive, got {shift}.")
        if solver == "bespoke" and not bespoke:
            raise ValueError('`solver="bespoke"` needs the fitted weights in `bespoke`.')
        self.timesteps: torch.Tensor | None = None
        self.sigmas: torch.Tensor | None = None
        self.num_inference_steps: int | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._start: torch.Tensor | None = None  # state at the beginning of the step
        self._first: torch.Tensor | None = None  # state at the beginning of the path; only for cold diffusion
        self._slopes: list[torch.Tensor] = []  # of previous stages; for ab2, of the previous step; for bespoke, of all

    @property
    def order(self) -> int:
        """Network calls per step, which diffusers calls the order of a scheduler."""
        return len(SOLVERS[self.config.solver][0])

    @property
    def step_index(self) -> int | None:
        """Index in `timesteps` of the current network call; `None` before the first call of [`step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index in `timesteps` of the first network call, as set by [`set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Start from `timesteps[begin_index]`, the first call of a step, instead of looking up the first timestep."""
        if begin_index % self.order:
            raise ValueError(
                f"`begin_index` must be a multiple of {self.order}, the network calls per step, got {begin_index}."
            )
        if begin_index and self.config.solver in NEED_ALL_STEPS:
            raise ValueError(
                f"`begin_index` must be 0 for the solver {self.config.solver!r}, which needs all steps, "
                f"got {begin_index}."
            )
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | None = None,
    ):
        """
        Set the grid and restart at its beginning.

        Args:
            num_inference_steps (`int`, *optional*): Number of steps from σ = 1 to σ = 0, equal before `shift`.
            device (`str` or `torch.device`, *optional*): Device of `timesteps` and `sigmas`.
            sigmas (`list[float]` or `np.ndarray`, *optional*):
                Custom grid instead: strictly descending, within (0, 1], without the final 0.

        A bespoke solver has only the grids that it was fitted on, and Euler's grid for one step.
        """
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Pass exactly one of `num_inference_steps` and `sigmas`.")
        if self.config.solver == "bespoke" and num_inference_steps != 1:
            if str(num_inference_steps) not in self.config.bespoke:
                raise ValueError(
                    f"`num_inference_steps` must be one of {', '.join(self.config.bespoke)} or 1 with the bespoke "
                    f"solver of this checkpoint, got {num_inference_steps}."
                )
            sigmas = self.config.bespoke[str(num_inference_steps)]["sigmas"]
        elif sigmas is None and self.config.sigmas and num_inference_steps == len(self.config.sigmas):
            sigmas = self.config.sigmas
        elif sigmas is None:
            if num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
            sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
        sigmas = np.asarray(sigmas, dtype=np.float64)
        if sigmas.ndim != 1 or sigmas.size == 0 or sigmas[0] > 1 or sigmas[-1] <= 0 or (np.diff(sigmas) >= 0).any():
            raise ValueError(f"`sigmas` must descend strictly within (0, 1], got {sigmas.tolist()}.")
        if self.config.solver != "bespoke":
            sigmas = self.config.shift * sigmas / (1 + (self.config.shift - 1) * sigmas)
        sigmas = np.append(sigmas, 0.0)
        nodes = np.array(SOLVERS[self.config.solver][0])
        calls = (sigmas[:-1, None] + nodes * np.diff(sigmas)[:, None]).ravel()
        self.num_inference_steps = len(sigmas) - 1
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32, device=device)
        self.timesteps = torch.tensor(calls, dtype=torch.float32, device=device) * self.config.num_train_timesteps
        self._step_index = None
        self._begin_index = None
        self._start = self._first = None
        self._slopes = []

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of `timestep` in `timesteps`; the first one if several calls share it."""
        matches = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
        if len(matches) == 0:
            raise ValueError(f"`timestep` {float(timestep)} is not one of `scheduler.timesteps`.")
        return int(matches[0])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FlowMatchODESchedulerOutput | tuple[torch.Tensor]:
        """
        Advance the sample by one network call.

        Args:
            model_output (`torch.Tensor`): u = noise − data as predicted at `timestep`, in the shape of `sample`.
            timestep (`float` or `torch.Tensor`): The current element of `timesteps`.
            sample (`torch.Tensor`): The current state.
            generator (`torch.Generator`, *optional*): Unused, since the ODE has no noise; part of the interface.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`FlowMatchODESchedulerOutput`] or a one-element tuple, in the dtype of `sample`: the state at the end of
            the step or, before the last stage, the state for the next evaluation of the network.
        """
        if self.sigmas is None:
            raise ValueError("Call `set_timesteps` before `step`.")
        if self._step_index is None:
            self._step_index = (
                self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
            )
        index, stage = divmod(self._step_index, self.order)
        step_size = self.sigmas[index + 1] - self.sigmas[index]
        nodes, weights = SOLVERS[self.config.solver]
        # At least float32, since the sum of many small steps would lose digits in half precision.
        dtype = torch.promote_types(sample.dtype, torch.float32)
        slope = model_output.to(dtype)
        if stage == 0:
            self._start = sample.to(dtype)
        if self._first is None:
            self._first = self._start
        if self.config.solver == "bespoke" and self.num_inference_steps > 1:
            self._slopes.append(slope)
            weights = self.config.bespoke[str(self.num_inference_steps)]["weights"][index]
            step_size = 1.0  # the weights include it
            increment = sum(weight * each for weight, each in zip(weights, self._slopes, strict=True))
        elif self.config.solver == "ab2":
            increment = slope
            if self._slopes:  # the first step is Euler's, whose local order of 2 keeps the global order at 2
                ratio = step_size / (self.sigmas[index] - self.sigmas[index - 1])
                increment = (1 + ratio / 2) * slope - ratio / 2 * self._slopes[0]
            self._slopes = [slope]
        elif self.config.solver in ("cold", "cold_naive"):
            data = self._start - self.sigmas[index] * slope
            increment = self._first - data
            if self.config.solver == "cold_naive":  # begins at D(data, σ) instead of at the state
                self._start = data + self.sigmas[index] * increment
        elif stage + 1 < self.order:
            self._slopes.append(slope)
            increment = nodes[stage + 1] * slope
        else:
            increment = sum(weight * each for weight, each in zip(weights, [*self._slopes, slope], strict=True))
            self._slopes = []
        prev_sample = (self._start + step_size * increment).to(sample.dtype)
        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        return FlowMatchODESchedulerOutput(prev_sample=prev_sample)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Point x_σ = σ·noise + (1 − σ)·sample on the straight path from noise to data, for training.

        Args:
            sample (`torch.Tensor` of shape `[B, ...]`): Data.
            timestep (`torch.Tensor` of shape `[B]`): 1000·σ of every element.
            noise (`torch.Tensor` of shape `[B, ...]`): Gaussian noise.
        """
        sigma = (timestep / self.config.num_train_timesteps).to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        return sigma * noise + (1 - sigma) * sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps
