"""Output of the restoration pipelines."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput


@dataclass
class HazeMatchingOutput(BaseOutput):
    """
    Everything is in the units of the clear training target; with a checkpoint that normalises every image by itself, as
    the embedded one does, these are the counts of the input.

    Args:
        prediction (`np.ndarray` or `torch.Tensor` of the shape of the image, float32):
            Mean (or median) of the ensemble, the estimate of E[clear | hazy].
        uncertainty (`np.ndarray` or `torch.Tensor` of the shape of the image, float32, *optional*):
            Calibrated standard deviation of a pixel.
        samples (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, float32, *optional*):
            The members of the ensemble.
    """

    prediction: np.ndarray | torch.Tensor | list
    uncertainty: np.ndarray | torch.Tensor | list | None = None
    samples: np.ndarray | torch.Tensor | list | None = None
