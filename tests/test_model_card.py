"""Model cards: those of this repository, and those made from the files of training, calibration and evaluation."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import ROOT, tiny_unet, write_pairs
from diffusers import UNet2DModel
from huggingface_hub import ModelCard

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.sharing.conversion import SUBSETS
from haze_pipeline.sharing.model_card import make_model_card
from haze_pipeline.sharing.publishing import write_repository


EXAMPLE = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"
CARDS = [path for path in sorted((ROOT / "model_cards").glob("*.md")) if path.stem != "collection"]
PLACEHOLDERS = re.compile(
    r"(?i:more information needed|todo|tbd|xxx|lorem|\[insert|undefined)|\{\{|\}\}|\{%|\bNone\b|\bnan\b"
)


def check_card(text: str, folder):
    """Check what the Hub requires of a card (https://huggingface.co/docs/hub/model-cards), and what a reader needs."""
    card = ModelCard(text)
    data = yaml.safe_load(text.split("---")[1])
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "image-to-image"
    assert all(isinstance(tag, str) and tag for tag in data["tags"])
    assert data["license"] in ("apache-2.0", "mit", "cc-by-4.0", "unknown")  # those of the Hub's list used here
    for name in ("datasets", "base_model"):
        for repository in np.atleast_1d(data.get(name, [])):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
    for model in data.get("model-index", []):
        assert model["name"] and model["results"]
        for result in model["results"]:
            assert (
                result["task"]["type"] == "image-to-image" and result["dataset"]["type"] and result["dataset"]["name"]
            )
            assert all(metric["type"] and np.isfinite(metric["value"]) for metric in result["metrics"])
    # huggingface_hub reads the same scores.
    found = [(result.metric_name, result.metric_value) for result in card.data.eval_results or []]
    metrics = [
        metric for model in data.get("model-index", []) for result in model["results"] for metric in result["metrics"]
    ]
    assert sorted(found) == sorted((metric["name"], metric["value"]) for metric in metrics)
    body = card.text.split("```sh")[0] + "".join(part.split("```", 1)[1] for part in card.text.split("```sh")[1:])
    assert PLACEHOLDERS.search(body) is None, PLACEHOLDERS.search(body)
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card.text):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    for heading in (
        "use it",
        "expects",
        "Where it fails",
        "good",
        "reliable its uncertainty",
        "was trained",
        "Licence and citation",
    ):
        assert re.search(rf"^## .*{heading}", card.text, re.MULTILINE)
    assert "**Meant for**" in card.text and "**Not meant for**" in card.text
    for block in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(block, "card", "exec")
    assert "2506.22397" in card.text
    return card


