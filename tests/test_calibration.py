"""Calibration of simulated ensembles with a known truth, and comparison with the published definitions."""

import numpy as np
import pytest
import torch
from scipy import stats

from haze_pipeline.reliability.calibration import (
    calibration_curve,
    conformal_factors,
    coverage,
    cross_validate,
    expected_normalized_calibration_error,
    fit_calibration,
    fit_curve,
    mean_squared_z_score,
)
from haze_pipeline.sampling.uncertainty import predicted_std


def draw_ensembles(members, scale, offset, size=60_000, seed=0):
    """
    Draw ensembles whose true spread is t, and truths whose distance from the centre of the ensemble has the standard
    deviation scale · t + offset. Returns the spread of the members and the errors of their means.
    """
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.2, 2, size)
    samples = rng.standard_normal((members, size)) * true
    errors = samples.mean(axis=0) - rng.standard_normal(size) * (scale * true + offset)
    return samples.std(axis=0, ddof=1), errors


def make_ensemble(members, scale, offset, size=400_000, seed=0):
    """
    Spread and errors of ensembles whose spread s is known exactly. The distance of the truth from the mean of
    infinitely many members has the standard deviation scale · s + offset.
    """
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.2, 2, size)
    errors = rng.standard_normal(size) * (scale * spread + offset)
    errors += rng.standard_normal(size) * spread / np.sqrt(members)
    return spread, errors


@pytest.mark.parametrize("members", [4, 20, 1000])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1.7, 0.3), (2.5, -0.15)])
def test_scale_and_offset_are_recovered(members, scale, offset):
    found = fit_calibration(*make_ensemble(members, scale, offset), members)
    assert found == pytest.approx((scale, offset), rel=0.02, abs=0.02)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1.7, 0.3), (2.5, -0.15)])
def test_small_ensembles_get_a_flatter_line_that_fits_them(scale, offset):
    many = fit_calibration(*draw_ensembles(500, scale, offset), 500)
    assert many == pytest.approx((scale, offset), rel=0.02, abs=0.03)
    spread, errors = draw_ensembles(8, scale, offset)
    few = fit_calibration(spread, errors, 8)
    assert few[0] < 0.95 * many[0] and few[1] > many[1] + 0.05
    new_spread, new_errors = draw_ensembles(8, scale, offset, seed=1)
    stds = predicted_std(torch.from_numpy(new_spread), 8, *few).numpy()
    assert np.sqrt(np.mean(new_errors**2) / np.mean(stds**2)) == pytest.approx(1, abs=0.05)
    assert expected_normalized_calibration_error(stds, new_errors) < 0.11


def test_standard_deviations_of_a_perfect_ensemble_need_no_calibration():
    # Members are drawn one by one, as by a pipeline.
    rng = np.random.default_rng(0)
    true = rng.uniform(0.2, 2, 200_000)
    samples = rng.standard_normal((20, true.size)) * true
    errors = samples.mean(axis=0) - rng.standard_normal(true.size) * true
    spread = samples.std(axis=0, ddof=1)
    assert np.sqrt(np.mean(errors**2) / np.mean(spread**2)) == pytest.approx(np.sqrt(1 + 1 / 20), rel=0.01)
    stds = predicted_std(torch.from_numpy(spread), 20).numpy()
    assert np.sqrt(np.mean(errors**2) / np.mean(stds**2)) == pytest.approx(1, rel=0.01)
    # Not 0, because 20 members determine their spread only to 16 %. Bins of small spreads collect underestimated ones.
    assert expected_normalized_calibration_error(stds, errors, 20) < 0.1


def test_calibration_corrects_the_scores_of_a_miscalibrated_ensemble():
    spread, errors = make_ensemble(20, 2.5, 0.3)
    raw = predicted_std(torch.from_numpy(spread), 20).numpy()
    calibrated = predicted_std(torch.from_numpy(spread), 20, *fit_calibration(spread, errors, 20)).numpy()
    assert expected_normalized_calibration_error(raw, errors) > 1
    assert expected_normalized_calibration_error(calibrated, errors) < 0.02
    assert mean_squared_z_score(raw, errors) > 4
    assert mean_squared_z_score(calibrated, errors) == pytest.approx(1, rel=0.02)
    for level in (0.5, 0.9, 0.95):  # of normal errors
        assert coverage(calibrated, errors, stats.norm.ppf((1 + level) / 2)) == pytest.approx(level, abs=0.01)


