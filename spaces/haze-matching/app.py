"""Dehaze a micrograph in the browser, judge the result, see how a pinhole affects haze, and compare methods."""

import math
import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory


# The package `spaces` of ZeroGPU must be imported before torch.
from sampling import PIPE, describe_uncertainty, posterior_mean, sample  # isort: skip
import gradio as gr
import latents
import numpy as np
from errors import one_sentence
from uploads import (
    EXPIRY,
    MAX_FILE,
    REFUSE_LARGE_FILES,
    choose_plane,
    count_planes,
    delete_expired_files,
    open_upload,
    read_plane,
)

from haze_pipeline.evaluation.baselines import richardson_lucy, rolling_ball
from haze_pipeline.evaluation.figures import plot_profile, plot_uncertainty
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.simulation.optics import Optics
from haze_pipeline.simulation.simulated_pairs import SimulatedPair, pair_generator, simulate_series


MAX_WORK = 2**25  # pixels of a plane × members
MAX_MEMBERS = 50
NUM_SHOWN = 8  # members in the gallery
CROP = 512  # px; side of the region in the tab "Compare"
OPEN_PINHOLE = 30  # Airy units; this end of the slider means no pinhole
MICROSCOPE = Optics(
    numerical_aperture=1.2,
    emission_wavelength=0.52,
    excitation_wavelength=0.488,
    refractive_index=1.33,
    pixel_size=0.1,
)

pictures = PIPE.image_processor.visualize_together


def show_image(path: str | None, image_number: int = 1) -> tuple:
    """Describe an image of a file, show its first plane, and hide the results of another image."""
    if path is None:
        return "", *(gr.update(visible=False) for _ in range(5))
    with one_sentence(path), open_upload(path, image_number) as (micrograph, images):
        numbers, channels = count_planes(micrograph)
        first = choose_plane(micrograph, 1, 1).data
    size = " × ".join(map(str, micrograph.data.shape))
    pixels = f"pixels of {micrograph.pixel_size_um:.3g} µm" if micrograph.pixel_size_um else "pixel size not stated"
    return (
        f"{micrograph.axes} {size}, {micrograph.data.dtype}, {pixels}",
        gr.update(
            value=image_number, maximum=max(2, images), visible=images > 1, label=f"Image of the file, 1 to {images}"
        ),
        gr.update(value=1, maximum=max(2, numbers), visible=numbers > 1, label=f"Plane, 1 to {numbers}"),
        gr.update(value=1, maximum=max(2, channels), visible=channels > 1, label=f"Channel, 1 to {channels}"),
        gr.update(value=pictures({"input": first})[0][0], label="Input", visible=True),
        gr.update(visible=False),
    )


def refuse_large_file():
    """Show the error message for `REFUSE_LARGE_FILES`."""
    with one_sentence():
        raise ValueError(f"The file is larger than {MAX_FILE >> 20} MB: crop it or save fewer planes.")


def show_plane(path: str | None, plane: int, channel: int, image_number: int) -> tuple:
    """Show the chosen plane, and hide the results of another one."""
    if path is None:
        return gr.update(visible=False), gr.update(visible=False)
    with one_sentence(path):
        [picture], _ = pictures({"input": read_plane(path, plane, channel, image_number).data})
    return gr.update(value=picture, label="Input", visible=True), gr.update(visible=False)


