"""Dehaze a micrograph in the browser, judge the result, see how a pinhole affects haze, and compare methods."""

import threading
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory


# The package `spaces` of ZeroGPU must be imported before torch.
from sampling import describe_uncertainty, sample, sample_stack  # isort: skip
import comparison
import gradio as gr
import latents
import photographs
import pinholes
from checkpoints import CHECKPOINTS, FIRST, load_checkpoint
from errors import one_sentence
from results import compare_plane, draw_profile, show_together
from uploads import (
    EXPIRY,
    MAX_FILE,
    MAX_WORK,
    REFUSE_LARGE_FILES,
    choose_plane,
    count_planes,
    delete_expired_files,
    open_upload,
    read_plane,
    read_stack,
)
from verdicts import list_findings

from haze_pipeline.io.micrograph_files import write_ome_tiff
from haze_pipeline.presets import Preset, choose_members


MAX_MEMBERS = 50
NUM_SHOWN = 8  # members in the gallery
EXAMPLES = Path(__file__).parent / "examples"
# By name of file: what the table of examples says. `draw_examples.py` draws the pictures.
EXAMPLE_NAMES = {
    "filaments": "Filaments, widefield, simulated",
    "two_channels": "Cell borders and vesicles, two channels, simulated",
    "mitochondria": "Mitochondria of HeLa cells, widefield, real",
}
ATTRIBUTION = (
    "Mitochondria: crop of ImageJ's sample image *HeLa Cells* (public domain) from the [NEUBIAS training resources]"
    "(https://github.com/NEUBIAS/training-resources), [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)."
)
OPENING = {
    "value": f"{EXAMPLES}/opening.png",
    "label": "Example: the centre of the filaments, dehazed with the preset balanced",
    "visible": True,
    "height": 340,  # px
}
LIVE_HEIGHT = 480  # px


def show_image(path: str | None, image_number: int = 1) -> tuple:
    """Describe an image of a file, show its first plane, and hide the results of another image."""
    if path is None:
        hidden = gr.update(visible=False)
        return "", hidden, hidden, hidden, gr.update(value=False, visible=False), gr.update(**OPENING), hidden
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
        gr.update(value=1 < numbers <= MAX_WORK // first.size, visible=numbers > 1),
        gr.update(value=show_together(FIRST, {"input": first})[0][0], label="Input", visible=True, height=LIVE_HEIGHT),
        gr.update(visible=False),
    )


def refuse_large_file():
    """Show the error message for `REFUSE_LARGE_FILES`."""
    with one_sentence():
        raise ValueError(f"The file is larger than {MAX_FILE >> 20} MB: crop it or save fewer planes.")


def suggest_members(checkpoint: str, preset: str) -> int:
    """The number of ensemble members of a preset for a checkpoint."""
    with one_sentence():
        return choose_members(load_checkpoint(checkpoint).pipe, Preset(preset))


def show_plane(path: str | None, plane: int, channel: int, image_number: int) -> tuple:
    """Show the chosen plane, and hide the results of another one."""
    if path is None:
        return gr.update(visible=False), gr.update(visible=False)
    with one_sentence(path):
        [picture], _ = show_together(FIRST, {"input": read_plane(path, plane, channel, image_number).data})
    return gr.update(value=picture, label="Input", visible=True), gr.update(visible=False)


