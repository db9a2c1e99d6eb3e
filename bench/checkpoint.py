"""Identify the weights of a measurement, so that pages mark results measured with earlier weights."""

import hashlib

import torch


def weights_hash(tensors: dict[str, torch.Tensor]) -> str:
    """Twelve hexadecimal digits that tell the weights of a network from others, whatever their precision was."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:12]
