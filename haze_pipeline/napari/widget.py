"""The widget "Dehaze"."""

from pathlib import Path
from threading import Event
from typing import Any

import napari
import numpy as np
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSpinBox,
    Label,
    ProgressBar,
    PushButton,
    SpinBox,
    TextEdit,
    create_widget,
)
from napari.layers import Image
from napari.qt.threading import thread_worker
from napari.utils.notifications import show_error
from napari.utils.transforms import Affine

from haze_pipeline.batch.plane_dehazing import Wanted
from haze_pipeline.io.micrograph import Micrograph, MicrographError
from haze_pipeline.presets import PRESETS, Preset

from .dehazing import Results, Settings, dehaze
from .layers import PLACEMENT, contrast_limits, describe_microscope, set_pixel_size, to_micrograph


class DehazeWidget(Container):
    """
    Dehazes an image layer. The results become layers at the place of the input.

    Args:
        viewer (`napari.Viewer`): The viewer.
    """

    def __init__(self, viewer: "napari.viewer.Viewer"):
        self.viewer = viewer
        self.worker, self.stopped = None, Event()
        self.layer = create_widget(annotation=Image, label="Image", name="layer")
        self.preset = ComboBox(
            value=Preset.fast,
            choices=list(Preset),
            label="Preset",
            tooltip="fast: the mean of all clear images that fit. balanced: also the uncertainty. quality: as in the "
            "paper, slowly.",
        )
        self.uncertainty = CheckBox(
            label="Standard deviation", tooltip="Expected error of every pixel. Needs balanced or quality."
        )
        self.samples = CheckBox(
            label="Samples", tooltip="Every clear image of the ensemble, as a stack. Needs balanced or quality."
        )
        self.unexplained = CheckBox(
            label="Unexplained structure", tooltip="Bright where the result does not explain the input."
        )
        self.background_width = SpinBox(
            min=0,
            max=10_000,
            label="Background width",
            tooltip="Subtract structures of at least this many pixels in both directions, if nothing in focus is that "
            "wide. 0: subtract nothing.",
        )
        self.pixel_size = FloatSpinBox(
            min=0,
            max=1000,
            step=0.001,
            label="Pixel size, µm",
            tooltip="From the layer, if it states it. 0: unknown. It serves the checks of the result.",
        )
        self.microscope = Label(label="Microscope")
        self.model = FileEdit(
            mode="d",
            nullable=True,
            label="Checkpoint",
            tooltip="Folder of a checkpoint, or ORG/NAME of a repository of the Hub. Empty: the one in the package.",
        )
        self.zarr = FileEdit(
            mode="w",
            nullable=True,
            filter="*.zarr",
            label="Write OME-Zarr",
            tooltip="For results that do not fit in memory. Empty: keep the results in memory; those of a layer on "
            "disk are computed plane by plane as they are shown.",
        )
        self.start = PushButton(text="Dehaze")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(min=0, max=100, label="", visible=False)
        question = Label(value="Can it be trusted?")
        self.verdict = TextEdit()
        self.verdict.read_only = True
        super().__init__(
            widgets=[
                self.layer,
                self.preset,
                self.uncertainty,
                self.samples,
                self.unexplained,
                self.background_width,
                self.pixel_size,
                self.microscope,
                self.model,
                self.zarr,
                Container(widgets=[self.start, self.cancel], layout="horizontal", labels=False),
                self.progress,
                Container(widgets=[question, self.verdict], labels=False),
            ]
        )
        self.layer.changed.connect(self.show_facts)
        self.preset.changed.connect(self.allow_ensemble)
        self.start.clicked.connect(self.run)
        self.cancel.clicked.connect(self.stop)
        self.allow_ensemble()
        self.show_facts()

    def allow_ensemble(self):
        """Offer what needs an ensemble only where the preset has one."""
        has_ensemble = PRESETS[self.preset.value]["num_inference_steps"] > 1
        for box in (self.uncertainty, self.samples):
            box.enabled = has_ensemble
            box.value = box.value and has_ensemble

    def show_facts(self):
        """Show pixel size and microscope of the chosen layer."""
        self.pixel_size.value, self.microscope.value = 0, ""
        if self.layer.value is None:
            return
        try:
            micrograph = self.micrograph()
        except MicrographError as error:
            self.microscope.value = str(error)
            return
        self.pixel_size.value = round(micrograph.pixel_size_um or 0, 4)
        self.microscope.value = describe_microscope(micrograph)

    def micrograph(self) -> Micrograph:
        """The image of the chosen layer."""
        data, attributes, _ = self.layer.value.as_layer_data_tuple()
        return to_micrograph(data, attributes)

    def run(self):
        """Start to dehaze the chosen layer."""
        layer = self.layer.value
        if layer is None:
            show_error("There is no image: open one, or choose File, Open Sample, haze-pipeline.")
            return
        try:
            micrograph = self.micrograph()
        except MicrographError as error:
            show_error(str(error))
            return
        set_pixel_size(micrograph, self.pixel_size.value)
        model, zarr = self.model.value, self.zarr.value
        settings = Settings(
            model=None if model is None else model.as_posix(),
            preset=Preset(self.preset.value),
            wanted=Wanted(self.uncertainty.value, self.unexplained.value, self.samples.value),
            background_width=self.background_width.value if self.background_width.value > 1 else None,
            zarr=None if zarr is None else Path(zarr),
        )
        shown = self.shown_plane(layer)
        self.stopped = Event()
        self.worker = thread_worker(dehaze, start_thread=False)(micrograph, layer.name, settings, shown, self.stopped)
        self.worker.yielded.connect(self.show_progress)
        self.worker.returned.connect(lambda results: self.add(results, layer, micrograph, shown))
        self.worker.aborted.connect(self.stopped.set)  # also if napari ends its workers because it closes
        self.worker.finished.connect(self.reset)
        self.start.enabled, self.cancel.enabled = False, True
        self.progress.value, self.progress.visible = 0, True
        self.verdict.value = ""
        self.worker.start()

    def stop(self):
        """Stop at the next solver step. No layer is added."""
        self.stopped.set()
        self.worker.quit()

    def show_progress(self, fraction: float):
        self.progress.value = round(100 * fraction)

    def reset(self):
        """Allow the next run."""
        self.start.enabled, self.cancel.enabled = True, False
        self.progress.visible = False

    def shown_plane(self, layer: Image) -> tuple[int, ...]:
        """Index of the plane of a layer that the viewer shows, along the leading axes."""
        shape = layer.data.shape if not layer.multiscale else layer.data[0].shape
        place = np.round(layer.world_to_data(self.viewer.dims.point)[-len(shape) :]).astype(int)
        return tuple(int(np.clip(at, 0, length - 1)) for at, length in zip(place[:-2], shape[:-2], strict=False))

    def add(self, results: Results, layer: Image, micrograph: Micrograph, shown: tuple[int, ...]):
        """Show the results as layers at the place of the input, or why there are none."""
        if results.error:
            show_error(results.error)
            return
        self.verdict.value = results.verdict
        provenance = results.provenance or {}
        for kind, image in reversed(results.images.items()):
            plane = np.asarray(image[(..., *shown, slice(None), slice(None))])
            if kind == "dehazed":
                appearance = {"colormap": layer.colormap, "contrast_limits": contrast_limits(plane)}
            elif kind == "samples":
                appearance = {"colormap": layer.colormap, "contrast_limits": contrast_limits(*plane), "visible": False}
            else:
                limits = (0.0, contrast_limits(plane)[1])
                appearance = {"colormap": "inferno", "contrast_limits": limits, "visible": False}
            placement = {name: getattr(layer, name) for name in PLACEMENT}
            if kind == "samples":
                placement = with_sample_axis(placement)
            self.viewer.add_image(
                image,
                name=f"{layer.name} {kind}",
                blending=layer.blending,
                metadata={
                    "acquisition": micrograph.acquisition,
                    "provenance": {**provenance, "content": kind, "verdict": results.verdict},
                },
                **placement,
                **appearance,
            )


def with_sample_axis(placement: dict[str, Any]) -> dict[str, Any]:
    """The attributes that place a stack of samples where `placement` places one of them."""
    names = ("scale", "translate", "rotate", "shear")
    of_data = Affine(**{name: placement[name] for name in names}).expand_dims([0])
    return {
        **{name: getattr(of_data, name) for name in names},
        "affine": placement["affine"].expand_dims([0]),
        "units": ("pixel", *placement["units"]),
        "axis_labels": ("sample", *placement["axis_labels"]),
    }
