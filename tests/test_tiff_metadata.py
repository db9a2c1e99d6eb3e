"""Sizes and names that are hard to find in TIFFs, and warnings of those that are not kept."""

import json
import subprocess
import sys
import uuid
import warnings

import numpy as np
import pytest
import tifffile
from format_files import (
    ASCII,
    FORMATS,
    LONG,
    NAMES,
    PIXEL,
    UNDEFINED,
    RawTiff,
    facts_read,
    write_binary_only,
    write_lsm,
    write_micromanager,
    write_ome_tiff,
    write_packed,
    write_scanimage,
    write_stk,
)

from haze_pipeline.io.acquisition import Acquisition, Channel, Position, color_of_lut, lut_of_color
from haze_pipeline.io.maker_metadata import parse_objective
from haze_pipeline.io.micrograph_files import Micrograph, MicrographError, read_micrograph
from haze_pipeline.io.micrograph_files import write_ome_tiff as write


SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def counts(*shape, dtype="uint16"):
    return np.random.default_rng(0).integers(1, 4000, shape).astype(dtype)


def warned(path, **options):
    """A micrograph, and the only warning that reading it gives."""
    with pytest.warns(UserWarning) as caught:
        micrograph = read_micrograph(path, **options)
    assert len(caught) == 1, [str(each.message) for each in caught]
    message = str(caught[0].message)
    assert str(path) in message and "\n" not in message
    return micrograph, message


def silent(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_micrograph(path, **options)


# Resolution tags


@pytest.mark.parametrize(("unit", "length"), [("INCH", 25400), ("CENTIMETER", 10000), ("MILLIMETER", 1000)])
def test_a_resolution_finer_than_any_print_is_that_of_a_microscope(tmp_path, unit, length):
    options = {"resolution": (length / 0.1, length / 0.2), "resolutionunit": unit}
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20), metadata=None, **options)
    micrograph = silent(tmp_path / "a.tif")
    assert micrograph.pixel_size == pytest.approx((0.2, 0.1)) and micrograph.pixel_size_unit == "µm"


@pytest.mark.parametrize("dpi", [1, 72, 96, 300, 600, 1200])
def test_the_resolution_of_a_print_is_no_pixel_size(tmp_path, dpi):
    for name, unit, value in (
        ("a.tif", "INCH", dpi),
        ("b.tif", "CENTIMETER", round(dpi / 2.54)),
        ("c.tif", "NONE", dpi),
    ):
        options = {"resolution": (max(value, 1), max(value, 1)), "resolutionunit": unit}
        tifffile.imwrite(tmp_path / name, counts(16, 20), metadata=None, **options)
        assert silent(tmp_path / name).pixel_size is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": (500, 500), "resolutionunit": "CENTIMETER"}, "1270 pixels per inch"),
        ({"resolution": (4.5, 4.5), "resolutionunit": "NONE"}, "not the unit"),
    ],
)
def test_a_resolution_that_is_not_kept_is_told(tmp_path, options, words):
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20), metadata=None, **options)
    micrograph, message = warned(tmp_path / "a.tif")
    assert micrograph.pixel_size is None and words in message and "not kept" in message


# Sizes in places that are not read


@pytest.mark.parametrize("text", ["PixelSize: 0.1 um", "voxel size = 0.1", "Spatial-Calibration 0.1 micron"])
def test_a_description_that_speaks_of_pixel_sizes_is_told_and_kept(tmp_path, text):
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20), metadata=None, description=text)
    micrograph, message = warned(tmp_path / "a.tif")
    assert "not kept" in message and micrograph.acquisition.description == text


def test_metadata_of_makers_that_are_not_read_are_told(tmp_path):
    tif = RawTiff()
    tif.add_page(counts(16, 20), {34680: (ASCII, "[Scan]\r\nPixelWidth=1e-07\r\n")})
    tif.write(tmp_path / "a.tif")
    micrograph, message = warned(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrograph.data, counts(16, 20))
    assert "FEI" in message and "not kept" in message