def stds_by_curve(spread, intensity, members, curve):
    spread, intensity = torch.from_numpy(spread), torch.from_numpy(intensity)
    return predicted_std(spread, members, curve=curve, intensity=intensity).numpy()


def test_a_curve_learns_how_errors_depend_on_intensity():
    def draw(seed, size=400_000):
        """Ensembles whose spread does not contain the error that haze causes."""
        rng = np.random.default_rng(seed)
        spread, intensity = rng.lognormal(-2, 1, size), rng.lognormal(0, 1.5, size)
        errors = rng.standard_normal(size) * 2 * spread**0.4 * intensity**0.6
        return spread, intensity, errors + rng.standard_normal(size) * spread / np.sqrt(8)

    known, new = draw(0), draw(1)
    curve = fit_curve(*known, 8)
    assert curve["light_weight"] == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(curve["deviation"], 2 * np.array(curve["predictor"]), rtol=0.05)
    found = stds_by_curve(*new[:2], 8, curve)
    truth = np.hypot(2 * new[0] ** 0.4 * new[1] ** 0.6, new[0] / np.sqrt(8))
    assert np.abs(np.log(found / truth)).mean() < 0.02
    assert expected_normalized_calibration_error(found, new[2]) < 0.03
    line = predicted_std(torch.from_numpy(new[0]), 8, *fit_calibration(known[0], known[2], 8)).numpy()
    assert np.abs(np.log(line / truth)).mean() > 0.5


@pytest.mark.parametrize("members", [4, 20])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1.7, 0.3), (2.5, -0.15)])
def test_a_curve_equals_the_line_if_errors_do_not_depend_on_intensity(members, scale, offset):
    spread, errors = make_ensemble(members, scale, offset)
    intensity = np.random.default_rng(1).lognormal(0, 1, spread.size)
    curve = fit_curve(spread, intensity, errors, members)
    assert curve["light_weight"] < 0.02
    new_spread, new_errors = make_ensemble(members, scale, offset, seed=2)
    found = stds_by_curve(new_spread, intensity, members, curve)
    truth = np.hypot(scale * new_spread + offset, new_spread / np.sqrt(members))
    assert np.abs(found / truth - 1).mean() < 0.03
    assert expected_normalized_calibration_error(found, new_errors) < 0.04


def test_specimens_are_judged_by_curves_fitted_without_them():
    spread, errors = make_ensemble(8, 1.7, 0.3, size=7 * 5000)
    intensity = np.ones_like(spread)
    images = [each.reshape(7, -1) for each in (spread, intensity, errors)]
    specimens = {str(index): parts for index, parts in enumerate(zip(*images, strict=True))}
    found = cross_validate(specimens, 8)
    assert sorted(found) == sorted(specimens)
    # There are five folds, so the last two of seven specimens share their folds with the first two.
    for index, left_out in ((0, [0, 5]), (2, [2])):
        known = [np.delete(each, left_out, axis=0).ravel() for each in images]
        expected = stds_by_curve(spread[index * 5000 :][:5000], intensity[:5000], 8, fit_curve(*known, 8))
        np.testing.assert_allclose(found[str(index)][0], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[str(index)][1], images[2][index])
    # A specimen of another kind has no influence on the curve that judges it.
    specimens["6"] = (images[0][6], images[1][6], 10 * images[2][6])
    odd = cross_validate(specimens, 8)["6"]
    assert np.sqrt(np.mean(odd[1] ** 2) / np.mean(odd[0] ** 2)) == pytest.approx(10, rel=0.1)


