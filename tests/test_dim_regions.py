"""Copies of planes for regions that are dim beside others, and how pipelines use them."""

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from torch.nn.functional import interpolate

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.sampling.dim_regions import DimRegions, find_dim_regions


def bright_and_dim(noise=1.0):
    """A plane `[1, 1, 64, 160]` with a bright square at the left, a dim one beside it, and a very dim one."""
    plane = 100 + noise * torch.randn(1, 1, 64, 160, generator=torch.Generator().manual_seed(0))
    plane[..., 20:40, 8:28] += 4000
    plane[..., 20:40, 66:86] += 200
    plane[..., 20:40, 120:140] += 20
    return plane


@pytest.fixture(scope="module")
def pipe():
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_copies_are_cut_off_above_ever_lower_ceilings_and_used_away_from_what_is_brighter():
    plane = bright_and_dim()
    regions = find_dim_regions(plane)
    copies = regions.followed_by_copies(plane)
    assert regions.sources == [0, 0, 0] and copies.shape == (4, 1, 64, 160) and (copies[:1] == plane).all()
    for step, copy in enumerate(copies[1:], start=1):
        assert copy.max() == pytest.approx(100 + 4000 / 4**step, rel=0.05)
        assert (copy == plane[0].clamp(max=copy.max())).all()
    weights = torch.stack(regions.weights)  # [3,16,40], blocks of 4 px
    assert (weights[:, 7, 4] == 0).all()  # the bright square
    assert weights[:, 7, 19].tolist() == [1, 0, 0]  # 200 counts lie below half of 1,000, not of 250
    assert (weights[:, 7, 32] == 1).all()  # the very dim square
    assert (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize(
    "plane",
    [
        torch.full((1, 1, 64, 96), 7.0),
        torch.full((1, 1, 64, 96), torch.nan),
        torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(0)),
        bright_and_dim(noise=400.0),  # the noise hides what is dim
        torch.ones(1, 1, 1, 1),
        torch.where(bright_and_dim() > 3000, 255.0, 0.0),  # no noise: most pixels are equal
        torch.where(bright_and_dim() > 3000, bright_and_dim(), 100 + torch.randn(1, 1, 64, 160)),  # nothing dim
    ],
)
def test_planes_without_dim_regions_have_no_copies(plane):
    assert find_dim_regions(plane).sources == []


def test_bright_points_are_never_cut_off():
    plane = bright_and_dim()
    for offset, column in enumerate((112, 129, 146)):  # at other places in the blocks of 4 px
        rows, columns = np.mgrid[:64, :160]
        spot = np.exp(-((rows - 30 - offset) ** 2 + (columns - column) ** 2) / (2 * 0.85**2))
        plane += 3000 * torch.from_numpy(spot).float()
    regions = find_dim_regions(plane)
    for ceiling, weight in zip(regions.ceilings, regions.weights, strict=True):
        weight = interpolate(weight[None, None], size=(64, 160), mode="bilinear")[0, 0]
        assert (weight[plane[0, 0] > ceiling] == 0).all()


def test_copies_fade_in_as_structures_rise_above_the_noise():
    highest = []
    for signal in np.linspace(0, 8, 33):
        plane = bright_and_dim()
        plane[..., 120:140] -= 20 * (plane[..., 120:140] > 110)
        plane[..., 20:40, 120:140] += signal
        weights = find_dim_regions(plane).weights
        highest.append(float(weights[1].max()) if len(weights) > 1 else 0.0)
    assert highest[0] == 0 and highest[-1] > 0.9 and max(np.diff(highest)) < 0.3


def test_gain_and_offset_of_the_camera_change_nothing():
    plane = bright_and_dim()
    first, second = find_dim_regions(plane), find_dim_regions(3 * plane + 50)
    assert first.sources == second.sources
    torch.testing.assert_close(first.weights, second.weights, atol=1e-3, rtol=0)
    assert second.ceilings == pytest.approx([3 * ceiling + 50 for ceiling in first.ceilings])


