"""Restormer, a transformer for restoration (Zamir et al. 2022, arXiv 2111.09881), with the layers of MONAI."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from haze_pipeline.utils.console import require

from .image_network import ImageNetwork


class Restormer(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    Restormer needs the extra `baselines`. Its attention compares channels, each over the whole image. MONAI's layers
    also normalise every channel over the image (the paper: over the channels of a pixel). The result of a pixel
    therefore depends on the tile. The pipeline restores a field as a whole if it fits in memory. A field of more than
    2048 pixels a side is always divided.

    Args:
        num_features (`int`, defaults to `48`): Channels at full resolution. Each coarser scale has twice as many.
        num_blocks (`tuple[int, ...]`, defaults to `(4, 6, 6, 8)`): Transformer blocks at each scale.
        num_heads (`tuple[int, ...]`, defaults to `(1, 2, 4, 8)`): Heads of the attention at each scale.
        num_refinement_blocks (`int`, defaults to `4`): Transformer blocks after the decoder, at full resolution.
        expansion (`float`, defaults to `2.66`): Factor by which the feed-forward layers increase the channels.

    Raises:
        `ImportError`: If MONAI is not installed.
    """

    pools_image = True

    @register_to_config
    def __init__(
        self,
        num_features: int = 48,
        num_blocks: tuple[int, ...] = (4, 6, 6, 8),
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        num_refinement_blocks: int = 4,
        expansion: float = 2.66,
    ):
        super().__init__()
        require("baselines", "einops", "monai")
        from monai.networks.nets.restormer import Restormer as Layers

        # Twice the factor between the finest and the coarsest scale, which MONAI requires to exceed one pixel.
        self.scale_factor = 2 ** len(num_blocks)
        self.layers = Layers(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            dim=num_features,
            num_blocks=num_blocks,
            heads=num_heads,
            num_refinement_blocks=num_refinement_blocks,
            ffn_expansion_factor=expansion,
        )

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "Restormer":
        """Load the network, see [`ModelMixin`]. Raises an `ImportError` if MONAI is not installed."""
        # While diffusers loads weights, torch's functions for initial weights return nothing. MONAI must not be
        # imported then, because it keeps one of them for good and uses what it returns.
        require("baselines", "einops", "monai")
        import monai.networks.nets.restormer  # noqa: F401

        return super().from_pretrained(*args, **kwargs)

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, 1, h, w]`, see [`ImageNetwork`]. The layers predict what is added to the image."""
        return (hazy + self.layers(hazy),)
