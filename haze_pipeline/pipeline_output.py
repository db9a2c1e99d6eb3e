"""Output of the restoration pipelines."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput

from .notebook_display import NotebookMixin


@dataclass
class RestorationOutput(NotebookMixin, BaseOutput):
    """
    Result of a restoration pipeline, in the units of the clear training target. If a checkpoint normalises every image
    by itself, as the one in the package does, these are the counts of the input. Missing pixels (NaN) of the input
    stay NaN.

    Args:
        prediction (`np.ndarray` or `torch.Tensor` of the shape of the image, float32):
            Mean (or median) of the ensemble, the estimate of E[clear | hazy].
        uncertainty (`np.ndarray` or `torch.Tensor` of the shape of the image, float32, *optional*):
            Expected standard deviation of the error of every pixel. [`predicted_std`] computes it from the spread of
            the ensemble and the local intensity, with the calibration of the checkpoint. Without a calibration, only
            the spread is used.
        samples (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, float32, *optional*):
            The members of the ensemble.
        interval_factors (`dict`, *optional*):
            Factors on the uncertainty for [`interval`], by alpha; `None` if the checkpoint is calibrated for other
            ensembles.
        trajectory (`np.ndarray` or `torch.Tensor` of shape `[T, *image.shape]`, float32, *optional*):
            Estimates of the clear image after every step, the last one being the prediction; from
            [`LatentRestorationPipeline`] only.
        hot_pixels (`int`):
            Number of isolated outliers, see [`find_hot_pixels`]. The network received the median of their neighbours
            instead. The prediction at these pixels therefore follows from their surroundings.
    """

    prediction: np.ndarray | torch.Tensor | list
    uncertainty: np.ndarray | torch.Tensor | list | None = None
    samples: np.ndarray | torch.Tensor | list | None = None
    interval_factors: dict[str, float] | None = None
    trajectory: np.ndarray | torch.Tensor | list | None = None
    hot_pixels: int = 0

    def interval(self, alpha: float = 0.1) -> tuple:
        """
        Lower and upper bound of every pixel, prediction ∓ factor · uncertainty.

        On average over specimens like those of the calibration, the truth lies outside these bounds in at most the
        fraction `alpha` of the pixels ([`conformal_factors`]). There is no such guarantee for a single image, a single
        structure, or specimens of another kind.

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


HazeMatchingOutput = RestorationOutput  # earlier name, from when there was one pipeline
