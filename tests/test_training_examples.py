"""Examples are functions of seed and index; those of a script are tested with the script."""

import numpy as np
import pytest
import torch

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.simulation import pair_generator, simulate_pair
from haze_pipeline.training_examples import SimulatedFields, TrainingExamples


def examples(length=400, t_sampling="grid"):
    fields = SimulatedFields(HazeImageProcessor("image"), seed=1, size=48, patches_per_field=8)
    return TrainingExamples(
        fields, resolution=32, posterior_mean_share=0.5, t_sampling=t_sampling, seed=0, length=length
    )


def test_simulated_examples_do_not_depend_on_what_was_asked_for_before():
    dataset, again = examples(), examples()
    for index in (0, 1, 2, 300):
        dataset[index]
    for index in (300, 301):
        for name, value in again[index].items():
            assert torch.equal(value, dataset[index][name]), name


def test_pairs_simulated_already_are_the_first_fields():
    processor = HazeImageProcessor("image")
    pairs = [simulate_pair(48, pair_generator(1, index)) for index in range(3)]
    given, made = (SimulatedFields(processor, 1, 48, 8, first) for first in (pairs, ()))
    assert set(given.fields) == {0, 1, 2}
    for number, field in given.fields.items():
        torch.testing.assert_close(field, made.simulate(number))


def test_simulated_fields_come_and_go():
    fields = SimulatedFields(HazeImageProcessor("image"), seed=1, size=48, patches_per_field=2)
    rng, seen = np.random.default_rng(0), set()
    for index in range(0, 120, 3):
        fields.choose(index, rng)
        seen |= set(fields.fields)
        assert len(fields.fields) <= fields.WINDOW and min(fields.fields) >= index // 2 - fields.WINDOW
    assert len(seen) > 25


def test_examples_are_patches_in_network_units_with_times_of_the_grid():
    batch = [examples()[index] for index in range(40)]
    for example in batch:
        assert example["hazy"].shape == example["clear"].shape == example["noise"].shape == (1, 32, 32)
        assert example["t"].dtype == torch.float32
    times = np.array([example["t"].item() for example in batch])
    assert 10 < (times == 0).sum() < 32
    np.testing.assert_allclose(times * 19, np.round(times * 19), atol=1e-5)


@pytest.mark.parametrize("t_sampling", ["uniform", "logit_normal"])
def test_other_times_are_drawn_between_noise_and_data(t_sampling):
    dataset = examples(t_sampling=t_sampling)
    times = np.array([dataset[index]["t"].item() for index in range(200)])
    drawn = times[times > 0]
    assert 60 < len(drawn) < 140 and drawn.max() < 1
    near_the_middle = np.mean(np.abs(drawn - 0.5) < 0.25)
    assert near_the_middle == pytest.approx(0.5 if t_sampling == "uniform" else 0.73, abs=0.15)
