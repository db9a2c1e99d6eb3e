"""Mean and spread of the members of an ensemble, which come one by one."""

import numpy as np
import torch

from haze_pipeline.utils.arrays import allocate


class Ensemble:
    """
    Mean and squared deviations of the members of N planes by Welford's method (1962, Technometrics 4), so that memory
    does not grow with their number.

    Args:
        shape (`tuple[int, ...]`): `[N, 1, H, W]` of the planes.
        size (`int`): Members of every plane.
        keep_spread (`bool`): Also accumulate squared deviations.
        keep_samples (`bool`): Also keep all members.
    """

    def __init__(self, shape: tuple[int, ...], size: int, keep_spread: bool, keep_samples: bool):
        self.size = size
        self.mean = allocate(*shape)  # [N,1,H,W]
        self.squares = allocate(*shape) if keep_spread else None  # [N,1,H,W]
        self.samples = allocate(size, *shape) if keep_samples else None  # [E,N,1,H,W]

    def add(self, plane: int, member: int, sample: torch.Tensor):
        """Add member number `member` of a plane, `[1, H, W]`, which is overwritten; members come in order."""
        if self.samples is not None:
            self.samples[member, plane] = sample
        difference = sample.sub_(self.mean[plane])
        self.mean[plane].add_(difference, alpha=1 / (member + 1))
        if self.squares is not None:
            self.squares[plane].addcmul_(difference, difference, value=member / (member + 1))

    def median(self) -> torch.Tensor:
        """Median `[N, 1, H, W]` of the members, of the middle two where their number is even, unlike torch's."""
        return torch.from_numpy(np.median(self.samples.numpy(), axis=0))

    def spread(self) -> torch.Tensor:
        """Unbiased standard deviation `[N, 1, H, W]` of the members. Takes the place of the squared deviations."""
        return self.squares.div_(self.size - 1).sqrt_()
