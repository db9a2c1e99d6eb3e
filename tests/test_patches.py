"""Training examples are functions of seed and index. Examples of the scripts are tested with the scripts."""

from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from haze_pipeline.data.hub_datasets import pair_row
from haze_pipeline.data.pairs import Pair
from haze_pipeline.data.patches import (
    WINDOW,
    FieldsInMemory,
    FieldsInSeries,
    TrainingExamples,
    fit_image_processor,
    simulated_series,
    streamed_series,
)
from haze_pipeline.image_processing import HazeImageProcessor


PROCESSOR = HazeImageProcessor("image")


def random_pairs(number, size=48):
    rng = np.random.default_rng(0)
    for index in range(number):
        clear = rng.integers(0, 1000, (size, size), dtype=np.uint16)
        yield Pair(clear + np.uint16(100 + index), clear, f"{index}", f"{index}.tif")


def examples(length=400, t_sampling="grid", fields=None, intensity_augmentation=0.0, corner=0.0):
    fields = fields or FieldsInSeries(partial(simulated_series, 1, 48), PROCESSOR, 32, patches_per_field=8)
    return TrainingExamples(
        fields, 32, posterior_mean_share=0.5, t_sampling=t_sampling, seed=0, length=length,
        intensity_augmentation=intensity_augmentation, noise_corner_frequency=corner,
    )  # fmt: skip


def test_examples_of_a_series_do_not_depend_on_earlier_requests():
    dataset, again = examples(), examples()
    for index in (0, 1, 2, 300):
        dataset[index]
    for index in (300, 301, 0):  # the last index jumps back
        for name, value in again[index].items():
            assert torch.equal(value, dataset[index][name]), name


def test_given_first_pairs_of_a_series_are_not_made_again():
    asked_for = []

    def series(start, step):
        asked_for.append(start)
        return islice(random_pairs(200), start, None, step)

    first = list(random_pairs(WINDOW))
    given, made = (FieldsInSeries(series, PROCESSOR, 32, 8, pairs) for pairs in (first, ()))
    for index in (0, 7, 8, 30, 400):
        field = given.choose(index, np.random.default_rng(index))
        torch.testing.assert_close(field, made.choose(index, np.random.default_rng(index)), rtol=0, atol=0)
    assert asked_for.count(0) == 1  # only by the fields without given pairs


def test_only_a_window_of_the_fields_of_a_series_is_kept():
    fields = FieldsInSeries(lambda *part: islice(random_pairs(100), part[0], None, part[1]), PROCESSOR, 32, 2)
    rng, seen = np.random.default_rng(0), set()
    for index in range(0, 120, 3):
        fields.choose(index, rng)
        seen |= set(fields.fields)
        assert len(fields.fields) <= 2 * WINDOW and min(fields.fields) >= index // 2 - WINDOW
    assert len(seen) > 60


def test_workers_share_a_series_without_gaps(monkeypatch):
    made = []

    def series(start, step):
        for number, pair in enumerate(random_pairs(200)):
            if number >= start and (number - start) % step == 0:
                made.append(number)
                yield pair

    for worker in range(3):
        info = SimpleNamespace(id=worker, num_workers=3)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        fields, rng = FieldsInSeries(series, PROCESSOR, 32, patches_per_field=2), np.random.default_rng(worker)
        for index in range(worker, 180, 3):
            fields.choose(index, rng)
            assert {number % 3 for number in fields.fields} == {worker} and len(fields.fields) <= WINDOW
            assert min(fields.fields) == index // 6 * 3 + worker
    assert len(made) == len(set(made)) and set(made) >= set(range(120))


def test_a_stream_starts_again_at_its_end():
    rows = [pair_row(**vars(pair)) for pair in random_pairs(3)]
    for start in (0, 2, 7):
        found = [pair.source for pair in islice(streamed_series(rows, start), 4)]
        assert found == [f"{(start + index) % 3}.tif" for index in range(4)]
    del rows[1]["clear"], rows[1]["source"]
    with pytest.raises(ValueError, match="row 1 of the dataset has no image in the column `clear`"):
        list(islice(streamed_series(rows, 0), 3))
    with pytest.raises(ValueError, match="has no rows"):
        next(streamed_series([], 0))