@pytest.mark.parametrize("form", [form for form in FORMATS if "TIFF" not in form.name and "Zarr" not in form.name])
def test_a_calibration_that_the_user_switched_off_or_that_is_nonsense_is_none(tmp_path, form):
    """Sizes of zero, as programs write where they know none."""
    path = tmp_path / form.file
    form.write(path, form.data())
    content = path.read_bytes()
    for value in (np.float64(PIXEL), np.float64(PIXEL * 1e-6)):
        content = content.replace(value.tobytes(), np.float64(0).tobytes())
    zeros = [(b'"PixelSize_um": 0.2', b'"PixelSize_um": 0.0'), (b"(200, 1000)", b"")]
    for old, new in zeros:
        content = content.replace(old, new)
    path.write_bytes(content)
    micrograph = silent(path)
    assert micrograph.pixel_size is None or form.name in ("MetaMorph STK", "ScanImage")
    np.testing.assert_array_equal(micrograph.data, form.data())


def test_metadata_that_cannot_be_read_are_told_and_the_pixels_are_read(tmp_path):
    tif = RawTiff()
    tif.add_page(counts(16, 20), {305: (ASCII, "SI.hChannels.channelSave = ['a' 'b']")})
    tif.write(tmp_path / "a.tif")
    micrograph, message = warned(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrograph.data, counts(16, 20))
    assert "ScanImage" in message


# Makers


def test_the_thumbnails_of_an_lsm_are_no_images(tmp_path):
    data = counts(1, 3, 1, 24, 28)
    write_lsm(tmp_path / "a.lsm", data)
    micrograph = silent(tmp_path / "a.lsm")
    np.testing.assert_array_equal(micrograph.data, data[0, :, 0])
    assert micrograph.channel_names == NAMES[:1]
    with pytest.raises(MicrographError, match="no image 1"):
        read_micrograph(tmp_path / "a.lsm", series=1)


def test_a_movie_of_metamorph_has_a_time_step(tmp_path):
    data = counts(4, 24, 28)
    write_stk(tmp_path / "a.stk", data, step=0)
    micrograph = silent(tmp_path / "a.stk")
    np.testing.assert_array_equal(micrograph.data, data)
    assert micrograph.axes == "TYX" and facts_read(micrograph)["T"] and micrograph.z_step is None


def test_positions_that_tifffile_reads_without_their_sign_are_left_out(tmp_path):
    write_stk(tmp_path / "a.stk", counts(4, 24, 28))
    content = (tmp_path / "a.stk").read_bytes()
    below_zero = np.array([2**32 - 350_000, 1000], "<u4").tobytes()
    (tmp_path / "a.stk").write_bytes(content.replace(np.array([350_000, 1000], "<u4").tobytes(), below_zero))
    assert silent(tmp_path / "a.stk").acquisition.planes[0].position == Position(1200.0, None, 42.0)


def test_scanimage_in_a_classic_tiff_keeps_its_channels_apart(tmp_path):
    data = counts(4, 2, 24, 28)
    write_scanimage(tmp_path / "a.tif", data, big=False)
    micrograph = silent(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrograph.data, data)
    assert micrograph.axes == "ZCYX" and micrograph.channel_names == NAMES


def test_micromanager_reads_the_position_of_the_file(tmp_path):
    positions = [counts(2, 3, 2, 24, 28) + 10_000 * number for number in range(3)]
    paths = [tmp_path / f"a_MMStack_Pos{number}.ome.tif" for number in range(3)]
    for number, (path, data) in enumerate(zip(paths, positions, strict=True)):
        write_micromanager(path, data, number, 3)
    for path, data in zip(paths, positions, strict=True):
        micrograph = silent(path)
        assert micrograph.axes == "TZCYX" and facts_read(micrograph)["P"] and len(micrograph.acquisition.planes) == 12
        np.testing.assert_array_equal(micrograph.data, data)


