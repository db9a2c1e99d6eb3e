import dataclasses

import numpy as np
import pytest
import torch

from haze_pipeline.optics import Optics, confocal_psf, widefield_psf
from haze_pipeline.simulation import draw_optics, pair_generator, simulate_pair
from haze_pipeline.specimens import SPECIMENS


OIL = Optics(
    numerical_aperture=1.4,
    emission_wavelength=0.52,
    excitation_wavelength=0.488,
    refractive_index=1.515,
    pixel_size=0.04,
)
DRY = Optics(
    numerical_aperture=0.5, emission_wavelength=0.52, excitation_wavelength=0.488, refractive_index=1.0, pixel_size=0.1
)


def full_width_at_half_maximum(profile, spacing):
    """Width of a peak that is largest at index 0, to both sides of which it falls alike."""
    half = profile[0] / 2
    below = int(np.argmax(profile < half))
    return 2 * spacing * (below - 1 + (profile[below - 1] - half) / (profile[below - 1] - profile[below]))


# Optics.


@pytest.mark.parametrize("optics", [OIL, DRY])
def test_lateral_width_follows_theory(optics):
    """0.51 λ/NA, the full width at half maximum of the Airy pattern."""
    profile = widefield_psf(optics, 128, torch.zeros(1))[0, 0].numpy()
    expected = 0.51 * optics.emission_wavelength / optics.numerical_aperture
    # A pixel integrates over its width, which broadens a peak by at most the squared pixel deviation.
    assert full_width_at_half_maximum(profile, optics.pixel_size) == pytest.approx(expected, rel=0.05)


def test_axial_width_follows_theory():
    """|sinc(u/4)|² of the axial Airy pattern in the paraxial limit: 1.77 λn/NA² at half maximum (Born & Wolf, §8.8)."""
    step = 0.05 * DRY.depth_of_field
    axial = widefield_psf(DRY, 128, step * torch.arange(40))[:, 0, 0].numpy()
    assert full_width_at_half_maximum(axial, step) == pytest.approx(1.77 * DRY.depth_of_field, rel=0.08)


@pytest.mark.parametrize("optics", [OIL, DRY, dataclasses.replace(DRY, pixel_size=0.6)])
def test_widefield_keeps_light_and_confocal_loses_it_out_of_focus(optics):
    defocus = optics.depth_of_field * torch.tensor([0.0, 1.0, 2.0, 4.0])
    widefield = widefield_psf(optics, 64, defocus).sum(dim=(1, 2))
    confocal = confocal_psf(optics, 64, defocus).sum(dim=(1, 2))
    torch.testing.assert_close(widefield, torch.ones(4), atol=1e-4, rtol=0)
    assert confocal[0] == pytest.approx(1, abs=1e-4)
    assert (confocal.diff() < 0).all() and confocal[-1] < 0.1


def test_a_wide_pinhole_sections_less():
    defocus = 2 * OIL.depth_of_field * torch.ones(1)
    sections = [
        confocal_psf(dataclasses.replace(OIL, pinhole=pinhole), 96, defocus).sum().item()
        for pinhole in (0.5, 1, 3, 10)
    ]
    assert sections == sorted(sections)


def test_the_confocal_image_is_sharper():
    widefield, confocal = (psf(OIL, 128, torch.zeros(1))[0, 0].numpy() for psf in (widefield_psf, confocal_psf))
    narrow, wide = (full_width_at_half_maximum(p, OIL.pixel_size) for p in (confocal, widefield))
    assert 0.6 * wide < narrow < 0.95 * wide


def test_psfs_are_even_in_depth_and_across():
    psf = widefield_psf(OIL, 64, torch.tensor([-0.7, 0.7]))
    torch.testing.assert_close(psf[0], psf[1])
    for dim in (1, 2):
        torch.testing.assert_close(psf, psf.flip(dim).roll(1, dim), atol=1e-7, rtol=1e-3)


