import itertools

import pytest
import torch

from haze_pipeline.sampling.tiling import spread_patches, tile_intervals, tile_slices, tile_weights


@pytest.mark.parametrize("length", [8, 24, 32, 40, 64, 104, 256])
@pytest.mark.parametrize(("tile_size", "tile_overlap"), [(32, 0), (32, 8), (32, 24)])
@pytest.mark.parametrize("multiple", [1, 8])
def test_intervals_cover_every_pixel(length, tile_size, tile_overlap, multiple):
    intervals = tile_intervals(length, tile_size, tile_overlap, multiple)
    assert intervals[0][0] == 0 and intervals[-1][1] == length
    sizes = [stop - start for start, stop in intervals]
    assert max(sizes) <= tile_size and max(sizes) - min(sizes) <= multiple
    assert all(side % multiple == 0 for interval in intervals for side in interval)
    for (start, stop), (following, _) in itertools.pairwise(intervals):
        assert start < following
        assert stop - following == tile_overlap


def test_tiles_are_as_few_and_as_small_as_possible():
    assert tile_intervals(1024, 288, 32, 16) == [(0, 288), (256, 528), (496, 768), (736, 1024)]
    assert tile_intervals(64, 32, 0) == [(0, 32), (32, 64)]
    assert tile_intervals(80, 64, 8, 8) == [(0, 40), (32, 80)]  # two tiles of 64 would share 48 pixels


def test_overlaps_are_rounded_up_if_the_tile_is_large_enough():
    assert tile_intervals(64, 32, 5, 8) == [(0, 24), (16, 48), (40, 64)]
    assert tile_intervals(64, 32, 31, 16) == [(0, 32), (16, 48), (32, 64)]


@pytest.mark.parametrize("tile_overlap", [-1, 32, 40])
def test_overlap_must_be_smaller_than_the_tile(tile_overlap):
    with pytest.raises(ValueError, match="tile_overlap"):
        tile_intervals(100, 32, tile_overlap)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (64, 20), (50, 131)])
@pytest.mark.parametrize("tile_overlap", [0, 8, 24])
def test_weights_of_tiles_add_up_to_one(height, width, tile_overlap):
    tiles = tile_slices(height, width, 32, tile_overlap)
    total = torch.zeros(height, width)
    for tile, weight in zip(tiles, tile_weights(tiles), strict=True):
        assert (weight > 0).all()
        total[tile] += weight
    torch.testing.assert_close(total, torch.ones(height, width))


def test_weights_decrease_smoothly_to_tile_edges_inside_the_field():
    left, right = tile_weights([(slice(0, 32), slice(0, 32)), (slice(0, 32), slice(24, 56))])
    assert (left[:, :24] == 1).all() and (right[:, 8:] == 1).all()
    assert left[0, -1] < 0.02 and (left[0].diff() <= 0).all()


def test_patches_are_spread_from_edge_to_edge():
    patches = spread_patches(200, 40, 32, number=4, multiple=8)
    assert sorted({rows.start for rows, _ in patches}) == [0, 56, 112, 168]
    assert sorted({columns.start for _, columns in patches}) == [0, 8]  # there is room for two patches
    assert spread_patches(24, 16, 32, number=4, multiple=8) == [(slice(0, 24), slice(0, 16))]