def test_micromanager_believes_its_ome_xml_first(tmp_path):
    data = counts(2, 3, 2, 24, 28)
    write_ome_tiff(tmp_path / "described.ome.tif", data)
    text = tifffile.tiffcomment(tmp_path / "described.ome.tif").replace('PhysicalSizeX="0.2"', 'PhysicalSizeX="0.4"')
    write_micromanager(tmp_path / "a_MMStack_Pos0.ome.tif", data, ome_xml=text.replace("µ", "&#181;"))
    micrograph = silent(tmp_path / "a_MMStack_Pos0.ome.tif")
    assert micrograph.pixel_size == (0.2, 0.4) and facts_read(micrograph)["O"] and facts_read(micrograph)["S"]
    np.testing.assert_array_equal(micrograph.data, data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plan-Apochromat 63x/1.40 Oil DIC M27", (63, 1.4, "Oil")),
        ("UPLSAPO 60XO NA:1.35", (60, 1.35, "Oil")),
        ("C-Apochromat 40x/1.20 W Korr", (40, 1.2, "Water")),
        ("EC Plan-Neofluar 10x/0.30 M27", (10, 0.3, None)),
        ("none", (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_names_of_objectives(text, expected):
    parsed = parse_objective(text)
    assert (parsed["magnification"], parsed["numerical_aperture"], parsed["immersion"]) == expected


# Companion files


def test_a_companion_that_is_missing_is_told(tmp_path):
    path, data = tmp_path / "a.ome.tif", counts(2, 3, 2, 24, 28)
    write_binary_only(path, data)
    (tmp_path / "a.companion.ome").unlink()
    micrograph, message = warned(path)
    assert "a.companion.ome" in message and micrograph.pixel_size is None
    np.testing.assert_array_equal(micrograph.data, data.reshape(-1, 24, 28))


def test_a_companion_may_be_the_first_file_of_the_set(tmp_path):
    data = counts(2, 1, 2, 24, 28)
    write_ome_tiff(tmp_path / "a.ome.tif", data[:1])
    described = tifffile.tiffcomment(tmp_path / "a.ome.tif").replace('SizeT="1"', 'SizeT="2"')
    start, end = described.index("<TiffData"), described.index("/>", described.index("<TiffData")) + 2
    parts = "".join(
        f'<TiffData FirstT="{t}" IFD="0" PlaneCount="2"><UUID FileName="{name}.ome.tif">{uuid.UUID(int=t).urn}</UUID>'
        "</TiffData>"
        for t, name in enumerate("ab")
    )
    described = described[:start] + parts + described[end:]
    tifffile.tiffcomment(tmp_path / "a.ome.tif", described.encode())
    only = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="a.ome.tif"/></OME>'
    )
    tifffile.imwrite(tmp_path / "b.ome.tif", data[1, 0], photometric="minisblack", description=only, metadata=None)
    for name in "ab":
        micrograph = silent(tmp_path / f"{name}.ome.tif")
        assert micrograph.axes == "TCYX" and micrograph.channel_names == NAMES
        np.testing.assert_array_equal(micrograph.data, data[:, 0])


@pytest.mark.parametrize("name", ["../secret.ome", "/etc/secret.ome"])
def test_companions_are_looked_for_in_the_same_folder_only(tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "secret.ome").write_text("<OME/>")
    only = f'<OME xmlns="{SCHEMA}"><BinaryOnly MetadataFile="{name}"/></OME>'
    tifffile.imwrite(tmp_path / "b" / "a.ome.tif", counts(16, 20), description=only, metadata=None)
    with pytest.raises(MicrographError, match="outside of its own folder"):
        read_micrograph(tmp_path / "b" / "a.ome.tif")


def test_a_damaged_companion_is_told(tmp_path):
    write_binary_only(tmp_path / "a.ome.tif", counts(2, 3, 2, 24, 28))
    (tmp_path / "a.companion.ome").write_text("<OME>")
    with pytest.raises(MicrographError, match=r"damaged companion file 'a\.companion\.ome'"):
        read_micrograph(tmp_path / "a.ome.tif")


# 0 as white


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "int16"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_what_is_stored_with_0_as_white_is_inverted(tmp_path, dtype, options):
    data = counts(3, 16, 20, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", ~data, photometric="miniswhite", metadata=None, **options)
    np.testing.assert_array_equal(silent(tmp_path / "a.tif").data, data, strict=True)
    write(tmp_path / "b.ome.tif", read_micrograph(tmp_path / "a.tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), data)


def test_packed_values_are_inverted_in_their_own_bits(tmp_path):
    data = counts(16, 20)
    write_packed(tmp_path / "a.tif", 4095 - data, photometric="miniswhite")
    np.testing.assert_array_equal(silent(tmp_path / "a.tif").data, data)


def test_real_numbers_with_0_as_white_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20, dtype="float32"), photometric="miniswhite", metadata=None)
    with pytest.raises(MicrographError, match="0 as white"):
        read_micrograph(tmp_path / "a.tif")


def test_an_inverting_look_up_table_of_imagej_leaves_values_as_they_are(tmp_path):
    data = counts(16, 20)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="miniswhite", metadata=None, description="ImageJ=1.54f\n")
    micrograph = silent(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrograph.data, data)
    table = np.frombuffer(micrograph.acquisition.channels[0].lut, np.uint8).reshape(3, 256)
    assert (table == np.arange(255, -1, -1)).all()
    write(tmp_path / "b.ome.tif", micrograph)
    assert read_micrograph(tmp_path / "b.ome.tif").acquisition == micrograph.acquisition


# Channels that stand last


@pytest.mark.parametrize("options", [{}, {"ome": True}, {"imagej": True}, {"metadata": None}, {"compression": "zlib"}])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_channels_last_are_refused_and_read_when_named(tmp_path, channels, options):
    data = counts(96, 80, channels)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", **options)
    with pytest.raises(MicrographError, match=r"--axes YXC"):
        read_micrograph(tmp_path / "a.tif")
    micrograph = silent(tmp_path / "a.tif", axes="YXC")
    assert micrograph.axes == "CYX"
    np.testing.assert_array_equal(micrograph.data, np.moveaxis(data, -1, 0))
    write(tmp_path / "b.ome.tif", micrograph)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), data)
    again = silent(tmp_path / "b.ome.tif")
    assert again.axes == "CYX" and again.channels_last
    np.testing.assert_array_equal(again.data, micrograph.data)


