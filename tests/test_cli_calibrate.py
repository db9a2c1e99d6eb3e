"""`haze-pipeline calibrate`, through its entry point."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from conftest import write_pairs

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 12, (32, 32))


def test_the_calibrated_copy_predicts_its_errors_and_is_otherwise_the_same(run, model, pairs, tmp_path):
    output, plot = tmp_path / "calibrated", tmp_path / "calibration.png"
    arguments = ("--num-inference-steps", 2, "--ensemble-size", 4, "--dtype", "float32")
    code, out, error = run("calibrate", pairs, "--model", model, "-o", output, "--plot", plot, *arguments, "--json")
    assert code == 0, error
    facts = json.loads(out)
    assert (facts["specimens"], facts["written"]) == (12, [str(output), str(plot)])
    assert facts["calibrated_for"] == {"ensemble_size": 4, "num_inference_steps": 2}
    assert facts["after, on the same pairs"]["RMS error / RMS deviation"] == pytest.approx(1, abs=0.1)
    assert facts["after, on specimens left out"]["ENCE"] > facts["after, on the same pairs"]["ENCE"] > 0
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert (output / "README.md").read_text() == "A card."
    before, after = (HazeMatchingPipeline.from_pretrained(folder) for folder in (model, output))
    assert after.config.uncertainty_scale == facts["uncertainty_scale"] != before.config.uncertainty_scale == 1
    assert after.config.uncertainty_curve == facts["uncertainty_curve"] and before.config.uncertainty_curve is None
    assert list(after.config.interval_factors) == ["0.1", "0.2", "0.32", "0.5"]
    changed = {"uncertainty_scale", "uncertainty_offset", "uncertainty_curve", "interval_factors", "calibrated_for"}
    changed |= {"_name_or_path"}
    assert {k: v for k, v in before.config.items() if k not in changed} == {
        k: v for k, v in after.config.items() if k not in changed
    }
    # A second calibration does not use the first one.
    code, again, _ = run("calibrate", pairs, "--model", output, "-o", tmp_path / "twice", *arguments, "--json")
    assert code == 0
    for name in ("uncertainty_scale", "uncertainty_curve"):
        assert json.loads(again)[name] == facts[name]


def test_the_gain_is_fitted_to_pairs_of_several_sources(run, model, pairs, tmp_path):
    (tmp_path / "more").mkdir()
    more = write_pairs(tmp_path / "more", 48, (32, 32))
    arguments = ("--model", model, "--num-inference-steps", 2, "--ensemble-size", 2, "--json")
    code, out, error = run("calibrate", pairs, "-o", tmp_path / "one", *arguments)
    assert code == 0, error
    alone = json.loads(out)
    code, out, error = run("calibrate", pairs, "--gain-pairs", more, "-o", tmp_path / "two", *arguments)
    assert code == 0, error
    both = json.loads(out)
    assert alone["benefit"] is None and both["benefit"]["limit"] < 100
    assert HazeMatchingPipeline.from_pretrained(tmp_path / "two").config.benefit == both["benefit"]
    assert both["specimens"] == alone["specimens"] and both["uncertainty_curve"] == alone["uncertainty_curve"]
    code, _, error = run("calibrate", pairs, "--gain-pairs", tmp_path / "none", "-o", tmp_path / "three", *arguments)
    assert code == 1 and "none" in error and not (tmp_path / "three").exists()


def test_clear_images_in_another_unit_and_broken_ones_are_named(run, model, pairs, tmp_path):
    arguments = ("--model", model, "-o", tmp_path / "out", "--num-inference-steps", 2, "--ensemble-size", 2)
    other = tmp_path / "other"
    shutil.copytree(pairs, other)
    for path in (other / "clear").iterdir():
        write_ome_tiff(path, Micrograph(100 * tifffile.imread(path) + 1000, "YX"))
    code, _, error = run("calibrate", other, *arguments)
    assert code == 1 and "another unit" in error
    broken = tifffile.imread(pairs / "clear" / "03.tif")
    broken[3, 4] = np.nan
    write_ome_tiff(other / "clear" / "03.tif", Micrograph(broken, "YX"))
    code, _, error = run("calibrate", other, *arguments)
    assert code == 1 and "03.tif" in error and "NaN" in error
    assert not (tmp_path / "out").exists()
    # Blank planes are left out.
    shutil.rmtree(other)
    shutil.copytree(pairs, other)
    write_ome_tiff(other / "hazy" / "03.tif", Micrograph(np.full((32, 32), 7, np.uint16), "YX"))
    code, out, _ = run("calibrate", other, *arguments, "--json")
    assert code == 0 and json.loads(out)["specimens"] == 11


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["PAIRS", "-o", "MODEL"], "exists"),
        (["PAIRS", "-o", "OUT", "--preset", "fast"], "no spread"),
        (["PAIRS", "-o", "OUT", "--plot", "x.jpg"], "must end in .png"),
        (["PAIRS", "-o", "OUT", "--plot", "nowhere/x.png"], "is not a folder"),
        (["PAIRS", "-o", "OUT", "--max-pairs", "0"], "max-pairs"),
        (["MODEL", "-o", "OUT"], "no TIFFs in hazy/"),
        (["PAIRS", "-o", "OUT", "--model", "PAIRS"], "no model_index.json"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_leaves_nothing(run, model, pairs, tmp_path, arguments, error):
    places = {"PAIRS": pairs, "MODEL": model, "OUT": tmp_path / "out"}
    code, _, message = run("calibrate", *(places.get(each, each) for each in arguments), "--num-inference-steps", 2)
    assert code in (1, 2) and error in message
    assert list(tmp_path.iterdir()) == []
