import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import ome_types
import PIL.Image
import pytest
import tifffile

from haze_pipeline.io.micrograph_files import (
    Micrograph,
    MicrographError,
    read_micrograph,
    replace_when_complete,
    write_ome_tiff,
)
from haze_pipeline.io.tiff_reader import list_series
from haze_pipeline.version import __version__


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
TEST_DATA = Path(os.environ.get("HAZE_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))


def values(shape, dtype="uint16"):
    """Noise without zeros, so that pixels that were not read cannot be mistaken for pixels that were."""
    return np.random.default_rng(0).integers(1, 100, size=shape).astype(dtype)


def full_micrograph():
    return Micrograph(
        values((2, 3, 4, 17, 19)),
        "TZCYX",
        pixel_size=(0.065, 0.13),
        pixel_size_unit="µm",
        z_step=250.0,
        z_step_unit="nm",
        time_interval=1.5,
        time_interval_unit="min",
        channel_names=["DAPI", "GFP <&> {µ}", "Cy5", "α-tubulin"],
    )


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.data, expected.data, strict=True)
    for name in vars(expected):
        if name != "data":
            assert getattr(actual, name) == getattr(expected, name), name


def round_trip(micrograph, folder):
    write_ome_tiff(folder / "round_trip.ome.tif", micrograph)
    return read_micrograph(folder / "round_trip.ome.tif")


# Reading files of other programs


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "uint64", "float16"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_plain_tiff_keeps_values_and_dtype(tmp_path, dtype, byteorder):
    image = values((17, 19), dtype)
    tifffile.imwrite(tmp_path / "image.tif", image, metadata=None, byteorder=byteorder)
    assert_same(read_micrograph(tmp_path / "image.tif"), Micrograph(image, "YX"))


def test_pages_of_a_plain_tiff_are_a_z_stack(tmp_path):
    stack = values((3, 17, 19))
    tifffile.imwrite(tmp_path / "stack.tif", stack, metadata=None, photometric="minisblack")
    assert_same(read_micrograph(tmp_path / "stack.tif"), Micrograph(stack, "ZYX"))


@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 1), "YX"), ((1, 17, 19), "ZYX"), ((2, 3, 4, 5), "TZYX"), ((2, 1, 3, 4, 5), "CTZYX")]
)
def test_shape_noted_by_tifffile_is_kept(tmp_path, shape, axes):
    tifffile.imwrite(tmp_path / "array.tif", values(shape), photometric="minisblack")
    assert_same(read_micrograph(tmp_path / "array.tif"), Micrograph(values(shape), axes))


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"tile": (16, 16)}, {"compression": "zlib"}])
def test_storage_options(tmp_path, options):
    tifffile.imwrite(tmp_path / "image.tif", values((40, 33)), **options)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "image.tif").data, values((40, 33)))


def test_pyramid_is_read_at_full_resolution(tmp_path):
    image = values((64, 64))
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as tif:
        tif.write(image, subifds=1, metadata={"axes": "YX"})
        tif.write(image[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "pyramid.ome.tif").data, image)


def test_dots_per_inch_are_not_a_pixel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values((17, 19)), metadata=None, resolution=(300, 300), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "b.tif", values((17, 19)), imagej=True, resolution=(72, 72), metadata={"unit": "inch"})
    assert read_micrograph(tmp_path / "a.tif").pixel_size is None
    assert read_micrograph(tmp_path / "b.tif").pixel_size is None


def test_imagej_hyperstack_round_trips(tmp_path):
    data = values((2, 3, 2, 17, 19))
    labels = [f"c:{c + 1}/2 z:{z + 1}/3 - {('DAPI', 'GFP')[c]}" for _ in range(2) for z in range(3) for c in range(2)]
    tifffile.imwrite(
        tmp_path / "hyperstack.tif",
        data,
        imagej=True,
        resolution=(10, 5),
        metadata={"axes": "TZCYX", "unit": "micron", "spacing": 0.5, "finterval": 2.5, "Labels": labels},
    )
    micrograph = read_micrograph(tmp_path / "hyperstack.tif")
    expected = Micrograph(
        data, "TZCYX", pixel_size=(0.2, 0.1), z_step=0.5, time_interval=2.5, channel_names=["DAPI", "GFP"]
    )
    assert_same(micrograph, expected)
    assert_same(round_trip(micrograph, tmp_path), expected)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        *[(spelling, "µm") for spelling in ("micron", "um", "\\u00B5m", "\\u00b5m", "\\u03BCm", "Micrometer")],
        ("nm", "nm"),
        ("mm", "mm"),
        ("pixel", None),
        ("furlong", None),
        (None, None),
    ],
)
def test_units_of_imagej(tmp_path, unit, expected):
    metadata = {"axes": "ZYX", "spacing": 2} | ({"unit": unit} if unit else {})
    tifffile.imwrite(tmp_path / "stack.tif", values((3, 17, 19)), imagej=True, resolution=(4, 4), metadata=metadata)
    micrograph = read_micrograph(tmp_path / "stack.tif")
    if expected is None:
        assert micrograph.pixel_size is None and micrograph.z_step is None
    else:
        assert (micrograph.pixel_size, micrograph.pixel_size_unit) == ((0.25, 0.25), expected)
        assert (micrograph.z_step, micrograph.z_step_unit) == (2.0, expected)
        assert "\u03bc" not in micrograph.pixel_size_unit  # OME wants the micro sign, not greek mu


