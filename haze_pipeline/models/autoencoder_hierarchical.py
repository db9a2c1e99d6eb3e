"""
Hierarchical variational autoencoder: a ladder VAE for images.

The latents are groups z₁ … zₙ at resolutions that halve from group to group; zₙ is the coarsest. The prior is
p(z) = p(zₙ) Π p(zᵢ | zᵢ₊₁ … zₙ), and the posterior is q(z | x) = q(zₙ | x) Π q(zᵢ | zᵢ₊₁ … zₙ, x). The encoder and the
decoder share the path from coarse to fine (Sønderby et al. 2016, arXiv 1602.02282), with connections that bypass the
latents (Maaløe et al. 2019, arXiv 1902.02102). Sizes and blocks are those of Hierarchical DivNoising (HDN; Prakash et
al. 2022, arXiv 2104.01374).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import BaseOutput
from torch import nn


# Logarithms of the variances of latents lie between ∓ this value. Without a limit, the divergence from a narrow prior
# becomes huge in some training steps. The scale of the latents is arbitrary, so that nothing is lost.
LOG_VARIANCE_LIMIT = 5.0


@dataclass
class AutoencoderHierarchicalOutput(BaseOutput):
    """
    Output of [`AutoencoderHierarchical`]. The prediction is the last entry, as in [`ImageNetwork`].

    Args:
        kl (`torch.Tensor` of shape `[B, n]`): Kullback–Leibler (KL) divergence of every group, nats per image.
        log_variance (`torch.Tensor` of shape `[]`): Logarithm of the variance of a pixel of the image.
        prediction (`torch.Tensor` of shape `[B, 1, h, w]`): Mean of the image.
    """

    kl: torch.Tensor
    log_variance: torch.Tensor | None = None
    prediction: torch.Tensor | None = None


@dataclass
class Encoding:
    """
    Latents of images and their distributions. Group 1, the finest, comes first.

    Args:
        latents (`list[torch.Tensor]`): zᵢ, of the shape `[B, C, h / 2ⁱ, w / 2ⁱ]`
        posteriors (`list[DiagonalGaussianDistribution]`): q(zᵢ | zᵢ₊₁ … zₙ, x).
        priors (`list[DiagonalGaussianDistribution]`): p(zᵢ | zᵢ₊₁ … zₙ).
    """

    latents: list[torch.Tensor]
    posteriors: list[DiagonalGaussianDistribution]
    priors: list[DiagonalGaussianDistribution]

    @property
    def kl(self) -> torch.Tensor:
        """KL divergence of the posteriors from the priors `[B, n]`, nats per image."""
        pairs = zip(self.posteriors, self.priors, strict=True)
        return torch.stack([posterior.kl(prior) for posterior, prior in pairs], dim=1)


def log_likelihood(image: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Logarithm of the normal density of images `[B, 1, h, w]`, in nats, `[B]`."""
    nats = -0.5 * (math.log(2 * math.pi) + log_variance + (image - mean).square() / log_variance.exp())
    return nats.sum(dim=(1, 2, 3))


def evidence_lower_bound(
    log_likelihood: torch.Tensor, kl: torch.Tensor, free_bits: float = 0.0, kl_weight: float = 1.0
) -> torch.Tensor:
    """
    Lower bound of log p(x): the log-likelihood less the KL divergences.

    Args:
        log_likelihood (`torch.Tensor` of shape `[B]`): log p(x | z) for a sample z of the posterior, nats per image.
        kl (`torch.Tensor` of shape `[B, n]`): KL divergence of every group, nats per image.
        free_bits (`float`, defaults to `0.0`):
            Nats per group and image that a group may use at no cost (Kingma et al. 2016, arXiv 1606.04934). A smaller
            divergence counts as this much and has no gradient, so that training does not empty a group.
        kl_weight (`float`, defaults to `1.0`):
            Weight of the divergences. The result is a bound of log p(x) if it is 1 or more.

    Returns:
        `torch.Tensor` of shape `[B]`, nats per image.
    """
    return log_likelihood - kl_weight * kl.clamp(min=free_bits).sum(dim=1)


