"""Augmentation by weakened and added haze. Regressions on the components show how the result was mixed."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from haze_pipeline.data import augmentation
from haze_pipeline.data.augmentation import HAZE_STRENGTHS, NOISE_STRENGTHS, add_haze, weaken_haze
from haze_pipeline.data.pairs import Pair
from haze_pipeline.data.patches import FieldsInMemory, TrainingExamples
from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


PROCESSOR = HazeImageProcessor("image", target_mean=0.4, target_std=1.2)


def simulated(number, size=96):
    pair = simulate_pair(size, pair_generator(7, number))
    return pair.hazy.numpy(), pair.clear.numpy()


def test_weakened_haze_is_a_fraction_of_the_haze_plus_noise():
    hazy, clear = simulated(0)
    shares, noises = [], []
    for seed in range(60):
        weakened = weaken_haze(hazy, clear, np.random.default_rng(seed))
        assert weakened.dtype == np.float32 and weakened.shape == hazy.shape
        columns = np.stack([(hazy - clear).ravel(), clear.ravel()], axis=1)
        (share, light), (residual,), *_ = np.linalg.lstsq(columns, weakened.ravel(), rcond=None)
        assert light == pytest.approx(1, abs=0.05)  # the in-focus signal keeps its brightness
        shares.append(share)
        noises.append(np.sqrt(residual / clear.size) / clear.std())
    assert -0.02 < min(shares) < 0.1 and 0.9 < max(shares) < 1.02 and np.mean(shares) == pytest.approx(0.5, abs=0.12)
    assert NOISE_STRENGTHS[0] * 0.9 < min(noises) < 0.006 and 0.1 < max(noises) < NOISE_STRENGTHS[1] * 1.1


def added(hazy, number):
    """Yield the added background for `number` seeds."""
    for seed in range(number):
        more = add_haze(hazy, np.random.default_rng(seed))
        assert more.dtype == np.float32 and more.shape == hazy.shape
        yield more - hazy


def test_added_haze_is_smooth_and_does_not_change_the_mean():
    hazy = np.random.default_rng(0).normal(3, 1, (301, 407)).astype(np.float32)
    deviations = []
    for field in added(hazy, 60):
        assert abs(field.mean()) < 1e-3
        narrow = field - ndimage.gaussian_filter(field, 5, mode="reflect")
        assert narrow[20:-20, 20:-20].std() < 0.07 * field.std()  # 3 % after a Gaussian of 20 px
        deviations.append(field.std())
    # Standard deviations of single fields. The smoothest fields vary little within an image.
    assert HAZE_STRENGTHS[0] / 5 < min(deviations) < 0.3 and 2 < max(deviations) < 2 * HAZE_STRENGTHS[1]


def test_a_random_field_has_the_width_and_strength_that_were_drawn(monkeypatch):
    monkeypatch.setattr(augmentation, "HAZE_WIDTHS", (20.0, 20.0))
    monkeypatch.setattr(augmentation, "HAZE_STRENGTHS", (2.0, 2.0))
    for size, number in ((1024, 3), (128, 200)):
        fields = np.stack(list(added(np.zeros((size, size), np.float32), number)))
        # The mean of each field was removed, so squared differences at a distance d are tested. Their mean is
        # 2 variance (1 - autocorrelation). White noise after a Gaussian filter of standard deviation σ has the
        # autocorrelation exp(-d² / 4 σ²).
        for distance in (8, 20, 40):
            squared = np.square(fields[:, :, distance:] - fields[:, :, :-distance]).mean()
            assert squared == pytest.approx(2 * 2**2 * (1 - np.exp(-(distance**2) / 1600)), rel=0.12)


def test_examples_of_varied_haze_are_normalised_again():
    pairs = [Pair(*simulated(number), f"{number}", f"{number}.tif") for number in range(4)]
    fields = FieldsInMemory(pairs, PROCESSOR, 96)  # whole fields, so that their units can be measured
    examples = TrainingExamples(
        fields, 96, posterior_mean_share=1.0, t_sampling="grid", seed=0, length=40, weakened_haze=0.4, added_haze=0.4
    )
    untouched = 0
    clear_fields = torch.stack([field[1] - PROCESSOR.target_dark_level for field in fields.fields]).flatten(1)
    for index in range(40):
        example = examples[index]
        units = PROCESSOR.compute_normalization(example["hazy"][None])
        assert units.input_mean.abs() < 1e-3 and units.target_std.item() == pytest.approx(1, abs=1e-3)
        # The clear patch is proportional to one of the clear fields.
        light = (example["clear"] - PROCESSOR.target_dark_level).flatten()
        sorted_light, sorted_fields = light.sort()[0], clear_fields.sort()[0]
        cosines = (sorted_fields @ sorted_light) / (sorted_fields.norm(dim=1) * sorted_light.norm())
        assert cosines.max() > 0.99999
        untouched += torch.isin(example["hazy"], torch.stack(fields.fields)).all().item()
    assert 2 <= untouched <= 16


def test_haze_augmentation_needs_normalisation_by_image():
    fixed = HazeImageProcessor("fixed", input_mean=1.0, input_std=1.0, target_mean=1.0, target_std=1.0)
    fields = FieldsInMemory([Pair(*simulated(0), "0", "0.tif")], fixed, 32)
    with pytest.raises(ValueError, match="do not work with fixed statistics"):
        TrainingExamples(fields, 32, posterior_mean_share=1.0, t_sampling="grid", seed=0, length=1, weakened_haze=0.5)
