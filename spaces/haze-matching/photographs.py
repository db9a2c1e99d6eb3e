"""
The tab "Photographs": haze of the atmosphere in photographs. It exists if HAZE_PHOTOGRAPH_MODEL names a network.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import numpy as np
from errors import one_sentence
from PIL import Image
from sampling import GPU, NETWORK

from haze_pipeline.data.unpaired import to_picture
from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior_of_display
from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline


EXAMPLE = Path(__file__).parent / "examples" / "photograph.png"
MAX_SIDE = 2048  # px
PRIOR, NETWORK_OF_PHOTOGRAPHS = "dark-channel prior", "network"
MODEL = os.environ.get("HAZE_PHOTOGRAPH_MODEL")  # a folder with a HazeRegressionPipeline for colours
PIPE = None
if MODEL is not None:
    PIPE = place_pipeline(load_pipeline(MODEL, ("HazeRegressionPipeline",)), Device.auto, DType.auto)
    if PIPE.num_channels != 3:
        raise ValueError(f"HAZE_PHOTOGRAPH_MODEL {MODEL} restores micrographs: name a network of photographs.")
    PIPE.set_progress_bar_config(disable=True)
METHODS = [PRIOR, NETWORK_OF_PHOTOGRAPHS]


@GPU
def remove_haze(photograph: np.ndarray, method: str):
    """
    Remove the haze of the atmosphere from a photograph.

    Args:
        photograph: PNG or JPEG with three colours.
        method: dark-channel prior or network.

    Returns:
        Pictures of the photograph before and after, and the result as PNG.
    """
    with one_sentence(), TemporaryDirectory() as folder:
        if photograph is None:
            raise ValueError("There is no photograph: upload one, or click the example.")
        if max(photograph.shape[:2]) > MAX_SIDE:
            raise ValueError(f"The photograph is larger than {MAX_SIDE} × {MAX_SIDE} pixels: make it smaller.")
        hazy = np.moveaxis(photograph, -1, 0)  # [3,H,W], 0 to 255, with the gamma of a display
        if method == PRIOR:
            clear = dark_channel_prior_of_display(hazy)
        else:
            clear = NETWORK.submit(PIPE, hazy).result().prediction
        result = to_picture(clear)
        name = f"{folder}/photograph_clear.png"
        result.save(name)
        yield (Image.fromarray(photograph), result), name


def add_tab(**computing):
    """Add the tab."""
    with gr.Tab("Photographs"):
        gr.Markdown(
            "Removes the haze of the atmosphere from photographs. The dark-channel prior assumes that without haze, "
            "every small area has a dark pixel in at least one colour. It therefore darkens snow and white walls."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photograph = gr.Image(
                    label="Photograph (PNG or JPEG)", type="numpy", image_mode="RGB", sources=["upload"], height=300
                )
                gr.Examples([str(EXAMPLE)], photograph, label="Example: a rocket launch, with simulated haze")
                method = gr.Radio(METHODS, value=METHODS[-1], label="Method")
                button = gr.Button("Remove haze", variant="primary")
            with gr.Column(scale=3, min_width=300):
                pair = gr.ImageSlider(label="Photograph | result", format="png", interactive=False, max_height=480)
                download = gr.File(label="Download (PNG)", interactive=False)
    button.click(remove_haze, [photograph, method], [pair, download], api_name="remove_haze", **computing)