def dehaze(
    path: str,
    plane: int,
    channel: int,
    preset: str,
    members: int,
    seed: int,
    strength: float,
    image_number: int,
    checkpoint: str,
    all_planes: bool,
):
    """
    Remove the out-of-focus haze from a fluorescence micrograph, estimate the uncertainty, and check the result.

    Args:
        path: TIFF, or zip archive with one OME-Zarr.
        plane: Number of the plane, from 1. All axes except the channel axis count as planes.
        channel: Number of the channel, from 1.
        preset: fast gives the mean only; balanced and quality also give the uncertainty and samples.
        members: Number of posterior samples.
        seed: Seed of the noise.
        strength: Fraction of the predicted haze to remove, from 0 to 1.
        image_number: Number of the image in a file that holds several, from 1.
        checkpoint: Name of the checkpoint.
        all_planes: Dehaze all planes of the channel instead of one.

    Returns:
        OME-TIFFs of the result and its standard deviation, the verdict, pictures, and a map of the standard deviation.
    """
    with one_sentence(path), TemporaryDirectory() as folder:
        name = Path(path or "").name
        if all_planes:
            micrograph = read_stack(path, channel, image_number, members)
            steps = sample_stack(checkpoint, micrograph, name, Preset(preset), members, seed, strength)
        else:
            micrograph = read_plane(path, plane, channel, image_number)
            if micrograph.data.size * members > MAX_WORK:
                most = MAX_WORK // micrograph.data.size
                raise ValueError(
                    f"{members} members are too many for a plane of this size: choose at most {most}, or crop the "
                    "image."
                )
            pixel_size = micrograph.pixel_size_um
            steps = sample(checkpoint, micrograph.data, Preset(preset), members, seed, pixel_size, strength)
        for state, result in steps:
            if state is not None:
                step, of, shown = state
                label = f"Dehazed plane {step} of {of}" if all_planes else f"Sampling: step {step} of {of}"
                [picture], _ = show_together(checkpoint, {"state": shown})
                yield {live: gr.update(value=picture, label=label, visible=True)}
            elif result is None:
                yield {live: gr.skip()}
        provenance = {
            **result.provenance,
            **{"source": name, "image_number": image_number, "plane": None if all_planes else plane},
            **{"channel": channel, "checkpoint": checkpoint},
        }

        files = []
        for suffix, content, data in (
            ("clear", "prediction", result.prediction),
            ("clear_uncertainty", "standard deviation", result.uncertainty),
        ):
            if data is not None:
                files.append(f"{folder}/{name.split('.')[0]}_{suffix}.ome.tif")
                write_ome_tiff(files[-1], replace(micrograph, data=data), {**provenance, "content": content})

        pair, caption, uncertainty = compare_plane(path, files, plane)
        members_shown = [] if result.samples is None else result.samples[:NUM_SHOWN]
        names = [f"sample {number} of {members}" for number in range(1, len(members_shown) + 1)]
        named = dict(zip(names, members_shown, strict=True))
        sample_pictures, _ = show_together(checkpoint, {"result": result.prediction, **named}) if names else ([], "")
        if names:
            note = (
                "All samples are equally likely. Structures in which they differ are uncertain. They are shown with "
                "the contrast of the result."
            )
        elif all_planes:
            note = "Samples are given for single planes only: uncheck “All planes” and press Dehaze."
        else:
            note = "The preset fast gives only the mean. The presets balanced and quality also give samples."
        count = result.prediction[..., 0, 0].size
        yield {
            live: gr.update(visible=False),
            outcome: gr.update(visible=True),
            slider: pair,
            contrast: caption,
            same_contrast: True,
            verdict: list_findings(result.assessments),
            downloads: files,
            uncertainty_note: describe_uncertainty(checkpoint, result, members),
            uncertainty_map: uncertainty,
            samples_note: note,
            samples: gr.update(value=list(zip(sample_pictures[1:], names, strict=True)), visible=bool(names)),
            shown_plane: gr.update(
                value=plane if count > 1 else 1, maximum=max(2, count), visible=count > 1,
                label=f"Plane of the result, 1 to {count}",
            ),
        }  # fmt: skip


