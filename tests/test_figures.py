"""Figures show the given numbers."""

import numpy as np
import pytest
from matplotlib.text import Text

from haze_pipeline.data.pairs import Pair
from haze_pipeline.evaluation.figures import plot_panels, plot_perception_distortion, plot_profile, plot_uncertainty


def test_the_map_of_the_uncertainty_starts_at_zero_and_has_a_scale():
    uncertainty = np.random.default_rng(0).gamma(2, 10, (40, 60))
    axes, bar = plot_uncertainty(uncertainty, pixel_size=0.1).axes
    [shown] = axes.images
    np.testing.assert_array_equal(shown.get_array(), uncertainty)
    assert shown.get_clim() == (0, np.percentile(uncertainty, 99.8))
    assert bar.get_ylabel() == "standard deviation (counts)"
    assert [text.get_text() for text in axes.texts] == ["2 µm"]
    assert not plot_uncertainty(np.zeros((1, 1))).axes[0].texts  # without structure and pixel size


def test_the_profile_follows_the_line_in_the_picture():
    rng = np.random.default_rng(0)
    hazy, prediction, deviation = rng.gamma(2, 100, (3, 41, 30))
    picture, axes = plot_profile(hazy, prediction, deviation, position=0.25, pixel_size=0.2).axes
    assert list(picture.lines[0].get_ydata()) == [10, 10]
    for line, image in zip(axes.lines, (hazy, prediction), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), image[10])
        np.testing.assert_allclose(line.get_xdata(), 0.2 * np.arange(30))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == (prediction - deviation)[10].min() and band.max() == (prediction + deviation)[10].max()
    _, axes = plot_profile(hazy, prediction).axes
    assert axes.get_xlabel() == "distance (pixels)" and not axes.collections


@pytest.mark.parametrize("have_intervals", [False, True])
def test_kinds_of_methods_have_their_marks_and_names_stand_apart(have_intervals):
    kinds = {
        "input": "classical method", "Wiener": "classical method", "first fast": "point predictor",
        "first balanced, mean of 8": "point predictor", "second fast": "point predictor",
        "first balanced, one sample": "posterior sample",
    }  # fmt: skip
    points = [(20.0, 8.0), (22, 7), (25, 3), (25.05, 2.9), (25.1, 3.1), (24, 1)]  # three almost coincide
    summary = {
        name: {
            metric: {"mean": mean, "low": mean - 0.5, "high": mean + 0.3}
            if have_intervals
            else {"mean": mean, "low": None, "high": None}
            for metric, mean in zip(("p", "s"), point, strict=True)
        }
        for name, point in zip(kinds, points, strict=True)
    }
    figure = plot_perception_distortion(summary, kinds, "p", "s", {"p": True, "s": False})
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("p, better →", "← better, s")
    shown = {tuple(line.get_xydata()[0]): line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1}
    markers = {"classical method": "s", "point predictor": "o", "posterior sample": "^"}
    assert [shown[point] for point in points] == [markers[kind] for kind in kinds.values()]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(markers)
    assert [label.get_text() for label in axes.texts] == list(kinds)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(label) for label in axes.texts]  # without the line to the mark
    frame = axes.get_window_extent().padded(1)
    assert all(frame.contains(*corner) for box in boxes for corner in (box.min, box.max))
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0


def test_panels_of_many_methods_are_divided_into_rows():
    rng = np.random.default_rng(0)
    clear = rng.gamma(2, 100, (20, 30))
    images = {str(number): clear + rng.normal(0, number + 1, clear.shape) for number in range(8)}
    figure = plot_panels(Pair(clear, clear, "a", "a", pixel_size_um=0.1), images, dict.fromkeys(images, 30.0))
    images_of = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    titles = [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()]
    assert titles == [*map(str, range(8)), "clear"] and len(images_of) == 8 + 1 + 8
    assert figure.get_size_inches()[0] < 12
