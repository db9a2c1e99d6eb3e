"""Operators that add haze: optics, atmosphere and generators."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.ndimage import gaussian_filter

from haze_pipeline.models.atmospheric_haze import AtmosphericHaze, dark_channel, estimate_airlight
from haze_pipeline.models.haze_operator import HazeOperator, OpticalHaze, convolve, noise_level
from haze_pipeline.models.learned_haze import LearnedHaze


def sparse_images(seed, number, size):
    """Images `[number, 1, size, size]` with bright places on a dark ground."""
    noise = np.random.default_rng(seed).normal(size=(number, size, size))
    smooth = np.stack([gaussian_filter(each, 1.5, mode="wrap") for each in noise])
    return torch.from_numpy(np.clip(smooth / smooth.std() - 0.5, 0, None)).float()[:, None]


def test_kernels_of_the_optics_are_positive_with_the_sum_one():
    kernels = OpticalHaze(distances=(2.0, 6.0), weights=(1.0, 1.0)).kernels()
    assert kernels.shape == (3, 128, 128) and kernels.min() >= 0
    torch.testing.assert_close(kernels.sum(dim=(-2, -1)), torch.ones(3), atol=1e-4, rtol=0)
    radius = (torch.stack(torch.meshgrid(*[torch.arange(128) - 64] * 2, indexing="ij")) ** 2).sum(dim=0).sqrt()
    widths = (kernels.detach() * radius).sum(dim=(-2, -1))
    assert widths[0] < widths[1] < widths[2]


def test_a_convolution_mirrors_images_of_any_size():
    kernel = torch.rand(16, 16)
    kernel /= kernel.sum()
    for shape in ((1, 1), (5, 33), (40, 20)):
        torch.testing.assert_close(convolve(torch.ones(2, 1, *shape), kernel), torch.ones(2, 1, *shape))
    point = torch.zeros(1, 1, 60, 50)
    point[..., 30, 20] = 1
    torch.testing.assert_close(convolve(point, kernel)[0, 0, 22:38, 12:28], kernel, atol=1e-6, rtol=0)


def test_optics_are_recovered_from_simulated_haze():
    clear = sparse_images(0, 6, 48)
    arguments = {"weight_spread": 0.0, "kernel_size": 48, "airy_radius": 2.0}
    true = OpticalHaze(blur=1.0, distances=(2.5, 6.0), weights=(0.6, 2.0), **arguments)
    true.freeze()
    learned = OpticalHaze(blur=0.5, distances=(2.0, 8.0), weights=(1.0, 1.0), **arguments)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for step in range(80):
        # The same random numbers draw the same layers for both.
        hazy, made = (
            operator(clear, operator.imagine(clear, clear, np.random.default_rng(step)))
            for operator in (true, learned)
        )
        optimizer.zero_grad()
        (made - hazy).square().mean().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(learned.weights, true.weights, rtol=0.1, atol=0)
    torch.testing.assert_close(learned.distances, true.distances, rtol=0.15, atol=0)
    assert torch.nn.functional.softplus(learned.raw_blur).item() == pytest.approx(1.0, rel=0.1)


def test_haze_is_explained_by_what_is_smooth_and_no_less_than_the_background():
    clear = sparse_images(1, 2, 96)
    operator = OpticalHaze(distances=(6.0,), weights=(1.0,), background_width=24)
    operator.freeze()
    haze = 3 + convolve(clear.roll(1, dims=0), operator.kernels()[1])
    hazy = operator(clear, haze)
    explained = operator.explain(hazy, clear)
    assert (explained - haze).square().mean() < 0.2 * haze.var()
    # If the clear image took all of the intensity, the background would remain.
    background = operator.background(hazy)
    assert torch.equal(operator.explain(hazy, 10 * hazy), background)
    assert (background < hazy.mean()).all() and background.min() > 2
    assert torch.equal(operator.limit(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_imagined_haze_comes_from_other_images_and_keeps_the_mean_of_the_hazy_ones():
    clear = torch.zeros(2, 1, 64, 64)
    clear[0, :, ::8] = 4.0
    operator = OpticalHaze(distances=(2.0,), weights=(1.0,), weight_spread=0.0, dark_level=-1.0)
    hazy = torch.full_like(clear, 5.0)
    made = operator(clear, operator.imagine(clear, hazy, np.random.default_rng(0)))
    torch.testing.assert_close(made.mean(dim=(1, 2, 3)), torch.full((2,), 5.0))
    texture = (made - operator(clear, torch.zeros_like(clear)))[:, 0].std(dim=(-2, -1))
    assert texture[0] < 1e-3 < 0.1 < texture[1]  # the lines of the first image are the haze of the second


def test_noise_is_measured_beside_structure_and_imagined():
    rng = np.random.default_rng(0)
    clear = 3 + sparse_images(0, 2, 128)
    noise = 0.2 * torch.from_numpy(rng.normal(size=clear.shape)).float()
    assert (noise_level(clear).flatten() < 0.08).all()  # structure counts a little as well
    torch.testing.assert_close(noise_level(clear + noise).flatten(), torch.full((2,), 0.2), rtol=0.1, atol=0)
    operator = OpticalHaze(distances=(8.0,), weights=(1.0,))
    haze = operator.imagine(clear, clear + noise, rng)
    torch.testing.assert_close(noise_level(haze).flatten(), torch.full((2,), 0.2), rtol=0.15, atol=0)


def test_each_operator_guesses_the_clear_image():
    # Without its background, a micrograph is closer to the clear image.
    clear = sparse_images(1, 2, 96)
    operator = OpticalHaze(distances=(6.0,), weights=(1.0,), background_width=24, dark_level=-1.0)
    operator.freeze()
    hazy = operator(clear - 1, 3 + 2 * convolve(clear.roll(1, dims=0), operator.kernels()[1]))
    guess = operator.guess(hazy)
    assert guess.min() >= -1 and (guess + 1 - clear).square().mean() < 0.2 * (hazy - hazy.mean()).square().mean()
    # The formula of the atmosphere is inverted.
    photograph = 0.8 * torch.rand(1, 3, 64, 64)
    photograph[..., ::4, ::4] = 0
    operator = AtmosphericHaze(airlight=1.0)
    hazy = operator(photograph, torch.full((1, 1, 64, 64), 0.7))
    assert (operator.guess(hazy) - photograph).abs().mean() < 0.1 < 0.2 < (hazy - photograph).abs().mean()


def test_the_atmosphere_follows_the_formula_and_any_common_units():
    clear, depth = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    airlight = (0.9, 0.8, 1.0)
    hazy = AtmosphericHaze(airlight, density=1.5)(clear, depth)
    transmission = torch.exp(-1.5 * depth)
    expected = clear * transmission + torch.tensor(airlight).reshape(3, 1, 1) * (1 - transmission)
    torch.testing.assert_close(hazy, expected)
    # Counts = 200 · value + 100
    in_counts = AtmosphericHaze(tuple(200 * each + 100 for each in airlight), density=1.5, dark_level=100.0)
    torch.testing.assert_close(in_counts(200 * clear + 100, depth), 200 * hazy + 100)


def test_the_depth_is_measured_by_the_dark_channel_or_constant():
    clear = torch.rand(1, 3, 64, 64)
    clear[..., ::4, ::4] = 0  # a dark place in every square of 15 pixels
    depth = torch.linspace(0.2, 1.0, 64).expand(1, 1, 64, 64)
    operator = AtmosphericHaze(airlight=1.0)
    hazy = operator(clear, depth)
    found = operator.explain(hazy, clear)
    assert (found - depth).abs().mean() < 0.15  # of which 0.05 because one twentieth of the haze is left
    constant = AtmosphericHaze(airlight=1.0, depth=0.5)
    assert torch.equal(constant.explain(hazy, clear), torch.full((1, 1, 64, 64), 0.5))
    imagined = operator.imagine(clear, hazy, np.random.default_rng(0))
    torch.testing.assert_close(imagined.flatten().sort()[0], found.flatten().sort()[0])


def test_the_airlight_is_the_value_of_the_densest_haze():
    image = torch.rand(1, 3, 64, 64)
    image[..., :20, :20] = torch.tensor([0.7, 0.8, 0.9]).reshape(3, 1, 1)
    torch.testing.assert_close(estimate_airlight([*image]), torch.tensor([0.7, 0.8, 0.9]))
    clear = 0.5 * torch.rand(3, 40, 30)  # another image, without haze
    torch.testing.assert_close(estimate_airlight([clear, image[0]]), torch.tensor([0.7, 0.8, 0.9]))
    assert dark_channel(image, 15)[0, 0, 10, 10] == pytest.approx(0.7)


def test_the_generators_are_trained_to_undo_each_other():
    torch.manual_seed(0)
    operator = LearnedHaze(num_features=8, num_blocks=1)
    clear = sparse_images(0, 2, 32)
    no_map = operator.explain(clear, clear)
    assert no_map.shape == (2, 1, 32, 32) and not no_map.any()
    optimizer = torch.optim.Adam(operator.parameters(), lr=1e-3)
    errors = []
    for _ in range(30):
        error = (operator.guess(operator(clear, no_map)) - clear).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    "operator",
    [
        OpticalHaze(airy_radius=2.0, distances=(3.0,), weights=(0.5,), kernel_size=16),
        AtmosphericHaze(airlight=(0.8, 0.9, 1.0), density=0.7),
        LearnedHaze(num_features=4, num_blocks=1, num_channels=3),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_a_stored_operator_gives_the_same_bits(operator, tmp_path):
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.01
    operator.save_pretrained(tmp_path)
    loaded = type(operator).from_pretrained(tmp_path)
    channels = 1 if isinstance(operator, OpticalHaze) else 3
    clear, haze = torch.rand(2, channels, 16, 16), torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded(clear, haze), operator(clear, haze))
    operator.freeze()
    assert torch.equal(operator(clear, haze), loaded(clear, haze))
    assert not any(parameter.requires_grad for parameter in operator.parameters())


@pytest.mark.parametrize(
    ("operator_class", "arguments", "message"),
    [
        (OpticalHaze, {"distances": (2.0, 3.0), "weights": (1.0,)}, "must be equally many"),
        (OpticalHaze, {"distances": (), "weights": ()}, "must be equally many"),
        (OpticalHaze, {"distances": (0.5,), "weights": (1.0,)}, "`distances` must exceed 1"),
        (OpticalHaze, {"distances": (2.0,), "weights": (-1.0,)}, "must be positive"),
        (OpticalHaze, {"airy_radius": 0.0}, "must be positive"),
        (OpticalHaze, {"background_width": 0}, "`background_width` must be positive"),
        (AtmosphericHaze, {"airlight": 0.1, "dark_level": 0.2}, "`airlight` must exceed `dark_level` 0.2"),
        (AtmosphericHaze, {"density": 0.0}, "must be positive"),
        (AtmosphericHaze, {"depth": -1.0}, "`depth` not negative"),
    ],
)
def test_impossible_haze_is_refused(operator_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        operator_class(**arguments)


def test_an_operator_without_a_formula_says_so():
    with pytest.raises(NotImplementedError, match="must define `forward`"):
        HazeOperator().forward(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_operators_are_not_imported_with_the_package():
    import subprocess
    import sys

    code = "import sys, haze_pipeline; sys.exit('haze_pipeline.models.haze_operator' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
