"""
GroupNorm statistics shared by all tiles of a field.

A GroupNorm subtracts the mean and divides by the deviation of what the network is shown. Tile by tile, every tile would be
scaled by what happens to lie in it: an empty one would be amplified beside a bright one. Shown a large field at once, the
network would meet statistics unlike those of its small training patches. Both are mended by measuring the statistics once,
on patches of the training size from all over the field, and by using them in all tiles. Convolutions see little beyond a
tile's overlap, so that the tiles then give what the whole field would give with these statistics.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


# Of every GroupNorm of a network: factor and offset of every channel, which hold statistics, weight and bias.
GroupNormStatistics = dict[nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]]


@contextmanager
def measure_group_norms(network: nn.Module) -> Iterator[GroupNormStatistics]:
    """
    Within, every GroupNorm normalises all elements of a batch *together*, and the yielded dictionary receives what it
    measured in the latest call.
    """
    statistics: GroupNormStatistics = {}

    def forward(norm: nn.GroupNorm, hidden_states: torch.Tensor) -> torch.Tensor:  # [B,C,...]
        # Of channels, which works in any memory layout without a copy; then of groups. In two passes, since
        # torch.var_mean is slow on a CPU.
        values, dims = hidden_states.float(), [0, *range(2, hidden_states.ndim)]
        means = values.mean(dim=dims, keepdim=True)
        variances = (values - means).square_().mean(dim=dims).reshape(norm.num_groups, -1)
        means = means.reshape(norm.num_groups, -1)
        mean = means.mean(dim=1)  # [G]
        variance = variances.mean(dim=1) + means.var(dim=1, correction=0)  # [G]
        channels = norm.num_channels // norm.num_groups
        factor = (variance + norm.eps).rsqrt().repeat_interleave(channels) * norm.weight.float()
        offset = norm.bias.float() - mean.repeat_interleave(channels) * factor
        statistics[norm] = (factor, offset)
        return _scale_and_shift(hidden_states, factor, offset)

    with _replaced_forward(network, forward):
        yield statistics


@contextmanager
def fix_group_norms(network: nn.Module, statistics: GroupNormStatistics) -> Iterator[None]:
    """Within, every GroupNorm normalises by `statistics` instead of by those of its input."""

    def forward(norm: nn.GroupNorm, hidden_states: torch.Tensor) -> torch.Tensor:
        return _scale_and_shift(hidden_states, *statistics[norm])

    with _replaced_forward(network, forward):
        yield


def _scale_and_shift(hidden_states: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    shape = (1, -1) + (1,) * (hidden_states.ndim - 2)
    dtype = hidden_states.dtype
    return torch.addcmul(offset.to(dtype).reshape(shape), hidden_states, factor.to(dtype).reshape(shape))


@contextmanager
def _replaced_forward(network: nn.Module, forward: Callable[[nn.GroupNorm, torch.Tensor], torch.Tensor]):
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    own = [vars(norm).get("forward") for norm in norms]  # of hooks that replace the method of an instance, if any
    try:
        for norm in norms:
            norm.forward = partial(forward, norm)
        yield
    finally:
        for norm, previous in zip(norms, own, strict=True):
            if previous is None:
                vars(norm).pop("forward", None)
            else:
                norm.forward = previous
