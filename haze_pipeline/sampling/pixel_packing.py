"""
Networks on packed pixels: squares of pixels are the channels of one (space to depth).

Such a network sees further at the same cost. It computes the pixels of a square with different weights, which leaves a
faint lattice with the period of the squares in its results.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from haze_pipeline.utils.arrays import row_bands

from .lattice import remove_lattice


REACH_OF_LATTICE = 32  # px, even; the lattice at a pixel depends on no pixels that are further away


def predict_packed(
    unet: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    states: torch.Tensor,
    t: torch.Tensor | None,
    packing: int,
) -> torch.Tensor:
    """
    Predict with a network that receives squares of `packing` × `packing` pixels as the channels of one pixel.

    A network with two outputs predicts a gain of the hazy image and a remainder to add. An image without haze can then
    pass unchanged at any intensity. Layers that normalise their features could hardly learn this otherwise.

    Args:
        unet (`Callable`): Maps `[B, C·packing², h / packing, w / packing]` and the time to packed outputs.
        states (`torch.Tensor` of shape `[B, C, h, w]`): States and conditions; the last channel is the hazy image.
        t (`torch.Tensor`, *optional*): Time, one value or one per element of the batch.
        packing (`int`): Side of the squares, pixels.

    Returns:
        `torch.Tensor` of shape `[B, 1, h, w]`, float32; `[B, 3, h, w]` from a network of colours, which has no gain.
    """
    packed = unet(pixel_unshuffle(states, packing), t)
    predicted = pixel_shuffle(packed.float(), packing)  # [B,1,h,w], [B,2,h,w] with a gain, or [B,3,h,w]
    if predicted.shape[1] != 2:
        return predicted.contiguous()
    remainder, gain = predicted.chunk(2, dim=1)
    return remainder + gain * states[:, -1:]


def remove_lattice_in_bands(planes: torch.Tensor) -> torch.Tensor:
    """[`remove_lattice`] for planes `[B, 1, H, W]` of any size, in bands of 1024 rows, to save memory."""
    cleaned = torch.empty_like(planes)
    for rows, wider, inner in row_bands(planes.shape[-2], REACH_OF_LATTICE):
        cleaned[..., rows, :] = remove_lattice(planes[..., wider, :])[..., inner, :]
    return cleaned
