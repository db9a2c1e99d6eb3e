"""
Datasets of pairs: exact values from TIFF to the Hub and back, splits by specimen, refusals, the card, the command.
"""

import json
import os
import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from datasets import load_dataset
from hub_double import cards_are_checked_here, hub_double
from PIL import Image

from haze_pipeline.data.dataset_card import make_dataset_card
from haze_pipeline.data.hub_datasets import (
    build_dataset,
    decode_plane,
    encode_plane,
    pair_row,
    save_dataset,
    split_by_specimen,
)
from haze_pipeline.data.pairs import (
    Pair,
    hazematching_splits,
    pairs_from_folder,
    pairs_from_hazematching,
    pairs_from_rows,
)
from haze_pipeline.data.specimen_datasets import build_specimen_dataset, specimen_rows
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff


EVERY_UINT16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def float32_of_all_kinds() -> np.ndarray:
    """Random bit patterns (both signs, all magnitudes, subnormal numbers) and the extreme values, shape [256, 256]."""
    values = np.random.default_rng(0).integers(0, 2**32, (256, 256), dtype=np.uint32).view(np.float32)
    values[~np.isfinite(values)] = 0
    info = np.finfo(np.float32)
    values[0, :6] = [info.smallest_subnormal, -info.smallest_subnormal, info.max, info.min, info.tiny, -0.0]
    return values


@pytest.fixture
def pairs(tmp_path):
    """Eight pairs of six specimens: five files, one of them a stack of two planes, and a sub-folder of two files."""
    folder = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    shapes = {
        "a": (2, 20, 24),
        "b": (20, 24),
        "c": (20, 24),
        "d": (20, 24),
        "e": (20, 24),
        "f/1": (20, 24),
        "f/2": (20, 24),
    }
    for name, shape in shapes.items():
        for kind, dtype in (("hazy", np.uint16), ("clear", np.float32)):
            data = rng.integers(0, 4000, shape).astype(dtype)
            path = folder / kind / f"{name}.ome.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = {"pixel_size": (65.0, 65.0), "pixel_size_unit": "nm"} if name != "b" else {}
            write_ome_tiff(path, Micrograph(data, "ZYX"[-len(shape) :], **size))
    return folder


def dataset_of(specimens, tmp_path, name="all"):
    plane = np.zeros((2, 2), np.uint16)
    return build_dataset((pair_row(plane, plane, s, f"{s}.tif") for s in specimens), tmp_path / f"{name}.arrow")


# Planes


@pytest.mark.parametrize(
    "plane",
    [
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        EVERY_UINT16,
        EVERY_UINT16.T,
        EVERY_UINT16.astype(">u2"),
        float32_of_all_kinds(),
        float32_of_all_kinds().astype(">f4"),
        np.array([[7]], np.uint16),
        np.array([[0.1, -2.5, 1e-45]], np.float32),
    ],
)
def test_planes_keep_every_bit(plane):
    decoded = decode_plane(encode_plane(plane))
    assert decoded.dtype == plane.dtype.newbyteorder("=")
    assert decoded.tobytes() == plane.astype(decoded.dtype).tobytes()  # distinguishes -0 from 0


@pytest.mark.parametrize(
    ("plane", "dtype"),
    [
        (np.array([[0, 65535]], np.int32), np.uint16),
        (np.array([[0, 65536]], np.uint32), np.float32),
        (np.array([[-3, 2**24]], np.int64), np.float32),
        (np.array([[0.5, -4096.25]], np.float64), np.float32),
        (np.array([[0.1, 3]], np.float16), np.float32),
    ],
)
def test_other_types_are_converted_if_the_conversion_is_exact(plane, dtype):
    decoded = decode_plane(encode_plane(plane))
    assert decoded.dtype == dtype and (decoded == plane).all()


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\)"),
        (np.zeros((2, 4, 4), np.uint16), r"shape \(2, 4, 4\)"),
        (np.zeros((0, 4), np.uint16), r"shape \(0, 4\)"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.array([[1, np.nan]], np.float32), "NaN"),
        (np.array([[1, np.inf]], np.float32), "infinite"),
        (np.array([[1 / 3]]), "float64 values that float32 would round"),
        (np.array([[1e300]]), "float64 values that float32 would round"),
        (np.array([[2**24 + 1]], np.int32), "int32 values that float32 would round"),
        (np.array([[2**63 - 1]], np.int64), "int64 values that float32 would round"),
        (np.array([[2**64 - 1]], np.uint64), "uint64 values that float32 would round"),
    ],
)
def test_what_cannot_be_stored_exactly_is_refused(plane, message):
    with pytest.raises(ValueError, match=message):
        encode_plane(plane)
    with pytest.raises(ValueError, match=f"^cell.tif, hazy: The image .*{message}"):
        pair_row(plane, plane, "cell", "cell.tif")


