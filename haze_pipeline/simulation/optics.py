"""
Optical transfer functions (OTFs) of widefield and confocal fluorescence microscopes, from a scalar pupil function.

A microscope with a round pupil has a point-spread function (PSF) that depends only on the distance from the optical
axis. Pupil, PSF and OTF are therefore radial curves, connected by Hankel transforms. The curves are integrated to full
precision and sampled on the grid of an image only at the end.

The model is scalar. Real PSFs above an NA of about 0.9 are vectorial: wider along the polarisation and lower in
contrast. This is not modelled.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


OPEN_PINHOLE = 50  # Airy units; a larger pinhole counts as open


@dataclass(frozen=True)
class Optics:
    """
    The optics of a microscope: objective, wavelengths, media, pixel and pinhole. Lengths are in µm.

    Args:
        numerical_aperture (`float`): NA of the objective, below `refractive_index`.
        emission_wavelength (`float`): Emission wavelength in vacuum, µm.
        excitation_wavelength (`float`): Excitation wavelength in vacuum, µm; only the confocal microscope uses it.
        refractive_index (`float`): Index of the immersion medium.
        pixel_size (`float`): Pixel size in the specimen, µm.
        pinhole (`float`, defaults to `1.0`):
            Diameter of the confocal pinhole in Airy units (1.22 emission / NA). Above 50, such as `math.inf`, the
            pinhole counts as open.
        sample_index (`float`, *optional*): Refractive index of the specimen; by default that of the immersion medium.
        depth (`float`, defaults to `0.0`):
            Depth of the focal plane below the coverslip, µm. If `sample_index` differs from `refractive_index`, it
            causes spherical aberration.

    Raises:
        `ValueError`: If a value lies outside its range.
    """

    numerical_aperture: float
    emission_wavelength: float
    excitation_wavelength: float
    refractive_index: float
    pixel_size: float
    pinhole: float = 1.0
    sample_index: float | None = None
    depth: float = 0.0

    def __post_init__(self):
        if not 0 < self.numerical_aperture < self.refractive_index:
            raise ValueError(
                f"`numerical_aperture` must lie between 0 and the refractive index {self.refractive_index}, "
                f"got {self.numerical_aperture}."
            )
        for name in ("emission_wavelength", "excitation_wavelength", "pixel_size", "pinhole"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.sample_index is not None and not self.sample_index >= 1:
            raise ValueError(f"`sample_index` must be at least 1, got {self.sample_index}.")
        if not self.depth >= 0:
            raise ValueError(f"`depth` must not be negative, got {self.depth}.")

    @property
    def depth_of_field(self) -> float:
        """Axial distance λ·n/NA² in µm over which a widefield image stays in focus (Born & Wolf, §8.8)."""
        return self.emission_wavelength * self.refractive_index / self.numerical_aperture**2

    @property
    def specimen_index(self) -> float:
        """Refractive index of the specimen: `sample_index`, or else that of the immersion medium."""
        return self.sample_index or self.refractive_index


def widefield_otf(optics: Optics, size: int, defocus: torch.Tensor, reach: float | None = None) -> torch.Tensor:
    """
    Compute widefield OTFs, including the integration over the camera's pixels.

    The PSF falls smoothly to zero between `reach / 2` and `reach`. The intensity removed by this is spread evenly over
    the grid, as if the specimen continued beyond it. The total intensity of a plane is therefore the same at every
    defocus (the missing cone of a widefield microscope), and nothing wraps around the edges of an image with a margin
    of `reach`.

    Args:
        optics (`Optics`): The microscope.
        size (`int`): Side of the square grid in pixels.
        defocus (`torch.Tensor` of shape `[Z]`):
            Distances of the planes from the best focus, µm, positive away from the objective; see [`best_focus`].
        reach (`float`, *optional*): Radius of the PSFs, µm; by default half the grid.

    Returns:
        `torch.Tensor` of shape `[Z, size, size // 2 + 1]`, real, with frequencies ordered as in `torch.fft.rfft2`. The
        value at zero frequency is 1.
    """
    reach = reach or size * optics.pixel_size / 2
    radius, area = _radial_grid(optics, reach, defocus.device)
    psf = _radial_psf(optics, optics.emission_wavelength, radius, defocus) * _taper(radius, reach)
    transfer = _on_image_grid(optics, psf * area, radius, size, reach)
    transfer[:, 0, 0] = 1
    return transfer


def confocal_otf(optics: Optics, size: int, defocus: torch.Tensor, reach: float | None = None) -> torch.Tensor:
    """
    Compute confocal OTFs, including the integration over the camera's pixels. The arguments are those of
    [`widefield_otf`].

    The PSF is excitation × (emission ⊗ pinhole), the product of the probabilities of illumination and detection
    (Wilson & Sheppard 1984).

    Returns:
        `torch.Tensor` of shape `[Z, size, size // 2 + 1]`, real. The value at zero frequency is 1 in focus: a thin
        specimen in focus has the same total intensity as in the widefield image, and less out of focus.
    """
    if optics.pinhole > OPEN_PINHOLE:
        return widefield_otf(replace(optics, emission_wavelength=optics.excitation_wavelength), size, defocus, reach)
    reach = reach or size * optics.pixel_size / 2
    diameter = optics.pinhole * 1.22 * optics.emission_wavelength / optics.numerical_aperture
    # The pinhole collects over its whole disc. Intensity from beyond ten diameters hardly passes it.
    sine = min(optics.numerical_aperture / optics.specimen_index, 0.99)
    cone = 1.2 * defocus.abs().max().item() * sine / math.sqrt(1 - sine**2)
    extent = max(reach, 2 * diameter, min(cone, 10 * diameter))
    radius, area = _radial_grid(optics, extent, defocus.device)
    with_focus = torch.cat([defocus, torch.zeros_like(defocus[:1])])
    emission = _radial_psf(optics, optics.emission_wavelength, radius, with_focus) * _taper(radius, extent)
    # Projected into the specimen, the pinhole is a disc. Its Fourier transform is a jinc, 2 J1(πdf) / (πdf).
    cutoff = 2 * optics.numerical_aperture / optics.emission_wavelength
    frequency, band = _panels(cutoff, 2 * extent * cutoff, radius.device)
    argument = (math.pi * diameter * frequency).clamp(min=1e-9)
    pinhole = 2 * torch.special.bessel_j1(argument) / argument
    kernel = torch.special.bessel_j0(2 * math.pi * radius[:, None] * frequency)  # [R,F]
    detection = ((emission * area) @ kernel * pinhole * (2 * math.pi * frequency * band)) @ kernel.T  # [Z+1,R]
    rings = _radial_psf(optics, optics.excitation_wavelength, radius, with_focus) * detection * area
    rings = rings / rings[-1].sum()
    transfer = _on_image_grid(optics, rings[:-1] * _taper(radius, reach), radius, size, reach)
    transfer[:, 0, 0] = rings[:-1].sum(dim=1)  # as in `widefield_otf`, spreads the tapered intensity evenly
    return transfer


def otf_to_psf(otf: torch.Tensor) -> torch.Tensor:
    """Convert OTFs to PSFs `[Z, size, size]`, with the centre at index `[0, 0]` as FFTs require."""
    size = otf.shape[-2]
    return torch.fft.irfft2(otf, s=(size, size))


def _panels(length: float, cycles: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of Gauss–Legendre quadrature on [0, length], with 8 nodes per oscillation."""
    number = math.ceil(cycles) + 1
    # The rule of 8 nodes on [-1, 1] (Abramowitz & Stegun, table 25.4).
    half = [0.1834346424956498, 0.5255324099163290, 0.7966664774136267, 0.9602898564975363]
    weight = [0.3626837833783620, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763]
    nodes = torch.tensor([-x for x in reversed(half)] + half, dtype=torch.float64, device=device)
    weights = torch.tensor([*reversed(weight), *weight], dtype=torch.float64, device=device)
    starts = torch.arange(number, dtype=torch.float64, device=device)[:, None]
    positions = (starts + (nodes + 1) / 2) * (length / number)
    return positions.flatten(), (weights * length / (2 * number)).repeat(number)