def test_images_without_contrast_are_skipped_and_unusable_ones_are_named():
    flat = Pair(np.full((48, 48), 7, np.uint8), np.full((48, 48), 7, np.uint8), "flat", "flat.tif")
    good = next(random_pairs(1))
    assert len(FieldsInMemory([flat, good], PROCESSOR, 32).fields) == 1
    with pytest.raises(ValueError, match="No hazy training image has any contrast"):
        FieldsInMemory([flat], PROCESSOR, 32)
    with pytest.raises(ValueError, match="No hazy training image has any contrast"):
        fit_image_processor("image", [flat])
    endless = FieldsInSeries(lambda start, step: iter([flat] * 999), PROCESSOR, 32, 8)
    with pytest.raises(ValueError, match="around number 3 has any contrast"):
        endless.choose(24, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^0.tif: an image of shape \(48, 48\) is smaller than the patches of 64"):
        FieldsInMemory([good], PROCESSOR, 64)
    good.clear = np.full((48, 48), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^0.tif: .*NaN"):
        FieldsInMemory([good], PROCESSOR, 32)


def test_intensity_augmentation_scales_the_signal_above_the_dark_level():
    processor = HazeImageProcessor("image", target_mean=0.4, target_std=1.2)
    fields = FieldsInMemory(random_pairs(3), processor, 32)
    plain, augmented = (examples(fields=fields, intensity_augmentation=each) for each in (0.0, 0.3))
    gains, offsets = [], []
    for index in range(40):
        # All earlier random numbers are the same, so both examples show the same patch.
        before, after = plain[index], augmented[index]
        light = before["clear"] - processor.target_dark_level
        gain = ((after["clear"] - processor.target_dark_level) / light)[light > 0.1]
        torch.testing.assert_close(gain, gain[:1].expand_as(gain), rtol=1e-4, atol=0)
        offset = after["hazy"] - before["hazy"] * gain[0]
        torch.testing.assert_close(offset, offset.mean().expand_as(offset), rtol=0, atol=1e-4)
        gains.append(gain[0].log().item())
        offsets.append(offset.mean().item())
    assert np.std(gains) == pytest.approx(0.3, rel=0.5) and np.std(offsets) == pytest.approx(0.3, rel=0.5)


def test_examples_are_patches_in_network_units_with_times_on_the_grid():
    dataset = examples()
    batch = [dataset[index] for index in range(40)]
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


def test_noise_is_normal_independent_between_examples_and_smoother_on_request():
    fields = FieldsInMemory(random_pairs(2), PROCESSOR, 32)

    def noises(corner):
        dataset = examples(fields=fields, corner=corner)
        return torch.stack([dataset[index]["noise"] for index in range(40)])

    white, broad = noises(0.0), noises(0.2)
    assert white.mean().abs() < 0.02 and white.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(white[0], white[1])
    means = [noise.mean(dim=(1, 2, 3)).std().item() for noise in (white, broad)]  # of patches of 32 px
    assert means[0] < 0.05 and means[1] > 0.2
    assert torch.equal(broad, noises(0.2))


def test_some_examples_start_from_zeros_at_time_zero():
    fields = FieldsInMemory(random_pairs(2), PROCESSOR, 32)
    dataset = TrainingExamples(
        fields, 32, posterior_mean_share=0.2, zero_state_share=0.5, t_sampling="uniform", seed=0, length=400
    )
    batch = [dataset[index] for index in range(400)]
    zeros = [example for example in batch if not example["noise"].any()]
    assert all(example["t"] == 0 for example in zeros)
    assert 0.42 < len(zeros) / 400 < 0.58
    assert 0.63 < np.mean([example["t"].item() == 0 for example in batch]) < 0.77
