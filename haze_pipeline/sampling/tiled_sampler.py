"""Restoring whole fields with a network that is shown tiles."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils import logging
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from haze_pipeline.utils.arrays import allocate
from haze_pipeline.utils.devices import free_memory, is_out_of_memory, map_on_cores

from .shared_group_norm import FixGroupNorms, GroupNormStatistics, MeasureGroupNorms
from .tiling import spread_patches, tile_slices, tile_weights


logger = logging.get_logger(__name__)

# Tiles of this size keep a convolution within the cache of a CPU, and 4 × 4 of them cover 1024 px.
DEFAULT_TILE_SIZE = 272
DEFAULT_TILE_OVERLAP = 16

# GroupNorm statistics are measured on 3 × 3 patches of the training size; the reference trains on 128 px.
PATCHES_PER_SIDE = 3
DEFAULT_PATCH_SIZE = 128

# Larger fields are restored in blocks of this size, so that states of a whole field need not fit in memory.
BLOCK_SIZE = 2048
BLOCK_OVERLAP = 32

# Axes of `[..., H, W]` along which the network is shown the members of an ensemble in turn.
FLIPS = ((), (-1,), (-2,), (-2, -1))

# From states and conditions `[B, C, h, w]` and a time to what the network predicts, `[B, c, h, w]`, float32.
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# `predict(network, latents, hazy, on_step)`: from latents and hazy images `[B, 1, h, w]` to restored ones, by one or
# more network calls.
Predict = Callable[[Network, torch.Tensor, torch.Tensor, Callable | None], torch.Tensor]


def predict_packed(
    unet: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], states: torch.Tensor, t: torch.Tensor, packing: int
) -> torch.Tensor:
    """
    What a network predicts that takes `packing` × `packing` pixels for the channels of one.

    A network with two outputs predicts a gain of the hazy image and what to add to it: an image without haze then
    passes as it is, however bright, which is hard to say for layers that normalise their features.

    Args:
        unet (`Callable`): From `[B, C·packing², h / packing, w / packing]` and the time to packed outputs.
        states (`torch.Tensor` of shape `[B, C, h, w]`): States and conditions, the hazy image last.
        t (`torch.Tensor`): Time, one or one for each of B.
        packing (`int`): Pixels along each side.

    Returns:
        `torch.Tensor` of shape `[B, 1, h, w]`, float32.
    """
    packed = unet(pixel_unshuffle(states, packing), t)
    predicted = pixel_shuffle(packed.float(), packing)  # [B,1 or 2,h,w]
    if predicted.shape[1] == 1:
        return predicted.contiguous()
    remainder, gain = predicted.chunk(2, dim=1)
    return remainder + gain * states[:, -1:]


class TiledSampler:
    """
    Restores whole fields, showing the network as much at once as memory allows, and less when it runs out.

    Args:
        unet ([`UNet2DModel`]): The network.
        pixel_packing (`int`): It takes so many × so many pixels for the channels of one.
        scale_factor (`int`): Pixels at full size for one in the network's coarsest level.
        size (`tuple[int, int]`): Height and width of the fields, which are mirrored to multiples of `scale_factor`.
        patch_size (`int`, *optional*): Side of the training patches, pixels; 128 if omitted.
        tile_size (`int`, *optional*): Largest side of the tiles, a multiple of `scale_factor`; 272 when omitted.
        tile_overlap (`int`, *optional*): Pixels shared by neighbouring tiles; 16 or a quarter of the tile when
            omitted.
        batch_size (`int`, *optional*):
            Tiles, or whole fields that are no larger, in a network call. When omitted, so many that the network takes
            at most half of the free memory: on a CPU one small tile per core, on an accelerator as many as fit.
        device (`torch.device`): Where the network runs.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        pixel_packing: int,
        scale_factor: int,
        size: tuple[int, int],
        patch_size: int | None,
        tile_size: int | None,
        tile_overlap: int | None,
        batch_size: int | None,
        device: torch.device,
    ):
        self.unet, self.pixel_packing, self.scale_factor, self.device = unet, pixel_packing, scale_factor, device
        self.padding = (-size[0] % scale_factor, -size[1] % scale_factor)
        self.size = (size[0] + self.padding[0], size[1] + self.padding[1])
        self.patch_size = -(-(patch_size or DEFAULT_PATCH_SIZE) // scale_factor) * scale_factor
        if tile_size is None:
            tile_size = DEFAULT_TILE_SIZE // scale_factor * scale_factor
        if tile_overlap is None:
            tile_overlap = min(DEFAULT_TILE_OVERLAP, tile_size // 4)
        self.tile_size, self.tile_overlap = tile_size, tile_overlap
        self.blocks = tile_slices(*self.size, BLOCK_SIZE, BLOCK_OVERLAP, scale_factor)

        # Tiles in a network call, and calls that run at once. At its peak the first level, the only one of full size,
        # holds about 16 times its channels.
        pixels = min(tile_size, self.size[0]) * min(tile_size, self.size[1])
        memory = 16 * unet.config.block_out_channels[0] * unet.dtype.itemsize * pixels // pixel_packing**2
        in_flight = max(1, free_memory(device) // 2 // memory)
        if device.type == "cpu":
            self.tiles_per_call = batch_size or max(1, 2**16 // pixels)
            self.workers = min(torch.get_num_threads(), max(1, in_flight // self.tiles_per_call))
        else:
            self.tiles_per_call = batch_size or in_flight
            self.workers = 1
        # The members of a tiled field follow one another.
        self.fields_per_batch = 1 if self.is_tiled else batch_size or max(1, 2**20 // (self.size[0] * self.size[1]))

    @property
    def is_tiled(self) -> bool:
        """Whether the fields are larger than the tiles, which shrink when memory runs out."""
        return max(self.size) > self.tile_size

    def sample(
        self,
        predict: Predict,
        latents: torch.Tensor,
        hazy: torch.Tensor,
        flips: Sequence[tuple[int, ...]],
        on_step: Callable | None = None,
    ) -> torch.Tensor:
        """
        Restore fields.

        A field larger than the tiles follows the statistics of [`measure_statistics`]. One of more than 2048 pixels a
        side is restored in blocks of about that size, one after the other: with shared latents and statistics they
        agree where they meet.

        Args:
            predict (`Callable`): See [`Predict`]; is called for every block, and before for the patches that tell the
                statistics.
            latents (`torch.Tensor` of shape `[B, 1, H, W]`): What it starts from.
            hazy (`torch.Tensor` of shape `[B, 1, H, W]`): Normalised hazy images.
            flips (sequence of `tuple[int, ...]`): Axes along which the network is shown each field mirrored.
            on_step (`Callable`, *optional*): Is passed to `predict` of blocks.

        Returns:
            `torch.Tensor` of shape `[B, 1, H, W]`, float32, on the CPU, like `latents` and `hazy`.
        """
        height, width = hazy.shape[-2:]
        latents, hazy = self._pad(latents), self._pad(hazy)  # [B,1,h,w]
        while True:
            try:
                return self._sample(predict, latents, hazy, flips, on_step)[..., :height, :width]
            except Exception as error:
                if not is_out_of_memory(error) or not self._shrink():
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(
                f"Out of memory: going on with {self.workers * self.tiles_per_call} tile(s) of at most "
                f"{self.tile_size} "
                "pixels at once."
            )

    def _shrink(self) -> bool:
        """Halve what is in memory at once, the tiles themselves last. `False` if nothing is left to halve."""
        if self.workers > 1:
            self.workers //= 2
        elif self.tiles_per_call > 1:
            self.tiles_per_call //= 2
        elif self.tile_size // 2 >= 4 * self.scale_factor:
            self.tile_size = self.tile_size // 2 // self.scale_factor * self.scale_factor
            self.tile_overlap = min(self.tile_overlap, self.tile_size // 4)
        else:
            return False
        return True

    def _sample(self, predict, latents, hazy, flips, on_step) -> torch.Tensor:
        statistics = None
        if self.is_tiled:
            if len(hazy) > 1:  # statistics belong to a field
                fields = zip(latents.split(1), hazy.split(1), flips, strict=True)
                return torch.cat([self._sample(predict, *field, [flip], on_step) for *field, flip in fields])
            statistics = self.measure_statistics(predict, latents, hazy, flips[0])

        def sample_block(rows: slice, columns: slice) -> torch.Tensor:
            calls = itertools.count()

            def network(states: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return self._call_on_tiles(states, t, flips, statistics[next(calls)] if statistics else None)

            start, condition = (each[..., rows, columns].to(self.device) for each in (latents, hazy))
            return predict(network, start, condition, on_step).cpu()

        if len(self.blocks) == 1:
            return sample_block(*self.blocks[0])
        sample = allocate(*hazy.shape)
        for block, weight in zip(self.blocks, tile_weights(self.blocks), strict=True):
            sample[..., *block] += weight * sample_block(*block)
        return sample

    def measure_statistics(
        self, predict: Predict, latents: torch.Tensor, hazy: torch.Tensor, flip: tuple[int, ...] = ()
    ) -> list[GroupNormStatistics]:
        """
        GroupNorm statistics of a field `[1, 1, h, w]` for every network call of `predict`, measured on 9 patches of
        the size of the training patches from all over the field, which are restored for that from the field's own
        latents.
        """
        patches = spread_patches(*hazy.shape[-2:], self.patch_size, PATCHES_PER_SIDE, self.scale_factor)
        start, condition = (
            torch.cat([field[..., rows, columns] for rows, columns in patches]).to(self.device)
            for field in (latents, hazy)
        )  # [P,1,p,p]
        measured = []
        with MeasureGroupNorms() as norms:

            def network(states: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                norms.statistics = []
                predicted = self._call_unet(states.flip(flip), t, channels_last=True).flip(flip)
                measured.append(norms.statistics)
                return predicted

            predict(network, start, condition, None)
        return measured

    def _call_on_tiles(
        self,
        states: torch.Tensor,
        t: torch.Tensor,
        flips: Sequence[tuple[int, ...]],
        statistics: GroupNormStatistics | None,
    ) -> torch.Tensor:
        """
        What the network predicts from whole fields `[B, C, h, w]`, from overlapping tiles if they are larger than
        `tile_size`. Predictions of the tiles are blended, and at every step, so that all of them follow one
        trajectory.
        """
        tiles = tile_slices(*states.shape[-2:], self.tile_size, self.tile_overlap, self.scale_factor)
        weights = tile_weights(tiles)
        jobs = [
            (index, tile, weight) for tile, weight in zip(tiles, weights, strict=True) for index in range(len(states))
        ]
        # Tiles of one shape share a call; the largest come first, so that the cores finish together.
        jobs.sort(key=lambda job: job[2].shape, reverse=True)
        batches = []
        for _, group in itertools.groupby(jobs, key=lambda job: job[2].shape):
            same = list(group)
            batches += [same[i : i + self.tiles_per_call] for i in range(0, len(same), self.tiles_per_call)]

        def run(batch) -> torch.Tensor:  # by any thread, which then enters the context itself
            shown = torch.stack([states[i, :, r, c].flip(flips[i]) for i, (r, c), _ in batch])  # [b,C,h,w]
            with nullcontext() if statistics is None else FixGroupNorms(statistics):
                return self._call_unet(shown, t, channels_last=statistics is not None)  # [b,c,h,w]

        predicted = None
        for batch, parts in zip(batches, map_on_cores(run, batches, self.workers), strict=True):
            if predicted is None:
                predicted = states.new_zeros(len(states), parts.shape[1], *states.shape[-2:])  # [B,c,h,w]
            for (index, (rows, columns), weight), part in zip(batch, parts, strict=True):
                predicted[index, :, rows, columns] += weight.to(part.device) * part.flip(flips[index])
        return predicted

    def _call_unet(self, states: torch.Tensor, t: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
        """
        Prediction `[b, 1, h, w]` in float32 of `[b, C, h, w]`, all of which the network sees at once.
        """
        # Convolutions are faster where the channels of a pixel lie side by side, but torch's own GroupNorm then loses
        # three digits of float32 on the CPU.
        channels_last = channels_last or self.unet.dtype != torch.float32

        def unet(packed: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if channels_last:
                packed = packed.contiguous(memory_format=torch.channels_last)
            return self.unet(packed.to(self.unet.dtype), t, return_dict=False)[0]

        return predict_packed(unet, states, t, self.pixel_packing)

    def _pad(self, fields: torch.Tensor) -> torch.Tensor:
        """
        Mirror `[B, 1, H, W]` past its lower and right edges; NumPy's mirror, unlike torch's, may be wider than the
        image.
        """
        if self.padding == (0, 0):
            return fields
        *leading, height, width = fields.shape
        rows = np.pad(np.arange(height), (0, self.padding[0]), mode="symmetric")
        columns = np.pad(np.arange(width), (0, self.padding[1]), mode="symmetric")
        padded = allocate(*leading, len(rows), len(columns))
        padded[..., :height, :width] = fields
        padded[..., height:, :width] = fields[..., rows[height:], :]
        padded[..., width:] = padded[..., columns[width:]]
        return padded
