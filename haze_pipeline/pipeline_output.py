"""Output of the restoration pipelines."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput


@dataclass
class RestorationOutput(BaseOutput):
    """
    Everything is in the units of the clear training target; with a checkpoint that normalises every image by itself,
    as the embedded one does, these are the counts of the input.

    Args:
        prediction (`np.ndarray` or `torch.Tensor` of the shape of the image, float32):
            Mean (or median) of the ensemble, the estimate of E[clear | hazy].
        uncertainty (`np.ndarray` or `torch.Tensor` of the shape of the image, float32, *optional*):
            Deviation of a pixel to expect between prediction and truth: from the spread of the ensemble, and the light
            around the pixel, by [`predicted_deviation`] with the calibration of the checkpoint; without one, from the
            spread alone.
        samples (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, float32, *optional*):
            The members of the ensemble.
        interval_factors (`dict`, *optional*):
            What `interval` multiplies deviations with, by alpha; `None` if the checkpoint is not calibrated for such
            ensembles.
    """

    prediction: np.ndarray | torch.Tensor | list
    uncertainty: np.ndarray | torch.Tensor | list | None = None
    samples: np.ndarray | torch.Tensor | list | None = None
    interval_factors: dict[str, float] | None = None

    def interval(self, alpha: float = 0.1) -> tuple:
        """
        Lower and upper bound of every pixel, prediction ∓ factor · uncertainty.

        On average over specimens like those that the checkpoint was calibrated on, the truth lies outside in a share
        of the pixels of at most `alpha` ([`conformal_factors`]). That promises nothing for a single image or
        structure, nor for specimens of another kind.

        Args:
            alpha (`float`, defaults to `0.1`): One of the shares that the checkpoint was calibrated for.

        Raises:
            `ValueError`: If there is no uncertainty, or the checkpoint is not calibrated for `alpha`.
        """
        if self.uncertainty is None:
            raise ValueError("Intervals need the uncertainty: call the pipeline with `output_uncertainty=True`.")
        if not self.interval_factors:
            raise ValueError(
                "The checkpoint is not calibrated for means of so many members and steps: choose those that its "
                "configuration names in `calibrated_for`, or calibrate it for yours."
            )
        factors = {float(key): factor for key, factor in self.interval_factors.items()}
        alpha = min(factors, key=lambda known: abs(known - alpha)) if np.isclose(alpha, list(factors)).any() else alpha
        if alpha not in factors:
            raise ValueError(f"`alpha` is {alpha}, but the checkpoint has intervals for {sorted(factors)} only.")
        if isinstance(self.prediction, list):
            pairs = list(zip(self.prediction, self.uncertainty, strict=True))
            return [p - factors[alpha] * u for p, u in pairs], [p + factors[alpha] * u for p, u in pairs]
        margin = factors[alpha] * self.uncertainty
        return self.prediction - margin, self.prediction + margin


HazeMatchingOutput = RestorationOutput  # its name while there was one pipeline
