"""OME-Zarrs of several images, inside groups, of any folder name and on servers; what results keep of them."""

import functools
import http.server
import json
import subprocess
import sys
import threading
import warnings

import numpy as np
import ome_zarr_models
import pytest
import zarr
from format_files import facts_read, write_bioformats2raw, write_ome_zarr, write_plate

from haze_pipeline.batch.tasks import find_inputs
from haze_pipeline.io.micrograph_files import MicrographError, list_micrographs, read_micrograph
from haze_pipeline.io.ome_zarr import OmeZarrWriter


def fields(number=3):
    """Images of their own, TCZYX."""
    return [np.random.default_rng(seed).integers(0, 4000, (3, 2, 4, 24, 28), np.uint16) for seed in range(number)]


@pytest.fixture
def server(tmp_path):
    """The address of a server of the files in a folder; to s3fs, of a bucket whose lists are empty."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if "list-type=2" not in self.path:
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")

        def list_directory(self, path):
            self.send_error(404)

        def log_message(self, *_):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


WRITERS = {"plate": write_plate, "bioformats2raw": write_bioformats2raw}
ORDER = {"plate": [0, 2, 1], "bioformats2raw": [0, 1, 2]}  # by wells, then fields


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", WRITERS)
def test_images_of_a_collection_are_chosen_by_their_number(tmp_path, kind, version):
    images = fields()
    WRITERS[kind](tmp_path / "a.zarr", images, version)
    with pytest.raises(MicrographError, match=r"holds 3 images.*--series"):
        read_micrograph(tmp_path / "a.zarr")
    for number, image in enumerate(ORDER[kind]):
        micrograph = read_micrograph(tmp_path / "a.zarr", series=number)
        np.testing.assert_array_equal(micrograph.data, images[image])
        assert facts_read(micrograph)["S"] and micrograph.zarr_version == version
    with pytest.raises(MicrographError, match="no image 3"):
        read_micrograph(tmp_path / "a.zarr", series=3)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_wells_and_fields_are_read_by_their_path(tmp_path, version):
    images = fields()
    write_plate(tmp_path / "a.zarr", images, version)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr" / "B" / "2").data, images[1])
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr" / "A" / "1", series=1).data, images[2])
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr" / "A" / "1" / "1").data, images[2])


def test_groups_that_list_nothing_are_searched(tmp_path):
    images = fields(2)
    zarr.create_group(tmp_path / "a.zarr").create_group("images")
    for name, image in zip(("nuclei", "cells"), images, strict=True):
        write_ome_zarr(tmp_path / "a.zarr" / "images" / name, image)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr", series=1).data, images[0])
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr" / "images" / "cells").data, images[1])


def test_fields_that_are_missing_are_left_out(tmp_path):
    write_plate(tmp_path / "a.zarr", fields())
    described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    described["attributes"]["ome"]["plate"]["wells"].insert(0, {"path": "C/7", "rowIndex": 2, "columnIndex": 6})
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described))
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a.zarr", series=0).data, fields()[0])


def test_every_image_is_listed(tmp_path):
    write_plate(tmp_path / "plate.zarr", fields())
    write_bioformats2raw(tmp_path / "day 1" / "series.ome.zarr", fields())
    write_ome_zarr(tmp_path / "day 1" / "embryo", fields()[0], "0.4")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    listed = [path.as_posix() for path in list_micrographs(tmp_path)]
    assert listed == [
        "broken.zarr",
        "day 1/embryo",
        *(f"day 1/series.ome.zarr/{number}" for number in range(3)),
        *(f"plate.zarr/{field}" for field in ("A/1/0", "A/1/1", "B/2/0")),
    ]
    found, is_folder_run = find_inputs([str(tmp_path)], tmp_path / "out", recursive=True)
    assert is_folder_run and [target.relative_to(tmp_path / "out").as_posix() for _, target in found] == [
        "broken.zarr",
        "day 1/embryo.ome.zarr",
        *(f"day 1/series_{number}.ome.zarr" for number in range(3)),
        *(f"plate_{field}.ome.zarr" for field in ("A_1_0", "A_1_1", "B_2_0")),
    ]


def test_a_collection_alone_is_done_as_a_folder_or_by_its_number(tmp_path):
    write_plate(tmp_path / "plate.zarr", fields())
    source = str(tmp_path / "plate.zarr")

    def targets(*arguments):
        found, _ = find_inputs(*arguments)
        return [target.name for _, target in found]

    assert targets([source], tmp_path / "out", False) == [
        f"plate_{name}.ome.zarr" for name in ("A_1_0", "A_1_1", "B_2_0")
    ]
    assert targets([source], tmp_path / "out", False, 1) == ["plate.zarr"]
    assert targets([source], tmp_path / "out.ome.tif", False) == ["out.ome.tif"]
    assert targets([f"{source}/B/2/0"], tmp_path / "out", False) == ["plate_B_2_0.ome.zarr"]
    assert targets([f"{tmp_path}/*.zarr"], tmp_path / "out", False)[-1] == "plate_B_2_0.ome.zarr"


def test_every_field_is_dehazed(run, model, tmp_path):
    images = [image[:1, :1, :1, :16, :16] for image in fields()]
    write_plate(tmp_path / "in" / "plate.zarr", images, "0.4")
    code, _, err = run("dehaze", tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert code == 0 and "3 done" in err, err
    for name in ("A_1_0", "A_1_1", "B_2_0"):
        result = read_micrograph(tmp_path / "out" / f"plate_{name}.ome.zarr")
        assert result.data.shape == (1, 1, 1, 16, 16) and facts_read(result)["S"] and result.zarr_version == "0.4"
    code, _, err = run("dehaze", tmp_path / "in" / "plate.zarr", "-o", tmp_path / "b.tif", "--model", model)
    assert code == 1 and "--series" in err
    arguments = ("--series", 2, "--model", model)
    assert run("dehaze", tmp_path / "in" / "plate.zarr", "-o", tmp_path / "b.tif", *arguments)[0] == 0
    expected = read_micrograph(tmp_path / "out" / "plate_B_2_0.ome.zarr").data
    np.testing.assert_array_equal(read_micrograph(tmp_path / "b.tif").data.ravel(), expected.ravel())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_place_colours_and_contrast_survive_a_run(run, model, tmp_path, version):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0][:1, :, :2, :16, :16], version)
    code, _, err = run("dehaze", tmp_path / "a.zarr", "-o", tmp_path / "b.zarr", "--model", model)
    assert code == 0, err
    group = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert ome_zarr_models.open_ome_zarr(group).ome_zarr_version == version
    described = group.attrs.asdict()
    described = described.get("ome", described)
    transforms = described["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transforms[1] == {"type": "translation", "translation": [0, 0, 42, 350, 1200]}
    data = read_micrograph(tmp_path / "b.zarr").data
    for number, channel in enumerate(described["omero"]["channels"]):
        assert channel["color"] == ("0000FF", "00FF00")[number] and channel["label"] == ("DNA", "actin")[number]
        low, high = channel["window"]["start"], channel["window"]["end"]
        part = data[:, number]
        assert (part.min() <= low <= np.percentile(part, 1)) and (np.percentile(part, 99) <= high <= part.max())


def test_smaller_versions_lie_where_the_large_one_does(tmp_path):
    data = np.zeros((1, 1, 1, 2100, 8), np.uint16)
    write_ome_zarr(tmp_path / "a.zarr", data)
    from test_formats import rewrite

    rewrite(tmp_path / "a.zarr", tmp_path / "b.zarr")
    datasets = zarr.open_group(tmp_path / "b.zarr", mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    (scale, place), (half_scale, half_place) = (level["coordinateTransformations"] for level in datasets[:2])
    assert half_scale["scale"][-2:] == pytest.approx([0.4, 0.4])
    # The centre of a pixel of 2 × 2 lies half a small pixel from that of its first one.
    moved = np.subtract(half_place["translation"], place["translation"])
    assert moved == pytest.approx([0, 0, 0, 0.1, 0.1]) and scale["scale"][-1] == 0.2


def test_translations_of_both_places_add_up(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0])
    described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    image = described["attributes"]["ome"]["multiscales"][0]
    image["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 1, 2, 2, 2]},
        {"type": "translation", "translation": [5, 0, 1, 1, 1]},
    ]
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described))
    micrograph = read_micrograph(tmp_path / "a.zarr")
    position = micrograph.acquisition.position
    assert (position.x, position.y, position.z) == (2401, 701, 85) and micrograph.pixel_size == (0.4, 0.4)
    assert micrograph.acquisition.start_time == 5


def test_a_part_begins_where_it_was_cut(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0])
    part = read_micrograph(tmp_path / "a.zarr").select(z_range=slice(2, 4), channel=1)
    assert part.acquisition.position.z == 43 and part.acquisition.channels[0].color == "00FF00"


def test_scales_without_a_unit_are_told_and_kept_in_ome_zarr(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0])
    text = (tmp_path / "a.zarr" / "zarr.json").read_text()
    (tmp_path / "a.zarr" / "zarr.json").write_text(text.replace("micrometer", "parsec"))
    with pytest.warns(UserWarning, match=r"a\.zarr.*axes Z, Y, X without a unit.*only OME-Zarr") as caught:
        micrograph = read_micrograph(tmp_path / "a.zarr")
    assert len(caught) == 1 and micrograph.pixel_size is None
    part = micrograph.select(z_range=slice(2, 4))
    with OmeZarrWriter(tmp_path / "b.zarr", part, part.data.shape, np.uint16):
        pass
    image = zarr.open_group(tmp_path / "b.zarr", mode="r").attrs["ome"]["multiscales"][0]
    scale, place = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [2, 1, 0.5, 0.2, 0.2] and place["translation"] == [0, 0, 43, 350, 1200]
    assert all("unit" not in axis for axis in image["axes"][1:])


@pytest.mark.parametrize("axes", [["t", "c", "z", "y", "x"], None])
def test_axes_of_earlier_versions(tmp_path, axes):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0], "0.4")
    described = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())
    described["multiscales"][0]["axes"] = axes
    del described["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps(described))
    micrograph = read_micrograph(tmp_path / "a.zarr")
    assert micrograph.axes == "TCZYX" and micrograph.channel_names == ["DNA", "actin"]


# Remote stores


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_on_a_server(run, model, server, tmp_path, version):
    image = fields()[0][:1, :, :1, :16, :16]
    write_ome_zarr(tmp_path / "a.zarr", image, version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        micrograph = read_micrograph(f"{server}/a.zarr")
    np.testing.assert_array_equal(micrograph.data, image)
    assert facts_read(micrograph)["P"] and micrograph.zarr_version == version
    code, _, err = run("dehaze", f"{server}/a.zarr", "-o", tmp_path / "b.ome.tif", "--model", model)
    assert code == 0, err
    assert run("dehaze", tmp_path / "a.zarr", "-o", tmp_path / "c.ome.tif", "--model", model)[0] == 0
    remote, local = (read_micrograph(tmp_path / f"{name}.ome.tif") for name in "bc")
    np.testing.assert_array_equal(remote.data, local.data)
    assert remote.provenance["source"] == "a.zarr"
    code, _, err = run("dehaze", f"{server}/a.zarr", "-o", tmp_path / "out", "--model", model)
    assert code == 0 and (tmp_path / "out" / "a.zarr").exists(), err


def test_plates_on_a_server(server, tmp_path):
    images = fields()
    write_plate(tmp_path / "plate.zarr", images)
    np.testing.assert_array_equal(read_micrograph(f"{server}/plate.zarr", series=2).data, images[1])
    np.testing.assert_array_equal(read_micrograph(f"{server}/plate.zarr/B/2/0").data, images[1])
    with pytest.raises(MicrographError, match="holds 3 images"):
        read_micrograph(f"{server}/plate.zarr")


def test_public_images_in_a_bucket_need_no_credentials(server, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    (tmp_path / "bucket").mkdir()
    write_ome_zarr(tmp_path / "bucket" / "a.zarr", fields()[0])
    np.testing.assert_array_equal(read_micrograph("s3://bucket/a.zarr").data, fields()[0])


def test_stores_of_any_protocol_of_fsspec(tmp_path):
    write_ome_zarr(tmp_path / "a.zarr", fields()[0])
    np.testing.assert_array_equal(read_micrograph(f"file://{tmp_path}/a.zarr").data, fields()[0])


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("{server}/none.zarr", FileNotFoundError, "check the address"),
        ("{server}/picture", FileNotFoundError, "copied to this machine"),
        *[
            ("https://example.org/" + name, ValueError, "only OME-Zarr is read from remote stores: download it")
            for name in ("a.tif", "a.ome.tiff", "a.BTF", "a.lsm", "a.stk", "a.czi", "a.lif", "a.nd2?version=1")
        ],
        ("http://127.0.0.1:1/a.zarr", FileNotFoundError, "check the address"),
        ("nonsense://host/a.zarr", FileNotFoundError, "Protocol not known"),
        ("gs://bucket/a.zarr", ImportError, "pip install fsspec gcsfs"),
    ],
)
def test_addresses_that_cannot_be_read(server, tmp_path, address, error, words):
    if error is ImportError:
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed")
    address = address.format(server=server)
    (tmp_path / "picture").write_bytes(b"II*\0")
    with pytest.raises(error, match=words) as refused:
        read_micrograph(address)
    assert f"`{address}`" in str(refused.value) and "\n" not in str(refused.value)
    assert "does not exist" not in str(refused.value)


def test_what_an_address_needs_is_named_when_it_is_missing():
    """As where only the extra zarr is installed."""
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from haze_pipeline.io.micrograph_files import read_micrograph\n"
        "try: read_micrograph('s3://bucket/a.zarr')\n"
        "except ImportError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "`s3://bucket/a.zarr` needs `pip install fsspec s3fs`" in ran.stdout, ran.stderr
