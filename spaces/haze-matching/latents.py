"""The tab "Step by step": restoration in latents. It exists if HAZE_LATENT_MODEL names a pipeline for it."""

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from errors import one_sentence
from sampling import GPU, NETWORK
from uploads import read_plane

from haze_pipeline.io.micrograph_files import write_ome_tiff
from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.pipeline_latent_restoration import VARIANTS
from haze_pipeline.utils.provenance import weights_digest


MODEL = os.environ.get("HAZE_LATENT_MODEL")  # a folder with a LatentRestorationPipeline
PIPE = None
if MODEL is not None:
    PIPE = load_pipeline(MODEL, ("LatentRestorationPipeline",))
    REVISION = weights_digest(PIPE)
    PIPE = place_pipeline(PIPE, Device.auto, DType.auto)
    PIPE.set_progress_bar_config(disable=True)


@GPU
def restore(path: str, plane: int, channel: int, image_number: int, variant: str, alpha: float, repeats: int):
    """
    Restore one plane of a micrograph from level to level of haze.

    Args:
        path: TIFF, or zip archive with one OME-Zarr.
        plane: Number of the plane, from 1.
        channel: Number of the channel, from 1.
        image_number: Number of the image in a file that holds several, from 1.
        variant: How each step uses the ones before.
        alpha: Weight of the new estimate in combinations and re-projection.
        repeats: Passes through the autoencoder in refinement.

    Returns:
        Pictures of the input and of all estimates, the counts shown as black and white, and the estimates as OME-TIFF.
    """
    with one_sentence(path), TemporaryDirectory() as folder:
        micrograph = read_plane(path, plane, channel, image_number)
        options = {"variant": variant, "alpha": alpha, "num_refinements": repeats}
        output = NETWORK.submit(PIPE, micrograph.data, output_trajectory=True, **options).result()
        images = {"input": micrograph.data}
        images |= {f"step {step}": estimate for step, estimate in enumerate(output.trajectory, start=1)}
        pictures, caption = PIPE.image_processor.visualize_together(images)
        name = f"{folder}/{Path(path).name.split('.')[0]}_steps.ome.tif"
        provenance = {"model": MODEL, "revision": REVISION, "source": Path(path).name, "plane": plane, **options}
        write_ome_tiff(name, replace(micrograph, data=output.trajectory, axes="TYX"), provenance)
        yield list(zip(pictures, images, strict=True)), caption, name


def add_tab(image: list[gr.components.Component], **computing):
    """Add the tab. `image` are the components with file, plane, channel and image of the file."""
    with gr.Tab("Step by step"):
        gr.Markdown(
            "Removes the haze of the micrograph of the first tab in several steps, in the latents of a hierarchical "
            "autoencoder. Only re-projection uses the micrograph at every step. In the other variants, errors of one "
            "step are the input of the next one."
        )
        with gr.Row():
            variant = gr.Radio(list(VARIANTS), value="reprojection", label="Variant")
            alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Combinations, re-projection: weight of the new estimate")
            repeats = gr.Slider(1, 5, 1, step=1, precision=0, label="Refinement: passes through the autoencoder")
            button = gr.Button("Restore", variant="primary")
        steps = gr.Gallery(format="png", columns=4, show_label=False, height=480, buttons=["download", "fullscreen"])
        contrast = gr.Markdown()
        download = gr.File(label="Download (OME-TIFF, one estimate after every step)", interactive=False)
    button.click(
        restore, [*image, variant, alpha, repeats], [steps, contrast, download], api_name="restore_in_latents",
        **computing,
    )  # fmt: skip
