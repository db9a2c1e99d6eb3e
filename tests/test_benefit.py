"""Strengths that protect images which dehazing would harm."""

import json

import numpy as np
import pytest

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.reliability.benefit import choose_strength, strength_for
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


@pytest.fixture(scope="module")
def pipe():
    pipe = HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def hazy():
    return np.asarray(simulate_pair(96, pair_generator(3, 7)).hazy).astype(np.float32)


def test_strength_rises_with_the_predicted_gain():
    assert [strength_for(gain) for gain in (-20, -1, 1, 3, 20)] == [0, 0, 0.5, 1, 1]


def test_strength_depends_on_the_image_and_not_on_gain_and_offset_of_the_camera(pipe, hazy):
    strength = choose_strength(pipe, [hazy])
    assert 0 <= strength <= 1
    assert choose_strength(pipe, [10 * hazy + 500]) == pytest.approx(strength, abs=0.02)
    masked = hazy.copy()
    masked[:3] = np.nan
    assert np.isfinite(choose_strength(pipe, [masked]))
    assert choose_strength(pipe, [np.full_like(hazy, 7)]) == 1  # nothing to judge by


def test_a_checkpoint_without_prediction_is_refused(pipe, hazy):
    unfitted = HazeMatchingPipeline(**{**pipe.components, "benefit": None})
    with pytest.raises(ValueError, match="does not predict its gain"):
        choose_strength(unfitted, [hazy])


def test_every_channel_has_its_own_strength_which_the_file_states(run, pipe, hazy, tmp_path):
    sharp = np.random.default_rng(0).poisson(np.kron(np.eye(12), np.full((8, 8), 2000.0)) + 100).astype(np.float32)
    stack = np.stack([hazy, sharp])
    source = tmp_path / "in.ome.tif"
    write_ome_tiff(source, Micrograph(stack, "CYX", (0.1, 0.1)))
    results = {}
    for name, flags in {"full": (), "protected": ("--protect",)}.items():
        output = tmp_path / f"{name}.ome.tif"
        code, out, err = run("dehaze", source, "-o", output, "--no-assess", "--json", *flags)
        assert code == 0, err
        results[name] = read_micrograph(output)
    strengths = json.loads(out)["strength"]
    # The command line may compute with fewer digits.
    assert strengths == pytest.approx([choose_strength(pipe, [plane]) for plane in stack], abs=0.03)
    assert results["protected"].provenance["strength"] == strengths
    expected = stack + np.reshape(strengths, (2, 1, 1)) * (results["full"].data - stack)
    np.testing.assert_allclose(results["protected"].data, expected, atol=2e-3 * stack.max())
