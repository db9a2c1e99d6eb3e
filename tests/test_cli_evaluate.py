"""`haze-pipeline evaluate`, through its entry point, and its report in a real browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, tiny_unet, write_pairs
from hub_double import hub_double
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.data.hub_datasets import build_dataset, pair_row
from haze_pipeline.data.pairs import pairs_from_folder
from haze_pipeline.evaluation.baselines import BASELINES, dark_sectioning
from haze_pipeline.evaluation.methods import (
    Kind,
    choose_baselines,
    classical_methods,
    load_models,
    model_methods,
    short_names,
)
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.evaluation.scores import paired_differences, summarize
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.models.autoencoder_hierarchical import AutoencoderHierarchical
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.pipeline_hdn import HDNPipeline
from haze_pipeline.presets import Preset


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 3, (48, 64))


def evaluate(*arguments, **environment):
    command = [sys.executable, "-m", "haze_pipeline", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def report(model, pairs, tmp_path_factory):
    """A report on one model with all classical methods."""
    output = tmp_path_factory.mktemp("reports") / "report <b>"  # names must be escaped in HTML
    result = evaluate("--dataset", pairs, "--model", model, "-o", output, "--num-figures", 2)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A report on two flows, whose folders have the same name, and a regression; and what the command printed."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "pairs").mkdir()
    pairs = write_pairs(folder / "pairs", 8, (48, 64))
    models = []
    for seed, name in enumerate(("first", "second")):
        models.append(folder / name / "best")
        HazeMatchingPipeline(tiny_unet(seed), FlowMatchODEScheduler()).save_pretrained(models[-1])
    models.append(folder / "regression")
    HazeRegressionPipeline(tiny_unet(2)).save_pretrained(models[-1])
    named = [part for model in models for part in ("--model", model)]
    baselines = ("--baseline", "wiener", "--baseline", "Rolling ball")
    result = evaluate("--dataset", pairs, *named, *baselines, "-o", folder / "report", "--num-figures", 1)
    assert result.returncode == 0, result.stderr
    return folder / "report", result.stdout


def test_every_method_is_scored_on_every_image(report, pairs):
    facts = json.loads((report / "evaluation.json").read_text())
    assert (facts["num_images"], facts["num_specimens"], facts["split"]) == (3, 3, None)
    assert list(facts["summary"]) == [
        "input", "rolling ball", "white top-hat", "difference of Gaussians", "Wiener", "Richardson–Lucy",
        "Richardson–Lucy, gradient consensus", "dark sectioning",
        "haze-pipeline fast", "haze-pipeline balanced, mean of 8", "haze-pipeline balanced, one sample",
    ]  # fmt: skip
    name = "range-invariant PSNR (dB)"
    expected = [range_invariant_psnr(pair.clear, pair.hazy) for pair in pairs_from_folder(pairs)]
    assert [image["scores"]["input"][name] for image in facts["images"]] == pytest.approx(expected)
    assert facts["summary"]["input"][name]["mean"] == pytest.approx(np.mean(expected))
    assert set(facts["kinds"]) == set(facts["parameters"]) == set(facts["seconds_per_megapixel"])
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
    assert name == model.name and len(index) == 1 and len(results) == 3 * 11
    assert {result.metric_name.split(", ", 1)[1] for result in results} == {
        "haze-pipeline fast", "haze-pipeline balanced, mean of 8", "haze-pipeline balanced, one sample",
    }  # fmt: skip
    assert not (report / ".eval_results").exists()  # the pairs have no name on the Hub


def test_models_of_several_kinds_are_compared(comparison):
    report, _ = comparison
    facts = json.loads((report / "evaluation.json").read_text())
    own = [["fast", "balanced, mean of 8", "balanced, one sample"]] * 2
    own = [[f"{name}/best {each}" for each in each] for name, each in zip(("first", "second"), own, strict=True)]
    assert list(facts["summary"]) == ["input", "rolling ball", "Wiener", *own[0], *own[1], "regression"]
    assert [(model["name"], model["pipeline"], model["methods"]) for model in facts["models"]] == [
        ("first/best", "HazeMatchingPipeline", own[0]),
        ("second/best", "HazeMatchingPipeline", own[1]),
        ("regression", "HazeRegressionPipeline", ["regression"]),
    ]
    assert len({model["revision"] for model in facts["models"]}) == 3
    assert list(facts["kinds"].values()) == [
        *["classical method"] * 3, *["point predictor", "point predictor", "posterior sample"] * 2, "point predictor",
    ]  # fmt: skip
    number = sum(weights.numel() for weights in tiny_unet().parameters())
    assert list(facts["parameters"].values()) == [None] * 3 + [number] * 7
    # The differences are those of the same images.
    assert facts["reference"] == "first/best fast" and set(facts["differences"]) == set(facts["summary"]) - {
        "first/best fast"
    }
    for method, metrics in facts["differences"].items():
        for metric, value in metrics.items():
            means = [facts["summary"][name][metric]["mean"] for name in (method, "first/best fast")]
            assert value["mean"] == pytest.approx(means[0] - means[1], abs=1e-9)
            assert value["low"] <= value["mean"] <= value["high"]
    # Every model has its own entry for a card.
    index = json.loads((report / "model-index.json").read_text())
    assert [entry["name"] for entry in index] == ["first/best", "second/best", "regression"]
    assert [len(model_index_to_eval_results([entry])[1]) for entry in index] == [33, 33, 11]
    page = (report / "report.html").read_text()
    value = facts["differences"]["regression"]["range-invariant PSNR (dB)"]
    text = "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**value).replace("-", "−")
    assert f"<td>{text}</td>" in page and "difference from first/best fast" in page
    assert f"<td>{number / 1e6:.3g}</td>" in page


def test_samples_of_a_hierarchical_vae_are_compared(pairs, tmp_path):
    torch.manual_seed(0)
    HDNPipeline(AutoencoderHierarchical(2, 4, 8, 1)).save_pretrained(tmp_path / "hdn")
    (model,) = load_models([str(tmp_path / "hdn")])
    model.pipe.set_progress_bar_config(disable=True)
    pair = next(pairs_from_folder(pairs))
    (method,) = model_methods(model, [Preset.fast], [pair], seed=3).values()
    assert method.kinds == {"hdn, mean of 8": Kind.estimate, "hdn, one sample": Kind.sample}
    expected = model.pipe(pair.hazy, 8, generator=torch.Generator().manual_seed(3), output_samples=True)
    found = method.predict(pair)
    np.testing.assert_array_equal(found["hdn, mean of 8"], expected.prediction)
    np.testing.assert_array_equal(found["hdn, one sample"], expected.samples[0])


def test_the_printed_table_is_aligned_and_short(comparison):
    report, printed = comparison
    facts = json.loads((report / "evaluation.json").read_text())
    counts, *table, path = printed.splitlines()
    assert counts == "8 images of 8 specimens, mean ± standard deviation over images" and path.endswith("report.html")
    assert len({len(line) for line in table}) == 1 and len(table[0]) <= 120
    score = facts["summary"]["regression"]["range-invariant PSNR (dB)"]
    assert table[-1].startswith("regression ") and f"  {score['mean']:.2f} ± {score['deviation']:.2f}  " in table[-1]
    assert [line.split("  ")[0] for line in table[-10:]] == list(facts["summary"])
    assert table[-10].split()[-2:] == ["–", "–"] and table[-9].split()[-2] == "–"  # input and rolling ball


def test_scores_on_a_dataset_of_the_hub_name_it(model, tmp_path):
    rng = np.random.default_rng(0)
    planes = [rng.poisson(100, (2, 48, 48)).astype(np.uint16) for _ in range(2)]
    rows = build_dataset((pair_row(*each, "a", "a.tif") for each in planes), tmp_path / "rows.arrow")
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    output = tmp_path / "report"
    with hub_double() as hub:
        hub.repos = {"lab/pairs": []}
        hub.commit("lab/pairs", {"data/test-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()})
        result = evaluate(
            "--dataset", "lab/pairs", "--model", model, "--preset", "fast", "--preset", "balanced", "--preset", "fast",
            "--baseline", "none", "-o", output, HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET="1",
            HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0", PYTHONPATH=str(ROOT),
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    files = sorted((output / ".eval_results").iterdir())
    assert [file.name for file in files] == [
        "haze-pipeline-balanced-mean-of-8.yaml", "haze-pipeline-balanced-one-sample.yaml", "haze-pipeline-fast.yaml",
    ]  # fmt: skip
    facts = json.loads((output / "evaluation.json").read_text())
    entries = parse_eval_result_entries(yaml.safe_load(files[-1].read_text(encoding="utf-8")))
    first = entries[0]
    assert len(entries) == 11 and {entry.dataset_id for entry in entries} == {"lab/pairs"}
    assert first.task_id == "range-invariant-psnr" and len({entry.task_id for entry in entries}) == 11
    score = facts["summary"]["haze-pipeline fast"]["range-invariant PSNR (dB)"]["mean"]
    assert first.value == round(score, 4) and first.notes == "haze-pipeline fast; 2 images, split test"


@pytest.mark.parametrize(("number", "few"), [(6, True), (7, False)])
def test_distances_of_too_few_patches_are_marked(run, model, dinov2, tmp_path, number, few):
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs", number, (64, 128))  # two patches each, for 12 features
    output = tmp_path / "report"
    arguments = ("--dataset", pairs, "--model", model, "-o", output, "--preset", "fast", "--baseline", "none")
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


def test_differences_are_paired_and_resample_the_same_specimens():
    rng = np.random.default_rng(0)
    common, gain = rng.normal(0, 10, 40), rng.normal(1, 0.1, 40)  # images differ much more than methods
    scores = {"a": {"m": list(common)}, "b": {"m": list(common + gain)}}
    specimens = [str(index // 4) for index in range(40)]
    means = summarize(scores, specimens)["b"]["m"]
    differences = summarize(paired_differences(scores, "a"), specimens)
    value = differences["b"]["m"]
    assert list(differences) == ["b"] and value["mean"] == pytest.approx(gain.mean())
    assert value["low"] > 0.9 and value["high"] - value["low"] < 0.05 * (means["high"] - means["low"])


def test_methods_without_settings_use_the_optics_of_the_metadata(run, tmp_path):
    optics = ("--na", 1.2, "--pixel-size", 0.1, "--emission", 0.6)
    assert run("simulate", tmp_path / "pairs", "--num-images", 1, "--size", 64, *optics)[0] == 0
    (pair,) = pairs_from_folder(tmp_path / "pairs")
    assert pair.airy_radius == pytest.approx(0.61 * 0.6 / 1.2 / 0.1)
    methods = classical_methods(["dark sectioning", "Wiener"], [pair])
    assert list(methods) == ["input", "dark sectioning", "dark sectioning, known optics", "Wiener"]
    expected = dark_sectioning(pair.hazy, airy_radius=pair.airy_radius).prediction
    found = methods["dark sectioning, known optics"].predict(pair)
    np.testing.assert_array_equal(found["dark sectioning, known optics"], expected)
    unknown = replace(pair, airy_radius=None)
    assert "dark sectioning, known optics" not in classical_methods(["dark sectioning"], [pair, unknown])


def test_baselines_have_names_that_can_be_typed():
    assert choose_baselines(["all"]) == list(BASELINES) and choose_baselines(["none"]) == []
    typed = [
        "dark-sectioning", "difference-of-gaussians", "richardson-lucy", "richardson-lucy-gradient-consensus",
        "rolling-ball", "white-top-hat", "wiener",
    ]  # fmt: skip
    assert choose_baselines(typed) == list(BASELINES)
    assert choose_baselines(["wiener", "Rolling ball"]) == ["rolling ball", "Wiener"]  # in their usual order
    with pytest.raises(ValueError, match=r"must be rolling-ball, white-top-hat, .*all or none, got 'blur'"):
        choose_baselines(["wiener", "blur"])
    with pytest.raises(ValueError, match="cannot be none and another name"):
        choose_baselines(["none", "wiener"])


def test_names_of_models_are_short_and_differ(tmp_path, monkeypatch):
    for name in ("a/x/best", "b/x/best", "b/last", "a/input"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    assert short_names(["last", "lab/best@v1", str(tmp_path / "a/x/best")]) == ["last", "lab/best@v1", "best"]
    assert short_names(["x/best", "../a/x/best", "last"]) == ["b/x/best", "a/x/best", "last"]
    assert short_names(["../a/input", "."]) == ["a/input", "b"]  # "input" is the unchanged image
    with pytest.raises(ValueError, match=r"--model \.\./b/last is given twice"):
        short_names(["last", "../b/last"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--dataset", "PAIRS", "-o", "MODEL"], "exists"),
        (["--dataset", "MODEL", "-o", "OUT"], "no TIFFs in hazy/"),
        (["--dataset", "PAIRS", "-o", "OUT", "--model", "PAIRS"], "is not a pipeline folder"),
        (["--dataset", "PAIRS", "-o", "OUT", "--model", "MODEL"], "is given twice"),
        (["--dataset", "PAIRS", "-o", "OUT", "--baseline", "blur"], "--baseline must be rolling-ball, "),
        (["--dataset", "PAIRS", "-o", "OUT", "--model", "OTHER"], "contains a pipeline of the class DDPMPipeline"),
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
    other = tmp_path_factory.mktemp("other")
    (other / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    places = {"PAIRS": pairs, "LARGE": large, "MODEL": model, "OTHER": other, "OUT": tmp_path / "out"}
    code, _, message = run("evaluate", "--model", model, *(places.get(each, each) for each in arguments))
    assert code in (1, 2) and error in message
    assert list(tmp_path.iterdir()) == [] and (code == 2 or message.count("\n") == 1)


def test_presets_need_a_pipeline_that_samples(run, pairs, tmp_path):
    HazeRegressionPipeline(tiny_unet()).save_pretrained(tmp_path / "regression")
    arguments = ("evaluate", "--dataset", pairs, "--model", tmp_path / "regression", "--baseline", "none")
    code, _, error = run(*arguments, "-o", tmp_path / "out", "--preset", "fast")
    assert code == 1 and "--preset needs a HazeMatchingPipeline" in error and error.count("\n") == 1
    code, out, error = run(*arguments, "-o", tmp_path / "out", "--json")
    assert code == 0, error
    assert list(json.loads(out)["summary"]) == ["input", "regression"]


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