def test_rows_give_back_the_pairs_they_were_made_of():
    pair = Pair(
        np.arange(6, dtype=np.uint16).reshape(2, 3), np.ones((2, 3), np.float32), "fish", "fish/1.tif", 1.5, 0.1
    )
    (found,) = pairs_from_rows([pair_row(**vars(pair))])
    np.testing.assert_array_equal(found.hazy, pair.hazy)
    np.testing.assert_array_equal(found.clear, pair.clear)
    assert (found.specimen_id, found.source, found.level, found.pixel_size_um) == ("fish", "fish/1.tif", 1.5, 0.1)
    with pytest.raises(ValueError, match=r"^row 0 of the dataset has no image in the column `hazy`; it has image"):
        list(pairs_from_rows([{"image": None}]))
    pages = BytesIO()
    tifffile.imwrite(pages, np.zeros((2, 8, 8), np.uint8))
    for image in (Image.new("RGB", (8, 8)), {"bytes": pages.getvalue()}):
        with pytest.raises(ValueError, match=r"^row 0 of the dataset: The image must be a single plane"):
            list(pairs_from_rows([{"hazy": image, "clear": image}]))
    rows = [{**pair_row(**vars(pair)), "clear": encode_plane(np.ones((3, 3), np.float32))}]
    with pytest.raises(ValueError, match=r"^fish/1.tif: .*\(2, 3\) and \(3, 3\)"):
        list(pairs_from_rows(rows))


# Sources


def test_a_folder_of_pairs_gives_one_pair_for_each_plane(pairs):
    found = list(pairs_from_folder(pairs, level=2.5))
    assert [pair.source for pair in found] == [
        "a.ome.tif, plane 0", "a.ome.tif, plane 1", "b.ome.tif", "c.ome.tif", "d.ome.tif", "e.ome.tif", "f/1.ome.tif",
        "f/2.ome.tif",
    ]  # fmt: skip
    assert [pair.specimen_id for pair in found] == ["a", "a", "b", "c", "d", "e", "f", "f"]
    assert [pair.pixel_size_um for pair in found] == [0.065, 0.065, None, *[0.065] * 5]
    assert {pair.level for pair in found} == {2.5}
    np.testing.assert_array_equal(found[1].hazy, tifffile.imread(pairs / "hazy" / "a.ome.tif")[1])
    np.testing.assert_array_equal(found[1].clear, tifffile.imread(pairs / "clear" / "a.ome.tif")[1])


def test_folders_are_read_only_as_far_as_needed(pairs):
    (pairs / "hazy" / "e.ome.tif").write_bytes(b"II*\x00\xff\xff\xff\xff")
    found = pairs_from_folder(pairs)
    assert next(found).source == "a.ome.tif, plane 0"
    with pytest.raises(ValueError, match=r"e\.ome\.tif"):
        list(found)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "clear" / "c.ome.tif").unlink(), "hazy/c.ome.tif has no partner: .*clear/c.ome.tif"),
        (lambda folder: (folder / "hazy" / "c.ome.tif").unlink(), "clear/c.ome.tif has no partner: .*hazy/c.ome.tif"),
        (lambda folder: (folder / "hazy").rename(folder / "input"), "no TIFFs in hazy/"),
        (lambda folder: tifffile.imwrite(folder / "hazy" / "c.ome.tif", np.zeros((9, 9), np.uint16)), r"\(9, 9\)"),
        (
            lambda folder: tifffile.imwrite(
                folder / "hazy" / "c.ome.tif", np.zeros((20, 24, 3), np.uint8), photometric="rgb"
            ),
            "c.ome.tif` stores 3 samples per pixel",
        ),
        (
            lambda folder: tifffile.imwrite(
                folder / "hazy" / "c.ome.tif", np.zeros((2, 20, 24), np.uint16), imagej=True, metadata={"axes": "CYX"}
            ),
            "hazy/c.ome.tif holds several channels",
        ),
    ],
)
def test_folders_without_matching_pairs_are_refused(pairs, spoil, message):
    spoil(pairs)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(pairs_from_folder(pairs))


