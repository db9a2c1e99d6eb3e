"""The tab "Haze by pinhole": a simulated specimen through pinholes of different diameters, and its dehazed images."""

import math
from functools import lru_cache
from tempfile import TemporaryDirectory

import gradio as gr
import numpy as np
from checkpoints import FIRST, load_checkpoint
from errors import one_sentence
from sampling import posterior_mean

from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.simulation.optics import Optics
from haze_pipeline.simulation.simulated_pairs import SimulatedPair, pair_generator, simulate_series


OPEN_PINHOLE = 30  # Airy units; this end of the slider means no pinhole
MICROSCOPE = Optics(
    numerical_aperture=1.2,
    emission_wavelength=0.52,
    excitation_wavelength=0.488,
    refractive_index=1.33,
    pixel_size=0.1,
)


show_together = load_checkpoint(FIRST).pipe.image_processor.visualize_together


@lru_cache(maxsize=32)
def image_specimen(specimen: int, pinhole: float) -> SimulatedPair:
    """A random specimen through a pinhole. The camera is set for an open pinhole, so that counts stay comparable."""
    pinholes = (math.inf if pinhole == OPEN_PINHOLE else pinhole, math.inf)
    return simulate_series(256, pair_generator(specimen, 0), MICROSCOPE, pinholes)[0]


def simulate(specimen: int, pinhole: float):
    """
    Image a simulated specimen through the pinhole of a confocal microscope.

    Args:
        specimen: Seed of the specimen.
        pinhole: Diameter of the pinhole in Airy units; 30 means no pinhole.

    Returns:
        Pictures of camera image and in-focus signal, the counts shown as black and white, and both as OME-TIFFs.
    """
    with one_sentence(), TemporaryDirectory() as folder:
        pair = image_specimen(specimen, pinhole)
        size = (MICROSCOPE.pixel_size,) * 2
        files = {"hazy": pair.hazy.numpy().astype(np.uint16), "in_focus": pair.clear.numpy()}
        for name, data in files.items():
            write_ome_tiff(f"{folder}/{name}.ome.tif", Micrograph(data, "YX", size), pair.parameters)
        shown, caption = show_together({"camera": files["hazy"], "in-focus signal": files["in_focus"]})
        yield shown, caption, [f"{folder}/{name}.ome.tif" for name in files]


def dehaze_simulated(specimen: int, pinhole: float):
    """
    Dehaze a simulated image, and compare the result with the in-focus signal, which is known here.

    Args:
        specimen: Seed of the specimen.
        pinhole: Diameter of the pinhole in Airy units; 30 means no pinhole.

    Returns:
        Pictures of result and in-focus signal, and the range-invariant PSNR of input and result in dB.
    """
    with one_sentence():
        pair = image_specimen(specimen, pinhole)
        hazy, clear = pair.hazy.numpy(), pair.clear.numpy()
        prediction = posterior_mean(FIRST, hazy)
        (_, *shown), _ = show_together({"camera": hazy, "result": prediction, "in-focus signal": clear})
        before, after = (range_invariant_psnr(clear, image) for image in (hazy, prediction))
        return shown, f"Range-invariant PSNR to the in-focus signal: {before:.1f} dB before, {after:.1f} dB after."


def add_tab(**computing):
    """Add the tab."""
    with gr.Tab("Haze by pinhole") as pinhole_tab:
        gr.Markdown(
            "A pinhole blocks out-of-focus light. The wider the pinhole, the hazier the image. This specimen is "
            "simulated, so that the result can be compared with the known in-focus signal."
        )
        with gr.Row():
            specimen = gr.Number(9, minimum=0, maximum=2**32 - 1, precision=0, label="Specimen (seed)")
            pinhole = gr.Slider(
                1, OPEN_PINHOLE, OPEN_PINHOLE, step=1, precision=0, label=f"Pinhole, Airy units ({OPEN_PINHOLE}: none)"
            )
            dehaze_button = gr.Button("Dehaze this", variant="primary")
        with gr.Row():
            with gr.Column(min_width=300):
                simulated = gr.ImageSlider(
                    label="Camera | in-focus signal", format="png", interactive=False, max_height=480
                )
                simulated_contrast = gr.Markdown()
                simulated_files = gr.File(label="Download (OME-TIFF)", file_count="multiple", interactive=False)
            with gr.Column(min_width=300):
                simulated_result = gr.ImageSlider(
                    label="Result | in-focus signal", format="png", interactive=False, max_height=480
                )
                score = gr.Markdown()
    simulation = [pinhole_tab.select, specimen.change, pinhole.release]
    gr.on(
        simulation, simulate, [specimen, pinhole], [simulated, simulated_contrast, simulated_files],
        api_name="simulate", trigger_mode="always_last", **computing,
    )  # fmt: skip
    gr.on(
        simulation, lambda: (None, ""), None, [simulated_result, score],
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    dehaze_button.click(
        dehaze_simulated, [specimen, pinhole], [simulated_result, score], api_name="dehaze_simulated", **computing
    )
