"""Point-spread functions of widefield and confocal fluorescence microscopes, from a scalar pupil function."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Optics:
    """
    What decides how a microscope images: objective, wavelengths, pixel and pinhole. Lengths are in µm.

    Args:
        numerical_aperture (`float`): NA of the objective, below `refractive_index`.
        emission_wavelength (`float`): Emission wavelength in vacuum, µm.
        excitation_wavelength (`float`): Excitation wavelength in vacuum, µm; only the confocal microscope uses it.
        refractive_index (`float`): Index of the immersion medium, taken to match the specimen.
        pixel_size (`float`): Pixel size in the specimen, µm.
        pinhole (`float`, defaults to `1.0`): Diameter of the confocal pinhole in Airy units (1.22 emission / NA).
    """

    numerical_aperture: float
    emission_wavelength: float
    excitation_wavelength: float
    refractive_index: float
    pixel_size: float
    pinhole: float = 1.0

    def __post_init__(self):
        if not 0 < self.numerical_aperture < self.refractive_index:
            raise ValueError(
                f"`numerical_aperture` must lie between 0 and the refractive index {self.refractive_index}, "
                f"got {self.numerical_aperture}."
            )
        for name in ("emission_wavelength", "excitation_wavelength", "pixel_size", "pinhole"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    @property
    def depth_of_field(self) -> float:
        """Axial distance λ·n/NA² in µm over which a widefield image stays in focus (Born & Wolf, §8.8)."""
        return self.emission_wavelength * self.refractive_index / self.numerical_aperture**2


def widefield_psf(optics: Optics, size: int, defocus: torch.Tensor) -> torch.Tensor:
    """
    Widefield PSF, integrated over the camera's pixels where these are too coarse to sample it (finer ones are taken as
    points, which leaves somewhat too much contrast). The grid is periodic: it should be wider than the cone of light at the
    largest defocus.

    Args:
        optics (`Optics`): The microscope.
        size (`int`): Side of the square grid in pixels.
        defocus (`torch.Tensor` of shape `[Z]`): Distances of the planes from focus, µm.

    Returns:
        `torch.Tensor` of shape `[Z, size, size]` with its centre at index `[0, 0]` (FFT order). Every plane sums to 1:
        defocus spreads light but does not lose it (the missing cone of widefield microscopy).
    """
    oversampling = _oversampling(optics)
    psf = _intensity_psf(optics, optics.emission_wavelength, size, oversampling, defocus)
    return _integrate_pixels(psf, oversampling)


def confocal_psf(optics: Optics, size: int, defocus: torch.Tensor) -> torch.Tensor:
    """
    Confocal PSF: excitation × (emission ⊗ pinhole), the product of illumination and detection probabilities
    (Wilson & Sheppard 1984). Arguments as in [`widefield_psf`].

    Returns:
        `torch.Tensor` of shape `[Z, size, size]` in FFT order, scaled such that an in-focus plane would sum to 1:
        a thin in-focus specimen yields the same total intensity as in the widefield image, an out-of-focus one less.
    """
    oversampling = _oversampling(optics)
    with_focus = torch.cat([defocus, torch.zeros(1, dtype=defocus.dtype, device=defocus.device)])
    excitation = _intensity_psf(optics, optics.excitation_wavelength, size, oversampling, with_focus)
    emission = _intensity_psf(optics, optics.emission_wavelength, size, oversampling, with_focus)

    # The pinhole, projected into the specimen, is a disc; its Fourier transform is a jinc, 2 J1(πdf) / (πdf).
    diameter = optics.pinhole * 1.22 * optics.emission_wavelength / optics.numerical_aperture
    frequency = _radial_frequency(size * oversampling, optics.pixel_size / oversampling, defocus.device)
    argument = (math.pi * diameter * frequency).clamp(min=1e-6)
    pinhole = 2 * torch.special.bessel_j1(argument) / argument
    detection = torch.fft.ifft2(torch.fft.fft2(emission) * pinhole).real

    psf = _integrate_pixels(excitation * detection, oversampling)
    return psf[:-1] / psf[-1].sum()


def _oversampling(optics: Optics) -> int:
    """
    Smallest odd number of samples per pixel at which an intensity PSF, band-limited to 2 NA/λ, is not aliased. Odd, so
    that a pixel has a sample in its centre.
    """
    samples = (
        optics.pixel_size
        * 4
        * optics.numerical_aperture
        / min(optics.emission_wavelength, optics.excitation_wavelength)
    )
    return 2 * math.ceil((samples - 1) / 2) + 1 if samples > 1 else 1


def _radial_frequency(size: int, spacing: float, device: torch.device) -> torch.Tensor:
    frequency = torch.fft.fftfreq(size, d=spacing, device=device)  # cycles per µm
    return torch.hypot(frequency[:, None], frequency[None, :])  # [size, size]


def _intensity_psf(
    optics: Optics, wavelength: float, size: int, oversampling: int, defocus: torch.Tensor
) -> torch.Tensor:
    """
    |F⁻¹{P(f) exp(2πi z √((n/λ)² − f²))}|², with P = 1 inside the pupil radius NA/λ (Goodman, Introduction to Fourier
    Optics, ch. 6). Returns `[Z, size * oversampling, size * oversampling]`, each plane summing to 1.
    """
    frequency = _radial_frequency(size * oversampling, optics.pixel_size / oversampling, defocus.device)
    # A pupil edge that falls between two samples counts in part, or the NA would jump with the grid.
    spacing = 1 / (size * optics.pixel_size)
    pupil = ((optics.numerical_aperture / wavelength - frequency) / spacing + 0.5).clamp(0, 1)
    axial_frequency = ((optics.refractive_index / wavelength) ** 2 - frequency**2).clamp(min=0).sqrt()
    phase = 2 * math.pi * defocus[:, None, None] * axial_frequency
    psf = torch.fft.ifft2(torch.polar(pupil.expand_as(phase), phase)).abs().square()
    return psf / psf.sum(dim=(-2, -1), keepdim=True)


def _integrate_pixels(psf: torch.Tensor, oversampling: int) -> torch.Tensor:
    """Sum the samples of each pixel: `[Z, kN, kN]` to `[Z, N, N]`, both in FFT order."""
    if oversampling == 1:
        return psf
    half = oversampling // 2
    size = psf.shape[-1] // oversampling
    psf = psf.roll((half, half), dims=(-2, -1))  # the centre of pixel 0 moves from its corner sample to its middle
    return psf.reshape(-1, size, oversampling, size, oversampling).sum(dim=(2, 4))
