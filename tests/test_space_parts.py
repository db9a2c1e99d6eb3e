"""Parts of the Space that need no server: the advice of a verdict, zip archives, limits, and the checkpoints."""

import stat
import sys
import zipfile
from importlib import import_module

import numpy as np
import pytest
from conftest import ROOT

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.reliability import assessment as assessments
from haze_pipeline.reliability.assessment import Assessment
from haze_pipeline.reliability.input_checks import InputChecks, check_input


pytest.importorskip("zarr", reason="needs the extra `zarr`")


@pytest.fixture
def part(monkeypatch):
    """Imports a module of the Space. Its modules are forgotten afterwards."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # which `uploads` sets
    monkeypatch.syspath_prepend(ROOT / "spaces" / "haze-matching")
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if name in ("archives", "checkpoints", "uploads", "verdicts"):
            del sys.modules[name]


def judged(**values) -> Assessment:
    """An assessment with these values, and the warnings that they cause."""
    maps = {"error_map": np.zeros((2, 2)), "correlation_map": np.zeros((2, 2))}
    faultless = {"unexplained": 0, "correlation": 1, "linearity": 1, "lost": 0, "invented": 0, "predicted_gain": 9}
    faultless |= {"out_of_domain": 0, "pixel_size_in_range": True, "fraction_removed": 0, "excess": 0}
    result = Assessment(**maps, **(faultless | values), input=InputChecks(0, 0, 0, 99, False, False))
    assessments._judge(result, HazeMatchingPipeline.from_default(), 1.0)
    return result


WORST = {"unexplained": 1, "linearity": 9, "lost": 1, "invented": 1, "predicted_gain": -99, "out_of_domain": 9}
WORST |= {"pixel_size_in_range": False, "excess": 1}
UNKNOWN = dict.fromkeys(("invented", "predicted_gain", "out_of_domain", "pixel_size_in_range", "excess"))


def test_every_finding_has_an_advice(part):
    verdicts = part("verdicts")
    worst, unknown = judged(**WORST), judged(**UNKNOWN)
    assert len(worst.warnings) == len(WORST) and len(unknown.not_checked) == len(UNKNOWN)
    inputs = [np.full((64, 64), np.nan, np.float32), np.zeros((64, 64)), np.full((64, 64), 255, np.uint8)]
    inputs[2][20:40, 20:40] = 0  # saturated, few grey levels, and a bright background
    found = [warning for image in inputs for warning in check_input(image, 0).warnings]
    assert len(found) == 5
    advised = [verdicts.advice(finding) for finding in [*worst.warnings, *unknown.not_checked, *found]]
    assert all(advised), [
        finding for finding, words in zip([*worst.warnings, *found], advised, strict=False) if not words
    ]
    assert set(advised) == set(verdicts.ADVICE.values()), "an advice belongs to no finding"
    listed = verdicts.list_findings({1: worst})
    assert listed.startswith(f"**Can it be trusted?** Only with care, for {len(WORST)} reasons:\n\n- **Dehazing")
    assert listed.count("\n- ") == len(WORST)


def test_findings_of_planes_are_joined(part):
    verdicts = part("verdicts")
    good, lost, unchecked = judged(), judged(lost=1), judged(excess=None)
    assert verdicts.list_findings({1: good}) == "**Can it be trusted?** No check found a fault."
    listed = verdicts.list_findings({1: good, 4: lost, 7: lost})
    assert "Only with care (planes 1, 4 and 7 were checked):" in listed
    assert listed.count("Fine structure is missing") == 1 and "(planes 4 and 7).**" in listed
    listed = verdicts.list_findings({1: unchecked})
    assert "checks that could be made found no fault" in listed
    assert "- Not checked: whether intensity was added. Compare" in listed
    assert "--output-dtype" not in verdicts.list_findings({1: judged_of_few_levels()})


def judged_of_few_levels() -> Assessment:
    result = judged()
    result.warnings += check_input(np.arange(4096).reshape(64, 64) % 5, 0).warnings
    assert "grey levels" in result.warnings[0]
    return result


def write_zarr(folder, **options) -> np.ndarray:
    import zarr

    data = np.arange(2 * 8 * 9, dtype=np.uint16).reshape(2, 8, 9)
    group = zarr.create_group(folder, zarr_format=2)
    array = group.create_array("0", shape=data.shape, chunks=(1, 8, 9), dtype=data.dtype, **options)
    array[:] = data
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return data


def pack(archive, folder, prefix: str = ""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, prefix + str(path.relative_to(folder)))


@pytest.mark.parametrize("prefix", ["", "cells.zarr/"])
def test_a_zipped_ome_zarr_is_read(part, tmp_path, prefix):
    uploads = part("uploads")
    data = write_zarr(tmp_path / "cells.zarr")
    path = str(tmp_path / "cells.ZIP")
    pack(path, tmp_path / "cells.zarr", prefix)
    with uploads.open_upload(path) as (micrograph, images):
        assert (micrograph.axes, images) == ("ZYX", 1)
        np.testing.assert_array_equal(np.asarray(micrograph.data), data)
    np.testing.assert_array_equal(uploads.read_stack(path, 1, 1, 1).data, data)
    with pytest.raises(ValueError, match=r"^`cells.ZIP` has no image 2"), uploads.open_upload(path, 2):
        pass


def test_damage_of_a_plane_names_the_archive(part, tmp_path):
    write_zarr(tmp_path / "cells.zarr")
    for chunk in (tmp_path / "cells.zarr" / "0").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith("."):
            chunk.write_bytes(b"damaged")
    pack(tmp_path / "cells.zip", tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match=r"^`cells.zip` is damaged"):
        part("uploads").read_plane(str(tmp_path / "cells.zip"), 1, 1)


def write_entry(name: str, content: bytes = b"", mode: int = 0):
    def write(path):
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(entry, content)

    return write


def write_two(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.zarr/.zgroup", '{"zarr_format": 2}')
        archive.writestr("b.zarr/.zgroup", '{"zarr_format": 2}')


def write_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}", bytes(2**20))


def write_encrypted(path):
    write_entry("0")(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(b"no archive"), "not a zip archive"),
        (write_entry("notes.txt"), "holds 0"),
        (write_two, "holds 2"),
        (write_entry("../evil"), "out of its folder"),
        (write_entry("a/../../evil"), "out of its folder"),
        (write_entry("..\\evil"), "out of its folder"),
        (write_entry("/tmp/evil"), "out of its folder"),
        (write_entry("C:evil"), "out of its folder"),
        (write_entry("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "a link"),
        (write_bomb, "unpacks to 4 MB, more than 1 MB"),
        (write_encrypted, "without a password"),
    ],
)
def test_unsafe_archives_are_refused(part, tmp_path, write, message):
    archives = part("archives")
    write(tmp_path / "cells.zip")
    with (
        pytest.raises(ValueError, match=f"^`cells.zip`.*{message}"),
        archives.unpacked(str(tmp_path / "cells.zip"), 2**20),
    ):
        pass
    assert not list(tmp_path.rglob("*evil*"))


def test_pickles_in_an_ome_zarr_are_not_run(part, tmp_path):
    """A filter that reads pickles would run code of the visitor."""
    write_zarr(tmp_path / "cells.zarr")
    described = tmp_path / "cells.zarr" / "0" / ".zarray"
    described.write_text(described.read_text().replace('"filters": null', '"filters": [{"id": "pickle"}]'))
    assert "pickle" in described.read_text()
    pack(tmp_path / "cells.zip", tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match="damaged"):
        part("uploads").read_plane(str(tmp_path / "cells.zip"), 1, 1)


def test_stacks_are_limited(part, tmp_path):
    uploads = part("uploads")
    uploads.MAX_WORK = 2 * 8 * 9 * 3
    path = str(tmp_path / "stack.ome.tif")
    write_ome_tiff(path, Micrograph(np.zeros((2, 3, 8, 9), np.uint8), "ZCYX"))
    assert uploads.read_stack(path, 3, 1, 3).data.shape == (2, 8, 9)
    with pytest.raises(ValueError, match=r"2 planes of 8 × 9 pixels are too many for 4 members.*at most 1 planes"):
        uploads.read_stack(path, 3, 1, 4)
    with pytest.raises(ValueError, match="Channel 4 does not exist"):
        uploads.read_stack(path, 4, 1, 1)


def test_checkpoints_are_listed(part, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.delenv("HAZE_MODEL", raising=False)
    monkeypatch.setenv("HAZE_CHECKPOINTS", f"{tmp_path / 'mine'}, lab/microtubules ,")
    checkpoints = part("checkpoints")
    named = {"in the package": None, "mine": str(tmp_path / "mine"), "lab/microtubules": "lab/microtubules"}
    assert named == checkpoints.CHECKPOINTS and checkpoints.FIRST == "in the package"
    assert checkpoints.load_checkpoint("in the package") is checkpoints.load_checkpoint("in the package")
    with pytest.raises(ValueError, match=r"^mine is not a pipeline folder"):
        checkpoints.load_checkpoint("mine")
    monkeypatch.setenv("HAZE_MODEL", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="two checkpoints that are called mine"):
        checkpoints.list_checkpoints()
    monkeypatch.delenv("HAZE_CHECKPOINTS")
    assert list(checkpoints.list_checkpoints()) == ["mine", "in the package"]
