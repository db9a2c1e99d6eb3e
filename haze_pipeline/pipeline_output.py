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
            Standard deviation of a pixel: the spread of the ensemble, times the `uncertainty_scale` and plus the
            `uncertainty_offset` of the checkpoint, which are 1 and 0 until it has been calibrated.
        samples (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, float32, *optional*):
            The members of the ensemble.
    """

    prediction: np.ndarray | torch.Tensor | list
    uncertainty: np.ndarray | torch.Tensor | list | None = None
    samples: np.ndarray | torch.Tensor | list | None = None