@pytest.mark.parametrize("labels", [["slice 1", "slice 2"] * 3, ["same"] * 6, ["a", "b"]])
def test_labels_that_are_not_channel_names(tmp_path, labels):
    metadata = {"axes": "ZCYX", "Labels": labels}
    tifffile.imwrite(tmp_path / "stack.tif", values((2, 3, 17, 19)), imagej=True, metadata=metadata)
    assert read_micrograph(tmp_path / "stack.tif").channel_names is None


def test_ome_tiff_of_another_program(tmp_path):
    data = values((3, 2, 17, 19), "float32")
    metadata = {
        "axes": "CTYX",
        "PhysicalSizeX": 100.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 120.0,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 0.3,
        "TimeIncrement": 20.0,
        "TimeIncrementUnit": "ms",
        "Channel": {"Name": ["a", "b", "c"]},
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, photometric="minisblack", metadata=metadata)
    expected = Micrograph(data, "CTYX", (120.0, 100.0), "nm", 0.3, "µm", 20.0, "ms", ["a", "b", "c"])
    micrograph = read_micrograph(tmp_path / "a.ome.tif")
    assert_same(micrograph, expected)
    assert_same(round_trip(micrograph, tmp_path), expected)


def test_ome_sizes_without_a_physical_unit(tmp_path):
    metadata = {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1, "PhysicalSizeYUnit": "pixel"}
    tifffile.imwrite(tmp_path / "a.ome.tif", values((17, 19)), ome=True, metadata=metadata)
    assert read_micrograph(tmp_path / "a.ome.tif").pixel_size is None


def test_ome_sizes_of_two_units_are_given_in_one(tmp_path):
    metadata = {"PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 100, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", values((17, 19)), ome=True, metadata=metadata)
    micrograph = read_micrograph(tmp_path / "a.ome.tif")
    assert (micrograph.pixel_size, micrograph.pixel_size_unit) == ((0.1, 0.2), "µm")


def test_invalid_ome_xml_is_reported_and_the_pixels_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", values((17, 19)), ome=True, metadata={"PhysicalSizeXUnit": "parrot"})
    with pytest.warns() as caught:
        micrograph = read_micrograph(tmp_path / "a.ome.tif")
    assert len(caught) == 1 and re.search(r"a\.ome\.tif.*invalid OME-XML", str(caught[0].message))
    assert_same(micrograph, Micrograph(values((17, 19)), "YX"))


def test_ome_tiff_spread_over_files(tmp_path):
    """The second file is larger than the first, which has the metadata."""
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:00000000-0000-0000-0000-000000000000"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint16" SizeX="19" SizeY="17" SizeZ="3" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1">'
        '<UUID FileName="a.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000000</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="2">'
        '<UUID FileName="b.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000001</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    data = values((3, 17, 19))
    tifffile.imwrite(tmp_path / "a.ome.tif", data[0], metadata=None, description=xml)
    tifffile.imwrite(tmp_path / "b.ome.tif", data[1:], metadata=None)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.ome.tif").data, data)

    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(MicrographError, match=r"a\.ome\.tif.*pixels are missing"):
        read_micrograph(tmp_path / "a.ome.tif")


