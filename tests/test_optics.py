"""Transfer functions, compared with theory and with psfmodels, an independent implementation."""

import dataclasses
import math

import numpy as np
import psfmodels
import pytest
import torch

from haze_pipeline.simulation.optics import (
    Optics,
    _radial_grid,
    _radial_psf,
    best_focus,
    confocal_otf,
    otf_to_psf,
    widefield_otf,
)


OIL = Optics(
    numerical_aperture=1.4,
    emission_wavelength=0.52,
    excitation_wavelength=0.488,
    refractive_index=1.515,
    pixel_size=0.03,
)
DRY = Optics(
    numerical_aperture=0.5, emission_wavelength=0.52, excitation_wavelength=0.488, refractive_index=1.0, pixel_size=0.1
)
LOW = dataclasses.replace(DRY, numerical_aperture=0.3)
WATER = dataclasses.replace(DRY, numerical_aperture=0.9, refractive_index=1.33, pixel_size=0.05)


def full_width_at_half_maximum(profile, spacing):
    """Full width at half maximum of a symmetric peak whose maximum is at index 0."""
    half = profile[0] / 2
    below = int(np.argmax(profile < half))
    return 2 * spacing * (below - 1 + (profile[below - 1] - half) / (profile[below - 1] - profile[below]))


def planes(optics, *depths_of_field):
    return optics.depth_of_field * torch.tensor(depths_of_field, dtype=torch.float32)


@pytest.mark.parametrize("optics", [LOW, DRY, OIL])
def test_lateral_width_follows_theory(optics):
    """The full width at half maximum of the Airy pattern is 0.51 λ/NA, if pixels are too small to widen it."""
    optics = dataclasses.replace(optics, pixel_size=0.03 / optics.numerical_aperture)
    profile = otf_to_psf(widefield_otf(optics, 256, torch.zeros(1)))[0, 0].numpy()
    expected = 0.51 * optics.emission_wavelength / optics.numerical_aperture
    assert full_width_at_half_maximum(profile, optics.pixel_size) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("optics", [LOW, DRY, WATER])
def test_axial_width_follows_theory(optics):
    """The axial profile is sinc² of the defocus phase across the pupil. Its FWHM is 0.886 λ / (n − √(n² − NA²))."""
    step = 0.02 * optics.depth_of_field
    axial = otf_to_psf(widefield_otf(optics, 128, step * torch.arange(80)))[:, 0, 0].numpy()
    n = optics.refractive_index
    expected = 0.886 * optics.emission_wavelength / (n - math.sqrt(n**2 - optics.numerical_aperture**2))
    assert full_width_at_half_maximum(axial, step) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("optics", [OIL, DRY, dataclasses.replace(DRY, pixel_size=0.3)])
def test_widefield_detects_all_light_of_every_plane_and_confocal_rejects_it(optics):
    """The missing cone of the widefield transfer function."""
    defocus = planes(optics, 0, 1, 2, 4)
    widefield = otf_to_psf(widefield_otf(optics, 512, defocus)).sum(dim=(1, 2))
    confocal = otf_to_psf(confocal_otf(optics, 512, defocus)).sum(dim=(1, 2))
    torch.testing.assert_close(widefield, torch.ones(4), atol=1e-3, rtol=0)
    assert confocal[0] == pytest.approx(1, abs=1e-3)
    assert (confocal.diff() < 0).all() and confocal[-1] < 0.05


@pytest.mark.parametrize("optics", [LOW, WATER, OIL])
def test_the_computed_psf_itself_conserves_energy(optics):
    """
    Within a large reach, the computed PSF contains all light except the far tail, a fraction of 2 / (πv). Light beyond
    the reach, which the transfer function adds as a constant, is not counted here.
    """
    reach = 300 * optics.emission_wavelength / optics.numerical_aperture
    radius, area = _radial_grid(optics, reach, torch.device("cpu"))
    light = (_radial_psf(optics, optics.emission_wavelength, radius, planes(optics, 0, 3, 10)) * area).sum(dim=1)
    torch.testing.assert_close(light, torch.ones(3).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("optics", "size"), [(DRY, 64), (OIL, 128)])
def test_an_opening_pinhole_sections_less_until_it_does_not_section_at_all(optics, size):
    defocus = planes(optics, 0, 1, 2, 4)
    passed = {
        pinhole: confocal_otf(dataclasses.replace(optics, pinhole=pinhole), size, defocus)[:, 0, 0].numpy()
        for pinhole in (0.5, 1, 3, 10, 40, math.inf)
    }
    at_four = [each[-1] for each in passed.values()]
    assert at_four == sorted(at_four) and at_four[0] < 0.05
    np.testing.assert_allclose(passed[40], 1, atol=0.01)
    np.testing.assert_allclose(passed[math.inf], 1, atol=1e-6)  # like a widefield microscope


def test_spherical_aberration_shifts_the_focus():
    """At the shifted focus a point is brightest, and no plane gives a confocal microscope much more light."""
    assert best_focus(OIL) == best_focus(dataclasses.replace(OIL, sample_index=1.36)) == 0
    optics = dataclasses.replace(OIL, numerical_aperture=1.3, sample_index=1.36, depth=8.0)
    assert best_focus(optics) < -0.5 * optics.depth_of_field  # towards the coverslip: the specimen has a lower index
    defocus = planes(optics, *np.linspace(-3, 3, 61))
    axial = otf_to_psf(widefield_otf(optics, 128, defocus))[:, 0, 0]
    assert abs(axial.argmax().item() - 30) <= 1
    passed = confocal_otf(optics, 128, defocus)[:, 0, 0]
    assert passed.max() < 1.1 and passed[30] == pytest.approx(1, abs=1e-5)


