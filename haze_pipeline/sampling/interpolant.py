"""The path from a start to the clear image that a network learns, and what the network predicts on it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Interpolant:
    r"""
    Straight path x_t = (1 − t)·x_0 + t·x_1 from a start x_0 at t = 0 to the clear image x_1 at t = 1. The start is
    x_0 = m + σ·noise, where m is zero or the hazy image. Four methods differ only in these arguments:

    | method | `source` | `source_noise` | `prediction_type` | `guided` |
    |---|---|---|---|---|
    | HazeMatching (arXiv 2506.22397) | noise | 1 | velocity | yes |
    | stochastic interpolant with data-dependent coupling, SIFM (Albergo et al. 2024, arXiv 2310.03725) | hazy | 0.1 | velocity | yes |
    | InDI (Delbracio & Milanfar 2023, arXiv 2303.11435, eq. 8 and 9) | hazy | 0.01 | clear | no |
    | cold diffusion on a straight path (Bansal et al. 2022, arXiv 2208.09392) | hazy | 0 | clear | no |

    A guided flow from a start with noise gives posterior samples. Without noise, the end of the path is a function of
    the hazy image, and there is only one. InDI counts its time backwards. Its step is a step of Euler's method, see
    [`velocity`]. Cold diffusion has steps of its own, see the solvers of [`FlowMatchODEScheduler`].

    Args:
        source (`str`, defaults to `"noise"`): m: `"noise"` for zero, or `"hazy"` for the hazy image.
        source_noise (`float`, defaults to `1.0`): σ: standard deviation of the noise in the start, in network units.
        prediction_type (`str`, defaults to `"velocity"`):
            The network predicts the `"velocity"` x_1 − x_0, or the `"clear"` image x_1. By mean squared error, it
            learns the conditional mean of either.
        guided (`bool`, defaults to `True`): Whether the hazy image is a second input of the network.

    Raises:
        `ValueError`: If an argument is unknown or out of range, or the network would not see the hazy image at all.
    """  # noqa: E501

    source: str = "noise"
    source_noise: float = 1.0
    prediction_type: str = "velocity"
    guided: bool = True

    def __post_init__(self):
        if self.source not in ("noise", "hazy"):
            raise ValueError(f'`source` must be "noise" or "hazy", got {self.source!r}.')
        if self.prediction_type not in ("velocity", "clear"):
            raise ValueError(f'`prediction_type` must be "velocity" or "clear", got {self.prediction_type!r}.')
        self.check_source_noise(self.source_noise)
        if self.source == "noise" and not self.guided:
            raise ValueError('`guided` must be true if `source` is "noise": the network needs the hazy image.')

    def check_source_noise(self, source_noise: float) -> None:
        """Raise a `ValueError` if paths with this noise cannot start."""
        if not 0 <= source_noise < float("inf"):
            raise ValueError(f"`source_noise` must be 0 or more, got {source_noise}.")
        if self.source == "noise" and source_noise == 0:
            raise ValueError('`source_noise` must be positive if `source` is "noise", got 0.')

    def start(self, noise: torch.Tensor, hazy: torch.Tensor, source_noise: float | None = None) -> torch.Tensor:
        """x_0 for unit noise, also with another σ than in training."""
        sigma = self.source_noise if source_noise is None else source_noise
        noise = noise if sigma == 1 else sigma * noise
        return hazy + noise if self.source == "hazy" else noise

    def network_input(self, state: torch.Tensor, hazy: torch.Tensor) -> torch.Tensor:
        """Channels `[B, 1 or 2, h, w]` of the network for states x_t and hazy images `[B, 1, h, w]`."""
        return torch.cat([state, hazy], dim=1) if self.guided else state

    def target(self, start: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        """What the network should predict, by mean squared error, for a path from x_0 to x_1."""
        return clear - start if self.prediction_type == "velocity" else clear

    def velocity(self, prediction: torch.Tensor, state: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """Velocity at x_t. A predicted clear image lies at the end of a straight line: v = (x_1 − x_t) / (1 − t)."""
        return prediction if self.prediction_type == "velocity" else (prediction - state) / (1 - t)
