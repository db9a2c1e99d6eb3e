"""
OME-Zarr: round trips, files of other programs, refused files, and several writers of one image. Runs on OME-Zarr are
tested in tests/test_runs.py.
"""

import json

import numpy as np
import ome_zarr_models
import pytest
import zarr

from haze_pipeline.io.micrograph_files import Micrograph, MicrographError, open_micrograph, read_micrograph
from haze_pipeline.io.ome_zarr import OmeZarrWriter


def counts(*shape):
    return np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)


def write(path, micrograph, **options):
    data = micrograph.data
    with OmeZarrWriter(path, micrograph, data.shape, data.dtype, **options) as writer:
        for index in np.ndindex(data.shape[:-2]):
            writer.write(index, data[index])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("shape", "axes"), [((20, 30), "YX"), ((3, 20, 30), "TYX"), ((2, 3, 20, 30), "CZYX")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_round_trip(tmp_path, version, shape, axes, dtype):
    micrograph = Micrograph(
        counts(*shape).astype(dtype), axes, (0.1, 0.2), "nm", time_interval=3, time_interval_unit="min"
    )
    write(tmp_path / "a.ome.zarr", micrograph, version=version, provenance={"seed": 1})
    result = read_micrograph(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(result.data, micrograph.data)
    assert (result.axes, result.data.dtype, result.pixel_size, result.pixel_size_unit) == (
        axes,
        dtype,
        (0.1, 0.2),
        "nm",
    )
    assert result.provenance == {"seed": 1} and result.channel_names is None
    assert (result.time_interval, result.time_interval_unit) == ((3, "min") if "T" in axes else (None, "s"))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert ome_zarr_models.open_ome_zarr(group).ome_zarr_version == version


def test_large_planes_get_smaller_versions(tmp_path):
    data = counts(2, 2100, 1500)
    write(tmp_path / "a.zarr", Micrograph(data, "ZYX", (0.1, 0.1)))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert [group[level].shape for level in "012"] == [(2, 2100, 1500), (2, 1050, 750), (2, 525, 375)]
    assert np.abs(group["1"][:] - data.reshape(2, 1050, 2, 750, 2).mean(axis=(2, 4))).max() <= 0.5
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert datasets[2]["coordinateTransformations"][0]["scale"] == pytest.approx([1, 0.4, 0.4])


def test_writers_of_different_planes_make_one_image(tmp_path):
    data = counts(4, 20, 30)
    micrograph = Micrograph(data, "TYX", (0.1, 0.1))
    first = OmeZarrWriter(tmp_path / "a.zarr", micrograph, data.shape, data.dtype)
    second = OmeZarrWriter(tmp_path / "a.zarr", micrograph, data.shape, data.dtype, create=False)
    for number in range(4):
        (second if number % 2 else first).write((number,), data[number])
    first.provenance = {"seed": 1}
    second.close()
    first.close()
    result = read_micrograph(tmp_path / "a.zarr")
    np.testing.assert_array_equal(result.data, data)
    assert result.provenance == {"seed": 1}


def test_planes_are_read_only_when_accessed(tmp_path):
    write(tmp_path / "a.zarr", Micrograph(counts(3, 20, 30), "TYX"))
    with open_micrograph(tmp_path / "a.zarr") as micrograph:
        chunk = tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-20])
        np.testing.assert_array_equal(micrograph.data[2], counts(3, 20, 30)[2])
        with pytest.raises(MicrographError, match="damaged"):
            micrograph.data[1]


def test_scales_of_the_image_and_of_its_levels_multiply(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, Micrograph(counts(20, 30), "YX", (0.5, 0.5)))
    described = json.loads((path / "zarr.json").read_text())
    image = described["attributes"]["ome"]["multiscales"][0]
    image["coordinateTransformations"] = [{"type": "scale", "scale": [2, 2]}]
    (path / "zarr.json").write_text(json.dumps(described))
    assert read_micrograph(path).pixel_size == (1, 1)


def change(path, edit):
    described = json.loads((path / "zarr.json").read_text())
    edit(described["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda ome: ome.pop("multiscales"), "none is found in it"),
        (lambda ome: (ome.pop("multiscales"), ome.update(plate={"wells": []})), "none is found in it"),
        (lambda ome: ome["multiscales"].append(ome["multiscales"][0]), "--series"),
        (lambda ome: ome["multiscales"][0].update(axes=ome["multiscales"][0]["axes"][::-1]), "last"),
        (lambda ome: ome["multiscales"][0]["axes"].pop(), "last"),
        (lambda ome: ome["multiscales"][0].update(datasets=[]), "damaged"),
        (lambda ome: ome["multiscales"][0]["datasets"][0].update(path="../../secret"), "damaged"),
        (lambda ome: ome["multiscales"][0]["datasets"][0].update(path="none"), "damaged"),
        (lambda ome: ome.update(multiscales="nonsense"), ""),
    ],
)
def test_unreadable_images_are_explained_in_one_sentence(tmp_path, edit, words):
    path = tmp_path / "a.zarr"
    write(path, Micrograph(counts(3, 20, 30), "TYX"))
    change(path, edit)
    with pytest.raises(MicrographError, match=words) as refused:
        read_micrograph(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_chunks_beyond_memory_are_refused(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, Micrograph(counts(20, 30), "YX"))
    described = json.loads((path / "0" / "zarr.json").read_text())
    described["shape"] = described["chunk_grid"]["configuration"]["chunk_shape"] = [60_000, 60_000]
    (path / "0" / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(MicrographError, match="smaller"):
        read_micrograph(path)


def test_folders_that_are_not_ome_zarr(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(MicrographError, match="is a folder"):
        read_micrograph(tmp_path / "empty.zarr")
    (tmp_path / "empty.zarr" / "zarr.json").write_text("{")
    with pytest.raises(MicrographError, match="damaged"):
        read_micrograph(tmp_path / "empty.zarr")


@pytest.mark.parametrize("axes", ["CTYX", "RTYX"])
def test_axes_that_ome_zarr_cannot_store(tmp_path, axes):
    with pytest.raises(MicrographError, match="choose a TIFF"):
        write(tmp_path / "a.zarr", Micrograph(counts(2, 2, 20, 30), axes))
    assert not (tmp_path / "a.zarr").exists()