# Writing, and reading it again


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((17, 19), "YX"),
        ((1, 1), "YX"),
        ((1, 17, 19), "ZYX"),
        ((3, 17, 19), "ZYX"),
        ((3, 17, 4), "CYX"),
        ((2, 1, 3, 5, 7), "TCZYX"),
        ((1, 1, 3, 1, 5, 7), "TCZAYX"),
    ],
)
def test_round_trip_keeps_values_dtype_shape_and_axes(tmp_path, dtype, shape, axes):
    micrograph = Micrograph(values(shape, dtype), axes)
    assert_same(round_trip(micrograph, tmp_path), micrograph)


@pytest.mark.parametrize(("axes", "stored"), [("IYX", "ZYX"), ("QQYX", "TZYX"), ("ZQYX", "ZTYX"), ("QQQYX", "CTZYX")])
def test_axes_without_a_meaning_are_renamed(tmp_path, axes, stored):
    data = values((*range(2, len(axes)), 17, 19))
    assert_same(round_trip(Micrograph(data, axes), tmp_path), Micrograph(data, stored))


def test_round_trip_keeps_metadata_and_non_finite_values(tmp_path):
    micrograph = full_micrograph()
    micrograph.data = micrograph.data.astype("float32")
    micrograph.data[0, 0, 0, 0, :3] = np.nan, np.inf, -np.inf
    assert_same(round_trip(micrograph, tmp_path), micrograph)


def test_channel_name_without_channel_axis(tmp_path):
    micrograph = Micrograph(values((17, 19)), "YX", channel_names=["DAPI"])
    assert_same(round_trip(micrograph, tmp_path), micrograph)


def test_array_in_any_memory_layout(tmp_path):
    data = values((6, 17, 38), ">u2").transpose(2, 0, 1)[::2, :, ::-1]
    np.testing.assert_array_equal(round_trip(Micrograph(data, "ZYX"), tmp_path).data, data)


def test_other_readers_see_the_same(tmp_path):
    micrograph = full_micrograph()
    write_ome_tiff(tmp_path / "a.ome.tif", micrograph, provenance={"steps": 20})

    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        assert tif.is_ome and not tif.is_bigtiff
        assert tif.series[0].axes == "TZCYX"
        assert tif.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert tif.pages[0].software == f"haze-pipeline {__version__}"
        np.testing.assert_array_equal(tif.asarray(), micrograph.data, strict=True)

    pixels = ome_types.from_tiff(tmp_path / "a.ome.tif", validate=False).images[0].pixels
    assert (pixels.size_t, pixels.size_z, pixels.size_c, pixels.size_y, pixels.size_x) == micrograph.data.shape
    assert pixels.type.value == "uint16"
    assert (pixels.physical_size_y, pixels.physical_size_x, pixels.physical_size_z) == (0.065, 0.13, 250.0)
    assert (pixels.physical_size_x_unit.value, pixels.physical_size_y_unit.value) == ("\u00b5m", "\u00b5m")
    assert (pixels.physical_size_z_unit.value, pixels.time_increment_unit.value) == ("nm", "min")
    assert pixels.time_increment == 1.5
    assert [channel.name for channel in pixels.channels] == micrograph.channel_names


def test_provenance(tmp_path):
    provenance = {
        "version": "0.1",
        "steps": 20,
        "ratio": 0.1,
        "seeds": [1, None, True],
        "Value": {"nested": '<µ&"{}>\n\x01'},  # a name reserved by tifffile; characters not allowed in XML
    }
    micrograph = Micrograph(values((17, 19)), "YX")
    write_ome_tiff(tmp_path / "a.ome.tif", micrograph, provenance)
    result = read_micrograph(tmp_path / "a.ome.tif")
    assert result.provenance == provenance
    assert round_trip(result, tmp_path).provenance == provenance  # a copy keeps the provenance
    write_ome_tiff(tmp_path / "b.ome.tif", result, {"steps": 1})
    assert read_micrograph(tmp_path / "b.ome.tif").provenance == {"steps": 1}


def test_units_are_written_in_the_spelling_of_ome(tmp_path):
    micrograph = Micrograph(values((17, 19)), "YX", pixel_size=(1, 1), pixel_size_unit="\u03bcm")
    assert round_trip(micrograph, tmp_path).pixel_size_unit == "\u00b5m"


