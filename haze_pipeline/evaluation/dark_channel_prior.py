"""The dark-channel prior, the classical method against atmospheric haze in photographs."""

import numpy as np
import torch

from haze_pipeline.models.atmospheric_haze import dark_channel, estimate_airlight
from haze_pipeline.pipeline_output import RestorationOutput

from .baselines import guided_filter


GAMMA = 2.2  # of displays, approximately


def dark_channel_prior(
    image: np.ndarray, patch_size: int = 15, strength: float = 0.95, airlight: np.ndarray | None = None
) -> RestorationOutput:
    """
    Remove atmospheric haze from photographs (He, Sun & Tang 2011, doi 10.1109/TPAMI.2010.168). Most squares of a
    photograph without haze have a dark pixel in at least one colour. The intensity of the darkest pixel is therefore
    taken for haze.

    The transmission is refined by a guided filter (He, Sun & Tang 2013, doi 10.1109/TPAMI.2012.213), which replaced
    the soft matting of the first paper. For micrographs, see [`dark_sectioning`].

    Args:
        image (`np.ndarray` of shape `[..., 3, H, W]`):
            Photographs, linear in intensity, with 0 for black; of any scale and dtype.
        patch_size (`int`, defaults to `15`): Side of the squares in pixels, odd.
        strength (`float`, defaults to `0.95`): Fraction of the haze to remove. The rest lets distance be seen.
        airlight (`np.ndarray` of shape `[3]`, *optional*): Colour of the densest haze. If omitted, it is estimated.

    Returns:
        [`RestorationOutput`] with the `prediction` `[..., 3, H, W]`, float32, in the unit of the image.

    Raises:
        `ValueError`: If the image has another shape or values that are negative or not finite, or an argument is out
            of range.
    """
    image = np.asarray(image)
    if image.ndim < 3 or image.shape[-3] != 3 or image.size == 0:
        raise ValueError(f"`image` must have the shape [..., 3, H, W], got {image.shape}.")
    if not (np.isfinite(image).all() and image.min() >= 0):
        raise ValueError("`image` must be finite and not negative: remove NaN and subtract the black level.")
    if patch_size < 1 or patch_size % 2 == 0:
        raise ValueError(f"`patch_size` must be a positive odd number of pixels, got {patch_size}.")
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must exceed 0 and be at most 1, got {strength}.")
    width = min(patch_size, (min(image.shape[-2:]) - 1) // 2 * 2 + 1)  # px, odd

    def dehaze(photograph: np.ndarray) -> np.ndarray:  # [3,H,W]
        hazy = torch.from_numpy(photograph)[None]  # [1,3,H,W]
        light = estimate_airlight([*hazy], width) if airlight is None else torch.as_tensor(airlight, dtype=hazy.dtype)
        light = light.clamp(min=1e-6).reshape(3, 1, 1)
        transmission = 1 - strength * dark_channel(hazy / light, width)[0, 0].numpy()
        grey = photograph.mean(axis=0) / max(photograph.max(), 1e-6)
        # Radius and regularisation are those of the second paper, for intensities from 0 to 1.
        transmission = guided_filter(grey, transmission, radius=4 * width, epsilon=1e-3)
        light = light.numpy()
        return (photograph - light) / np.clip(transmission, 0.1, 1) + light  # 0.1 as in the first paper

    photographs = image.astype(np.float32).reshape(-1, *image.shape[-3:])
    prediction = np.stack([dehaze(photograph) for photograph in photographs]).astype(np.float32)
    return RestorationOutput(prediction=prediction.reshape(image.shape))


def dark_channel_prior_of_display(photograph: np.ndarray) -> np.ndarray:
    """[`dark_channel_prior`] for a photograph `[3, H, W]` as in its file: 0 to 255, with the gamma of a display."""
    linear = dark_channel_prior((photograph / 255) ** GAMMA).prediction
    return 255 * np.clip(linear, 0, 1) ** (1 / GAMMA)
