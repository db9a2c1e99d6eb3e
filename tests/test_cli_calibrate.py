"""`haze-pipeline calibrate`, through its entry point."""

import json

import numpy as np
import pytest
from conftest import tiny_unet

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.microscopy_io import Micrograph, write_ome_tiff


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()).save_pretrained(folder)
    (folder / "README.md").write_text("A card.")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind in ("hazy", "clear"):
        (folder / kind).mkdir()
    for index in range(12):
        clear = rng.gamma(2, 100, (32, 32)).astype(np.float32)
        hazy = rng.poisson(clear + 50).astype(np.uint16)
        write_ome_tiff(folder / "clear" / f"{index:02}.tif", Micrograph(clear, "YX"))
        write_ome_tiff(folder / "hazy" / f"{index:02}.tif", Micrograph(hazy, "YX"))
    return folder


def test_the_copy_predicts_its_errors_and_is_else_the_same(run, model, pairs, tmp_path):
    output, plot = tmp_path / "calibrated", tmp_path / "calibration.png"
    arguments = ("--num-inference-steps", 2, "--ensemble-size", 4, "--dtype", "float32")
    code, out, _ = run("calibrate", pairs, "--model", model, "-o", output, "--plot", plot, *arguments, "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["specimens"], facts["ensemble_size"], facts["written"]) == (12, 4, [str(output), str(plot)])
    assert facts["after, on the same pairs"]["RMS error / RMS deviation"] == pytest.approx(1, abs=0.1)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert (output / "README.md").read_text() == "A card."
    before, after = (HazeMatchingPipeline.from_pretrained(folder) for folder in (model, output))
    assert after.config.uncertainty_scale == facts["uncertainty_scale"] != before.config.uncertainty_scale == 1
    assert list(after.config.interval_factors) == ["0.1", "0.2", "0.32", "0.5"]
    changed = {"uncertainty_scale", "uncertainty_offset", "interval_factors", "_name_or_path"}
    assert {k: v for k, v in before.config.items() if k not in changed} == {
        k: v for k, v in after.config.items() if k not in changed
    }
    # What it was calibrated with is not used when it is calibrated again.
    code, again, _ = run("calibrate", pairs, "--model", output, "-o", tmp_path / "twice", *arguments, "--json")
    assert code == 0 and json.loads(again)["uncertainty_scale"] == pytest.approx(facts["uncertainty_scale"])


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