def test_curves_equal_a_calculation_by_hand():
    stds, errors = np.array([4.0, 1, 1, 3, 2, 3]), np.array([-5.0, 1, -2, 0, 3, 4])
    rmv, rmse, counts = calibration_curve(stds, errors, num_bins=3)
    np.testing.assert_allclose(rmv**2, [1, (4 + 9) / 2, (9 + 16) / 2])
    np.testing.assert_allclose(rmse**2, [5 / 2, 9 / 2, (16 + 25) / 2])
    assert counts.tolist() == [2, 2, 2]
    rmv, rmse, counts = calibration_curve(stds, errors, num_bins=2, equal="widths")  # up to 2.5 and above
    np.testing.assert_allclose(rmv**2, [6 / 3, 34 / 3])
    assert counts.tolist() == [3, 3]
    expected = np.mean(
        [abs(np.sqrt(6 / 3) - np.sqrt(14 / 3)) / np.sqrt(2), abs(np.sqrt(34) - np.sqrt(41)) / np.sqrt(34)]
    )
    found = expected_normalized_calibration_error(stds, errors, 2)
    assert found == pytest.approx(expected)
    assert mean_squared_z_score(stds, errors) == pytest.approx(np.mean([25 / 16, 1, 4, 0, 9 / 4, 16 / 9]))
    assert coverage(stds, errors, 1.4) == pytest.approx(4 / 6)


def test_the_published_fit_gives_the_same_line():
    """
    The reference uses 50 bins of equal width between the extreme standard deviations. It fits a line to RMSE against
    root mean variance for the bins between the quantiles 1e-5 and 0.99999, without the last one. Our bins have equally
    many pixels, none is left out, the fit minimises relative residuals, and the variance that comes from the finite
    number of members is subtracted.
    """
    spread, errors = make_ensemble(10**6, 1.7, 0.3)
    edges = np.linspace(spread.min(), spread.max(), 51)
    number = np.clip(np.digitize(spread, edges) - 1, 0, 49)
    low, high = np.quantile(spread, [1e-5, 0.99999])
    published = []
    for each in range(50):
        inside = number == each
        published.append((np.sqrt(np.mean(spread[inside] ** 2)), np.sqrt(np.mean(errors[inside] ** 2))))
    rmv, rmse, _ = calibration_curve(spread, errors, 50, equal="widths")
    np.testing.assert_allclose(np.column_stack([rmv, rmse]), published, rtol=1e-3)
    kept = np.array([pair for pair in published if low <= pair[0] <= high][:-1])
    line = stats.linregress(*kept.T)
    assert fit_calibration(spread, errors, 10**6) == pytest.approx((line.slope, line.intercept), abs=0.02)


def test_intervals_have_the_stated_coverage_on_a_thousand_new_images():
    rng = np.random.default_rng(0)

    def draw(number):
        """Images that differ in difficulty, which their standard deviations do not show, with heavy-tailed errors."""
        for _ in range(number):
            stds = rng.uniform(0.5, 2, 400)
            yield stds, stds * rng.lognormal(0, 0.5) * rng.standard_t(4, 400)

    factors = conformal_factors(draw(1000))
    assert list(factors) == [0.5, 0.32, 0.2, 0.1, 0.05] and sorted(factors.values()) == list(factors.values())
    new = list(draw(1000))
    for alpha, factor in factors.items():
        assert np.mean([coverage(*image, factor) for image in new]) == pytest.approx(1 - alpha, abs=0.01)


def test_few_images_allow_few_intervals():
    images = [(np.ones(4), np.array([0.0, 1, -2, 3])) for _ in range(9)]
    # The fractions of missed pixels of the 9 images may sum up to 10 alpha - 1, as if a tenth image missed all. In
    # every image, a factor of 1 misses 2 of 4 pixels (sum 4.5), a factor of 2 misses 1 (sum 2.25), and 3 misses none.
    assert conformal_factors(images) == {0.5: 2.0, 0.32: 3.0, 0.2: 3.0, 0.1: 3.0}
    with pytest.raises(ValueError, match="too few"):
        conformal_factors(images[:1], alphas=(0.1, 0.05))


@pytest.mark.parametrize(
    ("stds", "errors", "match"),
    [([1, 2], [1], "same shape"), ([], [], "finite"), ([1, np.nan], [1, 1], "finite"), ([-1, 1], [1, 1], "negative")],
)
def test_invalid_calibration_data_are_refused(stds, errors, match):
    for function in (calibration_curve, mean_squared_z_score):
        with pytest.raises(ValueError, match=match):
            function(np.array(stds, float), np.array(errors, float))
    with pytest.raises(ValueError, match="alike"):
        fit_calibration(np.ones(100), np.ones(100), 4)
    with pytest.raises(ValueError, match="alike"):
        fit_curve(np.ones(1000), np.ones(1000), np.ones(1000), 4)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        fit_curve(np.linspace(1, 2, 1000), np.ones(1000), np.zeros(1000), 4)
