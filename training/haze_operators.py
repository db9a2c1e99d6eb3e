"""
The operators of `train_eid.py` that add haze, and how they are trained with unpaired clear images.

This is adversarial, as in CycleGAN (Zhu et al. 2017, arXiv 1703.10593), with the least-squares loss.
"""

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from adversarial import Adversary

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.loading import fetch_model
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze, estimate_airlight
from haze_pipeline.models.haze_operator import HazeOperator, OpticalHaze
from haze_pipeline.models.learned_haze import LearnedHaze


# Of `--haze_operator`: the classes, and the learning rates of their parameters, of which two have only a few.
OPERATORS = {"optical": OpticalHaze, "learned": LearnedHaze, "atmospheric": AtmosphericHaze}
GENERATOR_RATE = 2e-4  # of CycleGAN, for generators and discriminators
LEARNING_RATES = {OpticalHaze: 1e-2, LearnedHaze: GENERATOR_RATE, AtmosphericHaze: 1e-2}
CYCLE_WEIGHT = 5  # half of that of CycleGAN, whose adversarial loss of generators has no factor of 1/2


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
        hazy (`list[torch.Tensor]`): Hazy fields `[C, H, W]`, from which the airlight is estimated.

    Raises:
        `ValueError`: If the stored operator is of another kind, or `config` does not fit.
    """
    operator_class = OPERATORS[kind]
    stored = None if init_from is None else fetch_model(init_from) / "haze_operator"
    if stored is not None and stored.is_dir():
        name = operator_class.load_config(stored)["_class_name"]
        if config or name != operator_class.__name__:
            raise ValueError(
                f"--init_from {init_from} contains its operator, of the class {name}: pass the same --haze_operator, "
                "and remove --operator_config."
            )
        return operator_class.from_pretrained(stored, low_cpu_mem_usage=False)
    num_channels = len(hazy[0])
    if kind == "learned":
        defaults = {"num_channels": num_channels}
    else:
        defaults = {"dark_level": image_processor.target_dark_level}
    if kind == "atmospheric":
        defaults["airlight"] = estimate_airlight(hazy).tolist()
    config = {**defaults, **config}
    try:
        return operator_class(**config)
    except TypeError as error:  # of a name or a value
        raise ValueError(f"--operator_config does not fit {operator_class.__name__}: {error}.") from error


def average_gradients(accelerator: Accelerator, module: torch.nn.Module) -> None:
    """Average the gradients over all processes, each of which has the same module and other patches."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


class OperatorTraining:
    """
    Training of an operator H with unpaired images: H(clear) must look like hazy images. The inverse of [`LearnedHaze`]
    is trained along with it, and the two must undo each other.

    Args:
        accelerator (`Accelerator`): Every process has its own patches.
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
        optimizer = torch.optim.Adam(operator.parameters(), lr=LEARNING_RATES[type(operator)], betas=(0.5, 0.999))
        # The operator is not prepared: it has two functions, and a wrapper of several processes would see only one.
        self.optimizer = accelerator.prepare(optimizer)
        accelerator.register_for_checkpointing(operator)

    def step(self, hazy: torch.Tensor, clear: torch.Tensor, rng: np.random.Generator) -> float:
        """Train operator and discriminators with unpaired images `[B, C, h, w]`, and return the operator's loss."""
        made_hazy = self.operator(clear, self.operator.imagine(clear, hazy, rng))
        loss = self.hazy_adversary.generator_loss(made_hazy, hazy)
        if isinstance(self.operator, LearnedHaze):
            made_clear, no_map = self.operator.guess(hazy), torch.zeros_like(hazy[:, :1])
            loss = loss + self.clear_adversary.generator_loss(made_clear, clear)
            cycles = F.l1_loss(self.operator.guess(made_hazy), clear)
            cycles = cycles + F.l1_loss(self.operator(made_clear, no_map), hazy)
            loss = loss + CYCLE_WEIGHT * cycles
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.operator)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.hazy_adversary.step(made_hazy, hazy)
        if isinstance(self.operator, LearnedHaze):
            self.clear_adversary.step(made_clear, clear)
        return loss.item()
