"""Restoration of whole fields by a network that processes tiles."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from haze_pipeline.utils.arrays import allocate
from haze_pipeline.utils.devices import free_memory, is_out_of_memory, map_on_cores

from .pixel_packing import predict_packed, remove_lattice_in_bands
from .shared_group_norm import FixGroupNorms, GroupNormStatistics, MeasureGroupNorms
from .tiling import spread_patches, tile_slices, tile_weights


logger = logging.get_logger(__name__)

# In pixels of the network, which are packed. Smaller tiles cost more per pixel; the features of larger ones do not fit
# into the cache of a CPU. A field of up to twice this size is not divided: the network then measures the statistics of
# GroupNorm on the whole field at no cost, and is as fast if all cores share its layers.
DEFAULT_TILE_SIZE = 272
DEFAULT_TILE_OVERLAP = 16

# GroupNorm statistics are measured on 3 × 3 patches of the training size. HazeMatching trains on patches of 128 px.
PATCHES_PER_SIDE = 3
DEFAULT_PATCH_SIZE = 128

# Larger fields are restored in blocks of this size, so that the states of a whole field need not fit in memory.
BLOCK_SIZE = 2048
BLOCK_OVERLAP = 32

# Axes of `[..., H, W]` along which the members of an ensemble are mirrored, in turn.
FLIPS = ((), (-1,), (-2,), (-2, -1))

# Maps states and conditions `[B, C, h, w]` and a time to the prediction of the network, `[B, c, h, w]`, float32. The
# time is `None` for a network without one.
Network = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
# `predict(network, latents, hazy, on_step)` maps latents `[B, C, h, w]` and hazy images `[B, 1, h, w]` to restored
# images, by one or more network calls.
Predict = Callable[[Network, torch.Tensor, torch.Tensor, Callable | None], torch.Tensor]


class TiledSampler:
    """
    Restores whole fields. The network processes as many tiles at once as memory allows, and fewer if memory runs out.

    Args:
        unet ([`UNet2DModel`], [`ImageNetwork`] or [`AutoencoderHierarchical`]): The network.
        pixel_packing (`int`): Side of the squares of pixels that the network receives as the channels of one pixel.
        scale_factor (`int`): Pixels of the field per pixel of the network's coarsest level, along each side.
        size (`tuple[int, int]`):
            Height and width of the fields, pixels. Fields are extended by mirroring to multiples of `scale_factor`.
        patch_size (`int`, *optional*): Side of the training patches, pixels; 128 if omitted.
        tile_size (`int`, *optional*):
            Largest side of the tiles, pixels, a multiple of `scale_factor`. If omitted, 272 pixels of the network, or
            the whole field if it has at most twice as many, or if the network averages over its image and the field
            fits in memory.
        tile_overlap (`int`, *optional*):
            Pixels shared by neighbouring tiles; 16, or a quarter of the tile if that is less, if omitted.
        batch_size (`int`, *optional*):
            Tiles, or fields no larger than a tile, per network call. If omitted, the network uses at most half of the
            free memory: one small tile per core on a CPU, as many tiles as fit on an accelerator.
        device (`torch.device`): Device of the network.
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
        self.has_group_norm = any(isinstance(module, torch.nn.GroupNorm) for module in unet.modules())

        # The first level is the only one at full resolution. At its peak, it holds about 16 times its channels.
        channels = unet.config.get("num_features") or unet.config.block_out_channels[0]
        pixel_memory = 16 * channels * unet.dtype.itemsize / pixel_packing**2
        available = free_memory(device) // 2
        if tile_size is None:
            tile_size = DEFAULT_TILE_SIZE * pixel_packing // scale_factor * scale_factor
            fits = pixel_memory * min(self.size[0], BLOCK_SIZE) * min(self.size[1], BLOCK_SIZE) <= available
            if max(self.size) <= 2 * tile_size or (fits and getattr(unet, "pools_image", False)):
                tile_size = max(self.size)
        if tile_overlap is None:
            tile_overlap = min(DEFAULT_TILE_OVERLAP, tile_size // 4)
        self.tile_size, self.tile_overlap = tile_size, tile_overlap
        self.blocks = tile_slices(*self.size, BLOCK_SIZE, BLOCK_OVERLAP, scale_factor)

        # Tiles per network call, and calls that run at once.
        pixels = min(tile_size, self.size[0]) * min(tile_size, self.size[1])
        in_flight = max(1, int(available // (pixel_memory * pixels)))
        if device.type == "cpu":
            self.tiles_per_call = batch_size or max(1, 2**16 // pixels)
            self.workers = min(torch.get_num_threads(), max(1, in_flight // self.tiles_per_call))
        else:
            self.tiles_per_call = batch_size or in_flight
            self.workers = 1
        # The members of a tiled field are restored one after another.
        fields = batch_size or max(self.workers, 2**20 // (self.size[0] * self.size[1]))
        self.fields_per_batch = 1 if self.is_tiled else fields

    @property
    def is_tiled(self) -> bool:
        """Whether the fields are larger than a tile. Tiles shrink when memory runs out."""
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

        All tiles of a field use the statistics of [`measure_statistics`]. A field of more than 2048 pixels a side is
        restored in blocks of about that size, one after another. The blocks share latents and statistics, so that they
        agree where they overlap.

        Args:
            predict (`Callable`):
                See [`Predict`]. It is called on the patches that provide the statistics, and then on every block.
            latents (`torch.Tensor` of shape `[B, C, H, W]`):
                Initial states or noise. Noise that belongs to larger squares of pixels has the size `self.size`, that
                of the extended fields.
            hazy (`torch.Tensor` of shape `[B, 1, H, W]`): Normalised hazy images.
            flips (sequence of `tuple[int, ...]`): Axes along which each field is mirrored for the network.
            on_step (`Callable`, *optional*): Passed to `predict` for blocks, not for patches.

        Returns:
            `torch.Tensor` of shape `[B, 1, H, W]`, float32, on the CPU, like `latents` and `hazy`.
        """
        height, width = hazy.shape[-2:]
        latents, hazy = self.pad(latents), self.pad(hazy)  # [B,C,h,w], [B,1,h,w]
        while True:
            try:
                restored = self._sample(predict, latents, hazy, flips, on_step)[..., :height, :width]
                return remove_lattice_in_bands(restored) if self.pixel_packing == 2 else restored
            except Exception as error:
                if not is_out_of_memory(error) or not self._shrink():
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(
                f"Out of memory: continuing with {self.workers * self.tiles_per_call} tile(s) at once, of at most "
                f"{self.tile_size} pixels a side."
            )

    def _shrink(self) -> bool:
        """Halve the number of tiles at once or, at one tile, its size. `False` if neither can be halved any more."""
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
            if len(hazy) > 1:  # every field has its own statistics
                fields = zip(latents.split(1), hazy.split(1), flips, strict=True)
                return torch.cat([self._sample(predict, *field, [flip], on_step) for *field, flip in fields])
            if self.has_group_norm:
                statistics = self.measure_statistics(predict, latents, hazy, flips[0])

        def sample_block(rows: slice, columns: slice) -> torch.Tensor:
            calls = itertools.count()

            def network(states: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
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
        Measure the GroupNorm statistics of a field `[1, 1, h, w]` for every network call of `predict`. For this, 9
        patches of the training size from all over the field are restored from the field's own latents.
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
        t: torch.Tensor | None,
        flips: Sequence[tuple[int, ...]],
        statistics: GroupNormStatistics | None,
    ) -> torch.Tensor:
        """
        Prediction of the network for whole fields `[B, C, h, w]`, from overlapping tiles if the fields are larger than
        `tile_size`. The predictions of the tiles are blended at every step, so that all tiles follow one trajectory.
        """
        tiles = tile_slices(*states.shape[-2:], self.tile_size, self.tile_overlap, self.scale_factor)
        weights = tile_weights(tiles)
        jobs = [
            (index, tile, weight) for tile, weight in zip(tiles, weights, strict=True) for index in range(len(states))
        ]
        # Tiles of one shape share a call. The largest come first, so that all cores finish at about the same time.
        jobs.sort(key=lambda job: job[2].shape, reverse=True)
        batches = []
        for _, group in itertools.groupby(jobs, key=lambda job: job[2].shape):
            same = list(group)
            batches += [same[i : i + self.tiles_per_call] for i in range(0, len(same), self.tiles_per_call)]

        def run(batch) -> torch.Tensor:  # in any thread, so that each enters the context itself
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

    def _call_unet(self, states: torch.Tensor, t: torch.Tensor | None, channels_last: bool = False) -> torch.Tensor:
        """Prediction `[b, 1, h, w]`, float32, for fields or tiles `[b, C, h, w]` that the network processes whole."""
        # Convolutions are faster if the channels of a pixel are adjacent in memory, but torch's own GroupNorm then
        # loses three digits of float32 on the CPU.
        channels_last = channels_last or self.unet.dtype != torch.float32

        def unet(packed: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
            packed = packed.to(self.unet.dtype)
            if channels_last:
                packed = packed.contiguous(memory_format=torch.channels_last)
            return self.unet(packed)[-1] if t is None else self.unet(packed, t, return_dict=False)[0]

        return predict_packed(unet, states, t, self.pixel_packing)

    def pad(self, fields: torch.Tensor) -> torch.Tensor:
        """
        Mirror `[B, C, H, W]` at its lower and right edges. NumPy, unlike torch, can mirror by more than the size of
        the image. Fields of the extended size stay as they are.
        """
        if fields.shape[-2:] == self.size:
            return fields
        *leading, height, width = fields.shape
        rows = np.pad(np.arange(height), (0, self.padding[0]), mode="symmetric")
        columns = np.pad(np.arange(width), (0, self.padding[1]), mode="symmetric")
        padded = allocate(*leading, len(rows), len(columns))
        padded[..., :height, :width] = fields
        padded[..., height:, :width] = fields[..., rows[height:], :]
        padded[..., width:] = padded[..., columns[width:]]
        return padded
