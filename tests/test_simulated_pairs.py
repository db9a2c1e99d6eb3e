import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from haze_pipeline.simulation.camera import Camera
from haze_pipeline.simulation.optics import Optics, widefield_otf
from haze_pipeline.simulation.simulated_pairs import (
    draw_camera,
    draw_optics,
    image_planes,
    pair_generator,
    pairs_from_stack,
    simulate_pair,
    simulate_series,
)
from haze_pipeline.simulation.specimens import SPECIMENS


OPTICS = Optics(
    numerical_aperture=1.4,
    emission_wavelength=0.52,
    excitation_wavelength=0.488,
    refractive_index=1.515,
    pixel_size=0.08,
)


@pytest.mark.parametrize("kind", SPECIMENS)
def test_specimens_are_densities_that_depend_only_on_their_seed(kind):
    volumes = [SPECIMENS[kind]((5, 48, 48), 2.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert volumes[0].shape == (5, 48, 48)
    assert torch.isfinite(volumes[0]).all() and (volumes[0] >= 0).all() and volumes[0].max() > 0
    torch.testing.assert_close(volumes[0], volumes[1], atol=0, rtol=0)
    assert not torch.equal(volumes[0], volumes[2])


def test_pairs_depend_only_on_seed_and_index():
    first, again, next_, other = (
        simulate_pair(48, pair_generator(seed, index)) for seed, index in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert torch.equal(first.hazy, again.hazy) and torch.equal(first.clear, again.clear)
    assert not torch.equal(first.hazy, next_.hazy) and not torch.equal(first.hazy, other.hazy)
    assert first.parameters == again.parameters


@pytest.mark.parametrize("index", range(12))
def test_a_pair_is_a_camera_image_and_its_in_focus_signal(index):
    pair = simulate_pair(64, pair_generator(3, index))
    assert pair.hazy.shape == pair.clear.shape == (64, 64)
    assert (
        (pair.hazy == pair.hazy.round()).all()
        and 0 <= pair.hazy.min()
        and pair.hazy.max() < 2 ** pair.parameters["bit_depth"]
    )
    assert torch.isfinite(pair.clear).all() and (pair.clear >= 0).all() and pair.clear.max() > 0
    # Both are in the same counts. On average over a field much larger than the PSF, haze can only add intensity.
    haze = pair.hazy.mean() - pair.parameters["offset"] - pair.clear.mean()
    noise = pair.parameters["gain"] * (
        pair.parameters["read_noise"] + (pair.hazy.max() / pair.parameters["gain"]).sqrt()
    )
    assert haze > -0.05 * pair.clear.mean() - noise / 64 * 4


def test_haze_grows_with_the_pinhole_over_the_same_clear_image():
    pinholes = (1.0, 2.0, 4.0, math.inf)
    series = simulate_series(96, pair_generator(3, 4), OPTICS, pinholes)
    assert [pair.parameters["level"] for pair in series] == [1.0, 2.0, 4.0, None]
    for pair in series:
        assert torch.equal(pair.clear, series[0].clear)
        assert pair.parameters["specimens"] == series[0].parameters["specimens"]
    light = [pair.hazy.mean().item() for pair in series]
    assert light == sorted(light) and light[-1] > light[0]


def test_levels_have_independent_noise():
    twice = simulate_series(64, pair_generator(3, 4), OPTICS, (2.0, 2.0))
    difference, camera = (twice[0].hazy - twice[1].hazy).double(), twice[0].parameters
    photons = (twice[0].hazy.mean() - camera["offset"]) / camera["gain"]
    expected = 2 * camera["gain"] ** 2 * (photons + camera["read_noise"] ** 2) + 2 / 12
    assert difference.square().mean().item() == pytest.approx(expected.item(), rel=0.1)


def test_bleaching_dims_levels_and_drift_moves_them():
    still = simulate_series(96, pair_generator(3, 5), OPTICS, (math.inf, math.inf), bleaching=0.2)
    torch.testing.assert_close(still[1].clear, 0.8 * still[0].clear)
    offset = still[0].parameters["offset"]
    assert ((still[1].hazy - offset).mean() / (still[0].hazy - offset).mean()).item() == pytest.approx(0.8, abs=0.02)
    bright = Camera(gain=1, offset=0, read_noise=0)
    still, moved = (
        simulate_series(96, pair_generator(3, 5), OPTICS, (math.inf, math.inf), drift=drift, camera=bright)
        for drift in (0.0, 3.0)
    )
    assert torch.equal(moved[0].clear, moved[1].clear)
    # Shifted back by the stated drift, the image equals the image without drift, except for noise and edges.
    y, x = moved[1].parameters["drift"]
    shifted = torch.from_numpy(ndimage.shift(moved[1].hazy.numpy(), (-y, -x)))
    inner = (slice(16, -16), slice(16, -16))
    before, after = ((each - still[1].hazy)[inner].square().mean() for each in (moved[1].hazy, shifted))
    assert after < 0.3 * before


def test_a_shifted_specimen_gives_a_shifted_image():
    volume = torch.zeros(1, 64, 64)
    volume[0, 20, 30] = 1
    otf = torch.ones(1, 64, 33)
    still, moved = image_planes(volume, [otf, otf], [torch.zeros(2), torch.tensor([3.0, -5.0])])
    torch.testing.assert_close(still, volume[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved, volume[0].roll((3, -5), (0, 1)), atol=1e-5, rtol=0)
    batched = image_planes(volume.expand(3, 2, 1, 64, 64), [otf])[0]
    torch.testing.assert_close(batched[1, 1], still)


@pytest.mark.parametrize("axis", [0, 1])
def test_nothing_wraps_around_the_field(axis):
    """Light from beyond one edge must not appear at the opposite edge."""
    size, margin = 64, 32
    volume = torch.zeros(3, size + 2 * margin, size + 2 * margin)
    volume.select(axis + 1, 10)[...] = 1  # a line in the margin, 22 pixels above or left of the field
    defocus = OPTICS.depth_of_field * torch.tensor([-6.0, 0.0, 6.0])
    otf = widefield_otf(OPTICS, size + 2 * margin, defocus, margin * OPTICS.pixel_size)
    field = image_planes(volume, [otf])[0][margin:-margin, margin:-margin]
    profile = field.mean(dim=1 - axis)
    assert profile[0] > 1.02 * profile[-1]
    torch.testing.assert_close(profile[-32:], profile[-1].expand(32), atol=1e-5, rtol=1e-3)


def test_large_fields_look_like_many_small_ones():
    def density(size, kind):
        totals = [
            (SPECIMENS[kind]((5, size, size), 2.0, torch.Generator().manual_seed(seed)) > 0.1).float().mean()
            for seed in range(12)
        ]
        return torch.stack(totals).mean().item()

    for kind in ("puncta", "blobs"):
        assert 0.4 < density(512, kind) / density(256, kind) < 2.5


# From a stack.


def spotted_stack():
    """A thick random specimen with other spots in every plane."""
    generator = np.random.default_rng(0)
    stack = np.zeros((9, 48, 40), np.uint16)
    for plane in stack:
        plane[generator.integers(4, 44, 6), generator.integers(4, 36, 6)] = 4000
    return stack + 100


def light(pair):
    """Expected intensities of the hazy and the clear image of a pair, in the unit of the stack."""
    factor = pair.parameters["gain"] * pair.parameters["quantum_efficiency"] * pair.parameters["photons_per_unit"]
    return (pair.hazy - pair.parameters["offset"]) / factor, pair.clear / factor


def test_planes_of_a_stack_become_clear_images_under_the_haze_of_the_others():
    stack = spotted_stack()
    pairs = list(pairs_from_stack(stack, 0.5, OPTICS, torch.Generator().manual_seed(0), background=100))
    assert [pair.parameters["plane"] for pair in pairs] == list(range(9))
    for plane, pair in zip(stack, pairs, strict=True):
        hazy, clear = light(pair)
        assert hazy.shape == clear.shape == (48, 40)
        torch.testing.assert_close(clear, torch.from_numpy(plane.astype(np.float32)) - 100, rtol=1e-4, atol=1e-3)
        assert hazy.mean() > 1.3 * clear.mean()  # haze adds intensity
    section = pairs[0].parameters["optical_section"]
    assert OPTICS.depth_of_field / 2 < section < 2 * OPTICS.depth_of_field


def test_planes_out_of_the_focus_range_only_add_haze():
    stack, camera = spotted_stack(), Camera()
    arguments = (0.5, OPTICS, torch.Generator().manual_seed(0), 100, camera)
    pairs = list(pairs_from_stack(stack, *arguments, focus=range(3, 5)))
    assert [pair.parameters["plane"] for pair in pairs] == [3, 4]
    alone = next(pairs_from_stack(stack[3:5], *arguments))
    torch.testing.assert_close(light(pairs[0])[1], light(alone)[1])
    assert light(pairs[0])[0].mean() > 1.5 * light(alone)[0].mean()


@pytest.mark.parametrize("shape", [(5, 64, 64), (5, 128, 32), (3, 20, 150)])
@pytest.mark.parametrize("spacing", [0.3, 1.0, 3.0])
def test_every_plane_of_a_uniform_stack_adds_the_same_intensity(shape, spacing):
    """
    Because of the missing cone, every plane adds z_step / section, for any shape of the field. The plane in focus adds
    at most 1.
    """
    stack = np.ones(shape, np.float32)
    camera = Camera(gain=1, offset=0, read_noise=0)
    section = next(pairs_from_stack(stack, 1.0, OPTICS, torch.Generator(), 0)).parameters["optical_section"]
    pair = next(pairs_from_stack(stack, spacing * section, OPTICS, torch.Generator().manual_seed(0), 0, camera))
    expected = min(1, spacing) + (shape[0] - 1) * spacing
    assert light(pair)[0].mean().item() == pytest.approx(expected, rel=0.01)


def test_the_noise_of_a_dark_stack_does_not_become_haze():
    stack = np.random.default_rng(0).normal(100, 5, (20, 64, 64))
    stack[10, 28:36, 28:36] += 1000
    hazy, clear = light(next(pairs_from_stack(stack, 0.5, OPTICS, torch.Generator().manual_seed(0), 100)))
    assert abs(clear.mean().item()) < 1
    assert hazy[:8, :8].mean() < 5 + 1000 * 64 / 64**2 * 2


@pytest.mark.parametrize(
    ("stack", "z_step", "message"),
    [
        (np.zeros((4, 32)), 1.0, "shape"),
        (np.ones((1, 32, 32)), 1.0, "two or more planes"),
        (np.ones((4, 32, 32)), 1.0, "background"),
        (np.full((4, 32, 32), np.nan), 1.0, "finite"),
        (np.ones((4, 32, 32)), 0.0, "z_step"),
    ],
)
def test_impossible_stacks_are_refused(stack, z_step, message):
    with pytest.raises(ValueError, match=message):
        next(pairs_from_stack(stack, z_step, OPTICS, torch.Generator()))


# Random microscopes, cameras and specimens.


def test_random_microscopes_are_possible_and_varied():
    drawn = [draw_optics(torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(0.4 <= o.numerical_aperture <= 1.45 and 0.03 <= o.pixel_size <= 0.6 for o in drawn)
    assert {o.refractive_index for o in drawn} == {1.0, 1.33, 1.47, 1.515}


def test_tiny_images_are_refused():
    with pytest.raises(ValueError, match="16 pixels"):
        simulate_pair(8, pair_generator(0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pinholes": ()}, "pinholes"),
        ({"pinholes": (0.0,)}, "pinholes"),
        ({"bleaching": 1.0}, "bleaching"),
        ({"drift": -1.0}, "drift"),
    ],
)
def test_impossible_series_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_series(32, pair_generator(0, 0), **arguments)


def test_random_cameras_do_not_saturate():
    for seed in range(50):
        camera = draw_camera(5000.0, torch.Generator().manual_seed(seed))
        assert camera.gain * camera.quantum_efficiency * 5000 + camera.offset <= 0.9 * camera.largest_count * 1.001


def test_haze_of_aberrated_microscopes_only_adds_intensity():
    optics = dataclasses.replace(OPTICS, numerical_aperture=1.3, sample_index=1.36, depth=10.0)
    camera = Camera(gain=1, offset=0, read_noise=0)
    for index in range(8):
        pair = simulate_series(64, pair_generator(3, index), optics, camera=camera)[0]
        assert pair.hazy.mean() > 0.95 * pair.clear.mean() - 1


@pytest.mark.parametrize("kind", SPECIMENS)
def test_specimens_do_not_repeat_at_the_edges(kind):
    """Opposite edges of the grid must not be more strongly correlated than distant lines inside it."""
    edges, inside = [], []
    for seed in range(12):
        volume = SPECIMENS[kind]((5, 160, 160), 2.0, torch.Generator().manual_seed(seed)).sum(dim=0)
        volume = volume / volume.mean()
        edges.append(torch.corrcoef(torch.stack([volume[:, 0], volume[:, -1]]))[0, 1])
        inside.append(torch.corrcoef(torch.stack([volume[:, 0], volume[:, 80]]))[0, 1])
    edges, inside = (torch.stack(each).nan_to_num().mean() for each in (edges, inside))
    assert edges < inside + 0.35


def test_a_seed_gives_the_same_specimens_on_every_machine():
    """The expected values, up to rounding, were recorded when the simulator was last changed."""
    for index, (hazy, clear) in {0: (69.84863, 5.024906), 1: (7878.804, 490.27536)}.items():
        pair = simulate_pair(64, pair_generator(1, index))
        assert pair.hazy.mean().item() == pytest.approx(hazy, rel=1e-3)
        assert pair.clear.mean().item() == pytest.approx(clear, rel=1e-3)


def test_simulation_runs_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    defocus = OPTICS.depth_of_field * torch.tensor([0.0, 2.0])
    volume = torch.rand(2, 64, 64)
    images = [
        image_planes(volume.to(device), [widefield_otf(OPTICS, 64, defocus.to(device))], [torch.ones(2)])[0].cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-5)