def dehaze(
    path: str, plane: int, channel: int, preset: str, members: int, seed: int, strength: float, image_number: int
):
    """
    Dehaze one plane of a TIFF.

    Returns the OME-TIFFs (the result and, except for the preset fast, its standard deviation), an assessment of the
    result, pictures of input and result, a map of the standard deviation, and posterior samples. While it computes, it
    returns the state of the sampling. Images of a file, planes and channels are counted from 1. `strength` is the
    fraction of the predicted haze to remove.
    """
    with one_sentence(path), TemporaryDirectory() as folder:
        micrograph = read_plane(path, plane, channel, image_number)
        hazy, pixel_size = micrograph.data, micrograph.pixel_size_um
        if hazy.size * members > MAX_WORK:
            most = MAX_WORK // hazy.size
            raise ValueError(
                f"{members} members are too many for a plane of this size: choose at most {most}, or crop the image."
            )
        for state, result in sample(hazy, Preset(preset), members, seed, pixel_size, strength):
            if state is not None:
                step, steps, plane_state = state
                [picture], _ = pictures({"state": plane_state})
                yield {live: gr.update(value=picture, label=f"Sampling: step {step} of {steps}", visible=True)}
            elif result is None:
                yield {live: gr.skip()}
        output, assessment, provenance = result
        provenance |= {"source": Path(path).name, "image_number": image_number, "plane": plane, "channel": channel}

        files = []
        for name, content, data in (
            ("clear", "prediction", output.prediction),
            ("clear_uncertainty", "standard deviation", output.uncertainty),
        ):
            if data is not None:
                files.append(f"{folder}/{Path(path).name.split('.')[0]}_{name}.ome.tif")
                write_ome_tiff(files[-1], replace(micrograph, data=data), {**provenance, "content": content})

        shown, caption = pictures({"input": hazy, "result": output.prediction})
        members_shown = [] if output.samples is None else output.samples[:NUM_SHOWN]
        names = [f"sample {number} of {members}" for number in range(1, len(members_shown) + 1)]
        sample_pictures, _ = pictures({"result": output.prediction, **dict(zip(names, members_shown, strict=True))})
        yield {
            live: gr.update(visible=False),
            outcome: gr.update(visible=True),
            slider: shown,
            contrast: caption,
            same_contrast: True,
            verdict: f"**Can it be trusted?** {assessment.verdict}",
            downloads: files,
            uncertainty_note: describe_uncertainty(output, members, provenance["num_inference_steps"], strength),
            uncertainty_map: gr.update(
                value=None if output.uncertainty is None else plot_uncertainty(output.uncertainty, pixel_size),
                visible=output.uncertainty is not None,
            ),
            samples_note: (
                "All samples are equally likely. Structures in which they differ are uncertain. They are shown with "
                "the contrast of the result."
                if names
                else "The preset fast gives only the mean. The presets balanced and quality also give samples."
            ),
            samples: gr.update(value=list(zip(sample_pictures[1:], names, strict=True)), visible=bool(names)),
        }


def read_results(path: str, results: list[str] | None) -> tuple[np.ndarray, Micrograph, np.ndarray | None]:
    """Read the plane that was dehazed (not the selected one), the result, and its standard deviation, if any."""
    if not results:
        raise ValueError("There is no result yet: press Dehaze first.")
    prediction, *deviation = (read_micrograph(result) for result in results)
    made = prediction.provenance or {}
    hazy = read_plane(path, *(made.get(name, 1) for name in ("plane", "channel", "image_number"))).data
    if hazy.shape != prediction.data.shape:
        raise ValueError("The result belongs to another file: press Dehaze again.")
    return hazy, prediction, deviation[0].data if deviation else None


def change_contrast(path: str, results: list[str], same: bool) -> tuple:
    """Show input and result at the same contrast, or each at its own."""
    with one_sentence(path):
        hazy, prediction, _ = read_results(path, results)
        return pictures({"input": hazy, "result": prediction.data}, same)


def draw_profile(path: str, results: list[str], position: float):
    """Plot the intensities of input and result along a horizontal line at `position` % of the height."""
    with one_sentence(path):
        hazy, prediction, deviation = read_results(path, results)
        return plot_profile(hazy, prediction.data, deviation, position / 100, prediction.pixel_size_um)


@lru_cache(maxsize=32)
def image_specimen(specimen: int, pinhole: float) -> SimulatedPair:
    """A random specimen through a pinhole. The camera is set for an open pinhole, so that counts stay comparable."""
    pinholes = (math.inf if pinhole == OPEN_PINHOLE else pinhole, math.inf)
    return simulate_series(256, pair_generator(specimen, 0), MICROSCOPE, pinholes)[0]


