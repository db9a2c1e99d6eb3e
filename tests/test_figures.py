"""Figures show the given numbers."""

import numpy as np

from haze_pipeline.evaluation.figures import plot_profile, plot_uncertainty


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