def distribution(parameters: torch.Tensor) -> DiagonalGaussianDistribution:
    """Distribution of latents `[B, C, h, w]` from the features `[B, 2C, h, w]` that determine it."""
    mean, log_variance = parameters.float().chunk(2, dim=1)
    log_variance = LOG_VARIANCE_LIMIT * torch.tanh(log_variance / LOG_VARIANCE_LIMIT)
    return DiagonalGaussianDistribution(torch.cat([mean, log_variance], dim=1))


class PixelNorm(nn.LayerNorm):
    """
    Normalise the features of every pixel by themselves, and then scale and shift every channel.

    HDN uses batch normalisation. Its results depend on the other images of a training batch, and thus on the number of
    processes. Those of group normalisation depend on the size of the tile. Here, each pixel is independent of all
    others.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GatedResidualBlock(nn.Module):
    """Two convolutions, whose result is gated by a factor between 0 and 1 and added to the input."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [PixelNorm(channels), nn.ELU(), nn.Conv2d(channels, channels, 3, padding=1)]
            layers += [nn.Dropout2d(dropout)]
        self.layers = nn.Sequential(*layers)
        self.gate = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual, gate = self.gate(self.layers(hidden_states)).chunk(2, dim=1)
        return hidden_states + F.elu(residual) * gate.sigmoid()