def simulate(specimen: int, pinhole: float):
    """Image a simulated specimen through a pinhole of a diameter in Airy units. Returns both images and OME-TIFFs."""
    with one_sentence(), TemporaryDirectory() as folder:
        pair = image_specimen(specimen, pinhole)
        size = (MICROSCOPE.pixel_size,) * 2
        files = {"hazy": pair.hazy.numpy().astype(np.uint16), "in_focus": pair.clear.numpy()}
        for name, data in files.items():
            write_ome_tiff(f"{folder}/{name}.ome.tif", Micrograph(data, "YX", size), pair.parameters)
        shown, caption = pictures({"camera": files["hazy"], "in-focus signal": files["in_focus"]})
        yield shown, caption, [f"{folder}/{name}.ome.tif" for name in files]


def dehaze_simulated(specimen: int, pinhole: float):
    """Dehaze the simulated image, and compare the result with the in-focus signal, which is known here."""
    with one_sentence():
        pair = image_specimen(specimen, pinhole)
        hazy, clear = pair.hazy.numpy(), pair.clear.numpy()
        prediction = posterior_mean(hazy)
        (_, *shown), _ = pictures({"camera": hazy, "result": prediction, "in-focus signal": clear})
        before, after = (range_invariant_psnr(clear, image) for image in (hazy, prediction))
        return shown, f"Range-invariant PSNR to the in-focus signal: {before:.1f} dB before, {after:.1f} dB after."