with gr.Blocks(title="Dehaze a micrograph", analytics_enabled=False) as demo:
    gr.Markdown(
        f"""# Dehaze a micrograph
        Removes out-of-focus haze from a fluorescence micrograph with [HazeMatching](https://arxiv.org/abs/2506.22397),
        and warns if the result may not be reliable. The result is in the counts of the input.

        **Limits:** TIFF, ImageJ TIFF, OME-TIFF or zipped OME-Zarr of any bit depth, at most {MAX_FILE >> 20} MB,
        planes of at most 2048 × 2048 pixels. Files are deleted after {EXPIRY / 60:.0f} minutes."""
    )
    with gr.Tab("Dehaze"):
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                file = gr.File(
                    label=f"Micrograph (TIFF or zipped OME-Zarr, at most {MAX_FILE >> 20} MB)",
                    file_types=[".tif", ".tiff", ".zip"],
                    height=170,
                )
                too_large = gr.Button(visible="hidden", elem_id="too_large")
                examples = gr.Examples(
                    [
                        [f"{EXAMPLES}/{stem}.png", description, f"{EXAMPLES}/{stem}.ome.tif"]
                        for stem, description in EXAMPLE_NAMES.items()
                    ],
                    [
                        gr.Image(visible=False, label="Click to dehaze"),
                        gr.Textbox(visible=False, label="Example"),
                        file,
                    ],
                    visible_columns=[0, 1],
                    label="Examples",
                )
                gr.Markdown(ATTRIBUTION)
                facts = gr.Textbox(label="Contents", interactive=False, lines=1)
                image_number = gr.Slider(1, 10_000, 1, step=1, precision=0, label="Image of the file", visible=False)
                plane = gr.Slider(1, 10_000, 1, step=1, precision=0, label="Plane", visible=False)
                channel = gr.Slider(1, 100, 1, step=1, precision=0, label="Channel", visible=False)
                all_planes = gr.Checkbox(
                    False, label="All planes", info="else only the plane chosen above", visible=False
                )
                checkpoint = gr.Dropdown(
                    list(CHECKPOINTS), value=FIRST, label="Checkpoint", visible=len(CHECKPOINTS) > 1
                )
                preset = gr.Radio(
                    list(Preset), value=Preset.fast, label="Preset", info="fast: mean only; others: with uncertainty"
                )
                members = gr.Slider(
                    1,
                    MAX_MEMBERS,
                    choose_members(load_checkpoint(FIRST).pipe, Preset.fast),
                    step=1,
                    precision=0,
                    label="Members",
                )
                seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
                strength = gr.Slider(
                    0, 1, 1, step=0.05, label="Strength", info="fraction of the predicted haze to remove"
                )
                with gr.Row():
                    start = gr.Button("Dehaze", variant="primary", min_width=120)
                    cancel = gr.Button("Cancel", min_width=120)
            with gr.Column(scale=3, min_width=300):
                live = gr.Image(**OPENING, format="png", interactive=False, buttons=[])
                with gr.Column(visible=False) as outcome:
                    slider = gr.ImageSlider(
                        elem_id="slider", label="Input | result", format="png", interactive=False, max_height=480
                    )
                    shown_plane = gr.Slider(
                        1, 10_000, 1, step=1, precision=0, label="Plane of the result", visible=False
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
    computing = {"concurrency_id": "computing", "concurrency_limit": 1}
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    pinholes.add_tab(**computing)
    comparison.add_tab([file, plane, channel, image_number], checkpoint, **computing)
    if latents.PIPE is not None:
        latents.add_tab([file, plane, channel, image_number], **computing)
    if photographs.PIPE is not None:  # on a phone, further tabs hide in a menu
        photographs.add_tab(**computing)

    image = [file, plane, channel]
    shown_image = [facts, image_number, plane, channel, all_planes, live, outcome]
    gr.on([file.upload, file.clear], show_image, file, shown_image, **quiet)
    image_number.release(show_image, [file, image_number], shown_image, **quiet)
    too_large.click(refuse_large_file, **quiet)
    gr.on([plane.release, channel.release], show_plane, [*image, image_number], [live, outcome], **quiet)
    gr.on([preset.change, checkpoint.change], suggest_members, [checkpoint, preset], members, **quiet)
    settings = [*image, preset, members, seed, strength, image_number, checkpoint, all_planes]
    results = [downloads, verdict, slider, contrast, uncertainty_map, uncertainty_note, samples, samples_note, live]
    results += [same_contrast, outcome, shown_plane]
    run = start.click(dehaze, settings, results, api_name="dehaze", show_progress="minimal", **computing)
    example_shown = examples.load_input_event.then(show_image, file, shown_image, cancels=run, **quiet)
    example_run = example_shown.success(
        dehaze, settings, results, api_visibility="private", show_progress="minimal", **computing
    )
    cancel.click(show_plane, [*image, image_number], [live, outcome], cancels=[run, example_run], **quiet)
    gr.on(
        [same_contrast.input, shown_plane.input], compare_plane, [file, downloads, shown_plane, same_contrast],
        [slider, contrast, uncertainty_map], trigger_mode="always_last", **quiet,
    )  # fmt: skip
    gr.on(
        [downloads.change, position.change, shown_plane.input], draw_profile, [file, downloads, position, shown_plane],
        profile, api_name="profile", trigger_mode="always_last", show_progress="hidden",
    )  # fmt: skip


if __name__ == "__main__":
    threading.Thread(target=delete_expired_files, daemon=True).start()
    demo.queue(max_size=64).launch(
        max_file_size=MAX_FILE,
        allowed_paths=[str(EXAMPLES)],
        state_session_capacity=200,  # sessions whose last plots are kept
        show_error=True,
        js=REFUSE_LARGE_FILES,
        ssr_mode=False,
        footer_links=["api"],
        mcp_server=True,
        # Local fonts only, so that the page works without an internet connection.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
