"""HazeMatching's two networks as stock `UNet2DModel`s."""

import torch
from diffusers import UNet2DModel
from torch import nn


# Channels of each level, by patch size. Attention is at the second coarsest level of both networks, where the feature
# map of a patch has 16 px a side.
BLOCK_OUT_CHANNELS = {128: (32, 32, 64, 96, 128), 64: (32, 64, 96, 128)}


def build_unet(patch_size: int = 128, pixel_packing: int = 1, guided: bool = True) -> UNet2DModel:
    """
    A new network for the velocity field, to be trained on patches of 128 px (3.7 million parameters) or 64 px.

    Args:
        patch_size (`int`): 128 or 64.
        pixel_packing (`int`): With p, every p × p pixels become the channels of one pixel, as diffusers packs the
            latents of Flux. The receptive field is then p times wider, and the cost per pixel about p² times lower.
        guided (`bool`): Whether the hazy image is a second input, besides the state.
    """
    plain = len(BLOCK_OUT_CHANNELS[patch_size]) - 2  # levels above the one with attention
    return UNet2DModel(
        sample_size=patch_size,
        in_channels=(2 if guided else 1) * pixel_packing**2,  # x_t and the hazy image
        out_channels=pixel_packing**2,
        layers_per_block=1,
        block_out_channels=BLOCK_OUT_CHANNELS[patch_size],
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * plain,
        attention_head_dim=None,  # one head
        # The 32 groups of the reference normalise each of 32 channels separately, which removes their relative
        # brightness.
        norm_num_groups=32 if pixel_packing == 1 else 8,
        norm_eps=1e-5,
        flip_sin_to_cos=True,  # torchcfm puts the cosines first ...
        freq_shift=0,  # ... and divides the exponent by the number of frequencies, not by that number minus one
    )


def add_gain(unet: UNet2DModel) -> None:
    """
    Extend a network that predicts one image so that it also predicts a gain of the hazy image, see [`predict_packed`].
    At first, the gain is 0.
    """
    convolution = unet.conv_out
    wider = nn.Conv2d(convolution.in_channels, 2 * convolution.out_channels, 3, padding=1)
    for name in ("weight", "bias"):
        old = getattr(convolution, name).data
        getattr(wider, name).data = torch.cat([old, torch.zeros_like(old)])
    unet.conv_out = wider
    unet.register_to_config(out_channels=wider.out_channels)


def check_network(unet: UNet2DModel, resolution: int, pixel_packing: int = 1, guided: bool = True) -> None:
    """
    Check that a network suits the pipeline and the patch size.

    Raises:
        `ValueError`: If the network does not map the state and, if `guided`, the hazy image (packed pixels) to one
            image and, optionally, a gain, or if patches of `resolution` pixels cannot be packed and halved between its
            levels.
    """
    channels, packed = (unet.config.in_channels, unet.config.out_channels), pixel_packing**2
    inputs, seen = (2 * packed, "the state and the hazy image") if guided else (packed, "the state")
    if channels not in [(inputs, packed), (inputs, 2 * packed)]:
        raise ValueError(
            f"The network must have {inputs} input channels, for {seen}, and {packed} output channel(s), or "
            f"{2 * packed} with a gain, but has {channels[0]} and {channels[1]}."
        )
    factor = pixel_packing * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution % factor:
        raise ValueError(f"--resolution must be a multiple of {factor} for this network, got {resolution}.")
