"""The transforms and losses of equivariant image dehazing."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from haze_pipeline.equivariance import TRANSFORMS, draw_transform, eid_losses, recovery_loss, relative_errors, rotate
from haze_pipeline.models.haze_operator import HazeOperator


HIDDEN = slice(24, 36)


class Mask(HazeOperator, torch.nn.Module):
    """Hides some places of a signal. What it hides is its null space."""

    def forward(self, clear, haze):
        masked = clear.clone()
        masked[..., HIDDEN] = 0
        return masked


def smooth_signals(seed, number):
    """Periodic random signals `[number, 1, 1, 64]` with a length of correlation of 4 and the variance 1."""
    signals = gaussian_filter1d(np.random.default_rng(seed).normal(size=(number, 64)), 4, mode="wrap")
    return torch.from_numpy(signals / signals.std()).float()[:, None, None]


@pytest.fixture(scope="module", params=[0.0, 1.0])
def trained(request):
    """The weight of the equivariance loss, and a linear network that was trained with it on masked signals alone."""
    torch.manual_seed(0)
    network, operator, rng = torch.nn.Linear(64, 64), Mask(), np.random.default_rng(0)
    hazy = operator(smooth_signals(1, 512), None)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(1500):
        batch = hazy[rng.integers(0, len(hazy), 64)]
        consistency, equivariance = eid_losses(network, operator, batch, draw_transform("shift", rng), rng)
        optimizer.zero_grad()
        (consistency + request.param * equivariance).backward()
        optimizer.step()
    return request.param, network


def test_only_equivariance_recovers_what_the_operator_hides(trained):
    weight, network = trained
    clear = smooth_signals(2, 200)
    errors = (network(Mask()(clear, None)) - clear).detach()
    assert errors[..., : HIDDEN.start].square().mean() < 0.001  # consistency determines these
    hidden = errors[..., HIDDEN].square().mean()
    if weight == 0:
        assert hidden > 1  # no better than a constant: the variance of the signals is 1
    else:
        assert hidden < 0.15


def test_the_error_of_equivariance_tells_the_networks_apart(trained):
    weight, network = trained
    hazy = Mask()(smooth_signals(2, 200), None)
    rng = np.random.default_rng(0)
    consistency, equivariance = relative_errors(network, Mask(), hazy, draw_transform("shift", rng), rng)
    assert consistency < 0.03
    assert equivariance < 0.2 if weight else equivariance > 0.4


def test_no_gradient_passes_through_the_target():
    rng = np.random.default_rng(0)
    scale = torch.tensor(1.0, requires_grad=True)
    signals = torch.ones(1, 1, 1, 64)
    _, equivariance = eid_losses(lambda hazy: scale * hazy, Mask(), signals, lambda images: images, rng)
    (gradient,) = torch.autograd.grad(equivariance, scale)
    # The loss is the mean of (s · visible − 1)², with s = 1 and 52 of 64 places visible. Its gradient is 0, whereas
    # the gradient through the target is 2 · 12 / 64.
    assert equivariance == 12 / 64 and gradient == 0


def test_a_guess_of_the_operator_replaces_the_restored_image_as_the_target():
    class Guessing(Mask):
        def guess(self, hazy):
            return torch.full_like(hazy, 3.0)

    signals, rng = smooth_signals(0, 2), np.random.default_rng(0)
    _, equivariance = eid_losses(lambda hazy: hazy, Guessing(), signals, lambda images: images, rng, guess=True)
    assert equivariance.item() == pytest.approx(9 * 12 / 64)  # the identity restores all but what is hidden
    with pytest.raises(NotImplementedError, match="Mask must define `guess`"):
        eid_losses(lambda hazy: hazy, Mask(), signals, lambda images: images, rng, guess=True)


def test_clear_images_are_recovered_from_the_haze_of_the_operator():
    clear, rng = torch.full((1, 1, 1, 64), 2.0), np.random.default_rng(0)
    assert recovery_loss(lambda hazy: hazy, Mask(), clear, clear, rng).item() == pytest.approx(4 * 12 / 64)
    assert recovery_loss(lambda hazy: torch.full_like(hazy, 2.0), Mask(), clear, clear, rng) == 0


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_transforms_keep_what_images_contain_and_are_never_the_identity(kind):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, 33, 33))).float()
    for _ in range(20):
        transform = draw_transform(kind, rng)
        transformed = transform(image)
        assert transformed.shape == image.shape and not torch.equal(transformed, image)
        assert torch.equal(transform(image), transformed)  # one draw is one transform
        if kind != "rotation":
            assert torch.equal(transformed.flatten().sort()[0], image.flatten().sort()[0])


def test_a_rotation_turns_counterclockwise_and_by_90_degrees_without_error():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 30] = 1  # right of the centre
    assert rotate(image, 90)[0, 0].argmax() == 2 * 33 + 16  # above it
    noise = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(rotate(noise, 90), torch.rot90(noise, dims=(-2, -1)), atol=1e-5, rtol=0)


def test_a_rotation_does_not_distort_images_that_are_not_square():
    y, x = torch.meshgrid(torch.arange(41) - 20.0, torch.arange(81) - 40.0, indexing="ij")
    disc = torch.exp(-(x**2 + y**2) / 20)[None, None]
    torch.testing.assert_close(rotate(disc, 37), disc, atol=0.03, rtol=0)


def test_an_unknown_transform_is_refused():
    with pytest.raises(ValueError, match=r"`kind` must be one of rotation, .*, got 'mirror'"):
        draw_transform("mirror", np.random.default_rng(0))