def hazematching_file(path, value, shape=(2, 12, 16), **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(shape, np.uint16)
    data[0], data[1] = value, 1000 + value
    tifffile.imwrite(path, data, photometric="minisblack", **arguments)


def test_published_folders_keep_their_splits(tmp_path):
    folders = {"train_crop": "train", "train": "train", "val_crop": "validation", "val": "validation", "test": "test"}
    for value, name in enumerate(folders):
        hazematching_file(tmp_path / name / "img_0.tif", value)
    hazematching_file(tmp_path / "train_crops_fid" / "img_0.tif", 99)
    hazematching_file(tmp_path / "test" / "img_1.tif", 50, imagej=True, metadata={"axes": "CYX"})
    assert hazematching_splits(tmp_path) == ["train", "validation", "test"]
    found = {}
    for split in ("train", "validation", "test"):
        for pair in pairs_from_hazematching(tmp_path, split):
            assert pair.clear.shape == (12, 16) and (pair.hazy == 1000 + pair.clear).all()
            found[pair.source] = (split, int(pair.clear[0, 0]), pair.specimen_id, pair.level)
    expected = {f"{n}/img_0.tif": (s, i, f"{n}/img_0", None) for i, (n, s) in enumerate(folders.items())}
    assert found == {**expected, "test/img_1.tif": ("test", 50, "test/img_1", None)}


def test_the_published_neuron_data_have_other_folders(tmp_path):
    for name in ("train", "val"):
        hazematching_file(tmp_path / name / "x.tif", 1)
    assert hazematching_splits(tmp_path) == ["train", "validation"]
    with pytest.raises(FileNotFoundError, match="train_crop, train, val_crop, val, test"):
        hazematching_splits(tmp_path / "train")


@pytest.mark.parametrize("shape", [(3, 12, 16), (2, 2, 12, 16), (12, 16)])
def test_published_files_of_another_shape_are_refused(tmp_path, shape):
    hazematching_file(tmp_path / "test" / "x.tif", 1, shape)
    with pytest.raises(ValueError, match=r"x\.tif has shape .* not \[2, H, W\]"):
        list(pairs_from_hazematching(tmp_path, "test"))


def test_pairs_of_different_shapes_and_impossible_pinholes_are_refused():
    with pytest.raises(ValueError, match=r"x.tif: .*\(2, 3\) and \(3, 2\)"):
        pair_row(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "x", "x.tif")
    for level in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"x.tif: `level`"):
            pair_row(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), "x", "x.tif", level=level)


# Splits


def test_no_specimen_is_in_two_splits_and_new_specimens_do_not_move_others(tmp_path):
    specimens = [f"fish{i // 3}" for i in range(300)]
    splits = split_by_specimen(dataset_of(specimens, tmp_path), validation_share=0.2, test_share=0.1, seed=1)
    groups = {name: set(split["specimen_id"][:]) for name, split in splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 100
    assert sum(map(len, splits.values())) == 300
    assert 10 <= len(groups["validation"]) <= 30 and 3 <= len(groups["test"]) <= 20

    more = dataset_of([f"worm{i}" for i in range(50)] + specimens[::-1], tmp_path, "more")
    for name, split in split_by_specimen(more, 0.2, 0.1, seed=1).items():
        assert {s for s in split["specimen_id"][:] if s.startswith("fish")} == groups[name]
    assert set(split_by_specimen(more, 0.2, 0.1, seed=2)["test"]["specimen_id"][:]) != groups["test"]


def test_without_fractions_everything_is_for_training(tmp_path):
    splits = split_by_specimen(dataset_of("abc", tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 3}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.0), "None of the 1 specimens falls into the split (train|validation)"),
        ((-0.1, 0.0), "must not be negative"),
        ((0.5, 0.5), "their sum must be below 1"),
    ],
)
def test_impossible_splits_are_refused(tmp_path, shares, message):
    with pytest.raises(ValueError, match=message):
        split_by_specimen(dataset_of("aaa", tmp_path), *shares)


def test_a_dataset_without_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one pair"):
        build_dataset(iter([]), tmp_path / "all.arrow")


# Files, card, command


