"""`haze-pipeline simulate`, of random specimens and of confocal stacks."""

import json

import numpy as np
import pytest

from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff


def test_simulate_writes_pairs_that_a_seed_repeats(run, tmp_path):
    for name in ("a", "b"):
        assert run("simulate", tmp_path / "new" / name, "--num-images", 2, "--size", 48, "--seed", 3)[0] == 0
    one, two = tmp_path / "new" / "a", tmp_path / "new" / "b"
    for index in range(2):
        hazy, clear = (read_micrograph(one / kind / f"{index:06d}.ome.tif") for kind in ("hazy", "clear"))
        assert hazy.data.dtype == np.uint16 and clear.data.dtype == np.float32
        assert hazy.data.shape == clear.data.shape == (48, 48)
        parameters = json.loads((one / "parameters.jsonl").read_text().splitlines()[index])
        assert hazy.pixel_size[0] == pytest.approx(parameters["pixel_size"])
        np.testing.assert_array_equal(hazy.data, read_micrograph(two / "hazy" / f"{index:06d}.ome.tif").data)
    code, _, err = run("simulate", one, "--num-images", 1)
    assert code == 1 and "exists" in err


def notes(folder):
    return [json.loads(line) for line in (folder / "parameters.jsonl").read_text().splitlines()]


def test_a_series_shares_its_specimen_and_clear_image(run, tmp_path):
    assert run("simulate", tmp_path / "series", "--num-images", 2, "--size", 32, "--pinholes", "1,2.5,open")[0] == 0
    assert [(note["image"], note["level"]) for note in notes(tmp_path / "series")] == [
        (f"00000{index}_level{level}", pinhole) for index in range(2) for level, pinhole in enumerate((1.0, 2.5, None))
    ]
    assert len({note["specimen_id"] for note in notes(tmp_path / "series")}) == 2
    clear = [read_micrograph(path).data for path in sorted((tmp_path / "series" / "clear").iterdir())]
    np.testing.assert_array_equal(clear[0], clear[2])
    assert not np.array_equal(clear[0], clear[3])


@pytest.fixture
def stack(tmp_path):
    """A confocal stack with its pixel size and z-step."""
    data = np.random.default_rng(0).gamma(0.3, 300, (6, 40, 32)).astype(np.uint16)
    write_ome_tiff(tmp_path / "stack.ome.tif", Micrograph(data, "ZYX", pixel_size=(0.1, 0.1), z_step=0.4))
    return tmp_path / "stack.ome.tif"


def test_planes_of_a_stack_become_pairs(run, stack, tmp_path):
    assert run("simulate", tmp_path / "pairs", "--from-stack", stack, "--na", 1.2, "--background", 0)[0] == 0
    written = notes(tmp_path / "pairs")
    assert [note["plane"] for note in written] == list(range(6))
    assert {(note["pixel_size"], note["z_step"], note["refractive_index"]) for note in written} == {(0.1, 0.4, 1.33)}
    source = read_micrograph(stack).data
    for note in written:
        hazy, clear = (
            read_micrograph(tmp_path / "pairs" / kind / f"{note['image']}.ome.tif") for kind in ("hazy", "clear")
        )
        assert hazy.data.dtype == np.uint16 and hazy.pixel_size == (0.1, 0.1)
        factor = note["gain"] * note["quantum_efficiency"] * note["photons_per_unit"]
        np.testing.assert_allclose(clear.data, factor * source[note["plane"]].astype(np.float32), rtol=1e-4, atol=1e-2)


def test_more_pairs_than_planes_have_other_cameras(run, stack, tmp_path):
    arguments = ("--from-stack", stack, "--na", 0.8, "--num-images", 7, "--z-range", "1:4")
    assert run("simulate", tmp_path / "pairs", *arguments)[0] == 0
    written = notes(tmp_path / "pairs")
    assert [note["plane"] for note in written] == [1, 2, 3, 1, 2, 3, 1]
    assert len({note["gain"] for note in written}) == 7
    assert {note["specimen_id"] for note in written} == {"stack.ome.tif"}


