"""
Adversarial training: a discriminator learns to distinguish real images from those that a network ("generator") makes,
while the network learns to mislead it. The content loss and the relativistic loss are those of ESRGAN (Wang et al.
2018, arXiv 1809.00219).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from haze_pipeline.utils.console import require


PIXEL_WEIGHT = 0.01  # the paper's η
# The paper has features of a VGG network in place of the spectrum, with a weight of 1. Unlike these, amplitudes do not
# show where structures are, so they weigh less here.
SPECTRUM_WEIGHT = 0.1

SMALLEST_PATCH = 24  # px, from which MONAI's discriminator still has one output


def content_loss(prediction: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
    """
    Weighted sum of two mean absolute errors of predictions `[B, 1, h, w]`: that of the pixels, and that of the
    amplitudes in the spectrum.
    """
    spectra = [torch.fft.rfft2(image, norm="ortho").abs() for image in (prediction, clear)]  # [B,1,h,w/2+1]
    return PIXEL_WEIGHT * F.l1_loss(prediction, clear) + SPECTRUM_WEIGHT * F.l1_loss(*spectra)


def relativistic_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """
    Relativistic average loss of the discriminator (equation 1 of the paper). It is small if the scores `real` of clear
    images exceed the mean of the scores `fake` of predictions, and these lie below the mean of the scores `real`. With
    exchanged arguments, it is the loss of the generator (equation 2).
    """
    # -log(sigmoid(x)) = softplus(-x), and -log(1 - sigmoid(x)) = softplus(x)
    return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


def least_squares_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """
    Loss that is small if the scores `real` are 1 and the scores `fake` are 0 (Mao et al. 2017, arXiv 1611.04076). The
    generator's loss exchanges the arguments.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


class Adversary:
    """
    The discriminator and its optimiser. Both are part of the checkpoints of the accelerator.

    MONAI's `PatchDiscriminator` scores overlapping parts of 70 × 70 px. It has no normalisation, because normalised
    features do not show whether a texture has the right contrast.

    Args:
        accelerator (`Accelerator`): Prepares the discriminator. Every process compares its own patches.
        num_features (`int`): Channels of the first convolution; each of the next three has twice as many.
        learning_rate (`float`): Learning rate of Adam, the same as that of the generator in the paper.
        make_schedule (`Callable`): Makes the schedule of the learning rate for an optimiser.
        loss (`Callable`, defaults to `relativistic_loss`): Loss of the scores of real and of made images.
        num_channels (`int`, defaults to `1`): Channels of the images.

    Raises:
        `ImportError`: If MONAI is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        num_features: int,
        learning_rate: float,
        make_schedule: Callable,
        loss: Callable = relativistic_loss,
        num_channels: int = 1,
    ):
        require("baselines", "monai")
        from monai.networks.nets import PatchDiscriminator

        discriminator = PatchDiscriminator(2, channels=num_features, in_channels=num_channels, norm=None, bias=True)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate)
        self.accelerator, self.loss = accelerator, loss
        self.discriminator, self.optimizer, self.lr_scheduler = accelerator.prepare(
            discriminator, optimizer, make_schedule(optimizer)
        )

    def generator_loss(self, prediction: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        """
        Loss of the generator for predictions `[B, C, h, w]`, beside clear images of the same shape, which may be
        others. Gradients do not reach the discriminator.
        """
        # Not the wrapper of several processes, which would wait for gradients of the discriminator.
        discriminator = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        real, fake = (discriminator(image)[-1].float() for image in (clear, prediction))  # [B,1,h/8-2,w/8-2]
        discriminator.requires_grad_(True)
        return self.loss(fake, real)

    def step(self, prediction: torch.Tensor, clear: torch.Tensor) -> float:
        """Train the discriminator with predictions `[B, C, h, w]` of the generator, and return its loss."""
        scores = self.discriminator(torch.cat([clear, prediction.detach()]))[-1]
        loss = self.loss(*scores.float().chunk(2))
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        return loss.item()
