"""The plugin of napari without a viewer: layers and micrographs, files, and dehazing in the background."""

import subprocess
import sys
from dataclasses import replace
from threading import Event

import dask.array
import numpy as np
import pytest
import tifffile
import yaml
from conftest import ROOT

from haze_pipeline.batch.plane_dehazing import Wanted
from haze_pipeline.io.acquisition import Acquisition, Channel
from haze_pipeline.io.micrograph_files import Micrograph, MicrographError, read_micrograph, write_ome_tiff
from haze_pipeline.napari import files
from haze_pipeline.napari.dehazing import Settings, dehaze
from haze_pipeline.napari.files import get_reader, open_lazily, read, write_images
from haze_pipeline.napari.layers import contrast_limits, describe_microscope, set_pixel_size, to_micrograph
from haze_pipeline.presets import Preset


def counts(*shape):
    return np.random.default_rng(0).poisson(100, shape).astype(np.uint16)


@pytest.fixture
def stack():
    """A stack of two channels, with everything that napari has a place for."""
    channels = (Channel(color="00FF00", display_range=(50.0, 300.0), emission_wavelength=520.0), Channel("FF0000"))
    acquisition = Acquisition(numerical_aperture=1.4, magnification=60, immersion="Oil", channels=channels)
    return Micrograph(
        counts(3, 2, 4, 16, 20),
        "TCZYX",
        (0.1, 0.2),
        z_step=300.0,
        z_step_unit="nm",
        time_interval=2.0,
        time_interval_unit="min",
        channel_names=["actin", "nuclei"],
        acquisition=acquisition,
    )


def dehaze_here(micrograph, settings, shown=(), stopped=None):
    """Everything that the generator yields, and what it returns."""
    generator = dehaze(micrograph, "cells", settings, shown, stopped or Event())
    progress = []
    while True:
        try:
            progress.append(next(generator))
        except StopIteration as end:
            return progress, end.value


# Layers and files


def test_a_file_becomes_layers_and_a_file_again(stack, tmp_path):
    write_ome_tiff(tmp_path / "cells.ome.tif", stack)
    layers = get_reader(str(tmp_path / "cells.ome.tif"))(str(tmp_path / "cells.ome.tif"))
    (first, attributes, kind), (second, *_) = layers
    assert kind == "image" and (first == stack.data[:, 0]).all() and (second == stack.data[:, 1]).all()
    assert attributes["scale"] == (2.0, 300.0, 0.1, 0.2)
    assert attributes["units"] == ("min", "nm", "µm", "µm")
    assert attributes["axis_labels"] == ("t", "z", "y", "x")
    assert attributes["name"] == "actin" and attributes["colormap"] == "#00FF00"
    assert attributes["contrast_limits"] == (50.0, 300.0)
    assert describe_microscope(to_micrograph(first, attributes)) == "60×, NA 1.4, oil, emission 520 nm"

    for name in ("again.ome.tif", "again.ome.zarr"):
        assert write_images(str(tmp_path / name), layers) == [str(tmp_path / name)]
        again = read_micrograph(tmp_path / name)
        assert (again.data == stack.data).all() and again.axes == stack.axes
        for field in ("pixel_size", "pixel_size_unit", "z_step", "z_step_unit", "time_interval", "channel_names"):
            assert getattr(again, field) == getattr(stack, field), field
        assert again.acquisition.channels[0].emission_wavelength == 520 or name.endswith("zarr")


