"""`haze-pipeline evaluate`, through its entry point, and its report in a real browser."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import tiny_unet, write_pairs
from huggingface_hub.repocard_data import model_index_to_eval_results

from haze_pipeline.data.pairs import pairs_from_folder
from haze_pipeline.evaluation.baselines import BASELINES
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.evaluation.scores import summarize
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 3, (48, 64))


@pytest.fixture(scope="module")
def report(model, pairs, tmp_path_factory):
    """A report with all methods."""
    folder = tmp_path_factory.mktemp("reports")
    HazeRegressionPipeline(tiny_unet()).save_pretrained(folder / "regression")
    output = folder / "report <b>"  # names must be escaped in HTML
    command = ["evaluate", "--dataset", pairs, "--model", model, "-o", output, "--regression", folder / "regression"]
    command = [sys.executable, "-m", "haze_pipeline", *map(str, command), "--num-figures", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return output


def test_every_method_is_scored_on_every_image(report, pairs):
    facts = json.loads((report / "evaluation.json").read_text())
    assert (facts["num_images"], facts["num_specimens"], facts["split"]) == (3, 3, None)
    assert list(facts["summary"]) == [
        "input", "rolling ball", "white top-hat", "difference of Gaussians", "Wiener", "Richardson–Lucy",
        "Richardson–Lucy, gradient consensus", "dark sectioning", "U-Net regression",
        "haze-pipeline fast", "haze-pipeline balanced, mean of 8", "haze-pipeline balanced, one sample",
    ]  # fmt: skip
    name = "range-invariant PSNR (dB)"
    expected = [range_invariant_psnr(pair.clear, pair.hazy) for pair in pairs_from_folder(pairs)]
    assert [image["scores"]["input"][name] for image in facts["images"]] == pytest.approx(expected)
    assert facts["summary"]["input"][name]["mean"] == pytest.approx(np.mean(expected))
    for method, metrics in facts["summary"].items():
        assert {*metrics, *facts["set_scores"][method]} == set(facts["higher_is_better"]) == set(facts["protocol"])
        assert all(value["low"] is None for value in metrics.values())  # there are only three specimens
    # Every image has its own best setting of a classical method.
    for pair, image in zip(pairs_from_folder(pairs), facts["images"], strict=True):
        best = max(range_invariant_psnr(pair.clear, each) for each in BASELINES["white top-hat"](pair.hazy))
        assert image["scores"]["white top-hat"][name] == pytest.approx(best)


def test_the_scores_fit_a_model_card(report, model):
    index = json.loads((report / "model-index.json").read_text())
    name, results = model_index_to_eval_results(index)
    assert name == model.name and len(results) == 3 * 11
    assert {result.metric_name.split(", ", 1)[1] for result in results} == {
        "haze-pipeline fast", "haze-pipeline balanced, mean of 8", "haze-pipeline balanced, one sample",
    }  # fmt: skip


@pytest.mark.parametrize(("number", "few"), [(6, True), (7, False)])
def test_distances_of_too_few_patches_are_marked(run, model, dinov2, tmp_path, number, few):
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs", number, (64, 128))  # two patches each, for 12 features
    output = tmp_path / "report"
    arguments = ("--dataset", pairs, "--model", model, "-o", output, "--preset", "fast", "--no-baselines")
    code, _, error = run("evaluate", *arguments, "--dinov2", dinov2, "--num-figures", 1)
    assert code == 0, error
    facts = json.loads((output / "evaluation.json").read_text())
    assert facts["unreliable"] == (["DINOv2 distance"] if few else [])
    assert ("unreliable: 12 patches" in facts["protocol"]["DINOv2 distance"]) == few
    page = (output / "report.html").read_text()
    assert ("unreliable, see the protocol" in page) == few and page.count("<img") == 2


def test_the_report_opens_in_a_browser_without_errors(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
    ]
    page = (report / "report.html").as_uri()
    result = subprocess.run([browser, *options, "--dump-dom", page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    assert result.stdout.count("<img") == 1 + 2 and "<th>SSIM" in result.stdout and "</html>" in result.stdout
    text = (report / "report.html").read_text()
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)  # nothing is fetched
    # All pictures have a size when the browser has laid them out.
    probe = tmp_path / "probe.html"
    script = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth).join()</script>"
    probe.write_text(text.replace("</body>", f"{script}</body>"))
    result = subprocess.run(
        [browser, *options, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120
    )
    widths = result.stdout.split("<title>")[1].split("</title>")[0].split(",")
    assert len(widths) == 3 and all(int(width) > 300 for width in widths)


def test_intervals_come_from_specimens_not_from_images():
    values = [float(specimen % 2 * 10) for specimen in range(8) for _ in range(6)]
    apart = summarize({"a": {"m": values}}, map(str, range(48)))["a"]["m"]
    together = summarize({"a": {"m": values}}, [str(index // 6) for index in range(48)])["a"]["m"]
    assert apart["mean"] == together["mean"] == 5 and apart["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"]) > 4
    seven = summarize({"a": {"m": values}}, [str(index // 7) for index in range(48)])["a"]["m"]
    assert seven["low"] is None  # too few specimens
    # For normal values, the interval agrees with the textbook formula.
    values = list(np.random.default_rng(0).normal(0, 1, 400))
    normal = summarize({"a": {"m": values}}, map(str, range(400)))["a"]["m"]
    assert (normal["high"] - normal["low"]) / 2 == pytest.approx(1.96 * np.std(values) / 20, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--dataset", "PAIRS", "-o", "MODEL"], "exists"),
        (["--dataset", "MODEL", "-o", "OUT"], "no TIFFs in hazy/"),
        (["--dataset", "PAIRS", "-o", "OUT", "--regression", "PAIRS"], "is not a pipeline folder"),
        (["--dataset", "PAIRS", "-o", "OUT", "--preset", "best"], "best"),
        (["--dataset", "LARGE", "-o", "OUT", "--dinov2", "MODEL"], "DINOv2 could not be loaded"),
        (["--dataset", "PAIRS", "-o", "OUT", "--dinov2", "MODEL"], "too few for the patches"),
        (["-o", "OUT"], "--dataset"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_and_leaves_nothing(
    run, model, pairs, tmp_path, tmp_path_factory, arguments, error
):
    large = tmp_path_factory.mktemp("large")
    for kind in ("hazy", "clear"):
        (large / kind).mkdir()
        write_ome_tiff(large / kind / "0.tif", Micrograph(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), "YX"))
    places = {"PAIRS": pairs, "LARGE": large, "MODEL": model, "OUT": tmp_path / "out"}
    code, _, message = run("evaluate", "--model", model, *(places.get(each, each) for each in arguments))
    assert code in (1, 2) and error in message
    assert list(tmp_path.iterdir()) == []


def test_small_and_constant_images_are_named(run, model, tmp_path):
    for kind in ("hazy", "clear"):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        plane = np.random.default_rng(0).poisson(9, (40, 64)).astype(np.uint16)
        write_ome_tiff(tmp_path / "pairs" / kind / "small.tif", Micrograph(plane, "YX"))
    code, _, message = run("evaluate", "--model", model, "--dataset", tmp_path / "pairs", "-o", tmp_path / "out")
    assert code == 1 and "small.tif" in message and "48 px" in message
    for kind in ("hazy", "clear"):
        plane = np.ones((48, 64), np.uint16)
        write_ome_tiff(tmp_path / "pairs" / kind / "small.tif", Micrograph(plane, "YX"))
    code, _, message = run("evaluate", "--model", model, "--dataset", tmp_path / "pairs", "-o", tmp_path / "out")
    assert code == 1 and "not constant" in message and not (tmp_path / "out").exists()
