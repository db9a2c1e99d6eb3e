"""
Perceptual metrics by networks trained on photographs: LPIPS, FID and a Fréchet distance of DINOv2 features.

All three compare patches of 64 × 64 px, as the HazeMatching paper does. Each patch is scaled from its own smallest to
its own largest value, so that noise in empty patches is amplified too. Compare values only with others measured by the
same protocol. The extra `perceptual` installs the networks; their weights come from the Hub or from local files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


PATCH = 64
DINOV2_SIDE = 224  # px; patches are enlarged to this side, as in Stein et al.
BATCH = 50  # patches, as in the script of HazeMatching, whose LPIPS is a mean over batches


def unit_patches(images: Sequence[np.ndarray]) -> torch.Tensor:
    """
    Non-overlapping patches `[N, 3, 64, 64]` of images. Each is scaled to [0, 1] and copied to three channels; a
    constant patch becomes 0.

    Raises:
        `ValueError`: If an image is smaller than a patch.
    """
    patches = []
    for image in images:
        if min(image.shape) < PATCH:
            raise ValueError(f"Images must have {PATCH} px or more a side, got {image.shape}.")
        for y in range(0, image.shape[0] - PATCH + 1, PATCH):
            for x in range(0, image.shape[1] - PATCH + 1, PATCH):
                patch = image[y : y + PATCH, x : x + PATCH].astype(np.float32)
                patches.append((patch - patch.min()) / max(float(np.ptp(patch)), np.finfo(np.float32).tiny))
    return torch.from_numpy(np.stack(patches))[:, None].expand(-1, 3, -1, -1)


@torch.no_grad()
def lpips(targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    """
    LPIPS (Zhang et al. 2018, arXiv 1801.03924) with AlexNet, averaged over batches of 50 patches. Computed by
    torchmetrics.

    Raises:
        `ImportError`: If torchvision is not installed.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    measure = _with_extra(lambda: LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True))
    kept = [index for index, patch in enumerate(unit_patches(targets)) if patch.max() > 0]
    pair = (unit_patches(images)[kept].split(BATCH) for images in (predictions, targets))
    return float(np.mean([measure(*batch).item() for batch in zip(*pair, strict=True)]))


def fid(targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    """
    Fréchet distance of the 768 features of Inception v3 before its last blocks (FID-768, Heusel et al. 2017). Computed
    by torchmetrics. Its values are not comparable with those of the usual 2,048 features.

    Raises:
        `ImportError`: If torch-fidelity is not installed.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _frechet_distance(
        _with_extra(lambda: FrechetInceptionDistance(feature=768, normalize=True)), targets, predictions
    )


def dinov2_distance(targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray], tokens: "ClassTokens") -> float:
    """
    Fréchet distance of DINOv2's class tokens (Stein et al. 2023, arXiv 2306.04675). Computed by transformers and
    torchmetrics.

    Args:
        targets (sequence of `np.ndarray` of shape `[H, W]`): Ground truth, 64 px or more a side.
        predictions (sequence of `np.ndarray` of shape `[H, W]`): Estimates. They may show other specimens.
        tokens ([`ClassTokens`]): The network that computes the class tokens.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _frechet_distance(FrechetInceptionDistance(feature=tokens, normalize=True), targets, predictions)


class ClassTokens(torch.nn.Module):
    """
    DINOv2's class tokens `[N, num_features]` of patches `[N, 3, h, w]` in [0, 1].

    Args:
        model (`str` or `Path`): Folder, or repository of the Hub, such as `"facebook/dinov2-small"`.

    Raises:
        `ImportError`: If transformers is not installed.
        `OSError`: If the model is neither a local folder nor can be downloaded.
    """

    def __init__(self, model: str | Path):
        super().__init__()
        try:
            from transformers import Dinov2Model
        except ImportError as error:
            raise ImportError("DINOv2 needs transformers: pip install 'haze-pipeline[perceptual]'.") from error
        try:
            self.network = Dinov2Model.from_pretrained(model).eval()
        except OSError as error:
            raise OSError(
                f"DINOv2 could not be loaded from {model}: name a folder that contains it, or connect to the internet "
                "once to download it."
            ) from error
        self.num_features = self.network.config.hidden_size

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        patches = torch.nn.functional.interpolate(patches, DINOV2_SIDE, mode="bicubic", antialias=True)
        # Mean and standard deviation of ImageNet, with which DINOv2 was trained.
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        return self.network((patches - mean) / std).last_hidden_state[:, 0]


def _frechet_distance(measure, targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    for images, real in ((targets, True), (predictions, False)):
        for batch in unit_patches(images).split(BATCH):
            measure.update(batch, real=real)
    return measure.compute().item()


def _with_extra(make):
    try:
        return make()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"This metric needs the extra `perceptual`: pip install 'haze-pipeline[perceptual]'. {error}"
        ) from error
