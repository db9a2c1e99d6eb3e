"""Folders, formats and processes of `haze-pipeline dehaze`."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ome_types
import ome_zarr_models
import pytest
import tifffile
import zarr
from bioio import BioImage
from skimage import io as skimage_io

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.batch.planes import convert
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.io.ome_zarr import OmeZarrWriter
from haze_pipeline.utils.background import subtract_background


def counts(*shape, seed=0):
    return np.random.default_rng(seed).poisson(400, shape).astype(np.uint16)


@pytest.fixture
def folder(tmp_path):
    """Three micrographs, one of them in a sub-folder, a damaged file, and a file that is not an image."""
    inputs = tmp_path / "in"
    (inputs / "day 2").mkdir(parents=True)
    write_ome_tiff(inputs / "a.tif", Micrograph(counts(24, 24), "YX"))
    write_ome_tiff(inputs / "b.ome.tif", Micrograph(counts(2, 24, 24), "ZYX"))
    write_ome_tiff(inputs / "day 2" / "a.tif", Micrograph(counts(24, 24, seed=1), "YX"))
    (inputs / "broken.tif").write_bytes((inputs / "a.tif").read_bytes()[:900])
    (inputs / "notes.txt").write_text("nothing")
    return inputs


def read_log(path):
    with path.open(newline="") as file:
        return {Path(row["source"]).name: row for row in csv.DictReader(file)}


def test_a_folder_keeps_names_and_survives_a_bad_file(run, folder, model, tmp_path):
    output = tmp_path / "out"
    code, out, err = run("dehaze", folder, "-o", output, "--recursive", "--model", model, "--seed", 3)
    assert code == 1 and "broken.tif` is damaged" in err and "3 done, 0 skipped, 1 failed" in err
    written = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert written == [Path("a.tif"), Path("b.ome.tif"), Path("day 2/a.tif"), Path("dehaze_log.csv")]
    assert sorted(out.splitlines()) == sorted(str(output / name) for name in written[:3])
    rows = {row["source"]: row for row in csv.DictReader((output / "dehaze_log.csv").open(newline=""))}
    assert [rows[str(folder / name)]["status"] for name in ("a.tif", "b.ome.tif", "broken.tif")] == [
        "done",
        "done",
        "failed",
    ]
    good = rows[str(folder / "b.ome.tif")]
    assert (good["planes"], good["seed"], good["error"]) == ("2", "3", "") and float(good["seconds"]) > 0
    provenance = read_micrograph(output / "b.ome.tif").provenance
    for count in ("hot_pixels", "below_range", "above_range"):
        assert int(good[count]) == provenance[count]

    # A single file gives the same result as in its folder.
    assert run("dehaze", folder / "b.ome.tif", "-o", tmp_path / "alone.tif", "--model", model, "--seed", 3)[0] == 0
    np.testing.assert_array_equal(
        read_micrograph(tmp_path / "alone.tif").data, read_micrograph(output / "b.ome.tif").data
    )


def test_failures_name_the_options_of_the_command_line(run, folder, model, tmp_path):
    (folder / "broken.tif").unlink()
    code, _, err = run("dehaze", folder, "-o", tmp_path / "out", "--model", model, "--tile-size", 30)
    errors = [row["error"] for row in read_log(tmp_path / "out" / "dehaze_log.csv").values()]
    assert code == 1 and len(errors) == 2
    for message in (*errors, err):
        assert "--tile-size must be a positive multiple of 8" in message and "tile_size" not in message


def test_sub_folders_are_ignored_without_recursive(run, folder, model, tmp_path):
    (folder / "broken.tif").unlink()
    assert run("dehaze", folder, "-o", tmp_path / "out", "--model", model)[0] == 0
    assert not (tmp_path / "out" / "day 2").exists() and (tmp_path / "out" / "b.ome.tif").exists()


def test_patterns_and_several_files(run, folder, model, tmp_path):
    code, _, _ = run("dehaze", f"{folder}/*.ome.tif", folder / "a.tif", "-o", tmp_path / "out", "--model", model)
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["a.tif", "b.ome.tif"]


def test_existing_results_are_skipped_and_leftovers_of_a_killed_run_are_removed(run, folder, model, tmp_path):
    (folder / "broken.tif").unlink()
    output = tmp_path / "out"
    arguments = ("dehaze", folder, "-o", output, "--recursive", "--model", model, "--assess", "--skip-existing")
    assert run(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in output.rglob("*.tif")}
    assert len(before) == 6
    (output / "b_unexplained.ome.tif").unlink()  # then the whole task is repeated
    leftovers = [output / ".haze-0123-a.tif", output / "day 2" / ".haze-0123-a_unexplained.tif"]
    for path in leftovers:
        path.write_bytes(b"half")
    changed = (output / "a.tif").stat().st_mtime_ns
    code, _, err = run(*arguments)
    assert code == 0 and "1 done, 2 skipped, 0 failed" in err
    assert {path: path.read_bytes() for path in output.rglob("*.tif")} == before
    assert (output / "a.tif").stat().st_mtime_ns == changed and not any(path.exists() for path in leftovers)
    assert [row["status"] for row in csv.DictReader((output / "dehaze_log.csv").open())].count("skipped") == 2


def test_the_log_may_be_json_and_contains_verdicts(run, folder, model, tmp_path):
    log = tmp_path / "logs" / "log.json"
    code, out, _ = run("dehaze", folder, "-o", tmp_path / "out", "--model", model, "--assess", "--log", log, "--json")
    assert code == 1
    rows = json.loads(log.read_text())
    assert {row["status"] for row in rows} == {"done", "failed"}
    assert all(row["verdict"] for row in rows if row["status"] == "done")
    assert [row["source"] for row in json.loads(out)["files"]] == [row["source"] for row in rows]


def test_a_dry_run_writes_nothing(run, folder, model, tmp_path):
    code, out, err = run("dehaze", folder, "-o", tmp_path / "out", "--model", model, "--dry-run")
    assert code == 0 and len(out.splitlines()) == 3 and "broken.tif cannot be dehazed" in out and "about" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in/none.tif", "-o", "out"], "does not exist"),
        (["in/none*.tif", "-o", "out"], "does not exist"),
        (["empty", "-o", "out"], "holds no micrographs: search its sub-folders with --recursive"),
        (["empty", "-o", "out", "--recursive"], "empty and its sub-folders hold no micrographs: name a folder"),
        (["https://example.org/in/a.czi", "-o", "out"], "only OME-Zarr is read from remote stores"),
        (["s3://bucket/*.tif", "-o", "out"], "only OME-Zarr is read from remote stores"),
        (["in", "-o", "out.tif"], "name a folder"),
        (["in/a.tif", "-o", "out.png"], "must end in"),
        (["in", "-o", "out", "--preview", "x.png"], "one input"),
        (["in/a.tif", "in/day 2/a.tif", "-o", "out"], "would both become"),
        (["in", "-o", "in"], "is the input itself"),
        (["in/a.tif", "-o", "x.tif", "--z-range", "3"], "FIRST:STOP"),
        (["in/a.tif", "-o", "x.tif", "--z-range", "0:3"], "no axis Z"),
        (["in/b.ome.tif", "-o", "x.tif", "--z-range", "7:9"], "leaves nothing"),
        (["in/a.tif", "-o", "x.tif", "--channel", "1"], "no channel 1"),
        (["in/a.tif", "-o", "x.tif", "--axes", "TYX"], "name each"),
        (["in/a.tif", "-o", "x.tif", "--share-noise", "Q"], "T, Z and C"),
        (["in/a.tif", "-o", "x.tif", "--log", "log.txt"], ".csv or .json"),
        (["in/a.tif", "-o", "x.tif", "--normalization", "checkpoint"], "--normalization checkpoint needs fixed"),
    ],
)
def test_wrong_requests_write_nothing(run, folder, model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run("dehaze", *arguments, "--model", model)
    assert code == 1 and message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# Number types


def test_values_are_rounded_and_saturated_and_counted():
    values = np.array([-3.0, -0.5, 0.4, 1.5, 254.5, 255.4, 255.6, 300.0], np.float32)
    stored, below, above = convert(values, np.dtype(np.uint8))
    assert stored.tolist() == [0, 0, 0, 2, 254, 255, 255, 255] and (below, above) == (1, 2)
    stored, *outside = convert(values, np.dtype(np.float32))
    np.testing.assert_array_equal(stored, values)
    assert outside == [0, 0]
    assert convert(np.array([np.nan, 3.0]), np.dtype(np.uint8), 7)[0].tolist() == [7, 3]


def test_the_report_of_pixels_outside_the_range_is_exact(run, model, tmp_path):
    write_ome_tiff(tmp_path / "in.tif", Micrograph(counts(2, 24, 24), "ZYX"))
    reports = {}
    for dtype in ("same", "float32"):
        output = tmp_path / f"{dtype}.tif"
        code, out, _ = run(
            "dehaze", tmp_path / "in.tif", "-o", output, "--model", model, "--output-dtype", dtype, "--json"
        )
        assert code == 0
        reports[dtype] = read_micrograph(output).data, json.loads(out)["below_range"]
    exact = reports["float32"][0]
    assert exact.dtype == np.float32 and reports["same"][0].dtype == np.uint16
    np.testing.assert_array_equal(reports["same"][0], np.rint(exact).clip(0, 65535))
    assert reports["same"][1] == (np.rint(exact) < 0).sum() > 0 and reports["float32"][1] == 0
    assert abs(exact.mean()) < 4000  # counts


# Formats


FULL = {"pixel_size": (0.2, 0.2), "z_step": 0.5, "time_interval": 2.0, "channel_names": ["DNA", "actin"]}


def make_input(layout, path):
    """Write a hyperstack with all metadata that must be kept, by another library if one can write the layout."""
    data = counts(2, 3, 2, 24, 28)  # TZCYX
    if layout == "imagej":
        metadata = {"axes": "TZCYX", "unit": "um", "spacing": 0.5, "finterval": 2.0, "Labels": ["DNA", "actin"] * 6}
        tifffile.imwrite(path, data, imagej=True, resolution=(5, 5), metadata=metadata)
    elif layout in ("ome", "bigtiff"):
        metadata = {"axes": "TZCYX", "PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2}
        metadata |= {"PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 0.5, "PhysicalSizeZUnit": "µm"}
        metadata |= {"TimeIncrement": 2.0, "TimeIncrementUnit": "s", "Channel": {"Name": ["DNA", "actin"]}}
        tifffile.imwrite(path, data, ome=True, bigtiff=layout == "bigtiff", metadata=metadata)
    else:
        data = np.moveaxis(data, 2, 1)
        with OmeZarrWriter(
            path, Micrograph(data, "TCZYX", **FULL), data.shape, data.dtype, version=layout[-3:]
        ) as writer:
            for index in np.ndindex(data.shape[:-2]):
                writer.write(index, data[index])


@pytest.mark.parametrize("layout", ["imagej", "ome", "bigtiff", "zarr 0.4", "zarr 0.5"])
def test_metadata_survive_in_every_layout(run, model, tmp_path, layout):
    suffix = ".ome.zarr" if layout.startswith("zarr") else ".ome.tif"
    source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    make_input(layout, source)
    code, _, err = run("dehaze", source, "-o", output, "--model", model)
    assert code == 0, err
    given, result = read_micrograph(source), read_micrograph(output)
    assert (result.axes, result.data.shape, result.data.dtype) == (given.axes, given.data.shape, np.uint16)
    for name, value in FULL.items():
        assert (
            getattr(result, name) == pytest.approx(value) if name != "channel_names" else result.channel_names == value
        )

    # Other libraries read the same values.
    image = BioImage(output)
    assert image.dims.order == "TCZYX" and image.channel_names == ["DNA", "actin"]
    assert tuple(image.physical_pixel_sizes) == pytest.approx((0.5, 0.2, 0.2))
    same = result.data if result.axes == "TCZYX" else np.moveaxis(result.data, 2, 1)
    np.testing.assert_array_equal(image.data, same)
    if suffix == ".ome.tif":
        np.testing.assert_array_equal(skimage_io.imread(output, plugin="tifffile"), result.data)
        pixels = ome_types.from_tiff(output).images[0].pixels
        assert (pixels.physical_size_x, pixels.physical_size_z, pixels.time_increment) == (0.2, 0.5, 2.0)
        assert pixels.physical_size_x_unit.value == "µm" and pixels.time_increment_unit.value == "s"
        assert [channel.name for channel in pixels.channels] == ["DNA", "actin"]
        with tifffile.TiffFile(output) as tif:
            assert tif.series[0].axes == "TZCYX"
    else:
        assert ome_zarr_models.open_ome_zarr(zarr.open_group(output, mode="r")).ome_zarr_version == layout[-3:]
    assert result.provenance["content"] == "prediction"


def test_formats_can_be_converted_and_parts_of_a_stack_selected(run, model, tmp_path):
    make_input("imagej", tmp_path / "in.tif")
    code, _, err = run(
        "dehaze", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--model", model,
        "--channel", 1, "--t-range", ":1", "--z-range", "1:",
    )  # fmt: skip
    assert code == 0, err
    result = read_micrograph(tmp_path / "out.tif")
    assert result.data.shape == (1, 2, 24, 28) and result.axes == "TZYX" and result.channel_names == ["actin"]
    make_input("zarr 0.5", tmp_path / "in.ome.zarr")
    assert run("dehaze", tmp_path / "in.ome.zarr", "-o", tmp_path / "b.ome.tif", "--model", model)[0] == 0
    assert run("dehaze", tmp_path / "b.ome.tif", "-o", tmp_path / "c.zarr", "--model", model)[0] == 0
    assert read_micrograph(tmp_path / "c.zarr").channel_names == ["DNA", "actin"]


# Stacks and movies


def test_stacks_do_not_flicker(run, model, tmp_path):
    """Two frames of one scene, of which the second is brighter as a whole. Both start from the same noise."""
    scene = 400 * np.random.default_rng(0).random((32, 32))
    movie = np.stack([scene, 1.5 * scene]).astype(np.float32)
    write_ome_tiff(tmp_path / "movie.tif", Micrograph(movie, "TYX"))
    contrast = {}
    for statistics in ("stack", "plane"):
        arguments = ("--normalization", statistics, "--share-noise", "T", "--model", model)
        assert run("dehaze", tmp_path / "movie.tif", "-o", tmp_path / "out.tif", *arguments)[0] == 0
        result = read_micrograph(tmp_path / "out.tif")
        assert result.provenance["normalization"] == statistics
        contrast[statistics] = result.data[1].std() / result.data[0].std()
    assert contrast["plane"] == pytest.approx(1.5, rel=1e-2)  # the network sees the same frame twice
    assert contrast["stack"] != pytest.approx(1.5, rel=1e-2)


def test_planes_may_share_their_noise(run, model, tmp_path):
    data = np.repeat(counts(1, 1, 24, 24), 2, axis=0).repeat(2, axis=1)  # TZYX, all planes the same
    write_ome_tiff(tmp_path / "in.tif", Micrograph(data, "TZYX"))
    same = {}
    for shared in ("", "T", "TZ"):
        output = tmp_path / f"out{shared}.tif"
        assert run("dehaze", tmp_path / "in.tif", "-o", output, "--model", model, "--share-noise", shared)[0] == 0
        planes = read_micrograph(output).data
        same[shared] = bool((planes[0, 0] == planes[1, 0]).all()), bool((planes[0, 0] == planes[0, 1]).all())
    assert same == {"": (False, False), "T": (True, False), "TZ": (True, True)}


def test_the_offset_of_the_camera_is_subtracted(run, model, tmp_path):
    data = counts(24, 24).astype(np.float32)
    results = []
    for name, added, offset in (("a", 0, 0), ("b", 100, 100)):
        write_ome_tiff(tmp_path / f"{name}.tif", Micrograph(data + added, "YX"))
        output = tmp_path / f"{name}_out.tif"
        arguments = ("--model", model, "--camera-offset", offset)
        assert run("dehaze", tmp_path / f"{name}.tif", "-o", output, *arguments)[0] == 0
        results.append(read_micrograph(output).data)
    np.testing.assert_array_equal(*results)


def test_the_background_wider_than_the_given_width_is_subtracted(run, model, tmp_path):
    data = counts(2, 24, 40)
    write_ome_tiff(tmp_path / "in.tif", Micrograph(data, "TYX"))
    arguments = (
        "--model", model, "--output-dtype", "float32",
        "--num-inference-steps", 2, "--ensemble-size", 2, "--samples", "--assess",
    )  # fmt: skip
    for name, width in (("plain", ()), ("narrow", ("--background-width", 9))):
        (tmp_path / name).mkdir()
        assert run("dehaze", tmp_path / "in.tif", "-o", tmp_path / name / "out.tif", *arguments, *width)[0] == 0
    plain, narrow = (
        {path.name: read_micrograph(path) for path in sorted((tmp_path / name).glob("*.tif"))}
        for name in ("plain", "narrow")
    )
    assert narrow["out.tif"].provenance["background_width"] == 9
    expected = np.stack([subtract_background(plane, 9) for plane in plain["out.tif"].data])
    assert expected.min() == 0 > plain["out.tif"].data.min()
    np.testing.assert_array_equal(narrow["out.tif"].data, expected)
    assert narrow["out.tif"].provenance["assessment"] == plain["out.tif"].provenance["assessment"]
    assert len(plain) == len(narrow) > 3
    for name in plain:
        change = plain["out.tif"].data - expected if "sample" in name or name == "out.tif" else 0
        np.testing.assert_allclose(narrow[name].data, plain[name].data - change, atol=1e-3)


def test_the_background_is_also_subtracted_with_fixed_statistics(run, model, tmp_path):
    write_ome_tiff(tmp_path / "in.tif", Micrograph(counts(24, 24), "YX"))
    fixed = {"normalization": "fixed", "input_mean": 100.0, "input_std": 10.0, "target_mean": 50.0, "target_std": 20.0}
    pipe = HazeMatchingPipeline.from_pretrained(model)
    HazeMatchingPipeline(pipe.unet, pipe.scheduler, **fixed).save_pretrained(tmp_path / "fixed")
    arguments = ("--model", tmp_path / "fixed", "--output-dtype", "float32")
    assert run("dehaze", tmp_path / "in.tif", "-o", tmp_path / "plain.tif", *arguments)[0] == 0
    assert (
        run("dehaze", tmp_path / "in.tif", "-o", tmp_path / "narrow.tif", *arguments, "--background-width", 9)[0] == 0
    )
    plain, narrow = (read_micrograph(tmp_path / f"{name}.tif").data for name in ("plain", "narrow"))
    np.testing.assert_array_equal(narrow, subtract_background(plain, 9))


def test_statistics_by_percentiles_are_robust_to_bright_debris(run, model, tmp_path):
    clean = counts(64, 64).astype(np.float32)
    dirty = clean.copy()
    dirty[10:12, 10:12] = 20_000  # too large for hot pixels
    results = {}
    for statistics in ("stack", "percentile"):
        for name, data in (("clean", clean), ("dirty", dirty)):
            write_ome_tiff(tmp_path / f"{name}.tif", Micrograph(data, "YX"))
            arguments = ("--model", model, "--normalization", statistics)
            assert run("dehaze", tmp_path / f"{name}.tif", "-o", tmp_path / "out.tif", *arguments)[0] == 0
            results[statistics, name] = read_micrograph(tmp_path / "out.tif")
    assert results["percentile", "dirty"].provenance["normalization"] == "percentile"
    change = {
        statistics: np.std(results[statistics, "dirty"].data - results[statistics, "clean"].data)
        for statistics in ("stack", "percentile")
    }
    assert change["percentile"] < change["stack"]


# Processes


def command(*arguments, workers=1):
    started = [] if workers == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [sys.executable, *started, "-m", "haze_pipeline", "dehaze", *map(str, arguments)]


def images(folder):
    """By relative path, the pixels of all results in a folder."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".tif", ".zarr")]
    return {str(path.relative_to(folder)): read_micrograph(path).data for path in sorted(paths)}


