"""The discriminators of the learned degradation of latents, as in CycleGAN (Zhu et al. 2017, arXiv 1703.10593)."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from haze_pipeline.utils.console import require


class LatentAdversaries:
    """
    D_Y tells latents of a level from degraded ones, and D_X clear latents from those that were cleared. Both know the
    level. Their losses are least squares (Mao et al. 2017). Both and their optimiser are part of the checkpoints of
    the accelerator.

    Args:
        accelerator (`Accelerator`): Prepares the discriminators.
        channels (`int`): Channels of the latents.
        num_features (`int`): Channels of the first convolution of the discriminators.
        learning_rate (`float`): Learning rate of Adam.
        make_schedule (`Callable`): Makes the schedule of the learning rate for an optimiser.

    Raises:
        `ImportError`: If MONAI is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        channels: int,
        num_features: int,
        learning_rate: float,
        make_schedule: Callable,
    ):
        require("baselines", "monai")
        from monai.losses import PatchAdversarialLoss
        from monai.networks.nets import PatchDiscriminator

        # One layer, since patches of latents are small. Normalised features would not show a wrong contrast.
        discriminators = [
            PatchDiscriminator(2, num_features, channels + 1, num_layers_d=1, norm=None, bias=True) for _ in range(2)
        ]
        optimizer = torch.optim.Adam(nn.ModuleList(discriminators).parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.accelerator, self.loss = accelerator, PatchAdversarialLoss(criterion="least_squares")
        *self.discriminators, self.optimizer, self.lr_scheduler = accelerator.prepare(
            *discriminators, optimizer, make_schedule(optimizer)
        )

    def generator_loss(self, degraded: torch.Tensor, cleared: torch.Tensor, level: float) -> torch.Tensor:
        """Loss of both maps for their results `[B, C, h, w]`. Gradients do not reach the discriminators."""
        total = 0.0
        for wrapped, fake in zip(self.discriminators, (degraded, cleared), strict=True):
            # Not the wrapper of several processes, which would wait for gradients of the discriminator.
            discriminator = self.accelerator.unwrap_model(wrapped).requires_grad_(False)
            scores = discriminator(_with_level(fake, level))[-1].float()
            discriminator.requires_grad_(True)
            total = total + self.loss(scores, target_is_real=True, for_discriminator=False)
        return total

    def step(
        self, hazier: tuple[torch.Tensor, torch.Tensor], clear: tuple[torch.Tensor, torch.Tensor], level: float
    ) -> torch.Tensor:
        """Train both with pairs of real latents and results of the maps `[B, C, h, w]`, and return their loss."""
        total = 0.0
        for discriminator, (real, fake) in zip(self.discriminators, (hazier, clear), strict=True):
            scores = discriminator(_with_level(torch.cat([real, fake.detach()]), level))[-1].float().chunk(2)
            for score, is_real in zip(scores, (True, False), strict=True):
                total = total + 0.5 * self.loss(score, target_is_real=is_real, for_discriminator=True)
        self.accelerator.backward(total)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        return total.detach()


def _with_level(latents: torch.Tensor, level: float) -> torch.Tensor:
    """Latents with one more channel that holds the level."""
    return torch.cat([latents, latents.new_full((len(latents), 1, *latents.shape[-2:]), level)], dim=1)
