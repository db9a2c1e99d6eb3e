"""Fixed-step solver of the probability-flow ODE of flow matching, in diffusers' scheduler contract."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput


@dataclass
class FlowMatchODESchedulerOutput(BaseOutput):
    """
    Args:
        prev_sample (`torch.Tensor` of the shape of the sample):
            State at the next, less noisy, point of the grid: the input of the next step.
    """

    prev_sample: torch.Tensor


class FlowMatchODEScheduler(SchedulerMixin, ConfigMixin):
    """
    Integrates dx/dσ = u(x, σ) from noise at σ = 1 to data at σ = 0 with Euler's method (Lipman et al. 2023,
    arXiv 2210.02747).

    The convention is that of diffusers' own flow-matching schedulers, so that either kind serves the same pipeline:
    x_σ = σ·noise + (1 − σ)·data, `timesteps` are 1000·σ in descending order, and `model_output` is u = noise − data.
    HazeMatching's time runs the other way, t = 1 − σ, and its velocity is −u; the pipeline translates.

    `set_timesteps(19)` gives the 19 equal steps of the HazeMatching reference, whose `linspace(0, 1, 20)` counts points.

    Args:
        num_train_timesteps (`int`, defaults to `1000`): Factor between σ and the `timesteps` shown to the pipeline.
    """

    _compatibles: ClassVar[list[str]] = ["FlowMatchEulerDiscreteScheduler"]
    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000):
        self.timesteps: torch.Tensor | None = None
        self.sigmas: torch.Tensor | None = None
        self.num_inference_steps: int | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Index of the current step; `None` before the first call of [`step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, as set by [`set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Start from step `begin_index` instead of looking the first timestep up."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | np.ndarray | None = None,
    ):
        """
        Set the grid and rewind.

        Args:
            num_inference_steps (`int`, *optional*): Number of equal steps from σ = 1 to σ = 0.
            device (`str` or `torch.device`, *optional*): Where `timesteps` and `sigmas` live.
            sigmas (`list[float]` or `np.ndarray`, *optional*):
                A grid of one's own instead: strictly descending, within (0, 1], without the final 0.
        """
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Pass exactly one of `num_inference_steps` and `sigmas`.")
        if sigmas is None:
            if num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
            sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
        sigmas = np.asarray(sigmas, dtype=np.float64)
        if sigmas.ndim != 1 or sigmas.size == 0 or sigmas[0] > 1 or sigmas[-1] <= 0 or (np.diff(sigmas) >= 0).any():
            raise ValueError(f"`sigmas` must descend strictly within (0, 1], got {sigmas.tolist()}.")
        self.num_inference_steps = len(sigmas)
        self.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32, device=device)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self._step_index = None
        self._begin_index = None

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of `timestep` in `timesteps`."""
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
        Advance the sample by one step.

        Args:
            model_output (`torch.Tensor`): u = noise − data as predicted at `timestep`, in the shape of `sample`.
            timestep (`float` or `torch.Tensor`): The current element of `timesteps`.
            sample (`torch.Tensor`): The current state.
            generator (`torch.Generator`, *optional*): Unused, the ODE has no noise; part of the contract.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`FlowMatchODESchedulerOutput`] or a one-element tuple, in the dtype of `sample`.
        """
        if self.sigmas is None:
            raise ValueError("Call `set_timesteps` before `step`.")
        if self._step_index is None:
            self._step_index = (
                self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
            )
        # float32: in half precision the sum of many small steps would lose digits.
        difference = self.sigmas[self._step_index + 1] - self.sigmas[self._step_index]
        prev_sample = (sample.float() + difference * model_output.float()).to(sample.dtype)
        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        return FlowMatchODESchedulerOutput(prev_sample=prev_sample)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        The point x_σ = σ·noise + (1 − σ)·sample of the straight path, for training.

        Args:
            sample (`torch.Tensor` of shape `[B, ...]`): Data.
            timestep (`torch.Tensor` of shape `[B]`): 1000·σ of every element.
            noise (`torch.Tensor` of shape `[B, ...]`): Standard normal noise.
        """
        sigma = (timestep / self.config.num_train_timesteps).to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        return sigma * noise + (1 - sigma) * sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps
