"""TIFFs with false headers, large TIFFs, and TIFFs that are read and written plane by plane."""

import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from format_files import write_micromanager
from fuzz_tiffs import fuzz

from haze_pipeline.io.micrograph_files import (
    Micrograph,
    MicrographError,
    open_micrograph,
    read_micrograph,
    write_ome_tiff,
)
from haze_pipeline.io.ome_tiff_writer import OmeTiffWriter


def stack(*shape):
    return np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)


def refusal(path):
    with pytest.raises(MicrographError) as refused:
        read_micrograph(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def replace_tag(path, name, value, page=0):
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[page].tags[name].overwrite(value)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGALRM to end a reader that hangs")
def test_mutated_files_are_read_or_refused():
    summary = fuzz(150, first=10_000)
    assert not summary["failed"] and summary["read"] > 0 and summary["refused"] > 0
    assert summary["peak_MiB"] < 2048


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_huge_declared_size_takes_no_memory(tmp_path, compression):
    path = tmp_path / "huge.tif"
    tifffile.imwrite(path, stack(16, 16), compression=compression)
    replace_tag(path, "ImageWidth", 60_000)
    replace_tag(path, "ImageLength", 60_000)
    replace_tag(path, "RowsPerStrip", 60_000)
    tracemalloc.start()
    assert "claims" in refusal(path) or "missing" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_decompression_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, stack(16, 16), compression="zlib")
    bomb = zlib.compress(bytes(2**29), 9)  # 512 MiB compressed to 0.5 MiB
    with path.open("ab") as file:
        offset = file.tell()
        file.write(bomb)
    replace_tag(path, "StripOffsets", offset)
    replace_tag(path, "StripByteCounts", len(bomb))
    tracemalloc.start()
    refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_circular_chains_of_pages_are_refused(tmp_path):
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, stack(3, 16, 16), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tif:
        first, last = tif.pages[0].offset, tif.pages[-1]
        end = last.offset + 2 + 12 * len(last.tags)
    content = bytearray(path.read_bytes())
    assert content[end : end + 4] == bytes(4)
    content[end : end + 4] = struct.pack("<I", first)
    path.write_bytes(content)
    assert "circular" in refusal(path)


@pytest.mark.parametrize("count", ["SizeZ", "PlaneCount", "IFD"])
def test_ome_xml_that_claims_billions_of_planes_is_refused(tmp_path, count):
    path = tmp_path / "many.ome.tif"
    write_ome_tiff(path, Micrograph(stack(2, 16, 16), "ZYX"))
    described = tifffile.tiffcomment(path)
    tifffile.tiffcomment(path, re.sub(rf'{count}="\d+"', f'{count}="4000000000"', described).encode())
    assert "claims to hold 4e+09 planes" in refusal(path)


def test_an_imagej_description_that_claims_billions_of_planes_is_refused(tmp_path):
    path = tmp_path / "many.tif"
    tifffile.imwrite(path, stack(2, 16, 16), imagej=True)
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace("images=2", "images=4000000000"))
    refusal(path)


def test_micromanager_index_that_claims_planes_beyond_reason(tmp_path):
    path = tmp_path / "many_MMStack_Pos0.ome.tif"
    write_micromanager(path, stack(1, 2, 1, 16, 16))
    content = path.read_bytes()
    index = content.index(struct.pack("<2I", 3453623, 2))
    path.write_bytes(content[: index + 8] + struct.pack("<I", 4_000_000_000) + content[index + 12 :])
    tracemalloc.start()
    assert "claims to hold" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["../../secret.tif", "/etc/secret.tif", "..\\secret.tif", "C:\\secret.tif", "..", "&#46;&#46;/secret.tif"]
)
def test_companion_files_outside_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    tifffile.imwrite(tmp_path / "secret.tif", stack(16, 16))
    path = folder / "set.ome.tif"
    write_ome_tiff(path, Micrograph(stack(2, 16, 16), "ZYX"))
    other = f'PlaneCount="1"><UUID FileName="{name}">urn:uuid:0</UUID></TiffData>'
    described = tifffile.tiffcomment(path).replace('PlaneCount="2"/>', other)
    assert other in described
    tifffile.tiffcomment(path, described.encode())
    assert "outside of its own folder" in refusal(path)


