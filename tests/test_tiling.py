import itertools

import pytest
import torch

from haze_pipeline.tiling import blend_window, tile_slices, tile_starts


@pytest.mark.parametrize("length", [1, 31, 32, 33, 40, 64, 100, 257])
@pytest.mark.parametrize(("tile_size", "tile_overlap"), [(32, 0), (32, 8), (32, 31)])
def test_tiles_cover_every_pixel_and_overlap_enough(length, tile_size, tile_overlap):
    starts = tile_starts(length, tile_size, tile_overlap)
    assert starts[0] == 0
    assert starts[-1] + min(tile_size, length) == length
    assert all(0 < b - a <= tile_size - tile_overlap for a, b in itertools.pairwise(starts))


def test_no_more_tiles_than_needed():
    assert tile_starts(100, 32, 8) == [0, 23, 45, 68]  # three tiles with 8 px of overlap would cover only 80
    assert len(tile_starts(64, 32, 0)) == 2


@pytest.mark.parametrize("tile_overlap", [-1, 32, 40])
def test_overlap_must_be_smaller_than_the_tile(tile_overlap):
    with pytest.raises(ValueError, match="tile_overlap"):
        tile_starts(100, 32, tile_overlap)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (64, 20), (50, 131)])
@pytest.mark.parametrize("tile_overlap", [0, 8, 24])
def test_weighted_tiles_add_up_to_the_image(height, width, tile_overlap):
    image = torch.randn(height, width)
    total, weight = torch.zeros_like(image), torch.zeros_like(image)
    for rows, columns in tile_slices(height, width, 32, tile_overlap):
        window = blend_window(rows.stop - rows.start, columns.stop - columns.start, tile_overlap)
        assert (window > 0).all()
        total[rows, columns] += window * image[rows, columns]
        weight[rows, columns] += window
    torch.testing.assert_close(total / weight, image)


def test_window_fades_smoothly_to_the_edge():
    window = blend_window(32, 32, 8)
    assert window[16, 16] == 1
    assert window[16, 0] < 0.02
    assert (window[16, :9].diff() >= 0).all()
