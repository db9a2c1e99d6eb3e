"""Assessment of correct, wrong and invented results."""

import json

import numpy as np
import pytest
from conftest import tiny_unet
from scipy import ndimage

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.pipeline_output import RestorationOutput
from haze_pipeline.reliability.assessment import assess, reblur
from haze_pipeline.reliability.out_of_domain import fit_domain
from haze_pipeline.utils.noise_level import noise_deviation


@pytest.fixture(scope="module")
def specimen():
    """A clear image and its hazy image, whose noise has a standard deviation of 4 counts."""
    rng = np.random.default_rng(0)
    dots = (rng.random((160, 160)) < 0.01) * rng.uniform(1000, 6000, (160, 160))
    clear = ndimage.gaussian_filter(dots, 1.2)
    haze = ndimage.gaussian_filter(rng.random((160, 160)), 25)
    hazy = ndimage.gaussian_filter(clear, 1.5) + 300 + 5000 * (haze - haze.min()) + rng.normal(0, 4, clear.shape)
    return clear.astype(np.float32), hazy.astype(np.float32)


@pytest.fixture(scope="module")
def pipe():
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), training_pixel_size={"min": 0.05, "max": 0.2})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_noise_estimate_does_not_depend_on_haze(specimen):
    assert noise_deviation(specimen[1].astype(np.float64)) == pytest.approx(4, rel=0.15)


def test_a_right_result_explains_the_input_and_a_wrong_one_does_not(specimen):
    clear, hazy = (image.astype(np.float64) for image in specimen)
    right = reblur(hazy, 2 * clear + 7, noise=4)
    assert right[0] < 0.1 and right[1] > 0.98 and right[2] == pytest.approx(1, abs=0.1)
    missing = clear.copy()
    missing[40:80, 40:80] = 0
    unexplained, correlation, _, lost, error_map, correlation_map = reblur(hazy, missing, noise=4)
    assert unexplained > 0.2 and correlation < right[1] and lost > right[3] + 0.015
    inside, outside = error_map[45:75, 45:75], error_map[100:, 100:]
    assert inside.mean() > 4 * outside.mean()
    assert correlation_map[60, 60] < 0.5 < correlation_map[120:150, 120:150].mean()
    elsewhere = reblur(hazy, np.rot90(clear), noise=4)
    assert elsewhere[0] > 0.8 and elsewhere[1] < 0.3
    # Dim structure is suppressed, bright structure is kept.
    bent = clear**2 / clear.max()
    assert reblur(hazy, bent, noise=4)[2] > 1.5


def test_warnings_say_what_is_wrong(pipe, specimen):
    clear, hazy = specimen
    turned = [np.roll(np.rot90(hazy, k), 9 * k, axis=0) for k in range(60)]
    pipe.register_to_config(domain=fit_domain(turned, num_crops=100))
    good = assess(pipe, hazy, RestorationOutput(prediction=clear), pixel_size=0.1)
    assert good.pixel_size_in_range and good.out_of_domain < 1.5 and 0 < good.fraction_removed < 1
    assert good.excess < 0.01 and good.not_checked == ["whether dehazing such images helps"]
    assert good.error_map.shape == good.correlation_map.shape == hazy.shape
    numbers = json.loads(json.dumps(good.to_dict()))
    assert numbers["verdict"] == good.verdict and "error_map" not in numbers
    bad = assess(pipe, hazy.max() - hazy, RestorationOutput(prediction=np.rot90(clear)), pixel_size=1.0)
    assert not bad.pixel_size_in_range and len(bad.warnings) >= 3
    for words in ("unlike those", "1 µm", "does not explain"):
        assert words in bad.verdict
    # An untrained network turns noise alone into structure.
    noise = np.random.default_rng(0).normal(100, 10, (96, 96)).astype(np.float32)
    invented = assess(pipe, noise, pipe(noise, num_inference_steps=1, ensemble_size=2))
    assert invented.invented > 0.5 and "noise alone" in invented.verdict and invented.pixel_size_in_range is None
    # Smooth intensity that the input does not have.
    y, x = np.mgrid[:160, :160]
    cloud = 2000 * np.exp(-((y - 80) ** 2 + (x - 80) ** 2) / (2 * 40**2))
    added = assess(pipe, hazy, RestorationOutput(prediction=clear + cloud.astype(np.float32)))
    assert "intensity where the input has none" in added.verdict


def test_a_check_that_was_not_possible_is_named(pipe, specimen):
    clear, hazy = specimen
    pipe.register_to_config(domain=None)
    unknown = assess(pipe, hazy, RestorationOutput(prediction=clear))
    assert unknown.out_of_domain is None and unknown.pixel_size_in_range is None
    assert "whether such images were trained on, whether such pixel sizes" in unknown.verdict
    dark = np.where(hazy > np.quantile(hazy, 0.7), hazy, hazy.min())  # like the clipped background of an 8-bit camera
    assert assess(pipe, dark, RestorationOutput(prediction=clear)).invented is None
    fixed = HazeMatchingPipeline(
        tiny_unet(), FlowMatchODEScheduler(), "fixed", input_mean=9.0, input_std=2.0, target_mean=1.0, target_std=1.0
    )
    fixed.set_progress_bar_config(disable=True)
    assessment = assess(fixed, hazy, RestorationOutput(prediction=100 * clear))
    assert assessment.fraction_removed is None and assessment.excess is None
    assert "intensity was added" in assessment.verdict


def test_a_few_bright_dots_in_a_large_field_do_not_count_as_noise(pipe):
    rng = np.random.default_rng(0)
    clear = np.zeros((512, 512))
    clear[rng.integers(0, 512, 6), rng.integers(0, 512, 6)] = 1e5
    clear = ndimage.gaussian_filter(clear, 1.5)
    hazy = (clear + rng.normal(100, 1, clear.shape)).astype(np.float32)
    assert assess(pipe, hazy, RestorationOutput(prediction=clear.astype(np.float32))).invented < 0.2


def test_the_assessment_does_not_change_the_solver_of_the_pipeline(pipe, specimen):
    scheduler = pipe.scheduler
    assess(pipe, specimen[1], RestorationOutput(prediction=specimen[0]))
    assert pipe.scheduler is scheduler


def test_stacks_and_other_shapes_are_refused(pipe, specimen):
    clear, hazy = specimen
    for image, prediction in ((np.stack([hazy, hazy]), np.stack([clear, clear])), (hazy, clear[:-1])):
        with pytest.raises(ValueError, match="plane by plane"):
            assess(pipe, image, RestorationOutput(prediction=prediction))
    flat = assess(pipe, np.full((64, 64), 7, np.uint16), RestorationOutput(prediction=np.zeros((64, 64), np.float32)))
    assert np.isfinite([flat.unexplained, flat.correlation, flat.linearity]).all() and flat.fraction_removed is None
