"""
The operators of `train_eid.py` that add haze, and how they are trained with unpaired clear images.

This is adversarial, as in CycleGAN (Zhu et al. 2017, arXiv 1703.10593): discriminators learn to distinguish real
images from made ones, with the least-squares loss (Mao et al. 2017, arXiv 1611.04076).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze, estimate_airlight
from haze_pipeline.models.haze_operator import HazeOperator, OpticalHaze
from haze_pipeline.models.learned_haze import LearnedHaze
from haze_pipeline.utils.console import require


# Of `--haze_operator`: the classes, and the learning rates of their parameters, of which two have only a few.
OPERATORS = {"optical": OpticalHaze, "learned": LearnedHaze, "atmospheric": AtmosphericHaze}
LEARNING_RATES = {OpticalHaze: 1e-2, LearnedHaze: 2e-4, AtmosphericHaze: 1e-2}
CYCLE_WEIGHT = 10  # of CycleGAN
SMALLEST_PATCH = 32  # px, for which the discriminator still has several outputs


def make_operator(
    kind: str, config: dict, init_from: str | None, image_processor: HazeImageProcessor, hazy: list[torch.Tensor]
) -> HazeOperator:
    """
    The operator that is stored with the pipeline `init_from`, or else a new one.

    Args:
        kind (`str`): Its name in `OPERATORS`.
        config (`dict`): Arguments of a new one.
        init_from (`str`, *optional*): Pipeline from which the training starts.
        image_processor ([`HazeImageProcessor`]): The units, for which a new one is made.
        hazy (`list[torch.Tensor]`): Hazy fields `[1, H, W]`, from which the airlight is estimated.

    Raises:
        `ValueError`: If the stored operator is of another kind, or `config` does not fit.
    """
    operator_class = OPERATORS[kind]
    stored = Path(init_from or "", "haze_operator")
    if init_from is not None and stored.is_dir():
        name = operator_class.load_config(stored)["_class_name"]
        if config or name != operator_class.__name__:
            raise ValueError(
                f"--init_from {init_from} contains its operator, of the class {name}: pass the same --haze_operator, "
                "and remove --operator_config."
            )
        return operator_class.from_pretrained(stored, low_cpu_mem_usage=False)
    config = dict(config)
    if kind != "learned":
        config.setdefault("dark_level", image_processor.target_dark_level)
    if kind == "atmospheric" and "airlight" not in config:
        config["airlight"] = torch.cat([estimate_airlight(field[None]) for field in hazy]).median().item()
    try:
        return operator_class(**config)
    except TypeError as error:  # of a name or a value
        raise ValueError(f"--operator_config does not fit {operator_class.__name__}: {error}.") from error


def average_gradients(accelerator: Accelerator, module: torch.nn.Module) -> None:
    """Average the gradients over all processes, each of which has the same module and other patches."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


class Adversary:
    """
    A discriminator of 70 × 70 patches (MONAI's `PatchDiscriminator`) and its optimiser. Both are part of the
    checkpoints of the accelerator.

    Args:
        accelerator (`Accelerator`): Every process compares its own patches.
        num_features (`int`): Channels of the first convolution; each of the next three has twice as many.
        learning_rate (`float`): Learning rate of Adam.

    Raises:
        `ImportError`: If MONAI is not installed.
    """

    def __init__(self, accelerator: Accelerator, num_features: int, learning_rate: float):
        require("baselines", "monai")
        from monai.losses.adversarial_loss import PatchAdversarialLoss
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        self.accelerator = accelerator
        self.discriminator = PatchDiscriminator(2, num_features, in_channels=1, norm="INSTANCE").to(accelerator.device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        accelerator.register_for_checkpointing(self.discriminator, self.optimizer)
        self.loss = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)

    def generator_loss(self, made: torch.Tensor) -> torch.Tensor:
        """Loss of whoever made the images `[B, 1, h, w]`. Gradients do not reach the discriminator."""
        self.discriminator.requires_grad_(False)
        scores = self.discriminator(made)[-1]  # [B,1,h/8-2,w/8-2]
        self.discriminator.requires_grad_(True)
        return self.loss(scores, target_is_real=True, for_discriminator=False)

    def step(self, real: torch.Tensor, made: torch.Tensor) -> None:
        """Train the discriminator with real and made images `[B, 1, h, w]`."""
        of_real, of_made = (self.discriminator(images.detach())[-1] for images in (real, made))
        loss = 0.5 * (
            self.loss(of_real, target_is_real=True, for_discriminator=True)
            + self.loss(of_made, target_is_real=False, for_discriminator=True)
        )
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.discriminator)
        self.optimizer.step()
        self.optimizer.zero_grad()


class OperatorTraining:
    """
    Training of an operator H with unpaired images: H(clear) must look like hazy images. The inverse of [`LearnedHaze`]
    is trained along with it, and the two must undo each other.

    Args:
        accelerator (`Accelerator`): As for [`Adversary`], and the next two.
        operator ([`HazeOperator`]): H.
        hazy_adversary ([`Adversary`]): Distinguishes hazy images.
        clear_adversary ([`Adversary`], *optional*): Distinguishes clear images; only for [`LearnedHaze`].
    """

    def __init__(
        self,
        accelerator: Accelerator,
        operator: HazeOperator,
        hazy_adversary: Adversary,
        clear_adversary: Adversary | None,
    ):
        self.accelerator, self.operator = accelerator, operator
        self.hazy_adversary, self.clear_adversary = hazy_adversary, clear_adversary
        self.optimizer = torch.optim.Adam(operator.parameters(), lr=LEARNING_RATES[type(operator)], betas=(0.5, 0.999))
        accelerator.register_for_checkpointing(operator, self.optimizer)

    def step(self, hazy: torch.Tensor, clear: torch.Tensor, rng: np.random.Generator) -> float:
        """Train operator and discriminators with unpaired images `[B, 1, h, w]`, and return the operator's loss."""
        made_hazy = self.operator(clear, self.operator.imagine(clear, hazy, rng))
        loss = self.hazy_adversary.generator_loss(made_hazy)
        if isinstance(self.operator, LearnedHaze):
            made_clear, no_map = self.operator.remove(hazy), torch.zeros_like(hazy)
            loss = loss + self.clear_adversary.generator_loss(made_clear)
            cycles = F.l1_loss(self.operator.remove(made_hazy), clear)
            cycles = cycles + F.l1_loss(self.operator(made_clear, no_map), hazy)
            loss = loss + CYCLE_WEIGHT * cycles
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.operator)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.hazy_adversary.step(hazy, made_hazy)
        if isinstance(self.operator, LearnedHaze):
            self.clear_adversary.step(clear, made_clear)
        return loss.item()
