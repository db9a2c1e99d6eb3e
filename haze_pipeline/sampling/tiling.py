"""
Overlapping tiles that cover a field, and the weights that blend them.

A *tile* is the part of a field that the network processes at once. Neighbouring tiles share `tile_overlap` pixels.
Across these, the weight of one tile falls as that of the other rises.
"""

import itertools

import torch


def tile_intervals(length: int, tile_size: int, tile_overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """
    Cover `length` pixels with the fewest intervals `(start, stop)` of at most `tile_size` pixels. Neighbours share
    `tile_overlap` pixels, and sizes differ by at most `multiple`.

    Args:
        length (`int`): Pixels to cover, a multiple of `multiple`.
        tile_size (`int`): Largest size, a multiple of `multiple`.
        tile_overlap (`int`):
            Pixels shared by neighbours, rounded up to a multiple of `multiple` if the tile size allows.
        multiple (`int`, defaults to `1`):
            Unit of starts and sizes. A network that halves the field n times commutes only with shifts by multiples of
            2ⁿ pixels. Tiles that start elsewhere would give different predictions.

    Raises:
        `ValueError`: If the overlap is negative or not smaller than the tile.
    """
    if not 0 <= tile_overlap < tile_size:
        raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap} and {tile_size}.")
    if length <= tile_size:
        return [(0, length)]
    overlap = min(-(-tile_overlap // multiple) * multiple, tile_size - multiple)
    number = -(-(length - overlap) // (tile_size - overlap))
    starts = [round(i * (length - overlap) / (number * multiple)) * multiple for i in range(number + 1)]
    return [(start, following + overlap) for start, following in itertools.pairwise(starts)]


def tile_slices(
    height: int, width: int, tile_size: int, tile_overlap: int, multiple: int = 1
) -> list[tuple[slice, slice]]:
    """All tiles of a field as `(rows, columns)`. A side of at most `tile_size` pixels is not divided."""
    rows = tile_intervals(height, tile_size, tile_overlap, multiple)
    columns = tile_intervals(width, tile_size, tile_overlap, multiple)
    return [(slice(*y), slice(*x)) for y in rows for x in columns]


def tile_weights(tiles: list[tuple[slice, slice]]) -> list[torch.Tensor]:
    """
    Weights `[h, w]` of all tiles of [`tile_slices`]. They change as sin² across the overlaps and add up to one at
    every pixel.
    """

    def ramps(intervals: list[tuple[int, int]]) -> dict[tuple[int, int], torch.Tensor]:
        overlap = intervals[0][1] - intervals[1][0] if len(intervals) > 1 else 0
        weights = {}
        total = torch.zeros(intervals[-1][1])
        for start, stop in intervals:
            ramp = torch.ones(stop - start)
            if overlap > 0:
                distance = torch.arange(stop - start) + 0.5
                distance = torch.minimum(distance, (stop - start) - distance)
                ramp = torch.sin(0.5 * torch.pi * (distance / overlap).clamp(max=1)).square()
            weights[start, stop] = ramp
            total[start:stop] += ramp
        return {(start, stop): ramp / total[start:stop] for (start, stop), ramp in weights.items()}

    rows = ramps(sorted({(r.start, r.stop) for r, _ in tiles}))
    columns = ramps(sorted({(c.start, c.stop) for _, c in tiles}))
    return [rows[r.start, r.stop][:, None] * columns[c.start, c.stop] for r, c in tiles]


def spread_patches(height: int, width: int, patch_size: int, number: int, multiple: int) -> list[tuple[slice, slice]]:
    """
    Spread `number` × `number` patches evenly from edge to edge of a field, as `(rows, columns)`. Their starts are
    multiples of `multiple`. A side that is too short for `number` different patches has fewer, and a side of at most
    `patch_size` pixels is not divided.
    """

    def intervals(length: int) -> list[tuple[int, int]]:
        room = max(0, length - patch_size) // multiple
        starts = {round(i * room / max(1, number - 1)) * multiple for i in range(number)}
        return [(start, min(start + patch_size, length)) for start in sorted(starts)]

    return [(slice(*y), slice(*x)) for y in intervals(height) for x in intervals(width)]
