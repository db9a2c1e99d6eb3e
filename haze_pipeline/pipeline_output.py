"""Output of the restoration pipelines."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput


@dataclass
class RestorationOutput(BaseOutput):
    """
    Everything is in the units of the clear training target. With a checkpoint that normalises every image by itself,
    such as the one of the package, these are the counts of the input. Pixels that are NaN in the input are NaN.

    Args:
        prediction (`np.ndarray` or `torch.Tensor` of the shape of the image, float32):
            Mean (or median) of the ensemble, the estimate of E[clear | hazy].
        uncertainty (`np.ndarray` or `torch.Tensor` of the shape of the image, float32, *optional*):
            Standard deviation to expect of the error of a pixel: from the spread of the ensemble and the intensity
            around the pixel, by [`predicted_std`] with the calibration of the checkpoint; without one, from the
            spread alone.
        samples (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, float32, *optional*):
            The members of the ensemble.
        interval_factors (`dict`, *optional*):
            What `interval` multiplies the uncertainty with, by alpha; `None` if the checkpoint is not calibrated for
            such ensembles.
        hot_pixels (`int`):
            Number of isolated outliers, see [`find_hot_pixels`]. The network saw the median of their neighbours
            instead, and so the prediction there is that of their surroundings.
    """

    prediction: np.ndarray | torch.Tensor | list
    uncertainty: np.ndarray | torch.Tensor | list | None = None
    samples: np.ndarray | torch.Tensor | list | None = None
    interval_factors: dict[str, float] | None = None
    hot_pixels: int = 0

    def interval(self, alpha: float = 0.1) -> tuple:
        """
        Lower and upper bound of every pixel, prediction ∓ factor · uncertainty.

        On average over specimens like those that the checkpoint was calibrated on, the truth lies outside in at most
        the fraction `alpha` of the pixels ([`conformal_factors`]). This holds neither for a single image or structure
        nor for specimens of another kind.

        Args:
            alpha (`float`, defaults to `0.1`): One of the fractions that the checkpoint was calibrated for.

        Raises:
            `ValueError`: If there is no uncertainty, or the checkpoint is not calibrated for `alpha`.
        """
        if self.uncertainty is None:
            raise ValueError("Intervals need the uncertainty: call the pipeline with `output_uncertainty=True`.")
        if not self.interval_factors:
            raise ValueError(
                "The checkpoint is not calibrated for this number of members and steps: use those in "
                "`pipe.config.calibrated_for`, or calibrate it for yours with `haze-pipeline calibrate`."
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
