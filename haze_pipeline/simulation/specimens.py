"""
Random fluorescent specimens on a voxel grid.

Each function returns the fluorophore density of one kind of structure as a float32 volume `[Z, Y, X]` in arbitrary
units. All lengths are in pixels, including `plane_spacing`, the distance of two planes, so the grid may be coarser in
depth. The number of structures is proportional to the area, so a large field looks like many small ones. All random
numbers come from the CPU `generator`.
"""

import math

import torch
from scipy.spatial import Voronoi


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number uniformly between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number whose logarithm is uniform between log(low) and log(high)."""
    return math.exp(uniform(math.log(low), math.log(high), generator))


def _draw_number(low: float, high: float, shape: tuple[int, int, int], generator: torch.Generator) -> int:
    """Draw a number of structures, at least one, log-uniformly between `low` and `high` per 256 × 256 px."""
    return max(1, round(log_uniform(low, high, generator) * shape[1] * shape[2] / 256**2))


def filaments(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Cytoskeleton-like curves, sparse to dense and 0.3 to 4 px wide, whose direction is a random walk."""
    depth, height, width = shape
    number = _draw_number(4, 250, shape, generator)
    length = round(uniform(80, 500, generator))
    stiffness = log_uniform(20, 400, generator)  # persistence length, px
    middle = torch.rand(number, 3, generator=generator) * torch.tensor([depth, height, width])
    angle = 2 * math.pi * torch.rand(number, generator=generator)
    path = _walks(middle, angle, length, stiffness, uniform(0, 0.5, generator) / plane_spacing, generator)
    brightness = (0.4 * torch.randn(number, 1, generator=generator)).exp().expand(number, length)
    volume = _splat(path.reshape(3, -1), brightness.reshape(-1), shape)
    # The number drawn is the full width at half maximum, 2.355 standard deviations.
    return _blur_planes(volume, log_uniform(0.3, 4, generator) / 2.355)


