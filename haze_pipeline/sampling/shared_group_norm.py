"""
GroupNorm statistics shared by all tiles of a field.

GroupNorm subtracts the mean of its input and divides by the standard deviation. If every tile had its own statistics,
its content would decide its scale: an empty tile beside a bright one would be amplified. If the network processed a
large field as a whole, the statistics would differ from those of its small training patches. We therefore measure the
statistics once, on patches of the training size from all over the field, and use them in all tiles. Convolutions see
little beyond the overlap of a tile, so that tiles give nearly the result of the whole field with these statistics.
"""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


# Factor and offset of every channel, for each GroupNorm in the order of a network call. They combine the statistics
# with the layer's weight and bias.
GroupNormStatistics = list[tuple[torch.Tensor, torch.Tensor]]


class MeasureGroupNorms(TorchFunctionMode):
    """
    Context in which every GroupNorm normalises all elements of a batch *together*. Each call of a GroupNorm appends
    its measurement to `statistics`, which the caller clears before a network call. The context affects only the thread
    that enters it and does not change the network, so that several threads may share one network.
    """

    def __init__(self):
        super().__init__()
        self.statistics: GroupNormStatistics = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.group_norm:
            return func(*args, **(kwargs or {}))
        hidden_states, num_groups, weight, bias, eps = _arguments(*args, **(kwargs or {}))  # [B,C,...]
        # First the statistics of channels, which need no copy in any memory layout, then those of groups. Mean and
        # variance take two passes, since torch.var_mean is slow on a CPU.
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
    Context for one network call in which every GroupNorm of the thread normalises with the given `statistics` instead
    of those of its input.
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
    """The arguments of `torch.nn.functional.group_norm`, which callers give by position or by name."""
    return hidden_states, num_groups, weight, bias, eps


def _scale_and_shift(hidden_states: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    shape = (1, -1) + (1,) * (hidden_states.ndim - 2)
    dtype = hidden_states.dtype
    return torch.addcmul(offset.to(dtype).reshape(shape), hidden_states, factor.to(dtype).reshape(shape))
