"""Figures of evaluations. They need matplotlib, which the extra `eval` installs."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from haze_pipeline.reliability.calibration import calibration_curve
from haze_pipeline.visualization import round_length

from .metrics import fit_scale_and_offset


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from haze_pipeline.data.pairs import Pair


def new_figure(**kwargs) -> "Figure":
    """A figure made without pyplot, so that it needs no display and is freed when it is no longer used."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'haze-pipeline[eval]'.") from error
    return Figure(layout="constrained", dpi=120, **kwargs)


def plot_calibration(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """
    Plot error against predicted standard deviation, binned so that every bin has equally many pixels. Both axes are
    logarithmic and in network units.

    Args:
        curves (`dict`): By name, the predicted standard deviations and the errors of the pixels.
    """
    figure = new_figure(figsize=(4.5, 4.5))
    axes = figure.add_subplot()
    points = {name: calibration_curve(*values)[:2] for name, values in curves.items()}
    positive = np.concatenate([np.concatenate(point)[np.concatenate(point) > 0] for point in points.values()])
    ends = [positive.min() / 1.2, positive.max() * 1.2]
    axes.plot(ends, ends, color="0.6", linewidth=1, label="perfect")
    for name, (rmv, rmse) in points.items():
        axes.plot(rmv, rmse, marker="o", markersize=3, linewidth=1, label=name)
    axes.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal",
        xlabel="root mean predicted variance (network units)", ylabel="root mean squared error (network units)",
    )  # fmt: skip
    axes.legend(frameon=False)
    return figure


# By kind of prediction: marker, colour and fill of the plot. The colours are of Okabe & Ito's palette, which
# colour-blind readers can tell apart; the shapes differ, too.
MARKS = {
    "classical method": {"marker": "s", "color": "0.35", "markerfacecolor": "white"},
    "point predictor": {"marker": "o", "color": "#0072B2"},
    "posterior sample": {"marker": "^", "color": "#D55E00"},
}


