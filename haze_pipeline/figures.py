"""Figures of what was measured. They need matplotlib, of the extra `eval`."""

from typing import TYPE_CHECKING

import numpy as np

from .calibration import calibration_curve


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**kwargs) -> "Figure":
    """A figure outside pyplot, which keeps none alive and needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'haze-pipeline[eval]'.") from error
    return Figure(layout="constrained", dpi=120, **kwargs)


def plot_calibration(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """
    Error against predicted deviation, both axes logarithmic and in network units, in bins of equally many pixels.

    Args:
        curves (`dict`): By name, predicted deviations and errors of the pixels.
    """
    figure = new_figure(figsize=(4.5, 4.5))
    axes = figure.add_subplot()
    points = {name: calibration_curve(*values)[:2] for name, values in curves.items()}
    positive = np.concatenate([np.concatenate(point)[np.concatenate(point) > 0] for point in points.values()])
    ends = [positive.min() / 1.2, positive.max() * 1.2]
    axes.plot(ends, ends, color="0.6", linewidth=1, label="calibrated")
    for name, (rmv, rmse) in points.items():
        axes.plot(rmv, rmse, marker="o", markersize=3, linewidth=1, label=name)
    axes.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal",
        xlabel="root mean predicted variance (network units)", ylabel="root mean squared error (network units)",
    )  # fmt: skip
    axes.legend(frameon=False)
    return figure
