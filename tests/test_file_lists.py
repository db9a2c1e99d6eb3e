"""Folders in which an image is spread over several files."""

import uuid

import numpy as np
import pytest
import tifffile
from format_files import NAMES, write_micromanager

from haze_pipeline.io.micrograph_files import list_micrographs, read_micrograph
from haze_pipeline.io.tiff_reader import list_series


SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def counts(*shape):
    return np.random.default_rng(0).integers(1, 4000, shape, dtype=np.uint16)


def ome_xml(images: dict[str, list[str]]) -> str:
    """The OME-XML of images whose channels lie in files of their own."""
    described = ""
    for number, (name, files) in enumerate(images.items()):
        planes = "".join(
            f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{file}">'
            f"{uuid.uuid5(uuid.NAMESPACE_URL, file).urn}</UUID></TiffData>"
            for c, file in enumerate(files)
        )
        channels = "".join(
            f'<Channel ID="Channel:{number}:{c}" Name="{(*NAMES, "membrane")[c]}" SamplesPerPixel="1"/>'
            for c in range(len(files))
        )
        described += (
            f'<Image ID="Image:{number}" Name="{name}"><Pixels ID="Pixels:{number}" DimensionOrder="XYZCT" '
            f'Type="uint16" SizeX="28" SizeY="24" SizeZ="1" SizeC="{len(files)}" SizeT="1" PhysicalSizeX="0.2" '
            f'PhysicalSizeY="0.2">{channels}{planes}</Pixels></Image>'
        )
    return f'<?xml version="1.0"?><OME xmlns="{SCHEMA}">{described}</OME>'


def write(path, plane, description=None):
    tifffile.imwrite(path, plane, metadata=None, description=description and description.encode())


def listed(folder):
    return [path.name for path in list_micrographs(folder)]


@pytest.mark.parametrize("layout", ["first", "both", "companion", "first as companion"])
def test_an_image_in_several_files_is_listed_once(tmp_path, layout):
    data = counts(2, 24, 28)
    text = ome_xml({"cell": ["a.ome.tif", "b.ome.tif"]})
    companion = {"companion": "all.companion.ome", "first as companion": "a.ome.tif"}.get(layout)
    only = f'<OME xmlns="{SCHEMA}"><BinaryOnly MetadataFile="{companion}"/></OME>'
    write(tmp_path / "a.ome.tif", data[0], only if layout == "companion" else text)
    write(tmp_path / "b.ome.tif", data[1], {"first": None, "both": text}.get(layout, only))
    if layout == "companion":
        (tmp_path / "all.companion.ome").write_text(text)
    write(tmp_path / "c.tif", counts(24, 28))
    assert listed(tmp_path) == ["a.ome.tif", "c.tif"]
    micrograph = read_micrograph(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(micrograph.data, data)
    assert micrograph.channel_names == NAMES


def test_files_with_an_image_of_their_own_are_all_listed_and_hold_one(tmp_path):
    """As of a plate whose every file has the OME-XML of all."""
    files = {f"field {number}": [f"{number}.ome.tif"] for number in range(3)}
    data = counts(3, 24, 28)
    for number in range(3):
        write(tmp_path / f"{number}.ome.tif", data[number], ome_xml(files))
    assert listed(tmp_path) == ["0.ome.tif", "1.ome.tif", "2.ome.tif"]
    for number in range(3):
        np.testing.assert_array_equal(read_micrograph(tmp_path / f"{number}.ome.tif").data, data[number])
        with tifffile.TiffFile(tmp_path / f"{number}.ome.tif") as tif:
            assert len(list_series(tif)) == 1
    np.testing.assert_array_equal(read_micrograph(tmp_path / "0.ome.tif", series=2).data, data[2])


def test_the_first_file_that_is_there_stands_for_the_image(tmp_path):
    text = ome_xml({"cell": ["a.ome.tif", "b.ome.tif", "c.ome.tif"]})
    for name in "bc":
        write(tmp_path / f"{name}.ome.tif", counts(24, 28), text)
    assert listed(tmp_path) == ["b.ome.tif"]


def test_micromanager_continues_full_files_in_others(tmp_path):
    for name in ("a_MMStack_Pos0.ome.tif", "a_MMStack_Pos0_1.ome.tif", "a_MMStack_Pos1.ome.tif"):
        write_micromanager(tmp_path / name, counts(1, 2, 1, 24, 28))
    assert listed(tmp_path) == ["a_MMStack_Pos0.ome.tif", "a_MMStack_Pos1.ome.tif"]


def test_damaged_files_are_listed_so_that_they_are_told(tmp_path, caplog):
    text = ome_xml({"cell": ["a.ome.tif", "b.ome.tif"]})
    write(tmp_path / "a.ome.tif", counts(24, 28), text[:-10] + "OME>")
    write(tmp_path / "b.ome.tif", counts(24, 28))
    (tmp_path / "c.tif").write_bytes(b"II*\0 nonsense")
    (tmp_path / "d.tif").write_bytes(b"")
    assert listed(tmp_path) == ["a.ome.tif", "b.ome.tif", "c.tif", "d.tif"] and not caplog.records


def test_a_run_does_such_an_image_once(run, model, tmp_path):
    data = counts(2, 24, 28)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.ome.tif", data[0], ome_xml({"cell": ["a.ome.tif", "b.ome.tif"]}))
    write(tmp_path / "in" / "b.ome.tif", data[1])
    code, _, err = run("dehaze", tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert code == 0 and "1 done" in err, err
    assert [path.name for path in (tmp_path / "out").glob("*.tif")] == ["a.ome.tif"]
    result = read_micrograph(tmp_path / "out" / "a.ome.tif")
    assert result.data.shape == (2, 24, 28) and result.channel_names == NAMES
