"""
Overlapping tiles that cover a field, and the window that blends them.

Vocabulary: a *tile* is what the network sees; neighbouring tiles share `tile_overlap` pixels, across which the weight of
one falls as that of the other rises.
"""

import itertools

import torch


def tile_intervals(length: int, tile_size: int, tile_overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """
    The fewest intervals `(start, stop)` of at most `tile_size` pixels that cover `length` pixels and share `tile_overlap`
    pixels with their neighbours.

    They are of one size, no larger than their number asks for, and spread evenly; the last one ends with the field, so
    that no pixel is left out.

    Args:
        length (`int`): Pixels to cover, a multiple of `multiple`.
        tile_size (`int`): Largest size, a multiple of `multiple`.
        tile_overlap (`int`): Pixels shared by neighbours, up to rounding to `multiple`.
        multiple (`int`, defaults to `1`):
            Starts and sizes are multiples of it. A network that halves the field n times commutes with shifts by 2ⁿ
            pixels only: tiles that start elsewhere would see another network.

    Raises:
        `ValueError`: If the overlap is negative or not smaller than the tile.
    """
    if not 0 <= tile_overlap < tile_size:
        raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap} and {tile_size}.")
    if length <= tile_size:
        return [(0, length)]
    number = -(-(length - tile_overlap) // (tile_size - tile_overlap))
    size = -(-(length + (number - 1) * tile_overlap) // (number * multiple)) * multiple
    starts = [round(i * (length - size) / (number - 1) / multiple) * multiple for i in range(number)]
    return [(start, start + size) for start in starts]


def tile_slices(
    height: int, width: int, tile_size: int, tile_overlap: int, multiple: int = 1
) -> list[tuple[slice, slice]]:
    """All tiles of a field as `(rows, columns)`; a side of at most `tile_size` pixels is not divided."""
    rows = tile_intervals(height, tile_size, tile_overlap, multiple)
    columns = tile_intervals(width, tile_size, tile_overlap, multiple)
    return [(slice(*y), slice(*x)) for y in rows for x in columns]


def tile_weights(tiles: list[tuple[slice, slice]]) -> list[torch.Tensor]:
    """
    Weights `[h, w]` of every tile of [`tile_slices`] that add up to one at every pixel. They change as sin² across what
    neighbours share.
    """

    def ramps(intervals: list[tuple[int, int]]) -> dict[tuple[int, int], torch.Tensor]:
        overlaps = [a[1] - b[0] for a, b in itertools.pairwise(intervals)]
        overlap = min(overlaps, default=0)
        first, stop = intervals[0]
        distance = torch.arange(stop - first) + 0.5
        distance = torch.minimum(distance, (stop - first) - distance)
        ramp = torch.ones(stop - first)
        if overlap > 0:
            ramp = torch.sin(0.5 * torch.pi * (distance / overlap).clamp(max=1)).square()
        total = torch.zeros(intervals[-1][1])
        for start, stop in intervals:
            total[start:stop] += ramp
        return {(start, stop): ramp / total[start:stop] for start, stop in intervals}

    rows = ramps(sorted({(r.start, r.stop) for r, _ in tiles}))
    columns = ramps(sorted({(c.start, c.stop) for _, c in tiles}))
    return [rows[r.start, r.stop][:, None] * columns[c.start, c.stop] for r, c in tiles]


def spread_patches(height: int, width: int, patch_size: int, number: int, multiple: int) -> list[tuple[slice, slice]]:
    """
    `number` × `number` patches spread evenly from edge to edge of a field as `(rows, columns)`, at starts that are
    multiples of `multiple`. A side without room for so many different ones has fewer, and a side of at most `patch_size`
    pixels is not divided.
    """

    def intervals(length: int) -> list[tuple[int, int]]:
        room = max(0, length - patch_size) // multiple
        starts = {round(i * room / max(1, number - 1)) * multiple for i in range(number)}
        return [(start, min(start + patch_size, length)) for start in sorted(starts)]

    return [(slice(*y), slice(*x)) for y in intervals(height) for x in intervals(width)]
