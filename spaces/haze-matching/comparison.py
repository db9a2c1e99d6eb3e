"""The tab "Compare": the micrograph of the first tab, dehazed by this package and by two classical methods."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from checkpoints import load_checkpoint
from errors import one_sentence
from sampling import posterior_mean
from uploads import read_plane

from haze_pipeline.evaluation.baselines import richardson_lucy, rolling_ball
from haze_pipeline.io.micrograph_files import write_ome_tiff


CROP = 512  # px; side of the region that is compared


def compare(
    path: str,
    plane: int,
    channel: int,
    ball: float,
    airy_radius: float,
    iterations: int,
    image_number: int,
    checkpoint: str,
):
    """
    Dehaze the central 512 × 512 pixels of a plane with this package, with a rolling ball, and with Richardson–Lucy.

    Args:
        path: TIFF, or zip archive with one OME-Zarr.
        plane: Number of the plane, from 1.
        channel: Number of the channel, from 1.
        ball: Radius of the rolling ball in pixels.
        airy_radius: Radius 0.61 λ/NA of the point spread function in pixels.
        iterations: Iterations of Richardson–Lucy.
        image_number: Number of the image in a file that holds several, from 1.
        checkpoint: Name of the checkpoint.

    Returns:
        Pictures of the input and the three results, the counts shown as black and white, and the results as OME-TIFFs.
    """
    with one_sentence(path), TemporaryDirectory() as folder:
        micrograph = read_plane(path, plane, channel, image_number)
        top, left = (max(0, (side - CROP) // 2) for side in micrograph.data.shape)
        hazy = micrograph.data[top : top + CROP, left : left + CROP]
        results = {
            "haze_pipeline": posterior_mean(checkpoint, hazy),
            "rolling_ball": rolling_ball(hazy, radius=ball).prediction,
            "richardson_lucy": richardson_lucy(hazy, airy_radius, iterations).prediction,
        }
        source = {"source": Path(path).name, "image_number": image_number, "plane": plane, "channel": channel}
        for name, data in results.items():
            write_ome_tiff(f"{folder}/{name}.ome.tif", replace(micrograph, data=data), {"content": name, **source})
        images = {"input": hazy} | {name.replace("_", " "): data for name, data in results.items()}
        shown, caption = load_checkpoint(checkpoint).pipe.image_processor.visualize_together(images)
        yield *shown, caption, [f"{folder}/{name}.ome.tif" for name in results]


def add_tab(image: list[gr.components.Component], checkpoint: gr.components.Component, **computing):
    """Add the tab. `image` are the components with file, plane, channel and image of the file."""
    with gr.Tab("Compare"):
        gr.Markdown(
            "Compares haze-pipeline with two classical methods on the micrograph of the first tab, at most on its "
            f"central {CROP} × {CROP} pixels. All pictures have the same number of counts between black and white."
        )
        with gr.Row():
            ball = gr.Slider(3, 50, 30, step=1, precision=0, label="Rolling ball: radius, px")
            airy_radius = gr.Slider(1, 8, 3, step=0.5, label="Richardson–Lucy: 0.61 λ/NA, px")
            iterations = gr.Slider(1, 50, 20, step=1, precision=0, label="Richardson–Lucy: iterations")
            compare_button = gr.Button("Compare", variant="primary")
        with gr.Row():
            names = ("Input", "haze-pipeline, fast", "Rolling ball", "Richardson–Lucy")
            panels = [
                gr.Image(
                    label=name, format="png", interactive=False, buttons=["download", "fullscreen"], min_width=270
                )
                for name in names
            ]
        compared_contrast = gr.Markdown()
        compared_files = gr.File(label="Download (OME-TIFF)", file_count="multiple", interactive=False)
    compare_button.click(
        compare, [*image[:3], ball, airy_radius, iterations, image[3], checkpoint],
        [*panels, compared_contrast, compared_files], api_name="compare", **computing,
    )  # fmt: skip
