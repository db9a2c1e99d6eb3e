"""The hierarchical VAE alone. For the pipeline and the training script, see test_hdn.py."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.distributions import Normal, kl_divergence

from haze_pipeline.models.autoencoder_hierarchical import (
    AutoencoderHierarchical,
    Encoding,
    evidence_lower_bound,
    log_likelihood,
)


def narrow(seed=0, **config):
    torch.manual_seed(seed)
    config = {"num_latent_groups": 3, "latent_channels": 4, "num_features": 8, "num_blocks": 1, **config}
    return AutoencoderHierarchical(**config).eval()


def gaussian(mean, variance):
    """Distribution of one value per element of a batch."""
    parameters = torch.stack(torch.broadcast_tensors(torch.as_tensor(mean), torch.as_tensor(variance).log()), dim=1)
    return DiagonalGaussianDistribution(parameters[:, :, None, None])  # [B,2,1,1]


def linear_gaussian_bound(x, shift=0.0, widening=1.0):
    """
    Evidence lower bound, log p(x), and divergence of q(z₂ | x) from the true posterior, for the model

        z₂ ~ N(0, 1),  z₁ ~ N(a z₂, s²),  x ~ N(b z₁, r²).

    q(z₁ | z₂, x) is the true posterior. q(z₂ | x) is shifted and wider. Expectations over z₂ and z₁ are sums over the
    nodes of a Gauss–Hermite quadrature, which is exact for polynomials.
    """
    a, s, b, r = (torch.tensor(value, dtype=torch.float64) for value in (0.8, 0.6, 1.5, 0.4))
    evidence = b**2 * (a**2 + s**2) + r**2  # variance of x
    true_mean, true_variance = a * b / evidence * x, 1 - (a * b) ** 2 / evidence
    mean, variance = true_mean + shift, true_variance * widening
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(4))
    weights = weights / weights.sum()

    number = len(nodes) ** 2  # every node of z₂ with every node of z₁
    z2 = (mean + variance.sqrt() * nodes).repeat_interleave(len(nodes))
    precision = 1 / s**2 + b**2 / r**2
    q1 = gaussian((a * z2 / s**2 + b * x / r**2) / precision, (1 / precision).expand(number))
    z1 = q1.mean + q1.std * nodes.repeat(len(nodes)).reshape(-1, 1, 1, 1)
    q2, p2 = gaussian(mean.expand(number), variance.expand(number)), gaussian(torch.zeros(1, dtype=mean.dtype), 1.0)
    p1 = gaussian(a * z2, (s**2).expand(number))
    encoding = Encoding([z1, z2], [q1, q2], [p1, p2])
    reconstruction = log_likelihood(x.expand(number, 1, 1, 1), b * z1, 2 * r.log())
    bounds = evidence_lower_bound(reconstruction, encoding.kl)
    bound = (bounds * weights.repeat_interleave(len(nodes)) * weights.repeat(len(nodes))).sum()
    truth, found = Normal(true_mean, true_variance.sqrt()), Normal(mean, variance.sqrt())
    return bound.item(), Normal(0.0, evidence.sqrt()).log_prob(x).item(), kl_divergence(found, truth).item()


@pytest.mark.parametrize("x", [-2.0, 0.3, 4.0])
def test_the_bound_of_a_linear_gaussian_model_is_log_p_at_the_true_posterior_and_below_elsewhere(x):
    x = torch.tensor(x, dtype=torch.float64)
    bound, log_p, gap = linear_gaussian_bound(x)
    assert bound == pytest.approx(log_p, abs=1e-9) and gap == pytest.approx(0, abs=1e-12)
    for shift, widening in ((0.5, 1.0), (0.0, 2.0), (-1.0, 0.3)):
        bound, log_p, gap = linear_gaussian_bound(x, shift, widening)
        assert gap > 0.05 and bound == pytest.approx(log_p - gap, abs=1e-9)


def test_the_network_reports_the_divergences_of_its_distributions():
    network = narrow()
    image, noise = torch.randn(2, 1, 16, 24), network.draw_noise(2, (16, 24))
    with torch.no_grad():
        encoding, output = network.encode(image, noise), network(torch.cat([noise, image], dim=1))
        decoded = network.decode(encoding.latents)
    for group in range(3):
        q, p = (Normal(each.mean, each.std) for each in (encoding.posteriors[group], encoding.priors[group]))
        torch.testing.assert_close(output.kl[:, group], kl_divergence(q, p).sum(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert output.kl.shape == (2, 3) and (output.kl > 0).all()
    assert [each.shape for each in encoding.latents] == [(2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 2, 3)]
    assert torch.equal(decoded, output.prediction) and torch.equal(output[-1], output.prediction)
    assert output.prediction.shape == image.shape and output.log_variance.shape == ()


def test_without_noise_the_latents_are_the_means():
    network = narrow()
    with torch.no_grad():
        encoding = network.encode(torch.randn(1, 1, 8, 8))
    assert all(
        torch.equal(*each) for each in zip(encoding.latents, (q.mean for q in encoding.posteriors), strict=True)
    )


def test_free_bits_cost_nothing_and_have_no_gradient():
    reconstruction = torch.tensor([-5.0, -7.0])
    kl = torch.tensor([[0.2, 3.0, 0.9], [2.0, 0.0, 0.5]], requires_grad=True)
    assert evidence_lower_bound(reconstruction, kl).tolist() == pytest.approx([-9.1, -9.5])
    bounds = evidence_lower_bound(reconstruction, kl, free_bits=1.0)
    assert bounds.tolist() == pytest.approx([-5 - 1 - 3 - 1, -7 - 2 - 1 - 1])
    bounds.sum().backward()
    assert kl.grad.tolist() == [[0, -1, 0], [-1, 0, 0]]


def test_the_divergence_shows_a_collapsed_group():
    network = narrow()
    level = network.top_down[1]
    with torch.no_grad():  # prior and posterior are the same, whatever the image
        for convolution in (level.prior, level.posterior):
            convolution.weight.zero_()
            convolution.bias.zero_()
        noise = network.draw_noise(3, (16, 16))
        kl = network(torch.cat([noise, torch.randn(3, 1, 16, 16)], dim=1)).kl
    assert (kl[:, 1] == 0).all() and (kl[:, [0, 2]] > 0).all()


def test_samples_of_the_prior_are_finite_and_reproducible_for_any_size():
    network = narrow()
    for size in ((8, 8), (40, 24)):
        with torch.no_grad():
            first, again, other = (
                network.sample_prior((2, *size), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
            )
        assert first.shape == (2, 1, *size) and first.isfinite().all()
        assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])


def test_tiles_have_the_noise_of_the_whole_image():
    """Noise of the latents, recovered from the latents of an image and of a part of it."""
    network = narrow(latent_channels=3)
    image, noise = torch.randn(1, 1, 32, 32), network.draw_noise(1, (32, 32), torch.Generator().manual_seed(0))
    part = (..., slice(8, 24), slice(16, 32))

    def recover(image, noise):
        with torch.no_grad():
            encoding = network.encode(image, noise)
        pairs = zip(encoding.latents, encoding.posteriors, strict=True)
        return [(latents - posterior.mean) / posterior.std for latents, posterior in pairs]

    whole, tile = recover(image, noise), recover(image[part], noise[part])
    for group, (field, cut) in enumerate(zip(whole, tile, strict=True), start=1):
        rows, columns = (slice(side.start // 2**group, side.stop // 2**group) for side in part[1:])
        torch.testing.assert_close(field[..., rows, columns], cut, atol=1e-4, rtol=1e-4)
    # Each number is used once.
    values = torch.cat([group.flatten() for group in whole])
    assert len(values) == 3 * (16**2 + 8**2 + 4**2) and np.isin(values.numpy().round(3), noise.numpy().round(3)).all()
    assert len(values.unique()) > 0.99 * len(values) and values.std() == pytest.approx(1, abs=0.1)


def test_results_do_not_depend_on_the_rest_of_the_batch():
    network = narrow().train()  # as in training
    noise, image = network.draw_noise(3, (16, 16)), torch.randn(3, 1, 16, 16)
    states = torch.cat([noise, image], dim=1)
    together, alone = network(states), network(states[1:2])
    torch.testing.assert_close(together.prediction[1:2], alone.prediction, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.kl[1:2], alone.kl, atol=1e-3, rtol=1e-4)


def test_the_default_has_the_size_of_hdn():
    with torch.device("meta"):
        network = AutoencoderHierarchical()
    # Weights of the authors' network (juglab/HDN) with 6 groups of 32 channels, 64 features and 5 blocks.
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(7.302e6, rel=0.01)
    assert network.scale_factor == 64 and network.noise_channels == 11


def test_wrong_arguments_are_refused():
    network = narrow()
    with pytest.raises(ValueError, match="multiples of 8 pixels for this network, got 12 × 16"):
        network.encode(torch.zeros(1, 1, 12, 16))
    with pytest.raises(ValueError, match="multiples of 8"):
        network.sample_prior((1, 8, 4))
    with pytest.raises(ValueError, match="`latents` must have 3 groups, got 2"):
        network.decode([torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ValueError, match="`num_latent_groups` must be positive"):
        narrow(num_latent_groups=0)
    with pytest.raises(ValueError, match="`reconstruction_std` must be positive"):
        narrow(reconstruction_std=0.0)


def test_a_fixed_standard_deviation_is_that_of_every_pixel_and_is_not_trained():
    network = narrow(reconstruction_std=0.3)
    noise, image = network.draw_noise(1, (8, 8)), torch.randn(1, 1, 8, 8)
    log_variance = network(torch.cat([noise, image], dim=1)).log_variance
    assert not log_variance.requires_grad
    assert log_variance.item() == pytest.approx(2 * math.log(0.3))
