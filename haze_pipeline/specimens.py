"""
Random fluorescent specimens on a voxel grid.

Each function returns the fluorophore density of one kind of structure as a `[Z, Y, X]` float32 volume in arbitrary units.
Lateral lengths are in pixels; `plane_spacing`, the distance of two planes, is in pixels as well, so that a grid may be
coarser in depth. All randomness comes from the CPU `generator`.
"""

import math

import torch


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number from U(low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number whose logarithm is uniform between log(low) and log(high)."""
    return math.exp(uniform(math.log(low), math.log(high), generator))


def filaments(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Cytoskeleton-like curves: random walks of their direction, 0.3 to 4 px wide, light to dense."""
    depth, height, width = shape
    number = round(log_uniform(4, 250, generator))
    length = round(uniform(0.3, 2.0, generator) * max(height, width))
    stiffness = log_uniform(20, 400, generator)  # persistence length in steps of one pixel

    # The in-plane angle diffuses with 1 / persistence length per step; the inclination stays small, as in flat cells.
    turns = torch.randn(number, length, generator=generator) / math.sqrt(stiffness)
    angle = 2 * math.pi * torch.rand(number, 1, generator=generator) + turns.cumsum(dim=1)
    inclination = uniform(0, 0.5, generator) * torch.randn(number, 1, generator=generator)
    middle = torch.rand(number, 3, generator=generator) * torch.tensor([depth, height, width])
    steps = torch.stack([(inclination / plane_spacing).expand_as(angle), angle.sin(), angle.cos()])  # [3, n, length]
    path = steps.cumsum(dim=2)
    points = path - path[:, :, length // 2 : length // 2 + 1] + middle.T[:, :, None]
    brightness = (0.4 * torch.randn(number, 1, generator=generator)).exp().expand(number, length)
    volume = _splat(points.reshape(3, -1), brightness.reshape(-1), shape)
    return _blur_planes(volume, log_uniform(0.3, 4, generator) / 2.355)  # full width at half maximum to deviation


def puncta(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Vesicle-like spots in one to three size classes, log-normally bright."""
    volume = torch.zeros(shape)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        number = round(log_uniform(20, 1500, generator))
        points = torch.rand(3, number, generator=generator) * torch.tensor(shape)[:, None]
        brightness = (uniform(0.1, 1.0, generator) * torch.randn(number, generator=generator)).exp()
        radius = log_uniform(0.4, 5, generator)
        # Rendered to equal peaks rather than equal totals, or large spots would vanish beside small ones.
        volume += _blur_planes(_splat(points, brightness, shape), radius) * radius**2
    return volume


def blobs(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Nucleus-like solid ellipsoids with an inner texture."""
    texture = uniform(0, 1.0, generator) * _smooth_field(
        shape, plane_spacing, log_uniform(1.5, 15, generator), generator
    )
    softness = log_uniform(0.5, 3, generator)

    def body(distance: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-distance / softness)

    return _ellipsoids(shape, plane_spacing, body, generator) * texture.exp()


def shells(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Membrane-like hollow ellipsoids, their walls unevenly labelled, over a faint lumen."""
    texture = uniform(0, 0.8, generator) * _smooth_field(
        shape, plane_spacing, log_uniform(2, 20, generator), generator
    )
    thickness = log_uniform(0.4, 2.5, generator)
    lumen = uniform(0, 0.15, generator)

    def wall(distance: torch.Tensor) -> torch.Tensor:
        return (-0.5 * (distance / thickness) ** 2).exp() + lumen * torch.sigmoid(-distance / thickness)

    return _ellipsoids(shape, plane_spacing, wall, generator) * texture.exp()


SPECIMENS = {"filaments": filaments, "puncta": puncta, "blobs": blobs, "shells": shells}


def _splat(points: torch.Tensor, weights: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Add each weight to the eight voxels around its point (z, y, x) by trilinear shares; points outside are dropped."""
    corner = points.floor()
    fraction = points - corner
    volume = torch.zeros(math.prod(shape))
    size = torch.tensor(shape)[:, None]
    for offset in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        share = torch.where(offset[:, None] == 1, fraction, 1 - fraction).prod(dim=0)
        index = corner.long() + offset[:, None]
        inside = ((index >= 0) & (index < size)).all(dim=0)
        z, y, x = index[:, inside]
        volume.index_add_(0, (z * shape[1] + y) * shape[2] + x, (weights * share)[inside])
    return volume.reshape(shape)


def _blur_planes(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of every plane with deviation `sigma` in pixels."""
    height, width = volume.shape[-2:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    transfer = (-2 * (math.pi * sigma * frequency) ** 2).exp()
    return torch.fft.irfft2(torch.fft.rfft2(volume) * transfer, s=(height, width)).clamp(min=0)


def _smooth_field(
    shape: tuple[int, int, int], plane_spacing: float, scale: float, generator: torch.Generator
) -> torch.Tensor:
    """Gaussian random field of zero mean and unit variance with correlation length `scale` in pixels."""
    depth, height, width = shape
    squared = (
        (torch.fft.fftfreq(depth)[:, None, None] / plane_spacing) ** 2
        + torch.fft.fftfreq(height)[:, None] ** 2
        + torch.fft.rfftfreq(width) ** 2
    )
    spectrum = torch.fft.rfftn(torch.randn(shape, generator=generator)) * (-2 * (math.pi * scale) ** 2 * squared).exp()
    field = torch.fft.irfftn(spectrum, s=shape)
    return (field - field.mean()) / field.std().clamp(min=1e-8)


def _ellipsoids(
    shape: tuple[int, int, int], plane_spacing: float, profile, generator: torch.Generator
) -> torch.Tensor:
    """
    Sum of randomly turned ellipsoids. `profile` maps the signed distance from the surface in pixels (negative inside; to
    first order) to a density.
    """
    volume = torch.zeros(shape)
    typical_radius = log_uniform(4, 60, generator)
    number = round(log_uniform(1, 40, generator) * min(1.0, 20 / typical_radius)) + 1
    z_axis, y_axis, x_axis = (torch.arange(n, dtype=torch.float32) for n in shape)
    for _ in range(number):
        radii = typical_radius * (0.25 * torch.randn(3, generator=generator)).exp()
        radii[0] *= uniform(0.4, 1.0, generator)  # adherent cells and their nuclei are flatter than wide
        centre = torch.rand(3, generator=generator) * torch.tensor(shape)
        turn = uniform(0, math.pi, generator)
        brightness = math.exp(0.3 * torch.randn((), generator=generator).item())

        # Only the box that the ellipsoid reaches is evaluated.
        reach = radii.max().item() + 8
        z0, z1 = _overlap(centre[0].item(), reach / plane_spacing, shape[0])
        y0, y1 = _overlap(centre[1].item(), reach, shape[1])
        x0, x1 = _overlap(centre[2].item(), reach, shape[2])
        z = ((z_axis[z0:z1] - centre[0]) * plane_spacing)[:, None, None]
        y = (y_axis[y0:y1] - centre[1])[:, None]
        x = x_axis[x0:x1] - centre[2]
        u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
        distance = ((z / radii[0]) ** 2 + (v / radii[1]) ** 2 + (u / radii[2]) ** 2).sqrt() - 1
        volume[z0:z1, y0:y1, x0:x1] += brightness * profile(distance * radii.mean())
    return volume


def _overlap(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(0, math.floor(centre - reach)), max(0, min(size, math.ceil(centre + reach) + 1))
