"""
The losses of equivariant image dehazing (EID; Wen, Xie & Chen 2026, arXiv 2601.13986), and their transforms.

A network f restores hazy images y, and an operator H adds haze. H(f(y)) = y alone does not determine f, since H
removes some structure and f may invent it. But a specimen can lie on the microscope in any position and orientation.
A transform T of a clear image is therefore a possible clear image too, and f must recover it from its hazy image:
f(H(T f(y))) = T f(y).
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F


Restore = Callable[[torch.Tensor], torch.Tensor]
Transform = Callable[[torch.Tensor], torch.Tensor]

TRANSFORMS = ("rotation", "rotation90", "flip", "shift")


def eid_losses(
    restore: Restore,
    operator: torch.nn.Module,
    hazy: torch.Tensor,
    transform: Transform,
    rng: np.random.Generator,
    guess: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Haze consistency ‖y − H(f(y))‖² and equivariance ‖f(H(T f(y))) − T f(y)‖², each averaged over the pixels.

    T f(y) is a target, through which no gradient passes. The code of the paper differs in this: f could then make
    images easy to recover by leaving structure out.

    Args:
        restore (`Callable`): The network f, from hazy to clear images `[B, C, h, w]` in network units.
        operator ([`HazeOperator`]): H.
        hazy (`torch.Tensor` of shape `[B, C, h, w]`): Hazy images y.
        transform (`Callable`): T, see [`draw_transform`].
        rng (`np.random.Generator`): Source of the random numbers of H.
        guess (`bool`, defaults to `False`):
            Take the guess of the operator in place of f(y) in the second loss. A network that cannot restore anything
            yet learns from it first.

    Returns:
        (`torch.Tensor`, `torch.Tensor`): The two losses.
    """
    clear = operator.limit(restore(hazy))
    consistency = F.mse_loss(operator(clear, operator.explain(hazy, clear)), hazy)
    target = transform(operator.guess(hazy) if guess else clear.detach())
    return consistency, recovery_loss(restore, operator, target, transform(hazy), rng)


def recovery_loss(
    restore: Restore, operator: torch.nn.Module, clear: torch.Tensor, hazy: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """
    Error ‖f(H(x)) − x‖² with which clear images x `[B, C, h, w]` are recovered from the haze that H adds. The haze is
    like that of the hazy images `[B, C, h, w]`, which may show other specimens. CycleGAN has the same loss for clear
    images (Zhu et al. 2017, arXiv 1703.10593).
    """
    return F.mse_loss(restore(operator(clear, operator.imagine(clear, hazy, rng))), clear)


@torch.no_grad()
def relative_errors(
    restore: Restore, operator: torch.nn.Module, hazy: torch.Tensor, transform: Transform, rng: np.random.Generator
) -> tuple[float, float]:
    """
    Error of consistency relative to the standard deviation of y, and error of equivariance relative to that of f(y).
    Both are roots of the losses of [`eid_losses`], which has the same arguments. 0 is perfect.
    """
    consistency, equivariance = eid_losses(restore, operator, hazy, transform, rng)
    units = torch.stack([hazy.std(), operator.limit(restore(hazy)).std()]).clamp(min=1e-12)
    return tuple((torch.stack([consistency, equivariance]).sqrt() / units).tolist())


def draw_transform(kind: str, rng: np.random.Generator) -> Transform:
    """
    Draw a transform of images `[B, C, h, w]`. It is never the identity.

    Args:
        kind (`str`): `"rotation"` by any whole degree, `"rotation90"` by a multiple of 90°, `"flip"` along one or both
            axes, or `"shift"` by whole pixels, with the opposite edges joined.
        rng (`np.random.Generator`): Source of the random numbers.

    Raises:
        `ValueError`: If `kind` is none of these.
    """
    if kind == "rotation":
        return partial(rotate, degrees=int(rng.integers(1, 360)))
    if kind == "rotation90":
        return partial(torch.rot90, k=int(rng.integers(1, 4)), dims=(-2, -1))
    if kind == "flip":
        return partial(torch.flip, dims=[(-2,), (-1,), (-2, -1)][rng.integers(3)])
    if kind == "shift":
        rows, columns = rng.uniform(0.1, 0.9, 2)  # fractions of the image
        return lambda images: images.roll(
            (round(rows * images.shape[-2]), round(columns * images.shape[-1])), dims=(-2, -1)
        )
    raise ValueError(f"`kind` must be one of {', '.join(TRANSFORMS)}, got {kind!r}.")


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """
    Rotate images `[B, C, h, w]` counterclockwise about their centre, with linear interpolation. What lies outside an
    image is its mirror image.
    """
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # From positions in the result to positions in the image, both from -1 to 1 along each side.
    matrix = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = F.affine_grid(matrix.to(images).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