def test_cards_are_rendered_from_measurements_and_published_facts():
    result = subprocess.run(
        [sys.executable, ROOT / "model_cards" / "render.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert {path.stem for path in CARDS} == {"default_checkpoint", *(f"hazematching-{subset}" for subset in SUBSETS)}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_rendered_cards_are_valid_and_complete(path):
    card = check_card(path.read_text(encoding="utf-8"), path.parent)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]
    assert citation["title"] in card.text and all(
        author["family-names"] in card.text for author in citation["authors"]
    )
    if path.stem != "default_checkpoint":
        subset = path.stem.removeprefix("hazematching-")
        assert f"haze-pipeline convert best_model.pth --subset {subset}" in card.text
        assert SUBSETS[subset].sha256 in card.text
        for channel in SUBSETS[subset].channels:
            assert " | ".join(map(str, channel.values())) in card.text


def test_the_code_of_the_default_card_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("hazy.tif", np.random.default_rng(0).poisson(100, (48, 48)).astype(np.uint16))
    text = (ROOT / "model_cards" / "default_checkpoint.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert tifffile.imread("clear.tif").shape == (48, 48)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 8, (64, 64))


def test_a_pushed_card_contains_all_known_facts(run, model, pairs, tmp_path):
    arguments = ("--num-inference-steps", 2, "--ensemble-size", 2, "--dtype", "float32")
    plot = ("--plot", tmp_path / "calibration.png")
    code, _, error = run("calibrate", pairs, "--model", model, "-o", tmp_path / "calibrated", *arguments, *plot)
    assert code == 0, error
    folder = tmp_path / "calibrated"
    (folder / "README.md").unlink()
    training = {
        "data": "the pairs of a folder.",
        "command": "accelerate launch train.py",
        "seed": 3,
        "dataset_name": "lab/pairs",
        "base_model": "lab/older",
        "license": "cc-by-4.0",
        "validation_pairs": 5,
        "validation_input": 20.5,
        "processes": 2,
        "examples_per_step": 32,
        "device": "a processor with 2 threads",
        "versions": {"haze-pipeline": "0.1.0"},
        "log": [{"step": 70, "seconds": 7200.0, "loss": 0.5, "validation_psnr": 24.25}],
    }
    (folder / "training.json").write_text(json.dumps(training))
    options = ("--preset", "fast", "--baseline", "none", "--dtype", "float32")
    code, _, error = run("evaluate", "--dataset", pairs, "--model", folder, "-o", tmp_path / "report", *options)
    assert code == 0, error

    pipe = HazeMatchingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    staged = tmp_path / "staged"
    write_repository(pipe, staged, "lab/microscope", folder, tmp_path / "report", [EXAMPLE])
    card = check_card((staged / "README.md").read_text(encoding="utf-8"), staged)
    assert (card.data.datasets, card.data.base_model, card.data.license) == (["lab/pairs"], "lab/older", "cc-by-4.0")
    facts = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    score = facts["summary"]["haze-pipeline fast"]["range-invariant PSNR (dB)"]
    first = card.data.eval_results[0]
    assert first.metric_value == round(score["mean"], 4) and first.dataset_name == facts["dataset"]
    [row] = re.findall(r"^\| haze-pipeline fast \| (.*) \|$", card.text, re.MULTILINE)
    parameters, _, shown, difference, *_ = row.split(" | ")
    assert parameters == f"{pipe.unet.num_parameters() / 1e6:.3g}" and difference == "–"  # it is the reference
    assert shown == f"{score['mean']:.2f} ± {score['deviation']:.2f}"
    calibration = json.loads((folder / "calibration.json").read_text())
    assert (
        f"{calibration['before']['RMS error / RMS deviation']:.2f} times the predicted standard deviation before"
        in card.text
    )
    for fact in (
        "seed 3",
        "2 processes on a processor with 2 threads, 32 patches",
        "70 steps in 2 hours",
        "| 70 | 0.5000 | 24.25 |",
        "examples/filaments.png",
        "(calibration.png)",
        "mean and standard deviation of 2 samples of 2 steps",
    ):
        assert fact in card.text
    assert str(tmp_path) not in card.text
    # A card written by hand is kept. An evaluation of other weights is refused.
    (folder / "README.md").write_text("My card.")
    write_repository(pipe, tmp_path / "own", "lab/microscope", folder)
    assert (tmp_path / "own" / "README.md").read_text() == "My card."
    other = HazeMatchingPipeline(tiny_unet(1), FlowMatchODEScheduler())
    with pytest.raises(ValueError, match="of other weights"):
        write_repository(other, tmp_path / "other", "lab/microscope", None, tmp_path / "report")
    with pytest.raises(ValueError, match=r"no evaluation\.json"):
        write_repository(other, tmp_path / "none", "lab/microscope", None, pairs)
    with pytest.raises(ValueError, match="float16"):
        write_repository(other.to(torch.float16), tmp_path / "half", "lab/x")


def test_a_push_finds_its_model_among_several(run, pairs, tmp_path):
    pipes = [HazeMatchingPipeline(tiny_unet(seed), FlowMatchODEScheduler()) for seed in range(3)]
    for seed, pipe in enumerate(pipes):
        pipe.save_pretrained(tmp_path / f"seed{seed}")
    models = ("--model", tmp_path / "seed0", "--model", tmp_path / "seed1")
    options = ("--preset", "fast", "--baseline", "none", "--dtype", "float32", "--num-figures", 0)
    code, _, error = run("evaluate", "--dataset", pairs, *models, "-o", tmp_path / "report", *options)
    assert code == 0, error
    facts = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    # As if the pairs were a dataset of the Hub.
    (tmp_path / "report" / "evaluation.json").write_text(json.dumps({**facts, "dataset_id": "lab/pairs"}))
    write_repository(pipes[1], tmp_path / "staged", "lab/microscope", None, tmp_path / "report", license_id="mit")
    card = check_card((tmp_path / "staged" / "README.md").read_text(encoding="utf-8"), tmp_path / "staged")
    assert {result.metric_name.split(", ")[1] for result in card.data.eval_results} == {"seed1 fast"}
    value = facts["summary"]["seed1 fast"]["range-invariant PSNR (dB)"]["mean"]
    assert card.data.eval_results[0].metric_value == round(value, 4)
    assert "This checkpoint is called seed1 in the table." in card.text and "| seed0 fast |" in card.text
    assert f"weights {facts['models'][1]['revision']}" in card.text
    stored = tmp_path / "staged" / ".eval_results" / "haze-pipeline-seed1-fast.yaml"
    assert list(stored.parent.iterdir()) == [stored]
    assert yaml.safe_load(stored.read_text())[0]["value"] == round(value, 4)
    with pytest.raises(ValueError, match="of other weights"):
        write_repository(pipes[2], tmp_path / "other", "lab/microscope", None, tmp_path / "report")


def test_older_evaluations_are_read(run, model, pairs, tmp_path):
    options = ("--preset", "fast", "--baseline", "none", "--dtype", "float32", "--num-figures", 0)
    code, _, error = run("evaluate", "--dataset", pairs, "--model", model, "-o", tmp_path / "report", *options)
    assert code == 0, error
    file = tmp_path / "report" / "evaluation.json"
    facts = json.loads(file.read_text())
    revision = facts["models"][0]["revision"]
    for name in ("models", "kinds", "parameters", "reference", "differences", "dataset_id"):
        del facts[name]
    file.write_text(json.dumps({**facts, "model": "lab/older", "revision": revision}))
    pipe = HazeMatchingPipeline.from_pretrained(model)
    write_repository(pipe, tmp_path / "staged", "lab/microscope", None, tmp_path / "report", license_id="mit")
    card = check_card((tmp_path / "staged" / "README.md").read_text(encoding="utf-8"), tmp_path / "staged")
    value = facts["summary"]["haze-pipeline fast"]["range-invariant PSNR (dB)"]["mean"]
    assert card.data.eval_results[0].metric_value == round(value, 4) and f"weights {revision}" in card.text
    assert "| haze-pipeline fast | " in card.text and not (tmp_path / "staged" / ".eval_results").exists()
    file.write_text(json.dumps({**facts, "model": "lab/older", "revision": "0123456789ab"}))
    with pytest.raises(ValueError, match=r"of other weights \(0123456789ab\)"):
        write_repository(pipe, tmp_path / "other", "lab/microscope", None, tmp_path / "report")


@pytest.mark.parametrize("published", [True, False])
def test_a_card_names_the_authors_only_for_their_published_weights(tmp_path, published):
    known = SUBSETS["neuron"]
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), normalization="fixed", **known.channels[0])
    (tmp_path / "conversion.json").write_text(json.dumps({"subset": "neuron", "channel": 0, "published": published}))
    write_repository(pipe, tmp_path / "staged", "lab/neuron", tmp_path)
    card = check_card((tmp_path / "staged" / "README.md").read_text(encoding="utf-8"), tmp_path)
    assert card.data.license == "unknown"
    assert ("the authors of the paper published" in card.text) == (known.sha256 in card.text) == published


def test_cards_of_other_paths_say_what_the_network_predicts():
    unet = UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1})
    path = {"source": "hazy", "source_noise": 0.01, "prediction_type": "clear", "guided": False}
    text = str(make_model_card(HazeMatchingPipeline(unet, FlowMatchODEScheduler(), **path), "indi", {}, None))
    assert "from\nthe hazy image with noise of the standard deviation 0.01 to the clear image" in text
    assert "predicts\nthe clear image, and does not see the hazy image" in text
    assert "conditional flow matching" not in text
    text = str(make_model_card(HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()), "flow", {}, None))
    assert "guided conditional flow matching" in text and "follows a path" not in text
