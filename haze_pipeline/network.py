"""HazeMatching's two networks as stock `UNet2DModel`s."""

from diffusers import UNet2DModel


# Channels of each level, by patch size. Attention stands where the feature map of a patch has 16 px a side, which is the
# second coarsest level of both networks.
BLOCK_OUT_CHANNELS = {128: (32, 32, 64, 96, 128), 64: (32, 64, 96, 128)}


def build_unet(patch_size: int = 128) -> UNet2DModel:
    """A new velocity field for training on patches of 128 px (3.7 million parameters) or 64 px."""
    plain = len(BLOCK_OUT_CHANNELS[patch_size]) - 2  # levels above the one with attention
    return UNet2DModel(
        sample_size=patch_size,
        in_channels=2,  # x_t and the hazy image
        out_channels=1,
        layers_per_block=1,
        block_out_channels=BLOCK_OUT_CHANNELS[patch_size],
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * plain,
        attention_head_dim=None,  # one head
        norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,  # torchcfm puts the cosines first ...
        freq_shift=0,  # ... and divides the exponent by the number of frequencies, not by one less
    )


def check_network(unet: UNet2DModel, resolution: int) -> None:
    """
    Raise a `ValueError` if a network does not map the state and the hazy image to one image, or patches of `resolution` pixels
    cannot be halved at every level of it but the last.
    """
    channels = (unet.config.in_channels, unet.config.out_channels)
    if channels != (2, 1):
        raise ValueError(
            "The network must have 2 input channels, for the state and the hazy image, and 1 output channel, but has "
            f"{channels[0]} and {channels[1]}."
        )
    factor = 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution % factor:
        raise ValueError(f"--resolution must be a multiple of {factor} for this network, got {resolution}.")
