"""Figures of evaluations. They need matplotlib, which the extra `eval` installs."""

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


def plot_perception_distortion(summary: dict, distortion: str, perception: str) -> "Figure":
    """
    Plot two metrics of every method against each other, with their confidence intervals.

    Args:
        summary (`dict`): By method and metric `{"mean", "low", "high"}`, see [`summarize`].
        distortion (`str`): Metric on the horizontal axis.
        perception (`str`): Metric on the vertical axis.
    """
    figure = new_figure(figsize=(7, 5))
    axes = figure.add_subplot()
    for number, (method, metrics) in enumerate(summary.items()):
        x, y = metrics[distortion], metrics[perception]
        errors = {
            name: None if value["low"] is None else [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            for name, value in (("xerr", x), ("yerr", y))
        }
        axes.errorbar(
            x["mean"], y["mean"], **errors, marker="osD^vP*X"[number % 8], color=f"C{number % 10}", capsize=2,
            linewidth=0.8, linestyle="none", label=method,
        )  # fmt: skip
    axes.set(xlabel=distortion, ylabel=perception)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_panels(pair: "Pair", images: dict[str, np.ndarray], scores: dict[str, float]) -> "Figure":
    """
    Show the predictions of one pair and, below them, their errors. The scale and offset of each prediction are fitted
    to the clear image, whose contrast is used for all of them.

    Args:
        pair ([`Pair`]): Hazy and clear image.
        images (`dict`): Predictions by name.
        scores (`dict`): Range-invariant PSNR of each prediction in dB.
    """
    columns = len(images) + 1
    height, width = pair.clear.shape
    figure = new_figure(figsize=(1.75 * columns, 1.75 * height / width * 2 + 0.7))
    axes = figure.subplots(2, columns, squeeze=False)
    low, high = np.percentile(pair.clear, (0.1, 99.8))
    span = float(pair.clear.max()) - float(pair.clear.min())
    errors = {name: (fit_scale_and_offset(pair.clear, image) - pair.clear) / span for name, image in images.items()}
    limit = max(0.01, float(np.percentile(np.abs(list(errors.values())), 99)))
    # With "auto", Matplotlib averages pixels when it shrinks an image, and shows single pixels when it enlarges one.
    gray = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6 * span), "interpolation": "auto"}
    for column, (name, image) in enumerate(images.items()):
        axes[0, column].imshow(fit_scale_and_offset(pair.clear, image), **gray)
        axes[0, column].set_title(f"{name}\n{scores[name]:.1f} dB", fontsize=7)
        shown = axes[1, column].imshow(errors[name], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="auto")
    axes[0, -1].imshow(pair.clear, **gray)
    axes[0, -1].set_title(f"clear\nblack {low:.3g}, white {high:.3g}", fontsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    bar = figure.colorbar(shown, cax=axes[1, -1].inset_axes((0.05, 0.05, 0.1, 0.9)))
    bar.set_label("error / range of clear", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if pair.pixel_size_um is not None:
        _draw_scale_bar(axes[0, -1], width, height, pair.pixel_size_um)
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
