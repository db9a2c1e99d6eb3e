"""
Results as measurements: the recipes that users tried on other tools, with the checkpoint of the package. What is
demanded of the network itself, which a training decides, is measured by `bench/structures.py`.
"""

import json

import numpy as np
import pytest
from scipy import ndimage

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.io.micrograph import Micrograph
from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.io.ome_tiff_writer import write_ome_tiff
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


@pytest.fixture(scope="module")
def base():
    """A hazy crop of 96 px, uint16."""
    return simulate_pair(96, pair_generator(5, 3)).hazy.numpy().round().clip(0, 65535).astype(np.uint16)


@pytest.fixture
def dehaze(run, tmp_path):
    """Dehaze an array from file to file; the result, the record, and what was printed."""

    def run_on(data, *arguments, axes="YX"):
        write_ome_tiff(tmp_path / "in.ome.tif", Micrograph(data, axes))
        flags = ("--output-dtype", "float32", "--json", *arguments)
        code, out, err = run("dehaze", tmp_path / "in.ome.tif", "-o", tmp_path / "out.ome.tif", *flags)
        assert code == 0, err
        return read_micrograph(tmp_path / "out.ome.tif").data, json.loads(out), err

    return run_on


@pytest.mark.parametrize("statistics", ["stack", "plane", "percentile"])
def test_a_hot_pixel_changes_nothing_elsewhere(dehaze, base, statistics):
    hot = base.copy()
    hot[64, 64] = 65535
    clean, _, _ = dehaze(base, "--normalization", statistics)
    found, record, _ = dehaze(hot, "--normalization", statistics)
    assert record["hot_pixels"] == 1 and record["assessment"][0]["input"]["hot_pixels"] == 1
    away = np.ones(base.shape, dtype=bool)
    away[60:69, 60:69] = False
    assert found[away].sum() == pytest.approx(clean[away].sum(), rel=0.02)
    assert np.abs(found - clean)[away].max() < 0.02 * clean.max()


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_equal_planes_have_equal_results(dehaze, base, preset):
    totals = dehaze(np.stack([base] * 3), "--preset", preset, "--no-assess", axes="TYX")[0].sum(axis=(1, 2))
    assert np.ptp(totals) < 0.01 * totals.mean()


@pytest.mark.parametrize("statistics", ["stack", "plane", "percentile"])
def test_blank_planes_are_0_and_change_no_other_plane(dehaze, base, statistics):
    data = np.stack([base, np.full_like(base, 100), base])
    result, record, _ = dehaze(data, "--normalization", statistics, axes="ZYX")
    assert not result[1].any()
    alone = dehaze(base, "--normalization", statistics)[0]
    np.testing.assert_allclose(result[0], alone, rtol=1e-3, atol=1e-3 * alone.max())
    assert record["assessment"][1]["input"]["is_blank"] and "blank" in record["assessment"][1]["verdict"]


def test_missing_pixels_are_left_out_and_kept(dehaze, base):
    clean = dehaze(base)[0]
    framed = base.astype(np.float32)
    framed[:8] = np.nan
    result, record, _ = dehaze(framed)
    assert np.isnan(result[:8]).all() and not np.isnan(result[8:]).any()
    assert record["assessment"][0]["input"]["missing"] == 8 * 96
    assert result[24:].sum() == pytest.approx(clean[24:].sum(), rel=0.1)
    zeros = base.copy()
    zeros[:8] = 0
    masked = dehaze(zeros, "--mask-value", "0")[0]
    np.testing.assert_allclose(masked, result, rtol=1e-4, atol=1e-3 * clean.max())


def test_missing_pixels_of_integers_keep_the_value_of_the_mask(run, base, tmp_path):
    base = base.copy()
    base[:8] = 7
    write_ome_tiff(tmp_path / "in.tif", Micrograph(base, "YX"))
    assert run("dehaze", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--mask-value", "7")[0] == 0
    result = read_micrograph(tmp_path / "out.tif").data
    assert result.dtype == np.uint16 and (result[:8] == 7).all() and (result[8:] != 7).any()


def test_saturation_and_few_grey_levels_are_warned_of(dehaze, base):
    saturated = np.clip(base / np.quantile(base, 0.85) * 65535, 0, 65535).astype(np.uint16)
    record = dehaze(saturated)[1]
    assert record["assessment"][0]["input"]["saturated"] == pytest.approx(0.15, abs=0.02)
    assert "saturated" in record["assessment"][0]["verdict"]
    few = np.random.default_rng(0).poisson(base / base.max() * 6).astype(np.uint8)
    verdict = dehaze(few)[1]["assessment"][0]["verdict"]
    assert "grey levels" in verdict and "--output-dtype float32" in verdict


def test_channels_stay_in_proportion(dehaze, base):
    """Whatever the other channel holds."""
    excess = base.astype(np.float64) - base.min()
    dim, bright = (100 + excess * factor / excess.max() for factor in (1000, 5000))
    totals = {}
    for name, other in {"bright": bright, "noise": np.random.default_rng(0).normal(500, 9, base.shape)}.items():
        result = dehaze(np.stack([dim, other]).astype(np.float32), axes="CYX")[0]
        totals[name] = result[0].sum()
        if name == "bright":
            assert result[1].sum() / result[0].sum() == pytest.approx(5, rel=0.05)
    assert totals["noise"] == pytest.approx(totals["bright"], rel=1e-3)


@pytest.mark.parametrize("divisor", [16, 64, 250])
def test_a_dim_disc_beside_bright_ones_keeps_its_contrast(divisor):
    rows, columns = np.mgrid[:160, :160]
    rng = np.random.default_rng(0)

    def disc(y, x, radius):
        return ndimage.gaussian_filter((np.hypot(rows - y, columns - x) < radius).astype(float), 1.5)

    dim, bright = disc(110, 40, 12), disc(110, 110, 12) + disc(40, 120, 16)
    inner = np.hypot(rows - 110, columns - 40) < 8
    ring = (np.hypot(rows - 110, columns - 40) > 17) & (np.hypot(rows - 110, columns - 40) < 22)
    pipe = HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)
    contrasts = []
    for light in (4000 / divisor * dim, 4000 / divisor * dim + 4000 * bright):
        hazy = 100 + rng.poisson(light + 5).astype(np.float32)
        result = pipe(hazy, num_inference_steps=1).prediction
        contrasts.append(result[inner].mean() - result[ring].mean())
    assert contrasts[1] == pytest.approx(contrasts[0], rel=0.2)


def test_strength_is_linear_and_stored(dehaze, base):
    full, half = (dehaze(base, "--strength", strength)[0] for strength in ("1", "0.5"))
    np.testing.assert_allclose(half, 0.5 * base + 0.5 * full, rtol=1e-3, atol=0.1)


def test_intensities_of_the_same_scene_are_the_same_in_every_unit():
    """A camera with another gain and offset gives the same result on its own scale."""
    pipe = HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)
    base = simulate_pair(96, pair_generator(5, 4)).hazy.numpy()
    one, other = (pipe(image, num_inference_steps=1).prediction for image in (base, 7 * base + 1000))
    np.testing.assert_allclose(other, 7 * one, rtol=2e-2, atol=2e-2 * other.max())
