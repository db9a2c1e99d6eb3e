"""Pictures and plots of a result, drawn from the files that were offered for download."""

import gradio as gr
import numpy as np
from checkpoints import FIRST, load_checkpoint
from errors import one_sentence
from uploads import choose_plane, count_planes, open_upload, read_plane

from haze_pipeline.evaluation.figures import plot_profile, plot_uncertainty
from haze_pipeline.io.micrograph_files import Micrograph, open_micrograph


def show_together(checkpoint: str, images: dict[str, np.ndarray], same_contrast: bool = True) -> tuple:
    """Pictures of planes for comparison, and a sentence that states their contrast."""
    return load_checkpoint(checkpoint).pipe.image_processor.visualize_together(images, same_contrast)


def read_results(path: str, results: list[str] | None, shown: int) -> tuple[Micrograph, ...]:
    """
    Read input, result and, if any, its standard deviation: of the plane that was dehazed, which need not be the
    selected one, or of the plane `shown` of a stack, counted from 1.
    """
    if not results:
        raise ValueError("There is no result yet: press Dehaze first.")
    planes = []
    for result in results:
        with open_micrograph(result) as micrograph:
            planes.append(choose_plane(micrograph, shown if micrograph.data.ndim > 2 else 1, 1))
    made = planes[0].provenance or {}
    hazy = read_plane(path, made.get("plane", 1) or shown, made.get("channel", 1), made.get("image_number", 1))
    if hazy.data.shape != planes[0].data.shape:
        raise ValueError("The result belongs to another file: press Dehaze again.")
    return hazy, *planes


def compare_plane(path: str, results: list[str], shown: int, same: bool = True) -> tuple:
    """
    Pictures of input and result at the same contrast, or each at its own; the values shown as black and white; and a
    map of the standard deviation. All planes of a stack have the contrast of its middle plane, so that they can be
    compared.
    """
    with one_sentence(path):
        hazy, prediction, *deviation = read_results(path, results, shown)
        made = prediction.provenance or {}
        images = {"input": hazy.data, "result": prediction.data}
        if made.get("plane", 1) is None and same:
            with open_upload(path, made["image_number"]) as (micrograph, _):
                middle = choose_plane(micrograph, count_planes(micrograph)[0] // 2 + 1, made["channel"])
            images = {"middle plane": middle.data, **images}
        shown_pictures, caption = show_together(made.get("checkpoint", FIRST), images, same)
        drawn = plot_uncertainty(deviation[0].data, prediction.pixel_size_um) if deviation else None
        return shown_pictures[-2:], caption, gr.update(value=drawn, visible=bool(deviation))


def draw_profile(path: str, results: list[str], position: float, shown: int):
    """
    Plot the intensities of input and result along a horizontal line.

    Args:
        path: TIFF, or zip archive with one OME-Zarr, that was dehazed.
        results: OME-TIFFs with the result and its standard deviation.
        position: Height of the line in % of the height of the image, from the top.
        shown: Plane of the result, from 1, if it is a stack.

    Returns:
        The plot.
    """
    if path is None:  # the visitor removed the file meanwhile
        return None
    with one_sentence(path):
        hazy, prediction, *deviation = read_results(path, results, shown)
        uncertainty = deviation[0].data if deviation else None
        return plot_profile(hazy.data, prediction.data, uncertainty, position / 100, prediction.pixel_size_um)