def test_entities_of_ome_xml_are_not_expanded(tmp_path):
    path = tmp_path / "laughs.ome.tif"
    tifffile.imwrite(path, stack(16, 16), ome=True)
    entities = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + level)} "{f"&{chr(97 + level)};" * 10}">' for level in range(12)
    )
    described = tifffile.tiffcomment(path)
    described = described.replace("<OME ", f"<!DOCTYPE OME [{entities}]><OME ", 1).replace(
        'Name="Image0"', 'Name="&m;"'
    )
    tifffile.tiffcomment(path, described.encode())
    refusal(path)


def test_metadata_that_are_not_valid_text_are_ignored(tmp_path):
    path = tmp_path / "latin.tif"
    tifffile.imwrite(path, stack(16, 16), description=b"caf\xe9 \xff\xfe", metadata=None)
    np.testing.assert_array_equal(read_micrograph(path).data, stack(16, 16))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "zstd", "tile": (16, 16)},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
    ],
)
def test_planes_are_read_when_accessed(tmp_path, options):
    path, data = tmp_path / "stack.tif", stack(40, 64, 64)
    tifffile.imwrite(path, data, photometric="minisblack", **options)
    with open_micrograph(path) as micrograph:
        assert not isinstance(micrograph.data, np.ndarray) and micrograph.data.shape == data.shape
        np.testing.assert_array_equal(micrograph.data[7], data[7])
        np.testing.assert_array_equal(micrograph.data[3:5], data[3:5])
        np.testing.assert_array_equal(micrograph.select(z_range=slice(30, None)).data, data[30:])


def test_damage_of_a_plane_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack(3, 64, 64), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[1].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with open_micrograph(path) as micrograph:
        np.testing.assert_array_equal(micrograph.data[0], stack(3, 64, 64)[0])
        with pytest.raises(MicrographError, match="damaged"):
            micrograph.data[1]


def test_one_of_several_images_is_chosen(tmp_path):
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(stack(16, 16), metadata={"axes": "YX", "PhysicalSizeX": 1, "PhysicalSizeY": 1})
        writer.write(stack(2, 20, 24), metadata={"axes": "ZYX", "PhysicalSizeX": 2, "PhysicalSizeY": 2})
    assert "--series" in refusal(path)
    second = read_micrograph(path, series=1)
    np.testing.assert_array_equal(second.data, stack(2, 20, 24))
    assert second.pixel_size == (2, 2)
    with pytest.raises(MicrographError, match="no image 2"):
        read_micrograph(path, series=2)


def test_axes_can_be_named_by_hand(tmp_path):
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, stack(4, 16, 16), photometric="minisblack", metadata=None)
    assert read_micrograph(path).axes == "ZYX" and read_micrograph(path, axes="tyx").axes == "TYX"
    for wrong in ("YX", "TZYX", "YXT", "QYX", "TYY"):
        with pytest.raises(MicrographError, match=r"\(4, 16, 16\)"):
            read_micrograph(path, axes=wrong)


def test_large_planes_are_stored_in_tiles_with_smaller_versions(tmp_path):
    data = stack(2, 2100, 1500)
    write_ome_tiff(tmp_path / "large.ome.tif", Micrograph(data, "ZYX", (0.1, 0.1)))
    with tifffile.TiffFile(tmp_path / "large.ome.tif") as tif:
        assert tif.pages.first.is_tiled
        assert [level.shape for level in tif.series[0].levels] == [(2, 2100, 1500), (2, 1050, 750), (2, 525, 375)]
        np.testing.assert_array_equal(tif.series[0].levels[0].asarray(), data)
        halved = tif.series[0].levels[1].asarray()
    expected = data.reshape(2, 1050, 2, 750, 2).mean(axis=(2, 4))
    assert np.abs(halved - expected).max() <= 0.5
    np.testing.assert_array_equal(read_micrograph(tmp_path / "large.ome.tif").data, data)


def test_the_same_content_makes_the_same_file(tmp_path):
    for name in "ab":
        write_ome_tiff(tmp_path / f"{name}.ome.tif", Micrograph(stack(3, 16, 16), "ZYX"), {"seed": 1})
    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.ome.tif").read_bytes()


def test_planes_must_be_written_in_order(tmp_path):
    with (
        pytest.raises(ValueError, match="in order"),
        OmeTiffWriter(tmp_path / "a.tif", Micrograph(None, "ZYX"), (2, 16, 16), np.uint16) as writer,
    ):
        writer.write((1,), stack(16, 16))