def test_shards_hold_all_rows_in_order(tmp_path):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 65536, (7, 32, 32), dtype=np.uint16)
    rows = (pair_row(plane, plane, str(i), f"{i}.tif") for i, plane in enumerate(planes))
    splits = split_by_specimen(build_dataset(rows, tmp_path / "all.arrow"))
    card = make_dataset_card(splits, "x", "", "", "")
    save_dataset(splits, card, tmp_path / "out", max_shard_bytes=12_000)
    assert len(list((tmp_path / "out" / "data").glob("train-0000?-of-00003.parquet"))) == 3
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    np.testing.assert_array_equal(np.stack([decode_plane(row["hazy"]) for row in loaded]), planes)


def test_the_command_makes_a_dataset_whose_card_counts_it(run, pairs, tmp_path):
    output = tmp_path / "new" / "dataset"
    code, out, err = run(
        "dataset", pairs, "-o", output, "--validation-share", 0.4, "--level", 3, "--seed", 2, "--license", "cc0-1.0"
    )
    assert (code, err) == (0, "") and out.strip() == str(output)
    assert [path.name for path in output.parent.iterdir()] == ["dataset"]

    splits = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    card = (output / "README.md").read_text()
    assert list(splits) == ["train", "validation"] and sum(map(len, splits.values())) == 8
    for name, split in splits.items():
        assert split.features["level"].dtype == "float64" and split["level"][:] == [3.0] * len(split)
        unknown = split["pixel_size_um"][:].count(None)
        sizes = "0.065" if not unknown else f"0.065; unknown for {unknown} pairs"
        specimens = len(set(split["specimen_id"][:]))
        row = (
            f"| {name} | {len(split)} | {specimens} | 20 × 24 | uint16 | float32 | {sizes} | "
            "pinholes of 3 Airy units |"
        )
        assert row in card
        for pair in split:
            file_name = pair["source"].split(",")[0]
            plane = int(pair["source"].split("plane ")[1]) if "plane" in pair["source"] else ...
            for kind in ("hazy", "clear"):
                np.testing.assert_array_equal(
                    decode_plane(pair[kind]), tifffile.imread(pairs / kind / file_name)[plane], strict=True
                )
    header = card.split("---")[1]
    for line in ("license: cc0-1.0", "- image-to-image", "- microscopy", "- fluorescence", "- dehazing"):
        assert line in header
    assert "haze-pipeline dataset pairs -o dataset --level 3.0 --validation-share 0.4" in card
    assert str(tmp_path) not in card and "simulated with `" not in card

    # The code in the card runs in the parent folder.
    block = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", block], cwd=output.parent, env=environment, check=True, timeout=120)


def test_a_simulated_series_keeps_its_specimens_and_levels(run, tmp_path):
    arguments = ("--num-images", 6, "--size", 32, "--pinholes", "1,1.2,open")
    assert run("simulate", tmp_path / "pairs", *arguments)[0] == 0
    assert run("dataset", tmp_path / "pairs", "-o", tmp_path / "out", "--test-share", 0.5)[0] == 0
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    specimens = {name: set(split["specimen_id"]) for name, split in splits.items()}
    assert not specimens["train"] & specimens["test"] and sum(map(len, specimens.values())) == 6
    for split in splits.values():
        assert split["level"][:3] == [1.0, 1.2, None]


