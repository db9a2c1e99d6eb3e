"""
GroupNorm statistics shared by all tiles of a field.

A GroupNorm subtracts the mean and divides by the deviation of what the network is shown. Tile by tile, every tile
would be scaled by what happens to lie in it: an empty one would be amplified beside a bright one. Shown a large field
at once, the network would meet statistics unlike those of its small training patches. Both are mended by measuring the
statistics once, on patches of the training size from all over the field, and by using them in all tiles. Convolutions
see little beyond a tile's overlap, so that the tiles then give what the whole field would give with these statistics.
"""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


# Of every GroupNorm in the order of a network call: factor and offset of every channel, which hold statistics, weight
# and bias.
GroupNormStatistics = list[tuple[torch.Tensor, torch.Tensor]]


class MeasureGroupNorms(TorchFunctionMode):
    """
    A context within which every GroupNorm normalises all elements of a batch *together*, and `statistics` receives
    what it measured in the latest call. It holds for the thread that enters it and leaves the network as it is, so
    that several threads may share one.
    """

    def __init__(self):
        super().__init__()
        self.statistics: GroupNormStatistics = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.group_norm:
            return func(*args, **(kwargs or {}))
        hidden_states, num_groups, weight, bias, eps = _arguments(*args, **(kwargs or {}))  # [B,C,...]
        # Of channels, which works in any memory layout without a copy; then of groups. In two passes, since
        # torch.var_mean is slow on a CPU.
        values, dims = hidden_states.float(), [0, *range(2, hidden_states.ndim)]
        means = values.mean(dim=dims, keepdim=True)
        variances = (values - means).square_().mean(dim=dims).reshape(num_groups, -1)
        means = means.reshape(num_groups, -1)
        mean = means.mean(dim=1)  # [G]
        variance = variances.mean(dim=1) + means.var(dim=1, correction=0)  # [G]
        channels = len(weight) // num_groups
        factor = (variance + eps).rsqrt().repeat_interleave(channels) * weight.float()
        offset = bias.float() - mean.repeat_interleave(channels) * factor
        self.statistics.append((factor, offset))
        return _scale_and_shift(hidden_states, factor, offset)


class FixGroupNorms(TorchFunctionMode):
    """
    A context, for one network call, within which every GroupNorm of the thread normalises by `statistics` instead of
    by those of its input.
    """

    def __init__(self, statistics: GroupNormStatistics):
        super().__init__()
        self.statistics = iter(statistics)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.group_norm:
            return func(*args, **(kwargs or {}))
        hidden_states, *_ = _arguments(*args, **(kwargs or {}))
        return _scale_and_shift(hidden_states, *next(self.statistics))


def _arguments(hidden_states, num_groups, weight, bias, eps=1e-5):
    """Those of `torch.nn.functional.group_norm`, by position or by name."""
    return hidden_states, num_groups, weight, bias, eps


def _scale_and_shift(hidden_states: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    shape = (1, -1) + (1,) * (hidden_states.ndim - 2)
    dtype = hidden_states.dtype
    return torch.addcmul(offset.to(dtype).reshape(shape), hidden_states, factor.to(dtype).reshape(shape))