def tubules(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Mitochondria-like tubules: short and thick, and brighter at the surface than inside."""
    depth, height, width = shape
    number = _draw_number(5, 150, shape, generator)
    length = round(log_uniform(8, 150, generator))
    middle = torch.rand(number, 3, generator=generator) * torch.tensor([depth, height, width])
    angle = 2 * math.pi * torch.rand(number, generator=generator)
    stiffness = log_uniform(10, 100, generator)
    path = _walks(middle, angle, length, stiffness, uniform(0, 0.5, generator) / plane_spacing, generator)
    brightness = (0.4 * torch.randn(number, 1, generator=generator)).exp().expand(number, length)
    core = _splat(path.reshape(3, -1), brightness.reshape(-1), shape)
    radius, hollowness = log_uniform(1.0, 6, generator), uniform(0, 0.9, generator)
    # The difference of a wide and a narrow Gaussian is brightest beside the axis.
    outside = _blur(core, radius, plane_spacing)
    inside = _blur(core, 0.7 * radius, plane_spacing)
    return (outside - hollowness * 0.7**2 * inside).clamp(min=0)


def trees(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Neurite-like trees: branches that start at bright somata, fork and become thinner."""
    depth, height, width = shape
    number = _draw_number(1, 6, shape, generator)
    roots = torch.rand(number, 3, generator=generator) * torch.tensor([depth, height, width])
    caliber = log_uniform(0.8, 4, generator)  # standard deviation of the stems' profile, px
    inclination = uniform(0, 0.3, generator) / plane_spacing
    volume = uniform(1, 4, generator) * _blur(
        _splat(roots.T, torch.ones(number), shape), uniform(3, 8, generator) * caliber, plane_spacing
    )
    volume /= volume.max().clamp(min=1e-8)
    stems = int(torch.randint(2, 6, (), generator=generator))
    start = roots.repeat_interleave(stems, dim=0)
    angle = 2 * math.pi * torch.rand(len(start), generator=generator)
    for generation in range(int(torch.randint(3, 7, (), generator=generator))):
        length = round(uniform(15, 80, generator))
        path = _walks(start, angle, length, 60, inclination, generator, from_start=True)
        branches = _splat(path.reshape(3, -1), torch.ones(path[0].numel()), shape)
        branches = _blur_planes(branches, max(0.3, caliber * 0.75**generation))
        volume += branches / branches.max().clamp(min=1e-8) * uniform(0.5, 1.0, generator)
        # Each branch forks at its end.
        heading = path[:, :, -1] - path[:, :, -2]
        angle = torch.atan2(heading[1], heading[2])
        start = path[:, :, -1].T.repeat_interleave(2, dim=0)
        fork = uniform(0.3, 1.0, generator) * torch.tensor([1.0, -1.0]).repeat(len(angle))
        angle = angle.repeat_interleave(2) + fork
    return volume


def networks(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """
    Polygonal meshes, from thin threads (as in an endoplasmic reticulum) to upright walls (as between epithelial
    cells).
    """
    depth, height, width = shape
    volume = torch.zeros(shape)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        number = max(12, _draw_number(20, 600, shape, generator))  # fewer seeds have hardly any finite polygon
        seeds = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.1
        voronoi = Voronoi((seeds * torch.tensor([height, width])).numpy())
        edges = torch.tensor([ridge for ridge in voronoi.ridge_vertices if min(ridge) >= 0])
        ends = torch.tensor(voronoi.vertices, dtype=torch.float32)[edges]  # [n,2,2]
        inside = ((ends > -50) & (ends < max(height, width) + 50)).all(dim=(1, 2))
        ends = ends[inside]
        lengths = (ends[:, 1] - ends[:, 0]).norm(dim=1)
        # Two random points per pixel of an edge's length.
        counts = (2 * lengths).long() + 1
        which = torch.arange(len(ends)).repeat_interleave(counts)
        part = torch.rand(len(which), generator=generator)[:, None]
        points = ends[which, 0] + part * (ends[which, 1] - ends[which, 0])
        middle, tilt = depth * uniform(0, 1, generator), uniform(-0.1, 0.1, generator) / plane_spacing
        wall = uniform(0, 1, generator) ** 3 * depth  # height of the walls, mostly low
        z = middle + tilt * (points[:, 1] - width / 2) + wall * (torch.rand(len(which), generator=generator) - 0.5)
        brightness = (0.3 * torch.randn(len(ends), generator=generator)).exp()[which]
        volume += _splat(torch.cat([z[:, None], points], dim=1).T, brightness, shape)
    return _blur_planes(volume, log_uniform(0.4, 2.5, generator))


def sheets(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """
    Curved, unevenly labelled membranes that cross the focal plane. Steep parts appear as bands, flat parts as patches.
    """
    depth, height, width = shape
    z = torch.arange(depth, dtype=torch.float32)[:, None, None]
    volume = torch.zeros(shape)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        scale = log_uniform(8, 80, generator)
        surface = _smooth_field((1, height, width), 1.0, scale, generator)
        # The gradient of such a field is about its standard deviation divided by `scale`. The slope is 0.1 to 3.
        surface = (
            depth * uniform(0.2, 0.8, generator) + surface * scale * log_uniform(0.1, 3, generator) / plane_spacing
        )
        thickness = log_uniform(0.5, 2.5, generator) / plane_spacing
        texture = uniform(0, 0.8, generator) * _smooth_field((1, height, width), 1.0, scale / 3, generator)
        # A sheet thinner than a plane would disappear between planes.
        volume += (-0.5 * ((z - surface) / max(thickness, 0.5)) ** 2).exp() * texture.exp()
    return volume


def puncta(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Vesicle-like spots in one to three size classes, with log-normal brightness."""
    volume = torch.zeros(shape)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        number = _draw_number(20, 1500, shape, generator)
        points = torch.rand(3, number, generator=generator) * torch.tensor(shape)[:, None]
        brightness = (uniform(0.1, 1.0, generator) * torch.randn(number, generator=generator)).exp()
        radius = log_uniform(0.4, 5, generator)
        # Size classes have equal peaks. With equal total intensities, large spots would be too dim beside small ones.
        volume += _blur_planes(_splat(points, brightness, shape), radius) * radius**2
    return volume


def blobs(
    shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator, most_texture: float = 1.0
) -> torch.Tensor:
    """
    Nucleus-like solid ellipsoids with an inner texture. The standard deviation of its logarithm is at most
    `most_texture`.
    """
    texture = uniform(0, most_texture, generator) * _smooth_field(
        shape, plane_spacing, log_uniform(1.5, 15, generator), generator
    )
    softness = log_uniform(0.5, 3, generator)

    def body(distance: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-distance / softness)

    return _ellipsoids(shape, plane_spacing, body, generator) * texture.exp()


def shells(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Membrane-like hollow ellipsoids with unevenly labelled walls and a faint lumen."""
    texture = uniform(0, 0.8, generator) * _smooth_field(
        shape, plane_spacing, log_uniform(2, 20, generator), generator
    )
    thickness = log_uniform(0.4, 2.5, generator)
    lumen = uniform(0, 0.15, generator)

    def wall(distance: torch.Tensor) -> torch.Tensor:
        return (-0.5 * (distance / thickness) ** 2).exp() + lumen * torch.sigmoid(-distance / thickness)

    return _ellipsoids(shape, plane_spacing, wall, generator) * texture.exp()


def cells(shape: tuple[int, int, int], plane_spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Flat, filled and textured cells, thicker towards the middle; some have darker or brighter inclusions."""
    depth, height, width = shape
    scale = log_uniform(15, 80, generator)
    field = _smooth_field((1, height, width), 1.0, scale, generator)[0]
    inside = scale * (field - uniform(-0.5, 1.0, generator))  # distance from the edge in px, to first order
    thickness = (uniform(0.1, 1, generator) * inside).clamp(min=-3, max=log_uniform(4, 60, generator))
    z = (torch.arange(depth, dtype=torch.float32) - depth * uniform(0.2, 0.8, generator))[:, None, None]
    edge = log_uniform(0.5, 2, generator)
    # A cell thinner than a plane would disappear between planes.
    body = torch.sigmoid((thickness / 2 - z.abs() * plane_spacing) / max(edge, plane_spacing / 2))
    body = body * torch.sigmoid(inside / edge)
    texture = uniform(0, 0.8, generator) * _smooth_field(
        shape, plane_spacing, log_uniform(1.5, 15, generator), generator
    )
    holes = _smooth_field((1, height, width), 1.0, scale / 3, generator)
    holes = uniform(-0.9, 2, generator) * torch.sigmoid((holes - 1.2) * scale / 3 / edge)
    return body * texture.exp() * (1 + holes)


# The default kinds, which benchmarks also use. A new kind would change their images, so add it to `ALL_SPECIMENS`.
SPECIMENS = {
    "filaments": filaments,
    "tubules": tubules,
    "trees": trees,
    "networks": networks,
    "sheets": sheets,
    "puncta": puncta,
    "blobs": blobs,
    "shells": shells,
}
ALL_SPECIMENS = {**SPECIMENS, "cells": cells}


def _walks(
    anchor: torch.Tensor,
    angle: torch.Tensor,
    length: int,
    stiffness: float,
    inclination: float,
    generator: torch.Generator,
    from_start: bool = False,
) -> torch.Tensor:
    """
    Draw curves `[3, n, length]` (z, y, x) with steps of one pixel.

    The curves start at the points `anchor` `[n, 3]` if `from_start`, and are centred on them otherwise. The in-plane
    direction starts at `angle` `[n]`, and its variance grows by 1 / `stiffness` per step. The inclination of a curve,
    in planes per step, is constant and drawn from a normal distribution.
    """
    turns = torch.randn(len(anchor), length, generator=generator) / math.sqrt(stiffness)
    angle = angle[:, None] + turns.cumsum(dim=1)
    rise = inclination * torch.randn(len(anchor), 1, generator=generator)
    path = torch.stack([rise.expand_as(angle), angle.sin(), angle.cos()]).cumsum(dim=2)
    origin = 0 if from_start else length // 2
    return path - path[:, :, origin : origin + 1] + anchor.T[:, :, None]


def _splat(points: torch.Tensor, weights: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """
    Distribute each weight trilinearly to the eight voxels around its point (z, y, x). Points outside are dropped.
    """
    corner = points.floor()
    fraction = points - corner
    volume = torch.zeros(math.prod(shape))
    size = torch.tensor(shape)[:, None]
    for offset in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3):
        factor = torch.where(offset[:, None] == 1, fraction, 1 - fraction).prod(dim=0)
        index = corner.long() + offset[:, None]
        inside = ((index >= 0) & (index < size)).all(dim=0)
        z, y, x = index[:, inside]
        volume.index_add_(0, (z * shape[1] + y) * shape[2] + x, (weights * factor)[inside])
    return volume.reshape(shape)


def _blur_planes(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of every plane with standard deviation `sigma` in pixels. Intensity beyond the edges is lost."""
    height, width = (length + math.ceil(3 * sigma) for length in volume.shape[-2:])
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    transfer = (-2 * (math.pi * sigma * frequency) ** 2).exp()
    blurred = torch.fft.irfft2(torch.fft.rfft2(volume, s=(height, width)) * transfer, s=(height, width))
    return blurred[..., : volume.shape[-2], : volume.shape[-1]].clamp(min=0)


def _blur(volume: torch.Tensor, sigma: float, plane_spacing: float) -> torch.Tensor:
    """Gaussian blur in all three directions with standard deviation `sigma` in pixels."""
    volume = _blur_planes(volume, sigma)
    z = torch.arange(volume.shape[0], dtype=torch.float32)
    # Distant planes do not mix.
    mixing = (-0.5 * ((z[:, None] - z) * plane_spacing / sigma) ** 2).exp()
    return torch.einsum("pz,zyx->pyx", mixing / mixing.sum(dim=1).max(), volume)


def _smooth_field(
    shape: tuple[int, int, int], plane_spacing: float, scale: float, generator: torch.Generator
) -> torch.Tensor:
    """Gaussian random field with mean 0, variance 1 and correlation length `scale` in pixels."""
    # Drawn on a larger grid and cropped, so that the field is not periodic.
    reach = 3 * scale
    depth = shape[0] + (math.ceil(reach / plane_spacing) if shape[0] > 1 else 0)
    height, width = (length + math.ceil(reach) for length in shape[1:])
    squared = (
        (torch.fft.fftfreq(depth)[:, None, None] / plane_spacing) ** 2
        + torch.fft.fftfreq(height)[:, None] ** 2
        + torch.fft.rfftfreq(width) ** 2
    )
    noise = torch.randn(depth, height, width, generator=generator)
    spectrum = torch.fft.rfftn(noise) * (-2 * (math.pi * scale) ** 2 * squared).exp()
    # Not `irfftn`: over planes of more than 512 pixels a side, MKL's inverse real transform of three axes (torch 2.13,
    # CPUs with AVX-512) writes beyond its buffer, and the process crashes or computes wrong values later.
    field = torch.fft.irfft2(torch.fft.ifft(spectrum, dim=0), s=(height, width))[: shape[0], : shape[1], : shape[2]]
    return (field - field.mean()) / field.std().clamp(min=1e-8)


def _ellipsoids(
    shape: tuple[int, int, int], plane_spacing: float, profile, generator: torch.Generator
) -> torch.Tensor:
    """
    Sum of randomly rotated ellipsoids. `profile` maps the signed distance from the surface to a density, which must
    vanish 16 px outside. The distance is in pixels, negative inside and correct to first order.
    """
    volume = torch.zeros(shape)
    typical_radius = log_uniform(4, 60, generator)
    number = 1 + round(_draw_number(2, 40, shape, generator) * min(1.0, 30 / typical_radius))
    z_axis, y_axis, x_axis = (torch.arange(n, dtype=torch.float32) for n in shape)
    for _ in range(number):
        radii = typical_radius * (0.25 * torch.randn(3, generator=generator)).exp()
        radii[0] *= uniform(0.4, 1.0, generator)  # adherent cells and their nuclei are flatter than wide
        centre = torch.rand(3, generator=generator) * torch.tensor(shape)
        turn = uniform(0, math.pi, generator)
        brightness = math.exp(0.3 * torch.randn((), generator=generator).item())

        # Only the bounding box of the ellipsoid is evaluated.
        reach = radii.max().item() + 16
        z0, z1 = _overlap(centre[0].item(), reach / plane_spacing, shape[0])
        y0, y1 = _overlap(centre[1].item(), reach, shape[1])
        x0, x1 = _overlap(centre[2].item(), reach, shape[2])
        z = ((z_axis[z0:z1] - centre[0]) * plane_spacing)[:, None, None]
        y = (y_axis[y0:y1] - centre[1])[:, None]
        x = x_axis[x0:x1] - centre[2]
        u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
        # q = 1 on the surface, and |∇q| = slope / q.
        q = ((z / radii[0]) ** 2 + (v / radii[1]) ** 2 + (u / radii[2]) ** 2).sqrt()
        slope = ((z / radii[0] ** 2) ** 2 + (v / radii[1] ** 2) ** 2 + (u / radii[2] ** 2) ** 2).sqrt()
        distance = (q - 1) * q / slope.clamp(min=1e-6)
        volume[z0:z1, y0:y1, x0:x1] += brightness * profile(distance)
    return volume


def _overlap(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(0, math.floor(centre - reach)), max(0, min(size, math.ceil(centre + reach) + 1))