def compare(path: str, plane: int, channel: int, ball: float, airy_radius: float, iterations: int, image_number: int):
    """Dehaze the centre of a plane with three methods. Returns pictures and OME-TIFFs."""
    with one_sentence(path), TemporaryDirectory() as folder:
        micrograph = read_plane(path, plane, channel, image_number)
        top, left = (max(0, (side - CROP) // 2) for side in micrograph.data.shape)
        hazy = micrograph.data[top : top + CROP, left : left + CROP]
        results = {
            "haze_pipeline": posterior_mean(hazy),
            "rolling_ball": rolling_ball(hazy, radius=ball).prediction,
            "richardson_lucy": richardson_lucy(hazy, airy_radius, iterations).prediction,
        }
        source = {"source": Path(path).name, "image_number": image_number, "plane": plane, "channel": channel}
        for name, data in results.items():
            write_ome_tiff(f"{folder}/{name}.ome.tif", replace(micrograph, data=data), {"content": name, **source})
        shown, caption = pictures({"input": hazy} | {name.replace("_", " "): data for name, data in results.items()})
        yield *shown, caption, [f"{folder}/{name}.ome.tif" for name in results]


with gr.Blocks(title="Dehaze a micrograph", analytics_enabled=False) as demo:
    gr.Markdown(
        f"""# Dehaze a micrograph
        Removes out-of-focus haze from a fluorescence micrograph with [HazeMatching](https://arxiv.org/abs/2506.22397),
        and warns if the result may not be reliable. The result is in the counts of the input.

        **Limits:** TIFF, ImageJ TIFF or OME-TIFF of any bit depth, at most {MAX_FILE >> 20} MB, planes of at most
        2048 × 2048 pixels. Files are deleted after {EXPIRY / 60:.0f} minutes."""
    )
    with gr.Tab("Dehaze"):
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                file = gr.File(
                    label=f"Micrograph (TIFF, at most {MAX_FILE >> 20} MB)", file_types=[".tif", ".tiff"], height=170
                )
                too_large = gr.Button(visible="hidden", elem_id="too_large")
                gr.Examples(
                    sorted(map(str, (Path(__file__).parent / "examples").glob("*.tif"))), file, label="Examples"
                )
                facts = gr.Textbox(label="Contents", interactive=False, lines=1)
                image_number = gr.Slider(1, 10_000, 1, step=1, precision=0, label="Image of the file", visible=False)
                plane = gr.Slider(1, 10_000, 1, step=1, precision=0, label="Plane", visible=False)
                channel = gr.Slider(1, 100, 1, step=1, precision=0, label="Channel", visible=False)
                preset = gr.Radio(
                    list(Preset), value=Preset.fast, label="Preset", info="fast: mean only; others: with uncertainty"
                )
                members = gr.Slider(
                    1, MAX_MEMBERS, choose_members(PIPE, Preset.fast), step=1, precision=0, label="Members"
                )
                seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
                strength = gr.Slider(
                    0, 1, 1, step=0.05, label="Strength", info="fraction of the predicted haze to remove"
                )
                with gr.Row():
                    start = gr.Button("Dehaze", variant="primary", min_width=120)
                    cancel = gr.Button("Cancel", min_width=120)
            with gr.Column(scale=3, min_width=300):
                live = gr.Image(visible=False, format="png", interactive=False, buttons=[], height=480)
                with gr.Column(visible=False) as outcome:
                    slider = gr.ImageSlider(
                        elem_id="slider", label="Input | result", format="png", interactive=False, max_height=480
                    )
                    contrast = gr.Markdown()
                    same_contrast = gr.Checkbox(True, label="Same contrast", container=False)
                    verdict = gr.Markdown()
                    downloads = gr.File(
                        label="Download (OME-TIFF, float32, counts)", file_count="multiple", interactive=False
                    )
                    with gr.Tab("Uncertainty"):
                        uncertainty_note = gr.Markdown()
                        uncertainty_map = gr.Plot(show_label=False)
                    with gr.Tab("Samples"):
                        samples_note = gr.Markdown()
                        samples = gr.Gallery(
                            format="png",
                            columns=4,
                            preview=True,
                            show_label=False,
                            height=480,
                            buttons=["download", "fullscreen"],
                        )
                    with gr.Tab("Profile"):
                        profile = gr.Plot(show_label=False, elem_id="profile")
                        position = gr.Slider(0, 100, 50, step=0.5, label="Line, % of the height")
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

    image = [file, plane, channel]
    shown_image = [facts, image_number, plane, channel, live, outcome]
    computing = {"concurrency_id": "computing", "concurrency_limit": 1}
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    file.change(show_image, file, shown_image, **quiet)
    image_number.release(show_image, [file, image_number], shown_image, **quiet)
    too_large.click(refuse_large_file, **quiet)
    gr.on([plane.release, channel.release], show_plane, [*image, image_number], [live, outcome], **quiet)
    preset.change(lambda name: choose_members(PIPE, Preset(name)), preset, members, **quiet)
    results = [downloads, verdict, slider, contrast, uncertainty_map, uncertainty_note, samples, samples_note, live]
    results += [same_contrast, outcome]
    run = start.click(
        dehaze, [*image, preset, members, seed, strength, image_number], results,
        api_name="dehaze", show_progress="minimal", **computing,
    )  # fmt: skip
    cancel.click(show_plane, [*image, image_number], [live, outcome], cancels=run, **quiet)
    same_contrast.input(change_contrast, [file, downloads, same_contrast], [slider, contrast], **quiet)
    gr.on(
        [downloads.change, position.change], draw_profile, [file, downloads, position], profile,
        api_name="profile", trigger_mode="always_last", show_progress="hidden",
    )  # fmt: skip
    simulation = [pinhole_tab.select, specimen.change, pinhole.release]
    gr.on(
        simulation, simulate, [specimen, pinhole], [simulated, simulated_contrast, simulated_files],
        api_name="simulate", trigger_mode="always_last", **computing,
    )  # fmt: skip
    gr.on(simulation, lambda: (None, ""), None, [simulated_result, score], **quiet)
    dehaze_button.click(
        dehaze_simulated, [specimen, pinhole], [simulated_result, score], api_name="dehaze_simulated", **computing
    )
    compare_button.click(
        compare, [*image, ball, airy_radius, iterations, image_number], [*panels, compared_contrast, compared_files],
        api_name="compare", **computing,
    )  # fmt: skip
    if latents.PIPE is not None:
        latents.add_tab([*image, image_number], **computing)


if __name__ == "__main__":
    threading.Thread(target=delete_expired_files, daemon=True).start()
    demo.queue(max_size=64).launch(
        max_file_size=MAX_FILE,
        state_session_capacity=200,  # sessions whose last plots are kept
        show_error=True,
        js=REFUSE_LARGE_FILES,
        ssr_mode=False,
        footer_links=["api"],
        # Local fonts only, so that the page works without an internet connection.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