def test_large_stacks_are_read_plane_by_plane(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_IN_MEMORY", 1000)
    write_ome_tiff(tmp_path / "cells.ome.tif", stack)
    micrograph = open_lazily(tmp_path / "cells.ome.tif")
    assert isinstance(micrograph.data, dask.array.Array)
    assert micrograph.data.chunksize == (1, 1, 1, 16, 20)
    assert (micrograph.data[2, 1, 3].compute() == stack.data[2, 1, 3]).all()
    data, _, _ = read(str(tmp_path / "cells.ome.tif"))[1]
    assert (np.asarray(data) == stack.data[:, 1]).all()


def test_all_images_of_a_file_become_layers(tmp_path):
    path = tmp_path / "scenes.ome.tif"
    images = [counts(2, 16, 20), counts(24, 24), counts(16, 16)]
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(images[0], metadata={"axes": "CYX", "Channel": {"Name": ["actin", "nuclei"]}})
        tif.write(images[1], metadata={"axes": "YX"})
        tif.write(images[2].astype(np.complex64), metadata={"axes": "YX"})
    with pytest.warns(UserWarning, match="Image 2 is not opened: .* complex"):
        layers = read(str(path))
    assert [attributes["name"] for _, attributes, _ in layers] == [
        "image 0, actin", "image 0, nuclei", "image 1, scenes.ome.tif",
    ]  # fmt: skip
    assert [attributes["visible"] for _, attributes, _ in layers] == [True, True, False]
    for (data, _, _), image in zip(layers, (*images[0], images[1]), strict=True):
        np.testing.assert_array_equal(data, image)

    with tifffile.TiffWriter(path, ome=True) as tif:
        for _ in range(2):
            tif.write(images[2].astype(np.complex64), metadata={"axes": "YX"})
    with pytest.warns(UserWarning, match="Image 0"), pytest.raises(MicrographError, match="complex"):
        read(str(path))


def test_the_scale_of_a_layer_is_its_pixel_size():
    attributes = {"name": "cells", "scale": [2.0, 0.25, 0.5], "units": ("second", "micrometer", "micrometer")}
    micrograph = to_micrograph(counts(3, 8, 8), {**attributes, "axis_labels": ("time", "y", "x")})
    assert micrograph.axes == "TYX" and micrograph.channel_names == ["cells"]
    assert (micrograph.time_interval, micrograph.time_interval_unit) == (2.0, "s")
    assert (micrograph.pixel_size, micrograph.pixel_size_unit) == ((0.25, 0.5), "µm")
    micrograph = to_micrograph(counts(3, 8, 8), {"scale": [1, 1, 1], "units": ("pixel",) * 3})
    assert micrograph.axes == "ZYX" and micrograph.pixel_size is None and micrograph.z_step is None
    set_pixel_size(micrograph, 0.1)
    assert micrograph.pixel_size_um == 0.1
    set_pixel_size(micrograph, 0)
    assert micrograph.pixel_size_um == 0.1


def test_colour_pictures_and_unequal_channels_are_refused(tmp_path):
    with pytest.raises(MicrographError, match="photo is a colour picture: choose an image of one channel"):
        to_micrograph(counts(8, 8, 3), {"name": "photo", "rgb": True})
    layers = [(counts(8, 8), {"name": "one"}, "image"), (counts(8, 9), {"name": "two"}, "image")]
    with pytest.raises(MicrographError, match=r"`both.tif` cannot hold layers of different sizes"):
        write_images(str(tmp_path / "both.tif"), layers)
    with pytest.raises(MicrographError, match="cannot store complex64"):
        write_images(str(tmp_path / "waves.tif"), [(np.ones((8, 8), np.complex64), {"name": "waves"}, "image")])
    assert not list(tmp_path.iterdir())


def test_other_files_are_left_to_other_readers(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("photo.png", "folder"):
        assert get_reader(str(tmp_path / name)) is None
    assert get_reader([str(tmp_path / "one.tif"), str(tmp_path / "two.tif")]) is None


def test_contrast_limits_ignore_hot_pixels():
    plane = counts(100, 100)
    plane[5, 5] = 60_000
    low, high = contrast_limits(plane)
    assert 50 < low < 100 < high < 200


# Dehazing


def test_all_planes_are_dehazed_as_on_the_command_line(model, tmp_path, run):
    planes = Micrograph(counts(3, 32, 40), "ZYX", (0.1, 0.1))
    write_ome_tiff(tmp_path / "cells.tif", planes)
    run("dehaze", tmp_path / "cells.tif", "-o", tmp_path / "clear.tif", "--model", model, "--output-dtype", "float32")
    progress, results = dehaze_here(planes, Settings(model=str(model)))
    assert not results.error and list(results.images) == ["dehazed"]
    assert progress == sorted(progress) and progress[-1] <= 1
    np.testing.assert_array_equal(results.images["dehazed"], read_micrograph(tmp_path / "clear.tif").data)
    assert results.provenance["model"] == str(model) and results.provenance["source"] == "cells"
    assert "planes: " in results.verdict or results.verdict.endswith(".")


WANTED = Wanted(uncertainty=True, unexplained=True, samples=True)


@pytest.mark.parametrize("shape", [(32, 40), (2, 32, 40)])
def test_planes_as_shown_and_on_disk_are_those_in_memory(model, tmp_path, shape):
    settings = Settings(str(model), Preset.balanced, WANTED, background_width=9)
    whole = Micrograph(counts(*shape), "ZYX"[-len(shape) :], (0.1, 0.1))
    _, in_memory = dehaze_here(whole, settings)
    assert set(in_memory.images) == {"dehazed", "standard deviation", "unexplained", "samples"}
    assert in_memory.images["samples"].shape == (8, *shape)

    lazy = replace(whole, data=dask.array.from_array(whole.data, chunks=(*(1,) * (len(shape) - 2), 16, 16)))
    _, as_shown = dehaze_here(lazy, settings, shown=(1,) * (len(shape) - 2))
    assert as_shown.verdict.startswith("The plane that was shown: ")
    _, on_disk = dehaze_here(lazy, replace(settings, zarr=tmp_path / "clear.zarr"))
    assert (tmp_path / "clear_sample007.zarr").is_dir()
    for kind, image in in_memory.images.items():
        assert isinstance(as_shown.images[kind], dask.array.Array)
        np.testing.assert_array_equal(as_shown.images[kind].compute(), image, err_msg=kind)
        # Intensities on disk have the number type of the input.
        np.testing.assert_allclose(np.asarray(on_disk.images[kind]), image.clip(0), atol=0.51, err_msg=kind)
    assert on_disk.verdict == in_memory.verdict


def test_a_stopped_run_leaves_nothing(model, tmp_path):
    stopped = Event()
    stopped.set()
    for zarr in (None, tmp_path / "clear.zarr"):
        planes = Micrograph(counts(2, 32, 32), "ZYX")
        _, results = dehaze_here(planes, Settings(str(model), Preset.balanced, zarr=zarr), stopped=stopped)
        assert results.error.startswith("Interrupted") and not results.images
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data, settings, message",
    [
        (np.full((16, 16), np.inf, np.float32), Settings(), "`image` must be finite"),
        (np.ones((16, 16), complex), Settings(), "`image` must hold integers or real floating-point numbers"),
        (counts(16, 16), Settings(model="no/such/folder"), "no/such/folder does not exist: name a pipeline folder"),
    ],
)
def test_an_error_is_one_sentence(data, settings, message):
    _, results = dehaze_here(Micrograph(data, "YX"), settings)
    assert message in results.error and "\n" not in results.error and not results.images


def test_results_on_disk_need_a_new_zarr(tmp_path):
    (tmp_path / "there.zarr").mkdir()
    for name, message in (("clear.tif", "must end in .zarr"), ("there.zarr", "is a folder: choose another name")):
        _, results = dehaze_here(Micrograph(counts(16, 16), "YX"), Settings(zarr=tmp_path / name))
        assert message in results.error, results.error


# The package


def test_the_package_and_its_extra_bring_no_gui(tmp_path):
    code = "import sys, haze_pipeline, haze_pipeline.cli, haze_pipeline.napari; print('napari' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["napari"])
    assert "[all]" not in extra and "qt" not in extra.lower() and "pyside" not in extra.lower()
    assert project["entry-points"]["napari.manifest"] == {"haze-pipeline": "haze_pipeline.napari:napari.yaml"}


def test_every_command_of_the_manifest_is_there():
    manifest = yaml.safe_load((ROOT / "haze_pipeline" / "napari" / "napari.yaml").read_text())
    commands = {each["id"]: each["python_name"] for each in manifest["contributions"]["commands"]}
    for each in commands.values():
        module, name = each.split(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"def {name}(" in source or f"class {name}(" in source
    layers = files.simulated_membranes()
    assert [layer[1]["name"] for layer in layers][-1] == "hazy" and layers[-1][0].dtype == np.uint16