def test_noted_axes_are_ignored_when_they_do_not_fit(tmp_path):
    """Another program may crop the image but keep our annotation."""
    annotation = {"Namespace": "haze-pipeline/axes", "Value": {"axes": "TYX"}}
    metadata = {"axes": "ZYX", "MapAnnotation": [annotation]}
    tifffile.imwrite(tmp_path / "a.ome.tif", values((3, 17, 19)), ome=True, metadata=metadata)
    assert_same(read_micrograph(tmp_path / "a.ome.tif"), Micrograph(values((3, 17, 19)), "ZYX"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": values((2, 3, 4, 17, 19), "int64")}, "int64.*convert"),
        ({"data": values((2, 3, 4, 17, 19), "complex64")}, "complex64.*convert"),
        ({"data": values((2, 3, 4, 17, 19), bool)}, "bool.*convert"),
        ({"data": values((2, 3, 4, 0, 19))}, "no pixels"),
        ({"axes": "YX"}, "axes 'YX'"),
        ({"axes": "TZYXC"}, "axes 'TZYXC'"),
        ({"axes": "ZZCYX"}, "axes ZZCYX"),
        ({"axes": "TZCAPYX", "data": values((1, 1, 4, 2, 2, 4, 4))}, "axes TZCAPYX"),
        ({"pixel_size": (1.0, 0.0)}, "PhysicalSizeX must be positive"),
        ({"z_step": float("nan")}, "PhysicalSizeZ must be positive"),
        ({"pixel_size_unit": "parsec"}, "parsec"),
        ({"time_interval_unit": "µm"}, "TimeIncrement"),
        ({"channel_names": ["DAPI"]}, "4 channels"),
    ],
)
def test_data_that_ome_tiff_cannot_store_are_refused(tmp_path, change, message):
    micrograph = full_micrograph()
    for name, value in change.items():
        setattr(micrograph, name, value)
    with pytest.raises(MicrographError, match=rf"a\.ome\.tif.*{message}"):
        write_ome_tiff(tmp_path / "a.ome.tif", micrograph)
    assert list(tmp_path.iterdir()) == []


# Files that cannot be read


def assert_refused(path, *words):
    with pytest.raises(ValueError) as caught:
        read_micrograph(path)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message
    assert "\n" not in message and message.endswith(".") and ": " in message


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.tif"):
        read_micrograph(tmp_path / "nothing.tif")


def test_files_that_are_not_tiffs(tmp_path):
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.tif").write_text("Not an image.\n")
    (tmp_path / "starts_like_one.tif").write_text("II think this is no image either.\n")
    PIL.Image.fromarray(values((17, 19), "uint8")).save(tmp_path / "image.png")
    assert_refused(tmp_path, "folder")
    assert_refused(tmp_path / "empty.tif", "empty", "again")
    assert_refused(tmp_path / "text.tif", "not a TIFF", "convert")
    assert_refused(tmp_path / "starts_like_one.tif", "damaged")
    assert_refused(tmp_path / "image.png", "not a TIFF", "convert")