def test_several_processes_give_the_results_of_one(run, folder, model, tmp_path):
    make_input("zarr 0.5", folder / "c.ome.zarr")
    arguments = [folder, "--recursive", "--model", model, "--preset", "balanced", "--uncertainty"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = []
    for number in (1, 3):
        output = tmp_path / f"out{number}"
        ran = subprocess.run(
            [*command(*arguments, "-o", output), "--workers", str(number)], env=environment, capture_output=True
        )
        assert ran.returncode == 1 and b"broken.tif" in ran.stderr, ran.stderr.decode()
        rows = read_log(output / "dehaze_log.csv")
        assert {name: row["status"] for name, row in rows.items()} == {
            "a.tif": "done", "b.ome.tif": "done", "c.ome.zarr": "done", "broken.tif": "failed",
        }  # fmt: skip
        assert not list(output.rglob(".haze-*"))
        results.append(images(output))
    assert len(results[0]) == 8 and results[0].keys() == results[1].keys()
    for name, image in results[0].items():
        np.testing.assert_array_equal(image, results[1][name])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL for a group of processes")
def test_the_next_run_completes_a_killed_one(run, folder, model, tmp_path):
    (folder / "broken.tif").unlink()
    arguments = [folder, "--recursive", "--model", model, "--preset", "balanced", "--skip-existing"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert (
        subprocess.run(command(*arguments, "-o", tmp_path / "whole"), env=environment, capture_output=True).returncode
        == 0
    )
    broken_off = subprocess.Popen(
        command(*arguments, "-o", tmp_path / "killed"), env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").rglob(".haze-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(broken_off.pid, signal.SIGKILL)
    broken_off.wait()
    assert list((tmp_path / "killed").rglob(".haze-*"))
    assert (
        subprocess.run(command(*arguments, "-o", tmp_path / "killed"), env=environment, capture_output=True).returncode
        == 0
    )
    assert not list((tmp_path / "killed").rglob(".haze-*"))
    whole, killed = images(tmp_path / "whole"), images(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, image in whole.items():
        np.testing.assert_array_equal(image, killed[name])


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process without SIGTERM")
def test_termination_leaves_no_incomplete_files(folder, model, tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(folder, "-o", output, "--model", model, "--preset", "quality"), start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(output.rglob(".haze-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not list(output.rglob(".haze-*")) and (output / "dehaze_log.csv").exists()
