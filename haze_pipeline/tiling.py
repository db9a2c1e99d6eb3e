"""
Overlapping tiles that cover a field, and the window that blends them.

Vocabulary: a *tile* is what the network sees; neighbouring tiles share `tile_overlap` pixels, across which the weight of
one falls as that of the other rises.
"""

import torch


def tile_starts(length: int, tile_size: int, tile_overlap: int) -> list[int]:
    """
    First pixels of the fewest tiles of `tile_size` that cover `length` pixels with at least `tile_overlap` pixels shared
    by neighbours. They are spread evenly and the last one ends with the field, so that no pixel is left out.

    Raises:
        `ValueError`: If the overlap is negative or not smaller than the tile.
    """
    if not 0 <= tile_overlap < tile_size:
        raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap} and {tile_size}.")
    if length <= tile_size:
        return [0]
    number = -(-(length - tile_overlap) // (tile_size - tile_overlap))
    return [round(i * (length - tile_size) / (number - 1)) for i in range(number)]


def tile_slices(height: int, width: int, tile_size: int, tile_overlap: int) -> list[tuple[slice, slice]]:
    """All tiles of a field as `(rows, columns)`; a side shorter than `tile_size` is one tile."""
    tile_height, tile_width = min(tile_size, height), min(tile_size, width)
    return [
        (slice(y, y + tile_height), slice(x, x + tile_width))
        for y in tile_starts(height, tile_height, min(tile_overlap, tile_height - 1))
        for x in tile_starts(width, tile_width, min(tile_overlap, tile_width - 1))
    ]


def blend_window(tile_height: int, tile_width: int, tile_overlap: int) -> torch.Tensor:
    """
    Weights `[tile_height, tile_width]` that rise from every edge over `tile_overlap` pixels as sin² and are positive
    everywhere. Divide a weighted sum of tiles by the sum of their weights.
    """

    def ramp(length: int) -> torch.Tensor:
        distance = torch.arange(length) + 0.5
        distance = torch.minimum(distance, length - distance)
        if tile_overlap == 0:
            return torch.ones(length)
        return torch.sin(0.5 * torch.pi * (distance / tile_overlap).clamp(max=1)).square()

    return ramp(tile_height)[:, None] * ramp(tile_width)