def test_the_confocal_image_is_sharper():
    widefield, confocal = (
        otf_to_psf(otf(OIL, 128, torch.zeros(1)))[0, 0].numpy() for otf in (widefield_otf, confocal_otf)
    )
    narrow, wide = (full_width_at_half_maximum(p, OIL.pixel_size) for p in (confocal, widefield))
    assert 0.6 * wide < narrow < 0.97 * wide


@pytest.mark.parametrize(
    "optics", [LOW, DRY, WATER, dataclasses.replace(DRY, numerical_aperture=0.9, pixel_size=0.05), OIL]
)
def test_psfs_agree_with_psfmodels(optics):
    """
    The L1 difference of normalised PSFs within 3 depths of field is small. Both models are scalar, so that they agree
    at any NA. Neither describes the vectorial PSF of a real objective of high NA.
    """
    size, pixel = 127, optics.emission_wavelength / (12 * optics.numerical_aperture)
    optics = dataclasses.replace(optics, pixel_size=pixel)
    n, defocus = optics.refractive_index, planes(optics, *np.linspace(-3, 3, 7))
    glass = {"ng": 1.515, "ng0": 1.515, "tg": 0, "tg0": 0}
    index = {"ni": n, "ni0": n, "ns": n}
    arguments = {"NA": optics.numerical_aperture, "dxy": pixel, "normalize": False, **index, **glass}
    z = defocus.numpy().astype(float)
    theirs = {
        widefield_otf: psfmodels.make_psf(z, size, wvl=optics.emission_wavelength, model="scalar", **arguments),
        confocal_otf: psfmodels.confocal_psf(
            z,
            size,
            em_wvl=optics.emission_wavelength,
            ex_wvl=optics.excitation_wavelength,
            model="scalar",
            **arguments,
        ),
    }
    for otf, expected in theirs.items():
        psf = otf_to_psf(otf(optics, 512, defocus)).roll((size // 2, size // 2), (1, 2))[:, :size, :size].numpy()
        assert np.abs(psf / psf.sum() - expected / expected.sum()).sum() < 0.03, otf.__name__


@pytest.mark.parametrize(("depth", "defocus"), [(5.0, 0.0), (10.0, 0.0), (5.0, -0.5)])
def test_spherical_aberration_agrees_with_psfmodels(depth, defocus):
    """
    An oil objective in an aqueous specimen. psfmodels defines the focus position differently, so that the position of
    best agreement is used.
    """
    index, pixel, size = 1.36, 0.03, 127
    optics = dataclasses.replace(OIL, numerical_aperture=1.3, sample_index=index, depth=depth, pixel_size=pixel)
    psf, ideal = (
        otf_to_psf(widefield_otf(each, 512, torch.tensor([defocus])))[0]
        for each in (optics, dataclasses.replace(optics, depth=0))
    )
    assert (psf - ideal).abs().sum() > 0.2  # the aberration has an effect
    psf = psf.roll((size // 2, size // 2), (0, 1))[:size, :size].numpy()
    z, glass = np.arange(depth - 1.5, depth + 0.5, 0.02), {"ng": 1.515, "ng0": 1.515, "tg": 0, "tg0": 0}
    expected = psfmodels.make_psf(
        z, size, dxy=pixel, pz=depth + best_focus(optics) + defocus, NA=1.3, wvl=0.52,
        ns=index, ni=1.515, ni0=1.515, normalize=False, model="scalar", **glass,
    )  # fmt: skip
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    assert np.abs(expected - psf / psf.sum()).sum(axis=(1, 2)).min() < 0.03


def test_psfs_are_laterally_symmetric():
    psf = otf_to_psf(widefield_otf(OIL, 64, torch.tensor([0.7])))
    for dim in (1, 2):
        torch.testing.assert_close(psf, psf.flip(dim).roll(1, dim), atol=1e-7, rtol=1e-3)


def test_coarse_pixels_are_sums_of_fine_ones():
    """A pixel three times wider collects the sum of nine fine pixels."""
    defocus, reach = planes(DRY, 0, 3), 4.0
    coarse = dataclasses.replace(DRY, pixel_size=0.3)
    fine_psf = otf_to_psf(widefield_otf(DRY, 96, defocus, reach)).roll((1, 1), (1, 2))
    binned = fine_psf.reshape(2, 32, 3, 32, 3).sum(dim=(2, 4))
    torch.testing.assert_close(otf_to_psf(widefield_otf(coarse, 32, defocus, reach)), binned, atol=2e-5, rtol=1e-3)


def test_a_psf_is_constant_beyond_its_reach():
    """Beyond the reach, the light of a point is spread evenly."""
    reach = 3.0
    psf = otf_to_psf(widefield_otf(DRY, 128, planes(DRY, 0, 8), reach))
    offset = torch.arange(128).minimum(128 - torch.arange(128)) * DRY.pixel_size
    beyond = psf[:, torch.hypot(offset[:, None], offset) > reach + 0.5]
    torch.testing.assert_close(beyond, beyond.mean(dim=1, keepdim=True).expand_as(beyond), atol=1e-7, rtol=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"numerical_aperture": 1.6},
        {"numerical_aperture": 0},
        {"pixel_size": -1},
        {"pinhole": 0},
        {"sample_index": 0.5},
        {"depth": -1},
    ],
)
def test_impossible_optics_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(OIL, **change)
