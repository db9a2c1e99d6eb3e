"""
The posterior mean of a HazeMatching pipeline as one network in plain torch. Packages for bioimage.io contain this
code, so that their users need torch alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from haze_pipeline.sampling.lattice import remove_lattice


class ResidualBlock(nn.Module):
    """Two convolutions, the features of the time between them, and a bypass."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """Self-attention between all pixels of a feature map."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float):
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.group_norm(x.flatten(2)).transpose(1, 2)  # [B,hw,C]
        q, k, v = self.split(self.to_q(h)), self.split(self.to_k(h)), self.split(self.to_v(h))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B,hw,C]
        return x + self.to_out[0](h).transpose(1, 2).reshape(x.shape)

    def split(self, h: torch.Tensor) -> torch.Tensor:
        """`[B, hw, C]` to `[B, heads, hw, C / heads]`."""
        return h.unflatten(2, [self.heads, -1]).transpose(1, 2)


class Resample(nn.Module):
    """A convolution that halves the sides of a feature map, or doubles them."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.up = stride == 1
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:  # torch 2.5 cannot load `interpolate` from the TorchScript of later versions
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self.conv(x)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention or not."""

    def __init__(self, in_channels: list[int], out_channels: int, time_channels: int, groups: int, eps: float):
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResidualBlock(channels, out_channels, time_channels, groups, eps) for channels in in_channels]
        )
        self.attentions = nn.ModuleList([nn.Identity() for _ in in_channels])
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()