def plot_perception_distortion(
    summary: dict, kinds: dict[str, str], distortion: str, perception: str, higher_is_better: dict[str, bool]
) -> "Figure":
    """
    Plot two metrics of every method against each other, with their confidence intervals. Classical methods, point
    predictors and posterior samples have different marks.

    Args:
        summary (`dict`): By method and metric `{"mean", "low", "high"}`, see [`summarize`].
        kinds (`dict[str, str]`): By method, one of `MARKS`.
        distortion (`str`): Metric on the horizontal axis.
        perception (`str`): Metric on the vertical axis.
        higher_is_better (`dict[str, bool]`): By metric, whether higher is better.
    """
    figure = new_figure(figsize=(8, 6))
    axes = figure.add_subplot()
    for kind, mark in MARKS.items():
        axes.plot([], [], linestyle="none", markersize=7, label=kind, **mark)  # for the legend
    for method, metrics in summary.items():
        x, y = metrics[distortion], metrics[perception]
        errors = {
            name: None if value["low"] is None else [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            for name, value in (("xerr", x), ("yerr", y))
        }
        mark = MARKS[kinds[method]]
        bars = {"ecolor": (mark["color"], 0.6), "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(x["mean"], y["mean"], **errors, linestyle="none", markersize=7, **mark, **bars)
    # In the text of the vertical axis, which is rotated, the arrow to the left points down.
    axes.set(
        xlabel=f"{distortion}, better →" if higher_is_better[distortion] else f"← better, {distortion}",
        ylabel=f"{perception}, better →" if higher_is_better[perception] else f"← better, {perception}",
    )
    axes.margins(0.12)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    _label_points(axes, {method: (metrics[distortion], metrics[perception]) for method, metrics in summary.items()})
    return figure


def _label_points(axes, points: dict[str, tuple[dict, dict]]):
    """
    Write the name of every point close to it, where it covers neither other names and marks nor, if possible, the bars
    of confidence intervals. A name that is not beside its mark gets a line to it.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # sets the limits and the place of the axes
    pixels_per_point = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    centres, marks, bars, labels = {}, {}, [], []  # in pixels
    for name, values in points.items():
        x, y = centres[name] = axes.transData.transform([value["mean"] for value in values])
        # So wide that a name beside its own mark is not close to another one.
        marks[name] = Bbox([[x, y], [x, y]]).padded(14 * pixels_per_point)
        if values[0]["low"] is not None:
            (left, bottom), (right, top) = (
                axes.transData.transform([value[end] for value in values]) for end in ("low", "high")
            )
            bars += [Bbox([[left, y], [right, y]]).padded(1), Bbox([[x, bottom], [x, top]]).padded(1)]
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    places = [(distance, angle) for distance in (6, 12, 20, 30, 42, 56) for angle in angles]  # points, radians
    style = {"fontsize": 8, "ha": "center", "va": "center", "path_effects": [withStroke(linewidth=2, foreground="w")]}
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    for name, centre in centres.items():
        data = [value["mean"] for value in points[name]]
        label = axes.annotate(
            name, data, (0, 0), textcoords="offset points", arrowprops=line, in_layout=False, **style
        )
        size = label.get_window_extent().size
        others = [mark for other, mark in marks.items() if other != name]

        def box_at(distance, angle, centre=centre, size=size):
            # The nearest corner or side of the name is `distance` from the mark.
            direction = np.array([np.cos(angle), np.sin(angle)])
            middle = centre + distance * pixels_per_point * direction + np.sign(direction.round(1)) * size / 2
            return Bbox([middle - size / 2, middle + size / 2])

        def cost(place, box_at=box_at, others=others):
            box = box_at(*place)
            inside = Bbox.intersection(box, frame)
            is_cut_off = inside is None or (inside.size < box.size - 0.5).any()
            covered, crossed = box.count_overlaps(labels + others), min(4, box.count_overlaps(bars))
            return 200 * is_cut_off + 50 * covered + 10 * crossed + 0.2 * place[0]

        distance, angle = min(places, key=cost)
        labels.append(box_at(distance, angle))
        label.xyann = (labels[-1].get_points().mean(axis=0) - centre) / pixels_per_point
        label.arrow_patch.set_visible(distance > 6)


def plot_panels(pair: "Pair", images: dict[str, np.ndarray], scores: dict[str, float]) -> "Figure":
    """
    Show the predictions of one pair and, below each, its errors. The scale and offset of each prediction are fitted to
    the clear image, whose contrast is used for all of them.

    Args:
        pair ([`Pair`]): Hazy and clear image.
        images (`dict`): Predictions by name.
        scores (`dict`): Range-invariant PSNR of each prediction in dB.
    """
    columns = min(len(images) + 1, 6)
    bands = -(-(len(images) + 1) // columns)  # each has a row of images and a row of errors
    height, width = pair.clear.shape
    figure = new_figure(figsize=(1.75 * columns, bands * (1.75 * height / width * 2 + 0.6)))
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    shown_above, errors_below = axes[::2].ravel(), axes[1::2].ravel()
    low, high = np.percentile(pair.clear, (0.1, 99.8))
    span = float(pair.clear.max()) - float(pair.clear.min())
    errors = {name: (fit_scale_and_offset(pair.clear, image) - pair.clear) / span for name, image in images.items()}
    limit = max(0.01, float(np.percentile(np.abs(list(errors.values())), 99)))
    # With "auto", Matplotlib averages pixels when it shrinks an image, and shows single pixels when it enlarges one.
    gray = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6 * span), "interpolation": "auto"}
    for axis in axes.flat:
        axis.set_axis_off()
    for (name, image), above, below in zip(images.items(), shown_above, errors_below, strict=False):
        above.imshow(fit_scale_and_offset(pair.clear, image), **gray)
        above.set_title(f"{textwrap.fill(name, 28)}\n{scores[name]:.1f} dB", fontsize=7)
        shown = below.imshow(errors[name], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="auto")
    clear, below = shown_above[len(images)], errors_below[len(images)]
    clear.imshow(pair.clear, **gray)
    clear.set_title(f"clear\nblack {low:.3g}, white {high:.3g}", fontsize=7)
    bar = figure.colorbar(shown, cax=below.inset_axes((0.05, 0.05, 0.1, 0.9)))
    bar.set_label("error / range of clear", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if pair.pixel_size_um is not None:
        _draw_scale_bar(clear, width, height, pair.pixel_size_um)
    return figure


def plot_uncertainty(uncertainty: np.ndarray, pixel_size: float | None = None) -> "Figure":
    """
    Show a map of the predicted standard deviation with a colour bar, and with a scale bar if the pixel size is known.

    Args:
        uncertainty (`np.ndarray` of shape `[H, W]`): Standard deviations in counts.
        pixel_size (`float`, *optional*): Side of a pixel in µm.
    """
    height, width = uncertainty.shape
    # The figure is as wide as the page and no taller than wide; the map takes 4.6 inches, the colour bar the rest.
    figure = new_figure(figsize=(5.5, min(5.5, max(2, 4.6 * height / width))))
    axes = figure.add_subplot()
    high = float(np.percentile(uncertainty, 99.8))
    shown = axes.imshow(uncertainty, cmap="inferno", vmin=0, vmax=high or 1, interpolation="auto")
    axes.set_axis_off()
    figure.colorbar(shown, label="standard deviation (counts)", extend="max", fraction=0.05, pad=0.02)
    if pixel_size is not None:
        _draw_scale_bar(axes, width, height, pixel_size)
    return figure


def plot_profile(
    hazy: np.ndarray,
    prediction: np.ndarray,
    uncertainty: np.ndarray | None = None,
    position: float = 0.5,
    pixel_size: float | None = None,
) -> "Figure":
    """
    Plot the intensities of input and result along a horizontal line. An image of the result above shows the line.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The input.
        prediction (`np.ndarray` of shape `[H, W]`): The result.
        uncertainty (`np.ndarray` of shape `[H, W]`, *optional*): Standard deviation of the result, drawn as a band.
        position (`float`, defaults to `0.5`): Height of the line, from 0 (top) to 1 (bottom).
        pixel_size (`float`, *optional*): Side of a pixel in µm. If omitted, the axis is in pixels.
    """
    height, width = prediction.shape
    row = round(position * (height - 1))
    step = pixel_size or 1
    distance = step * np.arange(width)
    figure = new_figure(figsize=(5.5, 6))
    picture, axes = figure.subplots(2, height_ratios=(3, 2))
    low, high = np.percentile(prediction, (0.5, 99.8))
    picture.imshow(prediction, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="auto")
    picture.axhline(row, color="C1", linewidth=1)
    picture.set_axis_off()
    if pixel_size is not None:
        _draw_scale_bar(picture, width, height, pixel_size)
    axes.plot(distance, hazy[row], color="C0", linewidth=1, label="input")
    axes.plot(distance, prediction[row], color="C1", linewidth=1, label="result")
    if uncertainty is not None:
        below, above = prediction[row] - uncertainty[row], prediction[row] + uncertainty[row]
        axes.fill_between(distance, below, above, color="C1", alpha=0.3, linewidth=0, label="± standard deviation")
    axes.set(
        xlabel="distance (µm)" if pixel_size else "distance (pixels)", ylabel="counts", xlim=(0, distance[-1] or step)
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _draw_scale_bar(axis, width: int, height: int, pixel_size: float):
    length = round_length(width * pixel_size / 3)
    right, bottom = 0.95 * width, 0.95 * height
    axis.plot([right - length / pixel_size, right], [bottom] * 2, color="white", linewidth=2.5, solid_capstyle="butt")
    axis.text(
        right - length / pixel_size / 2, bottom - 0.03 * height, f"{length:g} µm",
        color="white", fontsize=7, ha="center", va="bottom",
    )  # fmt: skip
