"""Mean and standard deviation of the members of an ensemble, accumulated one member at a time."""

import numpy as np
import torch

from haze_pipeline.utils.arrays import allocate


class Ensemble:
    """
    Accumulates the mean and the spread of the members of N planes by Welford's method (1962, Technometrics 4). Memory
    does not grow with the number of members.

    Args:
        shape (`tuple[int, ...]`): Shape `[N, 1, H, W]` of the planes.
        size (`int`): Number of members of every plane.
        keep_spread (`bool`): Also accumulate the squared differences from the mean, for [`spread`].
        keep_samples (`bool`): Also keep all members.
    """

    def __init__(self, shape: tuple[int, ...], size: int, keep_spread: bool, keep_samples: bool):
        self.size = size
        self.mean = allocate(*shape)  # [N,1,H,W]
        self.squares = allocate(*shape) if keep_spread else None  # [N,1,H,W]
        self.samples = allocate(size, *shape) if keep_samples else None  # [E,N,1,H,W]

    def add(self, plane: int, member: int, sample: torch.Tensor):
        """Add the next member, number `member`, `[1, H, W]`, of a plane. `sample` is overwritten."""
        if self.samples is not None:
            self.samples[member, plane] = sample
        difference = sample.sub_(self.mean[plane])
        self.mean[plane].add_(difference, alpha=1 / (member + 1))
        if self.squares is not None:
            self.squares[plane].addcmul_(difference, difference, value=member / (member + 1))

    def median(self) -> torch.Tensor:
        """Median `[N, 1, H, W]` of the members; unlike torch's, the mean of the middle two for an even number."""
        return torch.from_numpy(np.median(self.samples.numpy(), axis=0))

    def spread(self) -> torch.Tensor:
        """Unbiased standard deviation `[N, 1, H, W]` of the members. The accumulated squares are overwritten."""
        return self.squares.div_(self.size - 1).sqrt_()
