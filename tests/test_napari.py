"""The plugin of napari, driven in a real viewer. Run by `make test-napari`."""

import dask.array
import numpy as np
import pytest
from conftest import ROOT

from haze_pipeline.io.acquisition import Acquisition
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff


pytestmark = pytest.mark.viewer
pytest.importorskip("napari", reason="needs the extra `test-napari`")
pytest.importorskip("pytestqt", reason="needs the extra `test-napari`")

from napari.utils.notifications import notification_manager  # noqa: E402
from npe2 import PluginManager, PluginManifest  # noqa: E402


@pytest.fixture
def viewer(make_napari_viewer):
    """A viewer that knows the plugin, also where the package was installed before it had one."""
    viewer = make_napari_viewer()
    manager = PluginManager.instance()
    if "haze-pipeline" not in manager:
        manager.register(PluginManifest.from_file(ROOT / "haze_pipeline" / "napari" / "napari.yaml"))
    notification_manager.records.clear()
    return viewer


@pytest.fixture
def cells(tmp_path):
    """A file with a stack, its pixel size and its objective."""
    path = tmp_path / "cells.ome.tif"
    data = np.random.default_rng(0).poisson(100, (2, 32, 40)).astype(np.uint16)
    objective = Acquisition(numerical_aperture=0.8, magnification=20)
    write_ome_tiff(path, Micrograph(data, "ZYX", (0.25, 0.25), z_step=1.5, acquisition=objective))
    return path


def widget_of(viewer, model):
    """The widget, as from the menu of plugins, with a small model."""
    _, widget = viewer.window.add_plugin_dock_widget("haze-pipeline", "Dehaze")
    widget.model.value = model
    return widget


def finish(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.cancel.enabled, timeout=300_000)


def messages():
    return [record.message for record in notification_manager.records]


def test_a_file_is_opened_dehazed_and_saved(viewer, cells, model, qtbot, tmp_path):
    [layer] = viewer.open(cells, plugin="haze-pipeline")
    layer.translate, layer.rotate, layer.shear = (0, 10, 20), 30, (0, 0, 0.2)
    layer.affine = np.diag((1, 2, 2, 1))  # of a registration
    widget = widget_of(viewer, model)
    assert widget.layer.value is layer
    assert widget.pixel_size.value == 0.25 and widget.microscope.value == "20×, NA 0.8"

    # 1. The preset fast gives the mean only.
    assert not widget.uncertainty.enabled and not widget.samples.enabled
    widget.start.native.click()
    assert not widget.start.enabled
    finish(qtbot, widget)
    assert [each.name for each in viewer.layers] == ["cells.ome.tif", "cells.ome.tif dehazed"]
    result = viewer.layers["cells.ome.tif dehazed"]
    assert result.data.shape == layer.data.shape and result.data.dtype == np.float32
    for name in ("units", "axis_labels"):
        assert getattr(result, name) == getattr(layer, name), name
    corner = layer.data_to_world((1, 30, 40))
    np.testing.assert_allclose(result.data_to_world((1, 30, 40)), corner)
    low, high = result.contrast_limits
    assert result.data.min() - 1 <= low < high <= result.data.max()
    assert widget.verdict.value and result.metadata["provenance"]["verdict"] == widget.verdict.value

    # 2. The preset balanced gives maps and samples, too.
    widget.preset.value = "balanced"
    for box in (widget.uncertainty, widget.samples, widget.unexplained):
        box.value = True
    widget.start.native.click()
    finish(qtbot, widget)
    names = {each.name.removeprefix("cells.ome.tif ") for each in viewer.layers}
    assert {"standard deviation", "unexplained", "samples", "dehazed [1]"} <= names
    samples = viewer.layers["cells.ome.tif samples"]
    assert samples.data.shape == (8, 2, 32, 40) and viewer.dims.ndim == 4
    np.testing.assert_allclose(samples.data_to_world((3, 1, 30, 40)), (3, *corner))
    assert viewer.layers["cells.ome.tif standard deviation"].contrast_limits[0] == 0
    assert not messages()

    # 3. A result is saved with the sizes of its input.
    viewer.layers.selection = {result}
    viewer.layers.save(str(tmp_path / "clear.ome.tif"), selected=True, plugin="haze-pipeline")
    saved = read_micrograph(tmp_path / "clear.ome.tif")
    np.testing.assert_array_equal(saved.data, result.data)
    assert saved.pixel_size == (0.25, 0.25) and saved.z_step == 1.5
    assert saved.provenance["num_inference_steps"] == 1 and saved.acquisition.numerical_aperture == 0.8


def test_a_layer_on_disk_is_dehazed_as_it_is_shown(viewer, model, qtbot):
    data = np.random.default_rng(0).poisson(100, (3, 32, 32)).astype(np.uint16)
    viewer.add_image(dask.array.from_array(data, chunks=(1, 32, 32)), name="movie", units=("s", "µm", "µm"))
    widget = widget_of(viewer, model)
    viewer.dims.set_current_step(0, 2)
    widget.start.native.click()
    finish(qtbot, widget)
    result = viewer.layers["movie dehazed"]
    assert isinstance(result.data, dask.array.Array) and result.data.shape == data.shape
    assert widget.verdict.value.startswith("The plane that was shown: ")
    viewer.dims.set_current_step(0, 0)
    assert np.asarray(result.data[0]).std() > 0


def test_cancel_adds_no_layer(viewer, model, qtbot):
    viewer.add_image(np.random.default_rng(0).poisson(100, (9, 32, 32)).astype(np.uint16), name="cells")
    widget = widget_of(viewer, model)
    widget.preset.value = "quality"
    widget.start.native.click()
    qtbot.waitUntil(lambda: widget.progress.value > 0, timeout=300_000)
    widget.cancel.native.click()
    finish(qtbot, widget)
    assert [each.name for each in viewer.layers] == ["cells"] and not messages()
    assert widget.start.enabled and not widget.progress.visible


def test_bad_input_gives_a_notification(viewer, model, qtbot):
    widget = widget_of(viewer, model)
    widget.start.native.click()
    assert messages() == ["There is no image: open one, or choose File, Open Sample, haze-pipeline."]
    viewer.add_image(np.zeros((8, 8, 3), np.uint8), rgb=True, name="photo")
    widget.start.native.click()
    assert messages()[1:] == ["photo is a colour picture: choose an image of one channel, with its intensities."]
    viewer.layers.clear()
    viewer.add_image(np.full((16, 16), np.inf, np.float32), name="broken", contrast_limits=(0, 1))
    widget.start.native.click()
    finish(qtbot, widget)
    assert len(messages()) == 3 and "`image` must be finite" in messages()[2]
    viewer.layers.clear()
    viewer.add_image(np.ones((16, 16), np.uint16), name="cells")
    widget.model.value = "no/such/folder"
    widget.start.native.click()
    finish(qtbot, widget)
    assert "no/such/folder does not exist: name a pipeline folder" in messages()[3]
    assert [each.name for each in viewer.layers] == ["cells"]


def test_the_sample_opens(viewer):
    viewer.open_sample("haze-pipeline", "membranes")
    assert [layer.name for layer in viewer.layers] == ["in focus (truth)", "hazy"]


def test_the_manifest_is_valid():
    manifest = PluginManifest.from_file(ROOT / "haze_pipeline" / "napari" / "napari.yaml")
    manifest.validate_imports()