def test_every_stack_of_a_folder_becomes_a_specimen(run, stack, tmp_path):
    folder = tmp_path / "stacks"
    folder.mkdir()
    for name in ("one.ome.tif", "two.ome.tif"):
        (folder / name).write_bytes(stack.read_bytes())
    assert run("simulate", tmp_path / "pairs", "--from-stack", folder, "--na", 0.8)[0] == 0
    assert [note["specimen_id"] for note in notes(tmp_path / "pairs")] == ["one.ome.tif"] * 6 + ["two.ome.tif"] * 6


def test_random_specimens_of_one_kind_are_imaged_by_one_microscope(run, tmp_path):
    arguments = ("--num-images", 3, "--size", 32, "--specimen", "blobs", "--na", 0.8, "--pixel-size", 0.2)
    assert run("simulate", tmp_path / "pairs", *arguments)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "parameters.jsonl").read_text().splitlines()]
    assert [row["specimens"] for row in rows] == [["blobs"]] * 3
    assert {(row["numerical_aperture"], row["pixel_size"], row["refractive_index"]) for row in rows} == {(0.8, 0.2, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from-stack", "STACK"], "--na"),
        (["--from-stack", "PLAIN", "--na", "1.2"], "--pixel-size"),
        (["--from-stack", "PLAIN", "--na", "1.2", "--pixel-size", "0.1"], "--z-step"),
        (["--from-stack", "STACK", "--na", "1.2", "--z-range", "7:9"], "leaves none of the 6"),
        (["--from-stack", "STACK", "--na", "1.2", "--z-range", "all"], "START:STOP"),
        (["--from-stack", "STACK", "--na", "1.2", "--pinholes", "1,2"], "random specimens"),
        (["--from-stack", "STACK", "--na", "1.2", "--size", "64"], "--size"),
        (["--from-stack", "STACK", "--na", "1.2", "--pinhole", "20"], "5 Airy units"),
        (["--from-stack", "STACK", "--na", "1.2", "--z-step", "0"], "--z-step must be positive"),
        (["--from-stack", "STACK", "--na", "1.2", "--depth", "5"], "--sample-index"),
        (["--pinhole", "4"], "add --na"),
        (["--na", "1.2"], "add --pixel-size"),
        (["--specimen", "mice"], "--specimen must be one of filaments, tubules"),
        (["--from-stack", "STACK", "--na", "1.2", "--specimen", "blobs"], "--specimen is for random specimens"),
        (["--from-stack", "STACK", "--na", "1.9"], "--na must lie between"),
        (["--from-stack", "PLANE", "--na", "1.2", "--z-step", "1"], "stack ZYX"),
        (["--from-stack", "EMPTY", "--na", "1.2"], "no TIFF"),
        (["--from-stack", "MISSING.tif", "--na", "1.2"], "MISSING.tif"),
        (["--pinholes", "1,wide"], "1,2,4,open"),
        (["--pinholes", "0"], "--pinholes must be one or more positive diameters"),
        (["--z-step", "0.3"], "--from-stack"),
    ],
)
def test_wrong_requests_are_one_sentence_and_leave_nothing(run, stack, tmp_path, arguments, message):
    data = read_micrograph(stack).data
    write_ome_tiff(tmp_path / "plain.tif", Micrograph(data, "ZYX"))
    write_ome_tiff(tmp_path / "plane.tif", Micrograph(data[0], "YX", pixel_size=(0.1, 0.1)))
    (tmp_path / "empty").mkdir()
    files = {
        "STACK": stack,
        "PLAIN": tmp_path / "plain.tif",
        "PLANE": tmp_path / "plane.tif",
        "EMPTY": tmp_path / "empty",
    }
    code, out, err = run("simulate", tmp_path / "out", *(files.get(part, part) for part in arguments))
    assert code in (1, 2) and out == "" and message in " ".join(err.split()) and "Traceback" not in err
    assert not (tmp_path / "out").exists()