class UNet(nn.Module):
    """
    The `UNet2DModel` of diffusers at the time 0, with the same names of parameters.

    Args:
        in_channels (`int`): Number of input channels.
        out_channels (`int`): Number of output channels.
        block_out_channels (`list[int]`): Channels of each level, from the finest to the coarsest.
        down_heads (`list[int]`): Heads of the attention of each level on the way down; 0 for none.
        mid_heads (`int`): Heads of the attention between both ways.
        up_heads (`list[int]`): Heads of each level on the way up, from the coarsest to the finest.
        layers_per_block (`int`): Residual blocks of each level on the way down.
        groups (`int`): Groups of GroupNorm.
        eps (`float`): Number that GroupNorm adds to variances.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: list[int],
        down_heads: list[int],
        mid_heads: int,
        up_heads: list[int],
        layers_per_block: int,
        groups: int,
        eps: float,
    ):
        super().__init__()
        width = block_out_channels[0]
        self.frequencies = width // 2
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(width, 4 * width), "linear_2": nn.Linear(4 * width, 4 * width)}
        )
        shared = {"time_channels": 4 * width, "groups": groups, "eps": eps}

        # 1. Down. Every feature map is kept for the way up.
        skipped = [width]
        self.down_blocks = nn.ModuleList()
        for index, channels in enumerate(block_out_channels):
            level = Level([width] + (layers_per_block - 1) * [channels], channels, **shared)
            if down_heads[index] > 0:
                level.attentions = nn.ModuleList(
                    [Attention(channels, down_heads[index], groups, eps) for _ in level.resnets]
                )
            skipped += layers_per_block * [channels]
            if index < len(block_out_channels) - 1:
                level.downsamplers.append(Resample(channels, 2))
                skipped.append(channels)
            self.down_blocks.append(level)
            width = channels

        # 2. Between.
        self.mid_block = Level([width, width], width, **shared)
        self.mid_block.attentions = nn.ModuleList([Attention(width, mid_heads, groups, eps)])

        # 3. Up. Every residual block also sees a feature map of the way down.
        self.up_blocks = nn.ModuleList()
        for index, channels in enumerate(block_out_channels[::-1]):
            inputs = [(channels if i else width) + skipped.pop() for i in range(layers_per_block + 1)]
            level = Level(inputs, channels, **shared)
            if up_heads[index] > 0:
                level.attentions = nn.ModuleList(
                    [Attention(channels, up_heads[index], groups, eps) for _ in level.resnets]
                )
            if index < len(block_out_channels) - 1:
                level.upsamplers.append(Resample(channels, 1))
            self.up_blocks.append(level)
            width = channels

        self.conv_norm_out = nn.GroupNorm(groups, width, eps)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, in_channels, h, w]` to `[B, out_channels, h, w]`."""
        # At the time 0, all cosines of the time are 1, and all sines 0.
        waves = torch.cat([torch.ones_like(x[:, 0, 0, :1]), torch.zeros_like(x[:, 0, 0, :1])], dim=1)  # [B,2]
        time = self.time_embedding["linear_1"](waves.repeat_interleave(self.frequencies, dim=1))
        time = self.time_embedding["linear_2"](F.silu(time))
        x = self.conv_in(x)
        skipped = [x]  # TorchScript knows no `strict` of the loops below
        for level in self.down_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):  # noqa: B905
                x = attention(resnet(x, time))
                skipped.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skipped.append(x)
        x = self.mid_block.resnets[0](x, time)
        x = self.mid_block.resnets[1](self.mid_block.attentions[0](x), time)
        for level in self.up_blocks:
            for resnet, attention in zip(level.resnets, level.attentions):  # noqa: B905
                x = attention(resnet(torch.cat([x, skipped.pop()], dim=1), time))
            for upsample in level.upsamplers:
                x = upsample(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class PosteriorMean(nn.Module):
    """
    The result of the preset `fast` as one function of the image: the posterior mean E[clear | hazy] by one step. The
    step starts from zeros or, for a checkpoint that needs noise, from two fixed antithetic pairs of noises. If the
    checkpoint was trained for it, the network sees each member mirrored along other axes. Regions that are dim beside
    others are not restored again, see [`DimRegions`].

    Args:
        network (`dict`): Arguments of [`UNet`].
        noise_shape (`list[int]`): Shape `[E, 1, n, n]` of the stored noise of the E members. It repeats across larger
            images.
        flips (`list[list[int]]`): For each member, the axes along which the network sees it mirrored.
        pixel_packing (`int`): Side of the squares of pixels that the network receives as the channels of one.
        scale_factor (`int`): Images are continued by their mirror image to sides of a multiple of this many pixels.
        fixed (`bool`): Normalise with `input_mean` and `input_std` instead of with the statistics of the image.
        input_mean (`float`): Mean of the hazy training images in counts; only used if `fixed`.
        input_std (`float`): Standard deviation of the hazy training images in counts; only used if `fixed`.
        target_mean (`float`): Mean of the clear training images, in counts if `fixed`, else in units of the standard
            deviation of the band-pass filtered hazy image.
        target_std (`float`): Standard deviation of the clear training images, in the same unit.
    """

    flips: list[list[int]]  # TorchScript cannot infer the type of a list that may be empty

    def __init__(
        self,
        network: dict,
        noise_shape: list[int],
        flips: list[list[int]],
        pixel_packing: int,
        scale_factor: int,
        fixed: bool,
        input_mean: float,
        input_std: float,
        target_mean: float,
        target_std: float,
    ):
        super().__init__()
        self.unet = UNet(**network)
        self.register_buffer("noise", torch.zeros(noise_shape))
        self.flips = flips
        self.pixel_packing = pixel_packing
        self.scale_factor = scale_factor
        self.fixed = fixed
        self.input_mean = input_mean
        self.input_std = input_std
        self.target_mean = target_mean
        self.target_std = target_std

    def forward(self, hazy: torch.Tensor) -> torch.Tensor:
        """Map counts `[B, 1, H, W]` of any size to counts of the clear image, of the same shape."""
        height, width = hazy.shape[-2], hazy.shape[-1]
        input_mean = torch.full_like(hazy[:, :, :1, :1], self.input_mean)
        input_std = torch.full_like(input_mean, self.input_std)
        unit = torch.ones_like(input_mean)
        if not self.fixed:
            exact = hazy.double()
            exact_mean = exact.mean([2, 3], keepdim=True)
            input_mean = exact_mean.to(hazy.dtype)
            # Without the mean, single precision suffices for the filters; ONNX Runtime has no others.
            std = self.band_pass_std((exact - exact_mean).to(hazy.dtype))
            # Rounding errors of a constant plane are not structure.
            unit = torch.where(std > 1e-6 * exact.abs().amax([2, 3], keepdim=True), std, torch.zeros_like(std))
            unit = unit.to(hazy.dtype)
            input_std = torch.where(unit > 0, self.target_std * unit, torch.ones_like(unit))
        is_blank = hazy.amax([2, 3], keepdim=True) == hazy.amin([2, 3], keepdim=True)
        unit = torch.where(is_blank, torch.zeros_like(unit), unit)
        normalized = (hazy - input_mean) / input_std
        # Sides that are written as multiples let the exporter of ONNX follow them through all levels.
        factor = self.scale_factor
        rows = self.mirror(height, 0, (height + factor - 1) // factor * factor - height, hazy.device)
        columns = self.mirror(width, 0, (width + factor - 1) // factor * factor - width, hazy.device)
        normalized = normalized[:, :, rows][:, :, :, columns]  # [B,1,h,w]
        mean = torch.zeros_like(hazy)
        for member in range(len(self.flips)):
            noise = self.noise[member : member + 1, :, rows % self.noise.shape[-2]]
            noise = noise[:, :, :, columns % self.noise.shape[-1]].expand(len(hazy), -1, -1, -1)  # [B,1,h,w]
            inputs = torch.cat([noise, normalized], dim=1).flip(self.flips[member])  # [B,2,h,w]
            sample = noise + self.velocity(inputs).flip(self.flips[member])  # [B,1,h,w]
            mean = mean + sample[:, :, :height, :width] / len(self.flips)
        clear = (mean * self.target_std + self.target_mean) * unit
        return remove_lattice(clear) if self.pixel_packing == 2 else clear

    def velocity(self, inputs: torch.Tensor) -> torch.Tensor:
        """
        Map states and hazy images `[B, 2, h, w]` to velocities `[B, 1, h, w]`. A network with two outputs predicts a
        gain of the hazy image and a remainder to add.
        """
        packed = self.unet(F.pixel_unshuffle(inputs, self.pixel_packing))
        predicted = F.pixel_shuffle(packed, self.pixel_packing)
        if predicted.shape[1] == 2:
            return predicted[:, :1] + predicted[:, 1:] * inputs[:, 1:]
        return predicted.contiguous()

    def mirror(self, length: int, before: int, after: int, device: torch.device) -> torch.Tensor:
        """
        Indices that continue an axis by its mirror image on either side. The edge pixel is repeated, as in SciPy's
        mode "reflect".
        """
        index = torch.arange(-before, length + after, device=device)
        index = index % torch.full_like(index, 2 * length)  # ONNX knows no remainder by a number that is not fixed
        return torch.where(index < length, index, 2 * length - 1 - index)

    def blur(self, image: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian filter with a standard deviation of `sigma` px, cut off at four standard deviations as in SciPy."""
        radius = int(4 * sigma + 0.5)
        kernel = torch.exp(
            -0.5 * (torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype) / sigma) ** 2
        )
        kernel = kernel / kernel.sum()
        image = F.conv2d(
            image[:, :, self.mirror(image.shape[2], radius, radius, image.device)], kernel[None, None, :, None]
        )
        return F.conv2d(
            image[:, :, :, self.mirror(image.shape[3], radius, radius, image.device)], kernel[None, None, None]
        )

    def band_pass_std(self, centred: torch.Tensor) -> torch.Tensor:
        """
        Standard deviation `[B, 1, 1, 1]`, in double precision, of the difference of Gaussians of 1 px and 10 px of
        images without their mean, see `HazeImageProcessor` of haze-pipeline.
        """
        band = (self.blur(centred, 1.0) - self.blur(centred, 10.0)).double()
        return (band - band.mean([2, 3], keepdim=True)).square().mean([2, 3], keepdim=True).sqrt()
