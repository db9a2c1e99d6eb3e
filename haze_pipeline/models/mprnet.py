"""MPRNet, a network that restores an image in three stages (Zamir et al. 2021, arXiv 2102.02808)."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from .image_network import ImageNetwork
from .rcan import ChannelAttentionBlock, ResidualGroup


def split(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Divide images `[B, C, h, w]` into patches `[B · rows · columns, C, h / rows, w / columns]`."""
    batch, channels, height, width = images.shape
    patches = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)


def join(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Join the patches of [`split`] to images `[B, C, h, w]`."""
    _, channels, height, width = patches.shape
    images = patches.reshape(-1, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return images.reshape(-1, channels, rows * height, columns * width)


def conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)


class EncoderDecoder(nn.Module):
    """
    U-Net of three scales, with two channel attention blocks a scale (section 3.1). If `fuses`, its encoder also
    receives the features of the stage before (section 3.3).
    """

    def __init__(self, widths: list[int], block: dict, fuses: bool):
        super().__init__()

        def blocks(channels: int) -> nn.Sequential:
            return nn.Sequential(*(ChannelAttentionBlock(channels, **block) for _ in range(2)))

        self.encoders = nn.ModuleList(blocks(channels) for channels in widths)
        self.decoders = nn.ModuleList(blocks(channels) for channels in widths)
        self.skips = nn.ModuleList(ChannelAttentionBlock(channels, **block) for channels in widths[:-1])
        self.downsamplers = nn.ModuleList(conv(widths[i], widths[i + 1], 1) for i in range(2))
        self.upsamplers = nn.ModuleList(conv(widths[i + 1], widths[i], 1) for i in range(2))
        self.fusions = nn.ModuleList(conv(2 * channels, channels, 1) for channels in widths) if fuses else None

    def forward(self, hidden_states: torch.Tensor, before: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """
        Map features `[B, C, h, w]`, and what the stage before returned, to the features of encoder and decoder at
        every scale, concatenated: `[B, 2C, h, w]`, `[B, 2C', h/2, w/2]`, `[B, 2C", h/4, w/4]`.
        """
        encoded = []
        for i, encoder in enumerate(self.encoders):
            if i > 0:
                hidden_states = self.downsamplers[i - 1](F.max_pool2d(encoded[-1], 2))
            hidden_states = encoder(hidden_states)
            encoded.append(hidden_states if before is None else hidden_states + self.fusions[i](before[i]))

        decoded = [self.decoders[2](encoded[2])]
        for i in (1, 0):
            upsampled = F.interpolate(decoded[0], scale_factor=2, mode="bilinear", align_corners=False)
            decoded.insert(0, self.decoders[i](self.upsamplers[i](upsampled) + self.skips[i](encoded[i])))
        return [torch.cat(pair, dim=1) for pair in zip(encoded, decoded, strict=True)]


class SupervisedAttention(nn.Module):
    """Restore the image from the features of a stage, and let it choose the features to pass on (section 3.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 1)
        self.to_image = conv(channels, 1, 1)
        self.to_mask = conv(1, channels, 1)

    def forward(self, hidden_states: torch.Tensor, hazy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        restored = hazy + self.to_image(hidden_states)
        return hidden_states + self.to_mask(restored).sigmoid() * self.conv(hidden_states), restored


class MPRNet(ImageNetwork, ModelMixin, ConfigMixin):
    r"""
    Multi-stage progressive restoration. The first stage sees the quarters of an image, the second its upper and lower
    half, the third all of it at full resolution. The defaults are those for deblurring. The attention averages over
    the image, and the quarters depend on its size, so that the result depends slightly on the size of the tile.

    Args:
        num_features (`int`, defaults to `96`): Channels of the first two stages at full resolution.
        added_features (`int`, defaults to `48`): Channels that each coarser scale has in addition.
        last_features (`int`, defaults to `128`): Channels of the last stage.
        num_last_blocks (`int`, defaults to `8`): Blocks in each of the three groups of the last stage.
        reduction (`int`, defaults to `4`): Factor by which the attention reduces the number of channels.
    """

    scale_factor = 8
    pools_image = True

    @register_to_config
    def __init__(
        self,
        num_features: int = 96,
        added_features: int = 48,
        last_features: int = 128,
        num_last_blocks: int = 8,
        reduction: int = 4,
    ):
        super().__init__()
        widths = [num_features, num_features + added_features, num_features + 2 * added_features]
        block = {"reduction": reduction, "bias": False, "activation": nn.PReLU}
        self.shallow = nn.ModuleList(
            nn.Sequential(conv(1, num_features, 3), ChannelAttentionBlock(num_features, **block)) for _ in range(3)
        )
        self.stages = nn.ModuleList(EncoderDecoder(widths, block, fuses) for fuses in (False, True))
        self.attention = nn.ModuleList(SupervisedAttention(num_features) for _ in range(2))
        self.merges = nn.ModuleList(conv(2 * num_features, channels, 3) for channels in (num_features, last_features))
        self.last_fusions = nn.ModuleList(conv(2 * channels, last_features, 1) for channels in widths)
        self.last_groups = nn.ModuleList(ResidualGroup(last_features, num_last_blocks, **block) for _ in range(3))
        self.conv_out = conv(last_features, 1, 3)

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Restore hazy images `[B, 1, h, w]` in three stages, see [`ImageNetwork`]."""
        # 1. Quarters.
        scales = self.stages[0](self.shallow[0](split(hazy, 2, 2)))
        scales = [join(scale, 2, 2) for scale in scales]  # [B,2C,h,w], [B,2C',h/2,w/2], [B,2C",h/4,w/4]
        attended, first = self.attention[0](scales[0].chunk(2, dim=1)[1], hazy)

        # 2. Upper and lower half.
        shallow = self.shallow[1](split(hazy, 2, 1))
        hidden_states = self.merges[0](torch.cat([shallow, split(attended, 2, 1)], dim=1))
        scales = self.stages[1](hidden_states, [split(scale, 2, 1) for scale in scales])
        scales = [join(scale, 2, 1) for scale in scales]
        attended, second = self.attention[1](scales[0].chunk(2, dim=1)[1], hazy)

        # 3. The whole image, at full resolution.
        hidden_states = self.merges[1](torch.cat([self.shallow[2](hazy), attended], dim=1))
        for group, fusion, scale in zip(self.last_groups, self.last_fusions, scales, strict=True):
            fused = F.interpolate(fusion(scale), size=hazy.shape[-2:], mode="bilinear", align_corners=False)
            hidden_states = group(hidden_states) + fused
        return first, second, hazy + self.conv_out(hidden_states)