def test_a_movie_with_channels_last(tmp_path):
    data = counts(3, 40, 32, 2)
    tifffile.imwrite(tmp_path / "a.tif", data, planarconfig="contig", photometric="minisblack", metadata=None)
    micrograph = silent(tmp_path / "a.tif", axes="TYXC")
    assert micrograph.axes == "TCYX"
    np.testing.assert_array_equal(micrograph.data, np.moveaxis(data, -1, 1))
    write(tmp_path / "b.ome.tif", micrograph)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), data)


def test_narrow_stacks_can_be_named_as_such(tmp_path):
    data = counts(40, 32, 2)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    np.testing.assert_array_equal(silent(tmp_path / "a.tif", axes="ZYX").data, data)


@pytest.mark.parametrize(("planar", "axes"), [("contig", "YXC"), ("separate", "CYX")])
def test_a_composite_stored_as_colours_is_read_when_named(tmp_path, planar, axes):
    data = counts(3, 24, 28)
    stored = np.moveaxis(data, 0, -1) if planar == "contig" else data
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    with pytest.raises(MicrographError, match=rf"3 samples per pixel.*--axes {axes}"):
        read_micrograph(tmp_path / "a.tif")
    micrograph = silent(tmp_path / "a.tif", axes=axes)
    assert micrograph.axes == "CYX"
    np.testing.assert_array_equal(micrograph.data, data)
    with pytest.raises(MicrographError, match="samples per pixel"):
        read_micrograph(tmp_path / "a.tif", axes="ZYX")