def test_the_card_says_that_images_were_simulated(run, tmp_path):
    assert run("simulate", tmp_path / "pairs", "--num-images", 1, "--size", 32)[0] == 0
    assert run("dataset", tmp_path / "pairs", "-o", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    note = json.loads((tmp_path / "pairs" / "parameters.jsonl").read_text())
    assert "simulated with `haze-pipeline simulate`, not measured" in card and note["specimens"][0] in card
    assert (
        f"numerical aperture {note['numerical_aperture']:.3g}, emission {note['emission_wavelength']:.3g} µm" in card
    )


def test_the_card_says_that_clear_images_came_from_a_stack(run, tmp_path):
    data = np.random.default_rng(0).gamma(0.3, 300, (4, 32, 32)).astype(np.uint16)
    write_ome_tiff(tmp_path / "stack.tif", Micrograph(data, "ZYX", pixel_size=(0.1, 0.1), z_step=0.4))
    assert run("simulate", tmp_path / "pairs", "--from-stack", tmp_path / "stack.tif", "--na", 0.8)[0] == 0
    assert run("dataset", tmp_path / "pairs", "-o", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "planes of confocal stacks" in card and "numerical aperture 0.8," in card and "| 4 | 1 |" in card


def test_the_command_imports_published_data(run, tmp_path):
    for name in ("train_crop", "val_crop", "test"):
        hazematching_file(tmp_path / "zebrafish" / name / "a.tif", 5)
    code, _, err = run("dataset", tmp_path / "zebrafish", "-o", tmp_path / "out", "--layout", "hazematching")
    assert (code, err) == (0, "")
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 1, "test": 1}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "As published." in card and "`zebrafish`" in card and "No licence was stated" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push-to", "lab/pairs"], "--license"),
        (["--push-to", "not a name", "--license", "mit"], "not a name"),
        (["--private"], "--push-to"),
        (["--layout", "hazematching", "--test-share", "0.1"], "published splits"),
        (["--layout", "hazematching"], "train_crop"),
        (["--validation-share", "0.7", "--test-share", "0.3"], "leave something to train on"),
        (["--test-share", "0.0001"], "None of the 6 specimens falls into the split test"),
        (["--level", "0"], "--level"),
        (["-o", "pairs"], "exists"),
    ],
)
def test_wrong_requests_leave_nothing(run, pairs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("dataset", "pairs", "-o", "out", *arguments)
    assert code == 1 and out == "" and message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreadable_source_leaves_nothing(run, pairs, tmp_path):
    (pairs / "hazy" / "e.ome.tif").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run("dataset", pairs, "-o", tmp_path / "out")
    assert code == 1 and "e.ome.tif" in err and err.count("\n") == 1
    code, _, err = run("dataset", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert code == 1 and "nowhere is not a folder" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_library_datasets_one_sentence_says_what_to_install(pairs, tmp_path):
    code = (
        "import sys; sys.modules['datasets'] = None; sys.argv = ['haze-pipeline', *sys.argv[1:]]; "
        "from haze_pipeline import cli; from haze_pipeline.data import dataset_card, hub_datasets, pairs; cli.main()"
    )
    arguments = ["dataset", str(pairs), "-o", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    assert 'pip install "haze-pipeline[train]"' in result.stderr and not (tmp_path / "out").exists()


# The Hub


def hub_environment(endpoint, tmp_path):
    return {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_double", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def command(arguments, environment, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "haze_pipeline", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=120, cwd=folder,
    )  # fmt: skip


READ_BACK = """
import sys
import numpy as np
from datasets import load_dataset
from haze_pipeline.data.hub_datasets import decode_plane

found = {}
for streaming in (True, False):
    for split, rows in load_dataset("lab/pairs", streaming=streaming).items():
        for row in rows:
            for kind in ("hazy", "clear"):
                found[f"{streaming} {row['source']} {kind}"] = decode_plane(row[kind])
            found[f"{streaming} {row['source']} rest"] = [split, str(row["level"]), repr(row["pixel_size_um"])]
np.savez(sys.argv[1], **found)
"""


@cards_are_checked_here
def test_every_value_is_unchanged_after_upload_and_download(tmp_path):
    folder = tmp_path / "pairs"
    images = {"one.tif": (EVERY_UINT16, float32_of_all_kinds()), "two.tif": (EVERY_UINT16.T, EVERY_UINT16[::-1])}
    for name, planes in images.items():
        for kind, plane in zip(("hazy", "clear"), planes, strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_ome_tiff(folder / kind / name, Micrograph(np.ascontiguousarray(plane), "YX", pixel_size=(0.1, 0.1)))
    arguments = ["dataset", folder, "--license", "cc-by-4.0", "--push-to", "lab/pairs"]
    with hub_double() as hub:
        environment = hub_environment(hub.endpoint, tmp_path)
        result = command([*arguments, "-o", tmp_path / "out", "--private"], environment)
        assert result.returncode == 0, result.stderr
        assert result.stderr == "" and result.stdout.split() == [
            str(tmp_path / "out"),
            f"{hub.endpoint}/datasets/lab/pairs",
        ]
        assert hub.private == {"lab/pairs"}

        subprocess.run(
            [sys.executable, "-c", READ_BACK, tmp_path / "back.npz"], env=environment, check=True, timeout=120
        )
    back = np.load(tmp_path / "back.npz")
    assert len(back.files) == 2 * 2 * 3
    for streaming in (True, False):
        for name, planes in images.items():
            for kind, plane in zip(("hazy", "clear"), planes, strict=True):
                found = back[f"{streaming} {name} {kind}"]
                assert found.dtype == plane.dtype and found.tobytes() == plane.tobytes()
            assert back[f"{streaming} {name} rest"].tolist() == ["train", "None", "0.1"]

    # The card was uploaded before the data. Both commits contain the text of the folder's card.
    card_commit, data_commit = (files for _, files in hub.repos["lab/pairs"][1:])
    assert b"license: cc-by-4.0" in card_commit["README.md"] and not any(
        name.endswith(".parquet") for name in card_commit
    )
    text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)[2]
    assert data_commit["README.md"].decode().endswith(text)
    assert b"num_examples: 2" in data_commit["README.md"] and b"license: cc-by-4.0" in data_commit["README.md"]


def test_a_name_is_a_dataset_on_the_hub_or_a_mistyped_path_after_one_request(tmp_path):
    plane = np.random.default_rng(0).gamma(0.3, 300, (64, 64)).astype(np.uint16)
    write_ome_tiff(tmp_path / "a.tif", Micrograph(plane, "YX", (0.1, 0.1)))
    facts = dict.fromkeys(("structure", "modality", "licence", "origin", "notes"), "")
    facts |= {"file": "a.tif", "quality": 5, "pixel_size_um": 0.1, "z_step_um": None}
    rows = build_specimen_dataset(specimen_rows(tmp_path / "a.tif", facts), tmp_path / "rows.arrow")
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    arguments = ("simulate", "pairs", "--num-images", 1, "--size", 32, "--from-images")
    with hub_double() as hub:
        hub.repos = {"lab/specimens": []}
        hub.commit("lab/specimens", {"data/train-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()})
        environment = hub_environment(hub.endpoint, tmp_path)
        missing = command([*arguments, "data/cleen"], environment, tmp_path)
        assert [request for request in hub.requests if "cleen" in request] == ["GET /api/datasets/data/cleen"]
        found = command([*arguments, "lab/specimens"], environment, tmp_path)
        assert found.returncode == 0, found.stderr
        assert len(list((tmp_path / "pairs" / "hazy").iterdir())) == 1
    unreachable = command(["simulate", "others", "--from-images", "data/cleen"], environment, tmp_path)
    for result, sentence in (
        (missing, "neither a folder here nor a dataset on the Hub"),
        (unreachable, "not a folder here, and the Hub cannot be reached"),
    ):
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and sentence in result.stderr
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("data/cleen", "data/cleen is not in the folder data: check the path, or, for a dataset on the Hub"),
        ("data/2024/cleen", "check the path, or name a dataset on the Hub as ORG/NAME"),
        ("cleen", "check the path, or name a dataset on the Hub as ORG/NAME"),
    ],
)
def test_what_can_only_be_a_path_is_refused_without_a_request(run, tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    code, _, err = run("simulate", "pairs", "--from-images", name)
    assert code == 1 and err.count("\n") == 1 and sentence in err and not (tmp_path / "pairs").exists()


@cards_are_checked_here
def test_a_second_upload_replaces_the_first(pairs, tmp_path):
    arguments = ["dataset", pairs, "--license", "mit", "--push-to", "lab/pairs"]
    with hub_double() as hub:
        environment = hub_environment(hub.endpoint, tmp_path)
        first = command([*arguments, "-o", tmp_path / "1", "--validation-share", 0.4, "--seed", 2], environment)
        assert first.returncode == 0, first.stderr
        assert len([name for name in hub.files("lab/pairs") if name.endswith(".parquet")]) == 2
        second = command([*arguments, "-o", tmp_path / "2"], environment)
        assert second.returncode == 0, second.stderr
        assert [name for name in hub.files("lab/pairs") if name.endswith(".parquet")] == [
            "data/train-00000-of-00001.parquet"
        ]
        # Private images are not pushed to an existing public repository.
        commits = len(hub.repos["lab/pairs"])
        third = command([*arguments, "-o", tmp_path / "3", "--private"], environment)
        assert third.returncode == 1 and "exists and is public" in third.stderr and third.stderr.count("\n") == 1
        assert "hf upload" not in third.stderr
        assert len(hub.repos["lab/pairs"]) == commits


def test_a_failed_upload_keeps_the_folder_and_shows_the_command_to_repeat_it(pairs, tmp_path):
    arguments = ["dataset", pairs, "-o", tmp_path / "out", "--license", "mit", "--push-to", "lab/pairs", "--private"]
    result = command(arguments, hub_environment("http://127.0.0.1:9", tmp_path))
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"hf upload lab/pairs {tmp_path / 'out'} --repo-type dataset --private" in result.stderr
    assert (tmp_path / "out" / "README.md").is_file()
