"""The command `haze-pipeline dehaze` on one file."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from haze_pipeline import HazeMatchingPipeline, __version__
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


@pytest.fixture
def stack(tmp_path):
    """A two-channel z-stack with all metadata that must be kept."""
    data = np.random.default_rng(0).integers(100, 4000, (2, 3, 30, 26), dtype=np.uint16)
    path = tmp_path / "stack.ome.tif"
    names = ["actin", "DNA"]
    write_ome_tiff(path, Micrograph(data, "CZYX", (0.1, 0.1), "µm", 0.3, "µm", channel_names=names))
    return path


def test_dehaze_keeps_shape_axes_sizes_and_names_and_says_how_it_was_made(run, stack, model, tmp_path):
    output = tmp_path / "clear.ome.tif"
    code, out, _ = run(
        "dehaze", stack, "-o", output, "--model", model, "--seed", 5, "--num-inference-steps", 3, "--dtype", "float32"
    )
    assert code == 0 and out.split() == [str(output)]
    result = read_micrograph(output)
    assert result.data.shape == (2, 3, 30, 26) and result.data.dtype == np.uint16
    assert (result.axes, result.pixel_size, result.z_step) == ("CZYX", (0.1, 0.1), 0.3)
    assert result.channel_names == ["actin", "DNA"]
    provenance = result.provenance
    assert provenance["package"] == f"haze-pipeline {__version__}" and provenance["model"] == str(model)
    assert (provenance["seed"], provenance["num_inference_steps"], provenance["ensemble_size"]) == (5, 3, 4)
    assert len(provenance["revision"]) == 12

    # Python gives the same numbers. All planes share the same noise, and the planes of a channel share statistics.
    pipe = HazeMatchingPipeline.from_pretrained(model)
    processor = pipe.image_processor
    expected = []
    for planes in read_micrograph(stack).data:
        statistics = processor.pool(processor.measure(processor.preprocess(planes)))
        generator = torch.Generator().manual_seed(5)
        out = pipe(planes, 3, 4, generator=generator, normalization=processor.normalization_from(statistics))
        expected.append(out.prediction)
    expected = np.stack(expected)
    np.testing.assert_allclose(result.data, expected.clip(0), atol=0.51)
    assert provenance["below_range"] == (expected < -0.5).sum() > 0 and provenance["above_range"] == 0


def test_a_network_without_steps_dehazes_files_in_counts(run, stack, tmp_path):
    torch.manual_seed(0)
    network = ResidualUNet(num_features=4, num_scales=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.3)
    pipe = HazeRegressionPipeline(network.eval(), target_std=2.0)
    pipe.save_pretrained(tmp_path / "network")
    command = ("dehaze", stack, "-o", tmp_path / "clear.ome.tif", "--model", tmp_path / "network")
    code, out, error = run(*command, "--output-dtype", "float32", "--dtype", "float32", "--strength", 0.5, "--json")
    assert code == 0, error
    record = json.loads(out)
    assert (record["solver"], record["num_inference_steps"], record["ensemble_size"]) == (None, 1, 1)
    assert record["assessment"][0]["not_checked"] and record["assessment"][0]["invented"] is not None
    result, hazy = read_micrograph(tmp_path / "clear.ome.tif"), read_micrograph(stack)
    processor = pipe.image_processor
    for planes, restored in zip(hazy.data, result.data, strict=True):
        statistics = processor.pool(processor.measure(processor.preprocess(planes)))
        normalization = processor.normalization_from(statistics)
        prediction = pipe(planes, strength=0.5, normalization=normalization).prediction
        np.testing.assert_allclose(restored, prediction, rtol=1e-5, atol=1e-2)
    (tmp_path / "clear.ome.tif").unlink()
    for flags, message in (
        (("--preset", "balanced"), "gives one estimate and no samples"),
        (("--ensemble-size", 2), "gives one estimate and no samples"),
        (("--num-inference-steps", 2), "does not take the steps of a solver"),
    ):
        code, out, error = run(*command, *flags)
        assert code == 1 and message in error
    code, out, error = run(*command, "--protect")
    assert code == 1 and "does not predict its gain" in error
    code, out, error = run(*command, "--dry-run")
    assert code == 0 and "about" in error


def test_a_network_of_colours_is_for_photographs(run, stack, tmp_path):
    pipe = HazeRegressionPipeline(ResidualUNet(4, 3, num_channels=3), "fixed", 0.0, 1.0)
    pipe.save_pretrained(tmp_path / "network")
    code, _, error = run("dehaze", stack, "-o", tmp_path / "clear.tif", "--model", tmp_path / "network")
    assert code == 1 and "use `haze-pipeline dehaze-photographs`" in error and error.count("\n") == 1


def test_dehaze_writes_uncertainty_samples_and_preview(run, stack, model, tmp_path):
    output, preview = tmp_path / "clear.ome.tif", tmp_path / "clear.png"
    code, out, _ = run(
        "dehaze", stack, "-o", output, "--model", model, "--num-inference-steps", 2, "--ensemble-size", 3,
        "--uncertainty", "--samples", "--preview", preview, "--json", "--output-dtype", "float32",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    names = [
        "clear.ome.tif",
        "clear_uncertainty.ome.tif",
        *(f"clear_sample{i:03d}.ome.tif" for i in range(3)),
        "clear.png",
    ]
    assert report["written"] == [str(tmp_path / name) for name in names]
    samples = np.stack([read_micrograph(tmp_path / name).data for name in names[2:5]])
    np.testing.assert_allclose(read_micrograph(output).data, samples.mean(axis=0), rtol=1e-3, atol=0.1)
    deviation = read_micrograph(tmp_path / "clear_uncertainty.ome.tif")
    expected = samples.std(axis=0, ddof=1) * np.sqrt(1 + 1 / 3)  # error of the mean of three samples
    np.testing.assert_allclose(deviation.data, expected, rtol=1e-3, atol=0.1)
    assert deviation.provenance["content"] == "standard deviation"
    assert Image.open(preview).format == "PNG"


def test_the_number_of_threads_does_not_change_the_result(run, stack, model, tmp_path):
    threads = torch.get_num_threads()
    results = []
    for number in ("1", "2"):
        output = tmp_path / f"{number}.ome.tif"
        assert run("dehaze", stack, "-o", output, "--model", model, "--threads", number)[0] == 0
        results.append(read_micrograph(output).data)
    torch.set_num_threads(threads)
    np.testing.assert_allclose(results[0].astype(float), results[1].astype(float), rtol=1e-3, atol=1)


def test_dehaze_warns_of_unreliable_results(run, stack, model, tmp_path):
    output = tmp_path / "clear.ome.tif"
    code, out, err = run("dehaze", stack, "-o", output, "--model", model, "--assess")
    assert code == 0 and out.split() == [str(output), str(tmp_path / "clear_unexplained.ome.tif")]
    error_map = read_micrograph(tmp_path / "clear_unexplained.ome.tif")
    assert error_map.data.shape == read_micrograph(stack).data.shape and error_map.data.min() >= 0
    verdicts = [line for line in err.splitlines() if line.startswith("plane ")]
    assert len(verdicts) == 6
    code, out, _ = run("dehaze", stack, "-o", output, "--model", model, "--assess", "--json")
    assessments = json.loads(out)["assessment"]
    assert [f"plane {i}: {each['verdict']}" for i, each in enumerate(assessments)] == verdicts
    assert read_micrograph(output).provenance["assessment"] == assessments


def test_a_seed_repeats_a_result_and_another_changes_it(run, stack, model, tmp_path):
    images = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("dehaze", stack, "-o", tmp_path / f"{name}.tif", "--model", model, "--seed", seed)[0] == 0
        images.append(tifffile.imread(tmp_path / f"{name}.tif"))
    np.testing.assert_array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).max() > 0


def test_presets_differ_in_steps_members_and_solver(run, stack, model, tmp_path):
    chosen = {}
    for preset in ("fast", "balanced"):
        output = tmp_path / f"{preset}.tif"
        assert run("dehaze", stack, "-o", output, "--model", model, "--preset", preset)[0] == 0
        chosen[preset] = read_micrograph(output).provenance
    keys = ("num_inference_steps", "ensemble_size", "solver", "shift")
    assert [chosen["fast"][key] for key in keys] == [1, 4, "euler", 1.0]
    assert [chosen["balanced"][key] for key in keys] == [8, 8, "ab2", 2.0]  # no solver was fitted to this checkpoint


def test_the_default_checkpoint_has_a_solver_of_its_own(run, tmp_path):
    write_ome_tiff(
        tmp_path / "in.tif", Micrograph(np.random.default_rng(0).poisson(99, (32, 32)).astype(np.uint16), "YX")
    )
    assert (
        run("dehaze", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--preset", "balanced", "--uncertainty")[0] == 0
    )
    chosen = read_micrograph(tmp_path / "out.tif").provenance
    assert (chosen["num_inference_steps"], chosen["solver"]) == (6, "bespoke")
    assert chosen["dtype"] in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.tif", None),
        ("empty.tif", b""),
        ("text.tif", b"these are no pixels"),
        ("picture.png", b"\x89PNG\r\n\x1a\n"),
        ("broken.tif", b"II*\x00\xff\xff\xff\xff"),
    ],
)
def test_unusable_files_end_in_one_sentence(run, tmp_path, model, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    code, out, err = run("dehaze", tmp_path / name, "-o", tmp_path / "out.ome.tif", "--model", model)
    assert code == 1 and out == ""
    assert err.startswith("Error: ") and err.count("\n") == 1 and name in err and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uncertainty"], "--preset balanced"),
        (["--uncertainty", "--preset", "quality", "--ensemble-size", "1"], "two or more"),
        (["--model", "/nowhere/model"], "/nowhere/model"),
        (["--tile-size", "30"], "--tile-size must be a positive multiple of 8"),
        (["--preview", "out.jpg"], ".png"),
        (["-o", "out.png"], ".ome.tif"),
        (["-o", "/nowhere/out.ome.tif"], "/nowhere"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(run, stack, model, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    code, out, err = run("dehaze", stack, "-o", tmp_path / "out.ome.tif", "--model", model, *arguments)
    assert code == 1 and out == "" and message in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_input_is_never_overwritten(run, stack, model):
    before = stack.read_bytes()
    code, _, err = run("dehaze", stack, "-o", stack, "--model", model)
    assert code == 1 and "input itself" in err and stack.read_bytes() == before


@pytest.mark.parametrize(("flag", "name"), [("--uncertainty", "x_uncertainty.tif"), ("--samples", "x_sample000.tif")])
def test_an_input_named_like_an_extra_output_is_never_overwritten(run, stack, model, tmp_path, flag, name):
    source = tmp_path / name
    source.write_bytes(stack.read_bytes())
    code, _, err = run("dehaze", source, "-o", tmp_path / "x.tif", "--model", model, flag, "--preset", "balanced")
    assert code == 1 and "input itself" in err and source.read_bytes() == stack.read_bytes()
    assert not (tmp_path / "x.tif").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_named(run, stack, model, tmp_path):
    code, _, err = run("dehaze", stack, "-o", tmp_path / "out.tif", "--model", model, "--device", "cuda")
    assert code == 1 and "cuda" in err


def test_infinite_pixels_are_reported_with_their_plane(run, model, tmp_path):
    data = np.ones((3, 20, 20), np.float32)
    data[1, 4, 4] = np.inf
    tifffile.imwrite(tmp_path / "nan.tif", data, photometric="minisblack")
    code, _, err = run("dehaze", tmp_path / "nan.tif", "-o", tmp_path / "out.tif", "--model", model)
    assert code == 1 and "nan.tif" in err and "plane 1" in err and "NaN" in err
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot send SIGINT to one process")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    """A real process is interrupted after it has written part of its result."""
    arguments = ["simulate", str(tmp_path / "pairs"), "--num-images", "1000", "--size", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "haze_pipeline", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("000002.ome.tif")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_every_real_micrograph_keeps_its_shape(run, model, tmp_path, shared_data):
    """The network is tiny, because this test is about the layouts of the files."""
    for path in sorted(
        path for folder in ("paired", "single", "hazy") for path in (shared_data / folder).glob("*.tif")
    ):
        output = tmp_path / f"{path.stem}.ome.tif"
        code, _, error = run(
            "dehaze", path, "-o", output, "--model", model, "--num-inference-steps", 1, "--ensemble-size", 1
        )
        assert code == 0, error
        source, result = read_micrograph(path), read_micrograph(output)
        assert (result.data.shape, result.axes, result.pixel_size) == (
            source.data.shape,
            source.axes,
            source.pixel_size,
        )
        assert np.isfinite(result.data).all() and result.data.std() > 0