def test_coarse_pixels_are_sums_of_fine_ones():
    """A pixel three times wider must collect what its nine fine pixels collect."""
    fine, coarse = DRY, dataclasses.replace(DRY, pixel_size=0.3)
    fine_psf = widefield_psf(fine, 96, torch.tensor([3.0]))[0].roll((1, 1), (0, 1))
    binned = fine_psf.reshape(32, 3, 32, 3).sum(dim=(1, 3))
    torch.testing.assert_close(widefield_psf(coarse, 32, torch.tensor([3.0]))[0], binned, atol=2e-5, rtol=0.02)


@pytest.mark.parametrize(
    "change", [{"numerical_aperture": 1.6}, {"numerical_aperture": 0}, {"pixel_size": -1}, {"pinhole": 0}]
)
def test_impossible_optics_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(OIL, **change)


# Specimens and pairs.


@pytest.mark.parametrize("kind", SPECIMENS)
def test_specimens_are_densities_decided_by_their_seed(kind):
    volumes = [SPECIMENS[kind]((5, 48, 48), 2.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert volumes[0].shape == (5, 48, 48)
    assert torch.isfinite(volumes[0]).all() and (volumes[0] >= 0).all() and volumes[0].max() > 0
    torch.testing.assert_close(volumes[0], volumes[1], atol=0, rtol=0)
    assert not torch.equal(volumes[0], volumes[2])


def test_pairs_are_decided_by_seed_and_index():
    first, again, next_, other = (
        simulate_pair(48, pair_generator(seed, index)) for seed, index in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert torch.equal(first.hazy, again.hazy) and torch.equal(first.clear, again.clear)
    assert not torch.equal(first.hazy, next_.hazy) and not torch.equal(first.hazy, other.hazy)
    assert first.parameters == again.parameters


@pytest.mark.parametrize("index", range(12))
def test_a_pair_is_a_camera_image_and_its_in_focus_light(index):
    pair = simulate_pair(64, pair_generator(3, index))
    assert pair.hazy.shape == pair.clear.shape == (64, 64)
    assert (pair.hazy == pair.hazy.round()).all() and 0 <= pair.hazy.min() and pair.hazy.max() <= 65535
    assert torch.isfinite(pair.clear).all() and (pair.clear >= 0).all() and pair.clear.max() > 0
    # In the same counts: what is not in focus can only add light, on average over a field much larger than the PSF.
    haze = pair.hazy.mean() - pair.parameters["offset"] - pair.clear.mean()
    noise = pair.parameters["gain"] * (
        pair.parameters["read_noise"] + (pair.hazy.max() / pair.parameters["gain"]).sqrt()
    )
    assert haze > -0.05 * pair.clear.mean() - noise / 64 * 4


def test_the_camera_adds_shot_and_read_noise():
    """Variance over mean: gain² (photons + read noise²), estimated where fine sampling leaves only noise to second differences."""
    ratios = []
    finely_sampled = dataclasses.replace(OIL, pixel_size=0.02)
    for index in range(20):
        pair = simulate_pair(64, pair_generator(5, index), optics=finely_sampled)
        gain, counts = pair.parameters["gain"], pair.hazy.double()
        second_differences = counts[:, 2:] - 2 * counts[:, 1:-1] + counts[:, :-2]
        photons = (counts - pair.parameters["offset"]).mean() / gain
        expected = gain**2 * (photons + pair.parameters["read_noise"] ** 2) + 1 / 12  # and rounding
        ratios.append((second_differences.square().mean() / 6 / expected).item())
    assert np.median(ratios) == pytest.approx(1, rel=0.05)


def test_random_microscopes_are_possible_and_varied():
    drawn = [draw_optics(torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(0.4 <= o.numerical_aperture <= 1.45 and 0.03 <= o.pixel_size <= 0.6 for o in drawn)
    assert {o.refractive_index for o in drawn} == {1.0, 1.33, 1.47, 1.515}


def test_tiny_images_are_refused():
    with pytest.raises(ValueError, match="16 pixels"):
        simulate_pair(8, pair_generator(0, 0))