class Merge(nn.Module):
    """Combine two feature maps `[B, C, h, w]` to one."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        self.block = GatedResidualBlock(channels, dropout)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.block(self.conv(torch.cat([one, other], dim=1)))


class TopDownLevel(nn.Module):
    """One group of latents: its prior, its posterior, and the path to the features of the next finer level."""

    def __init__(self, channels: int, latent_channels: int, num_blocks: int, dropout: float, is_top: bool):
        super().__init__()
        self.is_top = is_top
        parameters = 2 * latent_channels  # mean and logarithm of the variance
        if is_top:
            # The same prior everywhere, so that images of any size have one.
            self.top_prior = nn.Parameter(torch.zeros(1, parameters, 1, 1))
        else:
            self.prior = nn.Conv2d(channels, parameters, 3, padding=1)
            self.merge_features = Merge(channels, dropout)
            self.merge_skip = Merge(channels, dropout)
        self.posterior = nn.Conv2d(channels, parameters, 3, padding=1)
        self.expand = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            # A transposed convolution would leave a lattice.
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels, 3, padding=1),
            *(GatedResidualBlock(channels, dropout) for _ in range(num_blocks)),
        )

    def get_prior(self, hidden_states: torch.Tensor | None) -> DiagonalGaussianDistribution:
        """p(zᵢ | zᵢ₊₁ … zₙ) from the features `[B, C, h, w]` of the coarser levels; `None` at the top."""
        return distribution(self.top_prior if self.is_top else self.prior(hidden_states))

    def get_posterior(
        self, hidden_states: torch.Tensor | None, features: torch.Tensor
    ) -> DiagonalGaussianDistribution:
        """q(zᵢ | zᵢ₊₁ … zₙ, x) from the features of the coarser levels and of the image."""
        merged = features if self.is_top else self.merge_features(features, hidden_states)
        return distribution(self.posterior(merged))

    def forward(self, latents: torch.Tensor, hidden_states: torch.Tensor | None) -> torch.Tensor:
        """Features `[B, C, 2h, 2w]` of the next finer level, from zᵢ and the features of the coarser levels."""
        expanded = self.expand(latents.to(self.expand.weight.dtype))
        # The features of the coarser levels also bypass the latents (stochastic skip connection).
        return self.blocks(expanded if self.is_top else self.merge_skip(expanded, hidden_states))


class AutoencoderHierarchical(ModelMixin, ConfigMixin):
    r"""
    Hierarchical variational autoencoder (VAE) of images with one channel. It reconstructs its input, or restores it if
    it was trained on pairs (HDN). The loss is the negative [`evidence_lower_bound`]. The image is normally distributed
    around the decoder's result, with one variance for all pixels. All layers are local and have no statistics of
    images or batches, so that images may have any size that is a multiple of `scale_factor`.

    Every sample of the latents comes from white noise, which [`draw_noise`] draws for whole images. The noise of all
    groups is packed into `noise_channels` channels of the image's size: a square of `scale_factor` pixels a side holds
    the noise of the latents at this place. An image and its noise can thus be cut into the same tiles.

    Args:
        num_latent_groups (`int`, defaults to `6`): Number of groups n. Each halves the resolution.
        latent_channels (`int`, defaults to `32`): Channels of each group.
        num_features (`int`, defaults to `64`): Channels of all layers.
        num_blocks (`int`, defaults to `5`): Residual blocks of each level of the encoder and of the decoder.
        dropout (`float`, defaults to `0.0`): Fraction of the channels set to zero in training. HDN uses 0.2.
        pixel_packing (`int`, defaults to `1`):
            A square of `pixel_packing` pixels a side is the first convolution's and the decoder's single pixel with
            as many channels. The network is then faster, and coarser by this factor.
        reconstruction_std (`float`, *optional*):
            Standard deviation of a pixel of the image around the decoder's result; learned if omitted (Rybkin et al.
            2021, arXiv 2006.13202).
    """

    @register_to_config
    def __init__(
        self,
        num_latent_groups: int = 6,
        latent_channels: int = 32,
        num_features: int = 64,
        num_blocks: int = 5,
        dropout: float = 0.0,
        pixel_packing: int = 1,
        reconstruction_std: float | None = None,
    ):
        super().__init__()
        if num_latent_groups < 1:
            raise ValueError(f"`num_latent_groups` must be positive, got {num_latent_groups}.")
        if pixel_packing < 1:
            raise ValueError(f"`pixel_packing` must be 1 or more pixels, got {pixel_packing}.")
        if reconstruction_std is not None and not reconstruction_std > 0:
            raise ValueError(f"`reconstruction_std` must be positive, got {reconstruction_std}.")

        def blocks(number: int) -> list[nn.Module]:
            return [GatedResidualBlock(num_features, dropout) for _ in range(number)]

        self.conv_in = nn.Sequential(
            nn.PixelUnshuffle(pixel_packing),
            nn.Conv2d(pixel_packing**2, num_features, 5, padding=2),
            nn.ELU(),
            *blocks(1),
        )
        self.bottom_up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_features, num_features, 3, stride=2, padding=1), *blocks(num_blocks))
            for _ in range(num_latent_groups)
        )
        self.top_down = nn.ModuleList(
            TopDownLevel(num_features, latent_channels, num_blocks, dropout, is_top=i == num_latent_groups - 1)
            for i in range(num_latent_groups)
        )
        self.conv_out = nn.Sequential(
            *blocks(num_blocks),
            nn.Conv2d(num_features, pixel_packing**2, 3, padding=1),
            nn.PixelShuffle(pixel_packing),
        )
        log_variance = torch.tensor(2 * math.log(reconstruction_std or 1.0))
        self.log_variance = nn.Parameter(log_variance, requires_grad=reconstruction_std is None)

        # Pixels of the image per latent of the coarsest group, along each side.
        self.scale_factor = pixel_packing * 2**num_latent_groups
        # Channels of a group when a square of `scale_factor` pixels a side is one pixel, finest first.
        self.packed_channels = [latent_channels * 4**i for i in reversed(range(num_latent_groups))]
        self.noise_channels = -(-sum(self.packed_channels) // self.scale_factor**2)

    def draw_noise(
        self, batch_size: int, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """White noise `[B, noise_channels, h, w]` for the latents of images of `size` `(h, w)`, on the CPU."""
        self._check_size(size)
        return torch.randn(batch_size, self.noise_channels, *size, generator=generator)

    def encode(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> Encoding:
        """
        Encode images.

        Args:
            image (`torch.Tensor` of shape `[B, 1, h, w]`): Images in network units.
            noise (`torch.Tensor` of shape `[B, noise_channels, h, w]`, *optional*):
                See [`draw_noise`]. If omitted, the latents are the means of the posteriors.

        Raises:
            `ValueError`: If a side is no multiple of `scale_factor`.
        """
        return self._encode(image, noise)[1]

    def decode(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        Decode latents to images `[B, 1, h, w]`, the means of p(x | z).

        Args:
            latents (sequence of `torch.Tensor`): The groups, as in [`Encoding`].

        Raises:
            `ValueError`: If there are not as many groups as the model has.
        """
        if len(latents) != len(self.top_down):
            raise ValueError(f"`latents` must have {len(self.top_down)} groups, got {len(latents)}.")
        hidden_states = None
        for level, group in zip(reversed(self.top_down), reversed(latents), strict=True):
            hidden_states = level(group, hidden_states)
        return self.conv_out(hidden_states)

    def sample_prior(self, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Images `[B, 1, h, w]` decoded from samples of the prior. `shape` is `(B, h, w)`."""
        noise = self.draw_noise(shape[0], shape[1:], generator).to(self.device)
        hidden_states = None
        for level, drawn in zip(reversed(self.top_down), reversed(self._unpack(noise)), strict=True):
            prior = level.get_prior(hidden_states)
            hidden_states = level(prior.mean + prior.std * drawn, hidden_states)
        return self.conv_out(hidden_states)

    def forward(self, states: torch.Tensor) -> AutoencoderHierarchicalOutput:
        """
        Encode images with the given noise, and decode their latents.

        Args:
            states (`torch.Tensor` of shape `[B, noise_channels + 1, h, w]`):
                The noise of [`draw_noise`], and the image as the last channel.

        Raises:
            `ValueError`: As [`encode`].
        """
        noise, image = states.split([self.noise_channels, 1], dim=1)
        hidden_states, encoding = self._encode(image, noise)
        return AutoencoderHierarchicalOutput(encoding.kl, self.log_variance, self.conv_out(hidden_states))

    def _encode(self, image: torch.Tensor, noise: torch.Tensor | None) -> tuple[torch.Tensor, Encoding]:
        """Encode images. The first result are the features `[B, C, h, w]` from which the image is decoded."""
        self._check_size(image.shape[-2:])
        # 1. From fine to coarse.
        features = [self.conv_in(image)]  # [B,C,h,w], [B,C,h/2,w/2], …
        for layers in self.bottom_up:
            features.append(layers(features[-1]))
        # 2. From coarse to fine.
        drawn = [None] * len(self.top_down) if noise is None else self._unpack(noise)
        hidden_states, encoding = None, Encoding([], [], [])
        for level, image_features, noises in zip(
            reversed(self.top_down), reversed(features[1:]), reversed(drawn), strict=True
        ):
            prior = level.get_prior(hidden_states)
            posterior = level.get_posterior(hidden_states, image_features)
            latents = posterior.mean if noises is None else posterior.mean + posterior.std * noises
            hidden_states = level(latents, hidden_states)
            encoding.latents.insert(0, latents)
            encoding.posteriors.insert(0, posterior)
            encoding.priors.insert(0, prior)
        return hidden_states, encoding

    def _unpack(self, noise: torch.Tensor) -> list[torch.Tensor]:
        """Noise of every group, `[B, latent_channels, h / 2ⁱ, w / 2ⁱ]`, from noise of [`draw_noise`]."""
        packed = F.pixel_unshuffle(noise.float(), self.scale_factor)
        rest = packed.shape[1] - sum(self.packed_channels)
        *groups, _ = packed.split([*self.packed_channels, rest], dim=1)
        return [F.pixel_shuffle(group, 2**i) for i, group in zip(reversed(range(len(groups))), groups, strict=True)]

    def _check_size(self, size: Sequence[int]) -> None:
        if size[0] % self.scale_factor or size[1] % self.scale_factor:
            raise ValueError(
                f"The sides of images must be multiples of {self.scale_factor} pixels for this network, "
                f"got {size[0]} × {size[1]}."
            )