def test_pixels_that_are_not_intensities(tmp_path):
    tifffile.imwrite(tmp_path / "colour.tif", values((17, 19, 3), "uint8"), photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", values((3, 17, 19), "uint8"), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "ome.tif", values((17, 19, 3), "uint8"), photometric="rgb", ome=True)
    tifffile.imwrite(tmp_path / "complex.tif", values((17, 19), "complex64"))
    tifffile.imwrite(tmp_path / "mask.tif", values((17, 19), bool))
    for name in ("colour.tif", "planes.tif", "ome.tif"):
        assert_refused(tmp_path / name, "colour", "split")
    assert_refused(tmp_path / "complex.tif", "complex64", "convert")
    assert_refused(tmp_path / "mask.tif", "bool", "convert")


def test_several_images(tmp_path):
    for name, ome in (("plain.tif", False), ("images.ome.tif", True)):
        with tifffile.TiffWriter(tmp_path / name, ome=ome) as tif:
            tif.write(values((17, 19)))
            tif.write(values((23, 29)))
        assert_refused(tmp_path / name, "holds 2 images")
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert [series.shape for series in list_series(tif)] == [(17, 19), (23, 29)]


def test_rows_and_columns_must_be_last(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values((17, 19, 5)), photometric="minisblack", metadata={"axes": "YXZ"})
    assert_refused(tmp_path / "a.tif", "YXZ")


WRITERS = {
    "single": lambda path, data: tifffile.imwrite(path, data[0, 0], metadata=None),
    "pages": lambda path, data: tifffile.imwrite(path, data[0], metadata=None),
    "described": lambda path, data: tifffile.imwrite(path, data),
    "compressed tiles": lambda path, data: tifffile.imwrite(path, data, tile=(16, 16), compression="zlib"),
    "imagej": lambda path, data: tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZCYX"}),
    "imagej virtual": lambda path, data: tifffile.imwrite(path, data, imagej=True, truncate=True),
    "ome": lambda path, data: tifffile.imwrite(path, data, ome=True, photometric="minisblack"),
    "ours": lambda path, data: write_ome_tiff(path, Micrograph(data, "ZCYX"), {"steps": 20}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_truncated_file_never_gives_wrong_pixels(tmp_path, writer, caplog):
    path = tmp_path / "cut.tif"
    WRITERS[writer](path, values((3, 2, 17, 19)))
    whole, complete = read_micrograph(path), path.read_bytes()
    for size in np.linspace(1, len(complete) - 1, 40, dtype=int):
        path.write_bytes(complete[:size])
        try:
            # Removing padding at the end of the file does no harm.
            assert_same(read_micrograph(path), whole)
        except MicrographError as error:
            assert "cut.tif" in str(error) and str(error).endswith(".")
        else:
            assert size > 0.9 * len(complete)
    assert not caplog.records  # the user sees only the error message


def test_pixels_outside_the_file(tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, values((17, 19)), metadata=None)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(path, "damaged or incomplete", "pixels are missing")


def test_the_log_of_tifffile_is_restored(tmp_path, caplog):
    (tmp_path / "damaged.tif").write_bytes(b"II*\0 nonsense")
    assert_refused(tmp_path / "damaged.tif", "damaged")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("tifffile").warning("from other code")
    assert caplog.messages == ["from other code"]


# Replacing a file


def test_replaces_when_complete(tmp_path):
    path = tmp_path / "out.png"
    path.write_text("old")
    with replace_when_complete(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".") and temporary.suffix == ".png"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_failure_leaves_the_folder_as_it_was(tmp_path, exception, existing):
    path = tmp_path / "out.png"
    if existing:
        path.write_text("old")
    with pytest.raises(exception), replace_when_complete(path) as temporary:
        temporary.write_text("half of the n")
        raise exception
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"] * existing


def test_failed_write_keeps_the_existing_file(tmp_path):
    path = tmp_path / "a.ome.tif"
    write_ome_tiff(path, full_micrograph())
    before = path.read_bytes()
    with pytest.raises(MicrographError):
        write_ome_tiff(path, Micrograph(values((2, 2, 2, 2, 2, 4, 4)), "TZCAPYX"))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_output_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist.*a\.ome\.tif"):
        write_ome_tiff(tmp_path / "nowhere" / "a.ome.tif", full_micrograph())
    with pytest.raises(IsADirectoryError, match="folder"):
        write_ome_tiff(tmp_path, full_micrograph())
    assert list(tmp_path.iterdir()) == []


def test_import_leaves_ome_types_for_later():
    code = "import sys, haze_pipeline.io.micrograph_files; sys.exit('ome_types' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Real files


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "axes", "pixel_size"),
    [
        ("paired/factin_hazy.tif", (502, 502), "float64", "YX", None),
        ("paired/factin_clear.tif", (502, 502), "float64", "YX", None),
        ("paired/microtubules_a_hazy.tif", (502, 502), "float64", "YX", None),
        ("paired/microtubules_a_clear.tif", (502, 502), "float64", "YX", None),
        ("paired/microtubules_b_hazy.tif", (256, 256), "uint16", "YX", None),
        ("paired/microtubules_b_clear.tif", (256, 256), "uint16", "YX", 0.03),
        ("single/nuclei_two_channels_confocal.tif", (2, 420, 476), "uint16", "CYX", None),
        ("single/autophagosomes_widefield.tif", (182, 148), "uint16", "YX", None),
        ("single/pollen_stack_confocal.tif", (32, 256, 256), "uint16", "ZYX", None),
    ],
)
def test_real_files(tmp_path, name, shape, dtype, axes, pixel_size):
    if not (TEST_DATA / name).exists():
        pytest.skip(f"{TEST_DATA / name} is absent; set HAZE_TEST_DATA to the folder of real micrographs")
    micrograph = read_micrograph(TEST_DATA / name)
    assert (micrograph.data.shape, micrograph.data.dtype.name, micrograph.axes) == (shape, dtype, axes)
    if pixel_size is None:
        assert micrograph.pixel_size is None
    else:
        assert micrograph.pixel_size == pytest.approx((pixel_size, pixel_size))
    np.testing.assert_array_equal(micrograph.data, tifffile.imread(TEST_DATA / name), strict=True)
    assert_same(round_trip(micrograph, tmp_path), micrograph)