def _radial_grid(optics: Optics, reach: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Radii `[R]` in µm up to `reach`, and the areas 2πr·dr of their rings."""
    shortest = min(optics.emission_wavelength, optics.excitation_wavelength)
    # The integrand is a product of two PSFs, each with up to 2 NA/λ oscillations per µm, and a transform's kernel.
    radius, weight = _panels(reach, reach * 4 * optics.numerical_aperture / shortest, device)
    return radius, 2 * math.pi * radius * weight


def _taper(radius: torch.Tensor, reach: float) -> torch.Tensor:
    """Weight 1 up to half the reach, then falling smoothly to 0. A PSF cut off abruptly would produce edges."""
    return torch.cos((2 * radius / reach - 1).clamp(0, 1) * math.pi / 2).square()


def _radial_psf(optics: Optics, wavelength: float, radius: torch.Tensor, defocus: torch.Tensor) -> torch.Tensor:
    """PSF intensity `[Z, R]` at `radius` µm from the axis, for planes `defocus` µm from the best focus."""
    return _intensity(optics, wavelength, radius, defocus.double() + best_focus(optics))


def _intensity(optics: Optics, wavelength: float, radius: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """
    PSF intensity `[Z, R]` at `radius` µm from the axis, for planes `z` µm beyond the paraxial focus.

    It is |∫ J0(2π s r/λ) exp(iφ(s)) s ds|² over the pupil, normalised to the integral 1 over the plane.
    """
    s, weight, phase = _pupil(optics, wavelength, radius[-1].item(), z)
    kernel = torch.special.bessel_j0(2 * math.pi / wavelength * s[:, None] * radius)  # [S,R]
    real, imaginary = ((wave * s * weight) @ kernel for wave in (phase.cos(), phase.sin()))
    # Parseval: ∫ |A|² 2πr dr = 2π (λ/2π)² ∫ s ds = λ² NA² / (4π).
    return (real**2 + imaginary**2) * (4 * math.pi / (wavelength * _largest_sine(optics)) ** 2)


def _largest_sine(optics: Optics) -> float:
    """The NA, limited to the angles that total reflection at the specimen lets pass."""
    return min(optics.numerical_aperture, 0.9999 * optics.specimen_index)


def _pupil(
    optics: Optics, wavelength: float, largest_radius: float, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Nodes s = n sin θ `[S]` across the pupil, their weights `[S]`, and the phases `[Z, S]` for planes `z` µm beyond the
    paraxial focus.

    At depth d in a specimen of index m, φ = 2π/λ [(d + z) √(m² − s²) − d (n/m) √(n² − s²)] (Gibson & Lanni 1991, with
    an ideal coverslip; the objective is moved so that paraxial rays are in focus).
    """
    sample_index = optics.specimen_index
    largest = _largest_sine(optics)
    extent = z.abs().max().item() + (optics.depth if optics.sample_index else 0)
    # Number of turns of the phase across the pupil. At the edge, it turns three times as fast.
    turns = extent * (sample_index - math.sqrt(sample_index**2 - largest**2)) / wavelength
    s, weight = _panels(largest, largest * largest_radius / wavelength + 3 * turns, z.device)
    path = (optics.depth + z[:, None]) * (sample_index**2 - s**2).sqrt() - optics.depth * (
        optics.refractive_index / sample_index
    ) * (optics.refractive_index**2 - s**2).sqrt()
    return s, weight, 2 * math.pi / wavelength * path


@lru_cache(maxsize=64)
def best_focus(optics: Optics) -> float:
    """
    Distance in µm of the best focus, the plane in which a point appears brightest, beyond the paraxial focus. It is 0
    without spherical aberration.
    """
    if optics.sample_index is None or optics.depth == 0:
        return 0.0
    step = optics.depth_of_field / 20
    z = step * torch.arange(-math.ceil(optics.depth / step), math.ceil(optics.depth / step) + 1)
    on_axis = _intensity(optics, optics.emission_wavelength, torch.zeros(1).double(), z.double())  # [Z,1]
    return z[on_axis.argmax()].item()


def _on_image_grid(optics: Optics, rings: torch.Tensor, radius: torch.Tensor, size: int, reach: float) -> torch.Tensor:
    """
    Sample a radial PSF's OTF on the grid of an image, `[Z, size, size // 2 + 1]`. The PSF is given as the intensity
    `rings` `[Z, R]` of rings with the given `radius` in µm. Pixels are square and integrate over their area.
    Frequencies beyond the pixels' resolution are folded back (aliasing).
    """
    pixel = optics.pixel_size
    shortest = min(optics.emission_wavelength, optics.excitation_wavelength)
    # An OTF oscillates with periods of at least 1 / reach. 16 points per period suffice for cubic interpolation.
    spacing = 1 / (16 * reach)
    limit = 4 * optics.numerical_aperture / shortest  # band limit of a product of two PSFs
    table_frequency = spacing * torch.arange(-1, math.ceil(limit / spacing) + 3, device=radius.device)
    kernel = torch.special.bessel_j0(2 * math.pi * radius[:, None] * table_frequency)  # [R,F]
    table = (rings @ kernel).float()  # [Z,F]
    # Cut off where the OTF stays below 1e-5 of its maximum.
    cutoff = min(limit, table_frequency[(table.abs() > 1e-5 * table.abs().max()).any(dim=0)].max().item())

    vertical = torch.fft.fftfreq(size, d=pixel, device=radius.device)[:, None]
    horizontal = torch.fft.rfftfreq(size, d=pixel, device=radius.device)[None, :]
    transfer = torch.zeros(len(rings), size, size // 2 + 1, device=radius.device)
    orders = math.ceil((cutoff - 1 / (2 * pixel)) * pixel) if cutoff > 1 / (2 * pixel) else 0
    for i in range(-orders, orders + 1):
        for j in range(-orders, orders + 1):
            y, x = vertical + i / pixel, horizontal + j / pixel
            frequency = torch.hypot(y, x)
            inside = frequency < cutoff  # [size,size//2+1]
            if not inside.any():
                continue
            values = _interpolate(table, frequency[inside] / spacing + 1)
            transfer[:, inside] += values * (torch.sinc(y * pixel) * torch.sinc(x * pixel))[inside]
    return transfer


def _interpolate(table: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Interpolate rows `[Z, F]` at positions in [1, F − 2) to `[Z, P]` by cubic convolution (Keys 1981)."""
    index = position.long()
    f = position - index
    weights = (
        ((-0.5 * f + 1) * f - 0.5) * f,
        (1.5 * f - 2.5) * f * f + 1,
        ((-1.5 * f + 2) * f + 0.5) * f,
        (0.5 * f - 0.5) * f * f,
    )
    return sum(weight * table[:, index + offset] for offset, weight in zip((-1, 0, 1, 2), weights, strict=True))