# Packed values


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
@pytest.mark.parametrize("width", [20, 21])
def test_packed_values(tmp_path, bits, width):
    data = (counts(3, 16, width) % 2**bits).astype(np.uint8 if bits <= 8 else np.uint16)
    write_packed(tmp_path / "a.tif", data, bits)
    np.testing.assert_array_equal(silent(tmp_path / "a.tif").data, data, strict=True)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(data[2].tobytes(), b""))


def test_packed_values_that_are_missing(tmp_path):
    tif = RawTiff()
    packed = np.zeros(16 * 30 - 1, np.uint8)
    tif.add_page(packed.reshape(1, -1), {256: (LONG, 20), 257: (LONG, 16), 258: (3, 12), 278: (LONG, 16)})
    tif.write(tmp_path / "a.tif")
    with pytest.raises(MicrographError, match="damaged"):
        read_micrograph(tmp_path / "a.tif")


# What results keep


FIRE = bytes([*range(256), *[min(255, 2 * i) for i in range(256)], *[i // 3 for i in range(256)]])


def test_look_up_tables_and_ranges_are_kept_as_imagej_has_them(tmp_path):
    channels = (Channel(lut=FIRE, display_range=(1.0, 2.0)), Channel(color="FF00FF", display_range=(3.0, 4.5)))
    micrograph = Micrograph(counts(2, 24, 28), "CYX", acquisition=Acquisition(channels=channels))
    write(tmp_path / "a.ome.tif", micrograph)
    assert silent(tmp_path / "a.ome.tif").acquisition == micrograph.acquisition
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        noted = tif.pages.first.tags[50839].value
    assert noted["Ranges"] == (1, 2, 3, 4.5) and noted["LUTs"][0].tobytes() == FIRE
    assert noted["LUTs"][1].tobytes() == lut_of_color("FF00FF") and color_of_lut(FIRE) is None


def test_parts_keep_what_is_stated_of_them(tmp_path):
    write_ome_tiff(tmp_path / "a.ome.tif", counts(2, 3, 2, 24, 28))
    whole = read_micrograph(tmp_path / "a.ome.tif")
    part = whole.select(channel=1, z_range=slice(1, 3), t_range=slice(1, 2))
    assert part.acquisition.channels == whole.acquisition.channels[1:]
    assert [plane.elapsed_time for plane in part.acquisition.planes] == pytest.approx([0.9, 1.1])


def test_results_are_valid_ome_xml(tmp_path):
    ome_types = pytest.importorskip("ome_types")
    write_ome_tiff(tmp_path / "a.ome.tif", counts(2, 3, 2, 24, 28))
    micrograph = read_micrograph(tmp_path / "a.ome.tif")
    place = Position(1.0, 2.0, None, "mm", 'well "B" <2>')
    changes = {"position": place, "refractive_index": 1.5, "date": "2026-01-02T03:04:05", "description": "a\nb\x01<&>"}
    micrograph.acquisition = Acquisition(**{**vars(micrograph.acquisition), **changes})
    write(tmp_path / "b.ome.tif", micrograph)
    text = tifffile.tiffcomment(tmp_path / "b.ome.tif")
    ome_types.validate_xml(text)
    result = silent(tmp_path / "b.ome.tif").acquisition
    assert (result.position, result.refractive_index, result.date) == (place, 1.5, "2026-01-02T03:04:05")
    assert result.description == "a\nb <&>"


def test_positions_without_a_unit_are_kept_as_they_are(tmp_path):
    metadata = {"axes": "ZYX", "Plane": {"PositionX": [5.0] * 3, "PositionY": [6.0] * 3}}
    tifffile.imwrite(tmp_path / "a.ome.tif", counts(3, 24, 28), ome=True, metadata=metadata)
    micrograph = silent(tmp_path / "a.ome.tif")
    assert micrograph.acquisition.planes[2].position == Position(5.0, 6.0, None, "reference frame")
    write(tmp_path / "b.ome.tif", micrograph)
    assert silent(tmp_path / "b.ome.tif").acquisition == micrograph.acquisition


def test_unknown_tags_of_other_makers_do_no_harm(tmp_path):
    tif = RawTiff()
    tif.add_page(counts(16, 20), {65009: (UNDEFINED, b"what"), 65003: (ASCII, "parsec")})
    tif.write(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.tif").data, counts(16, 20))


def test_the_command_tells_what_is_not_kept_in_one_line(model, tmp_path):
    options = {"resolution": (500, 500), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20), metadata=None, **options)
    command = [sys.executable, "-m", "haze_pipeline", "dehaze", tmp_path / "a.tif", "-o", tmp_path / "b.tif"]
    ran = subprocess.run([*command, "--model", model], capture_output=True, text=True)
    lines = [line for line in ran.stderr.splitlines() if "pixels per inch" in line]
    assert ran.returncode == 0 and len(lines) == 1 and lines[0].startswith(f"Warning: `{tmp_path}/a.tif` states"), ran


@pytest.mark.parametrize("axis", ["X", "Z"])
def test_sizes_in_ome_xml_that_are_not_physical_are_told_once(tmp_path, axis):
    metadata = {f"PhysicalSize{axis}": 0.5, f"PhysicalSize{axis}Unit": "reference frame"}
    tifffile.imwrite(tmp_path / "a.ome.tif", counts(3, 16, 20), ome=True, metadata=metadata)
    micrograph, message = warned(tmp_path / "a.ome.tif")
    assert micrograph.pixel_size is micrograph.z_step is None and "0.5 reference frame" in message


def test_a_size_of_one_side_only_is_told(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", counts(16, 20), ome=True, metadata={"PhysicalSizeX": 0.5})
    assert "physical size x of 0.5 µm" in warned(tmp_path / "a.ome.tif")[1]


def test_units_that_no_one_knows_are_told(tmp_path):
    tags = [(65003 + axis, "s", 0, "furlong", True) for axis in range(3)]
    tags += [(65009 + axis, "d", 1, 0.5, True) for axis in range(3)]
    tifffile.imwrite(tmp_path / "a.tif", counts(16, 20), metadata=None, extratags=tags)
    assert "0.5 × 0.5 furlong" in warned(tmp_path / "a.tif")[1]
    tifffile.imwrite(tmp_path / "b.tif", counts(16, 20), imagej=True, resolution=(4, 4), metadata={"unit": "furlong"})
    assert "'furlong'" in warned(tmp_path / "b.tif")[1]
    write_stk(tmp_path / "c.stk", counts(4, 24, 28))
    content = (tmp_path / "c.stk").read_bytes()
    (tmp_path / "c.stk").write_bytes(content.replace(b"\x03\0\0\0um\0", b"\x03\0\0\0yd\0"))
    assert "0.2 × 0.2 yd" in warned(tmp_path / "c.stk")[1]


def test_a_tag_of_micromanager_without_its_head(tmp_path):
    """As of files that another program has rewritten."""
    frame = {"PixelSizeUm": 0.2, "XPositionUm": 1200, "YPositionUm": 350, "ZPositionUm": 42, "Channel": "DNA"}
    tif = RawTiff()
    tif.add_page(counts(16, 20), {51123: (ASCII, json.dumps(frame))})
    tif.write(tmp_path / "a.tif")
    micrograph = silent(tmp_path / "a.tif")
    assert micrograph.channel_names == ["DNA"] and facts_read(micrograph)["P"] and facts_read(micrograph)["S"]