def test_pixels_without_a_measurement_stay_marked():
    plane = bright_and_dim()
    plane[..., :5, :] = torch.nan
    regions = find_dim_regions(plane)
    assert regions.sources and torch.stack(regions.weights).isfinite().all()
    assert (regions.followed_by_copies(plane).isnan() == plane.isnan()).all()


def test_results_are_blended_in_turn():
    weights = [torch.tensor([[0.5]]), torch.tensor([[1.0]])]
    regions = DimRegions([1, 1], [2.0, 1.0], weights)
    results = torch.tensor([3.0, 8.0, 4.0, 5.0]).reshape(1, 4, 1, 1, 1)  # two planes, two copies of the second
    assert regions.merge(results, have_offset=False).flatten().tolist() == [3, 5]
    regions.weights[1] *= 0
    results = torch.tensor([3.0, 8.0, 4.0, 5.0]).reshape(1, 4, 1, 1, 1)
    assert regions.merge(results, have_offset=False).flatten().tolist() == [3, 6]


def test_results_agree_where_they_meet():
    weights = [torch.linspace(0, 1, 64).repeat(16, 1)]
    rows = torch.arange(256.0).repeat(64, 1)
    plane, copy = 4000 + 2 * rows, 2 * rows  # the same structure with another offset
    merged = DimRegions([0], [1.0], weights).merge(torch.stack([plane, copy])[:, None])
    torch.testing.assert_close(merged[0, 0], copy, atol=0.01, rtol=0)


def test_planes_of_a_stack_have_the_results_that_they_have_alone(pipe):
    planes = [bright_and_dim()[0, 0].numpy(), 100 + np.random.default_rng(1).random((64, 160)).astype(np.float32)]
    planes.append(planes[0][:, ::-1].copy())
    arguments = {"num_inference_steps": 2, "ensemble_size": 3, "output_uncertainty": True, "output_samples": True}

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]

    together = pipe(np.stack(planes), generator=generators(), **arguments)
    latents = torch.randn(3, 3, 64, 160, generator=torch.Generator().manual_seed(0))
    given = pipe(np.stack(planes), latents=latents, **arguments)
    for index, (plane, generator) in enumerate(zip(planes, generators(), strict=True)):
        alone = pipe(plane, generator=generator, **arguments)
        np.testing.assert_allclose(together.prediction[index], alone.prediction, rtol=1e-4, atol=0.1)
        np.testing.assert_allclose(together.uncertainty[index], alone.uncertainty, rtol=1e-3, atol=0.1)
        np.testing.assert_allclose(together.samples[:, index], alone.samples, rtol=1e-4, atol=0.1)
        alone = pipe(plane, latents=latents[:, index], **arguments)
        np.testing.assert_allclose(given.prediction[index], alone.prediction, rtol=1e-4, atol=0.1)


def test_bright_regions_keep_their_results_and_fixed_statistics_need_no_copies(pipe):
    plane = bright_and_dim()[0, 0].numpy()

    def dehaze(pipe, **arguments):
        calls = []
        handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
        generator = torch.Generator().manual_seed(0)
        result = pipe(plane, num_inference_steps=1, generator=generator, batch_size=1, **arguments).prediction
        handle.remove()
        return result, len(calls)

    (with_copies, calls), (without, calls_without) = dehaze(pipe), dehaze(pipe, restore_dim=False)
    assert (calls, calls_without) == (4, 1)
    shift = (with_copies - without)[20:40, 8:28]  # one offset for all of the bright square
    assert np.ptp(shift) < 0.1
    assert np.abs(with_copies - without)[:, 64:].max() > 1
    fixed = HazeMatchingPipeline(
        pipe.unet, FlowMatchODEScheduler(), normalization="fixed", input_mean=100.0, input_std=50.0
    )
    fixed.set_progress_bar_config(disable=True)
    assert dehaze(fixed)[1] == 1
