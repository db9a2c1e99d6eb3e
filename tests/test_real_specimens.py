"""Pairs simulated from real specimens, and datasets of specimens."""

import csv
import json
import subprocess
import sys
import warnings
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT

from haze_pipeline.data.patches import specimen_series
from haze_pipeline.data.specimen_datasets import specimens_from_rows
from haze_pipeline.data.training_data import load_training_data
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.simulation.optics import Optics
from haze_pipeline.simulation.real_specimens import (
    RealSpecimen,
    read_specimen_folder,
    read_specimens,
    simulate_real_pair,
)
from haze_pipeline.simulation.simulated_pairs import pair_generator


SHARP = Optics(1.2, 0.52, 0.488, 1.33, pixel_size=0.1)


def spots(shape, seed=0):
    """Spots on a dark background, in counts."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    image[rng.random(shape) < 0.01] = 3000
    return (100 + image + rng.normal(0, 1, shape)).round().astype(np.uint16)


@pytest.fixture
def stack():
    return RealSpecimen.from_counts(spots((7, 150, 140)), 3.0, "stack.tif")


def test_a_pair_depends_only_on_its_generator(stack):
    first, again, other = (simulate_real_pair(stack, 64, pair_generator(1, number)) for number in (0, 0, 1))
    assert torch.equal(first.hazy, again.hazy) and torch.equal(first.clear, again.clear)
    assert first.parameters == again.parameters
    assert not torch.equal(first.hazy, other.hazy)
    assert first.hazy.shape == first.clear.shape == (64, 64)


@pytest.mark.parametrize("spacing", [None, 3.0])
@pytest.mark.parametrize("haze_ratio", [0.0, 0.5, 3.0])
def test_haze_has_the_requested_strength_in_the_counts_of_the_clear_image(stack, spacing, haze_ratio):
    stack.spacing = spacing
    ratios = []
    for number in range(12):
        pair = simulate_real_pair(stack, 96, pair_generator(2, number), SHARP, haze_ratio)
        if pair.hazy.max() == 2 ** pair.parameters["bit_depth"] - 1:
            continue  # saturated
        added = pair.hazy.mean().item() - pair.parameters["offset"] - pair.clear.mean().item()
        ratios.append(added / pair.clear.clamp(min=0).mean().item())
    assert np.median(ratios) == pytest.approx(haze_ratio, abs=0.15 + 0.05 * haze_ratio)


def test_some_pairs_have_no_haze_and_some_a_dimmed_region(stack):
    facts = [simulate_real_pair(stack, 32, pair_generator(3, number)).parameters for number in range(100)]
    assert 0.08 < np.mean([each["haze_ratio"] == 0 for each in facts]) < 0.3
    assert 0.15 < np.mean([each["dimmed"] < 1 for each in facts]) < 0.35
    nyquist = [each["pixel_size"] / (each["emission_wavelength"] / (4 * each["numerical_aperture"])) for each in facts]
    assert min(nyquist) < 0.6 and max(nyquist) > 2


def test_a_specimen_smaller_than_the_image_is_mirrored():
    pair = simulate_real_pair(RealSpecimen.from_counts(spots((1, 20, 24)), None, "tiny.tif"), 64, pair_generator(0, 0))
    assert torch.isfinite(pair.hazy).all() and pair.clear.max() > 0


def test_empty_planes_are_not_used_as_the_in_focus_layer():
    planes = spots((6, 80, 80))
    planes[:4] = 100
    specimen = RealSpecimen.from_counts(planes, 2.0, "stack.tif")
    assert {simulate_real_pair(specimen, 32, pair_generator(0, n)).parameters["plane"] for n in range(20)} == {4, 5}


def test_channels_are_specimens_and_depth_is_kept(tmp_path):
    data = np.stack([spots((5, 40, 36)), spots((5, 40, 36), 1)])
    write_ome_tiff(tmp_path / "two.ome.tif", Micrograph(data, "CZYX", (0.1, 0.1), z_step=0.4))
    write_ome_tiff(tmp_path / "movie.ome.tif", Micrograph(data[0], "TYX", (0.1, 0.1)))
    found = read_specimen_folder(tmp_path)
    assert [specimen.name for specimen in found["two.ome.tif"]] == ["two.ome.tif, channel 0", "two.ome.tif, channel 1"]
    assert found["two.ome.tif"][0].planes.shape == (5, 40, 36)
    assert found["two.ome.tif"][0].spacing == pytest.approx(4)
    assert found["movie.ome.tif"][0].spacing is None
    assert np.percentile(found["movie.ome.tif"][0].planes, 99.9) == pytest.approx(1)


def test_invalid_specimens_are_refused(tmp_path, stack):
    for name, data, message in (
        ("blank", np.full((20, 20), 7, np.uint16), "blank.ome.tif has no contrast in channel 0"),
        ("nan", np.full((20, 20), np.nan, np.float32), "nan.ome.tif holds NaN"),
    ):
        write_ome_tiff(tmp_path / f"{name}.ome.tif", Micrograph(data, "YX"))
        with pytest.raises(ValueError, match=message):
            read_specimens(tmp_path / f"{name}.ome.tif")
    with pytest.raises(ValueError, match="at least 16"):
        simulate_real_pair(stack, 8, pair_generator(0, 0))
    with pytest.raises(FileNotFoundError, match="no TIFF files"):
        read_specimen_folder(tmp_path / "nothing")


def test_simulate_makes_pairs_of_a_folder(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "b"):
        write_ome_tiff(images / f"{name}.tif", Micrograph(spots((60, 50)), "YX", (0.1, 0.1)))
    assert run("simulate", tmp_path / "pairs", "--from-images", images, "--num-images", 4, "--size", 32)[0] == 0
    assert len(list((tmp_path / "pairs" / "hazy").iterdir())) == 4
    data = load_training_data(train_data_dir=tmp_path / "pairs")
    assert {pair.specimen_id for pair in data.pairs} == {"a.tif", "b.tif"}
    assert "parts of 2 haze-free micrographs" in data.description
    for flag, value in (("--na", 1.2), ("--pinholes", "1,open"), ("--from-stack", images / "a.tif")):
        code, _, err = run("simulate", tmp_path / "other", "--from-images", images, flag, value)
        assert code == 1 and flag in err and "--from-images" in err
    assert not (tmp_path / "other").exists()


def build(tmp_path, rows):
    """Run the script that builds a dataset of specimens from files and a table."""
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    facts = {"structure": "spots", "modality": "none", "axes": "ZYX", "licence": "CC0", "origin": "here", "notes": ""}
    for row in rows:
        write_ome_tiff(images / row["file"], Micrograph(spots((3, 72, 70), row.pop("seed")), "ZYX"))
        row.update(facts)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    command = [
        sys.executable, ROOT / "training" / "build_specimen_dataset.py",
        "--images_dir", images, "--table", tmp_path / "table.csv", "--output_dir", tmp_path / "specimens",
    ]  # fmt: skip
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_training_makes_pairs_of_a_dataset_of_specimens(run, tmp_path):
    row = {"split": "train", "quality": 5, "pixel_size_um": 0.1, "z_step_um": 0.2}
    rows = [{**row, "file": f"{n}.tif", "seed": n} for n in range(2)]
    rows += [{**row, "file": f"{split}.tif", "split": split, "seed": 9} for split in ("validation", "test", "none")]
    result = build(tmp_path, rows)
    assert result.returncode == 0, result.stderr[-2000:]
    card = (tmp_path / "specimens" / "README.md").read_text()
    assert "| 0.tif | train | spots | none | 5 | CC0 | here |" in card and "none.tif" not in card

    splits = datasets.load_dataset(str(tmp_path / "specimens"), cache_dir=str(tmp_path / "cache"))
    (first, quality), (second, _) = specimens_from_rows(splits["train"])
    assert (first.file, second.file, quality) == ("0.tif", "1.tif", 5)
    assert first.spacing == pytest.approx(2)
    np.testing.assert_array_equal(first.planes, read_specimens(tmp_path / "images" / "0.tif")[0].planes)

    options = {"dataset_name": str(tmp_path / "specimens"), "resolution": 32, "simulated_fraction": 0.5}
    data = load_training_data(**options, simulation_size=48, max_validation_pairs=3)
    sources = [pair.source for pair in data.pairs]
    assert any("random specimen" in source for source in sources) and any("1.tif" in source for source in sources)
    assert len(data.validation) == 3 and all("validation.tif" in pair.source for pair in data.validation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more processes than cores
        side_by_side = load_training_data(**options, simulation_size=48, max_validation_pairs=1, num_workers=2)
    assert [pair.source for pair in side_by_side.pairs] == sources
    np.testing.assert_array_equal(side_by_side.pairs[-1].hazy, data.pairs[-1].hazy)
    with pytest.raises(ValueError, match="`simulation_size` must be at least `resolution` 32, got 24"):
        load_training_data(**options, simulation_size=24)
    # Training can be resumed: the series goes on from any number.
    late, again = next(data.series(5)), list(islice(data.series(3), 3))[-1]
    np.testing.assert_array_equal(late.hazy, again.hazy)
    assert late.source == again.source

    pairs = tmp_path / "pairs"
    arguments = ("--from-images", tmp_path / "specimens", "--num-images", 2, "--size", 32)
    assert run("simulate", pairs, *arguments, "--split", "test")[0] == 0
    assert {json.loads(line)["specimen"] for line in (pairs / "parameters.jsonl").open()} == {"test.tif, channel 0"}
    code, _, err = run("simulate", tmp_path / "others", *arguments, "--split", "others")
    assert code == 1 and "others" in err

    again = build(tmp_path, [{**row, "file": "0.tif", "seed": 0}])
    assert again.returncode == 2 and "exists: choose another --output_dir" in again.stderr


def test_poor_specimens_are_drawn_half_as_often():
    specimens = [(RealSpecimen.from_counts(spots((1, 40, 40)), None, f"{q}.tif"), q) for q in (5, 3)]
    sources = [pair.source for pair in islice(specimen_series(specimens, 0.0, 0, 32, 0), 120)]
    assert 0.2 < np.mean(["3.tif" in source for source in sources]) < 0.47


def test_no_specimen_of_the_table_is_in_two_splits():
    with (ROOT / "training" / "specimens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows)
    held_out = [row for row in rows if row["split"] in ("validation", "test")]
    assert len(held_out) >= 24
    assert all(row["licence"] and row["origin"] for row in rows)
    assert all("own terms" not in row["licence"] for row in rows if row["split"] == "train")
