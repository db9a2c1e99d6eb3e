"""Solving the ODE of whole fields with a network that is shown tiles."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.utils import logging
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from haze_pipeline.scheduling_flow_match_ode import FlowMatchODEScheduler
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

# Larger fields are integrated in blocks of this size, so that states and slopes of a whole field need not fit in memory.
BLOCK_SIZE = 2048
BLOCK_OVERLAP = 32

# Axes of `[..., H, W]` along which the network is shown the fields of an ensemble in turn.
FLIPS = ((), (-1,), (-2,), (-2, -1))


class FieldSampler:
    """
    Integrates whole fields from noise at t = 0 to clear images at t = 1, showing the network as much at once as memory
    allows, and less when it runs out.

    Args:
        unet ([`UNet2DModel`]): Velocity field v(t, [x_t, hazy]).
        scheduler ([`FlowMatchODEScheduler`] or [`FlowMatchEulerDiscreteScheduler`]): Solver.
        num_inference_steps (`int`): Its steps.
        size (`tuple[int, int]`): Height and width of the fields, multiples of `scale_factor`.
        scale_factor (`int`): Pixels at full size for one in the network's coarsest level.
        pixel_packing (`int`): The network takes so many × so many pixels for the channels of one.
        patch_size (`int`): Side of the training patches, pixels.
        tile_size (`int`, *optional*): Largest side of the tiles, a multiple of `scale_factor`; 272 when omitted.
        tile_overlap (`int`, *optional*): Pixels shared by neighbouring tiles; 16 or a quarter of the tile when omitted.
        batch_size (`int`, *optional*):
            Tiles, or whole fields that are no larger, in a network call. When omitted, so many that the network takes at
            most half of the free memory: on a CPU one small tile per core, on an accelerator as many as fit.
        device (`torch.device`): Where the network runs.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: FlowMatchODEScheduler | FlowMatchEulerDiscreteScheduler,
        num_inference_steps: int,
        size: tuple[int, int],
        scale_factor: int,
        pixel_packing: int,
        patch_size: int,
        tile_size: int | None,
        tile_overlap: int | None,
        batch_size: int | None,
        device: torch.device,
    ):
        self.unet = unet
        self.scheduler = copy(scheduler)  # counts its steps, which is nobody else's business
        self.num_inference_steps = num_inference_steps
        self.device = device
        self.size = size
        self.scale_factor = scale_factor
        self.pixel_packing = pixel_packing
        self.patch_size = -(-patch_size // scale_factor) * scale_factor
        if tile_size is None:
            tile_size = DEFAULT_TILE_SIZE // scale_factor * scale_factor
        if tile_overlap is None:
            tile_overlap = min(DEFAULT_TILE_OVERLAP, tile_size // 4)
        self.tile_size = tile_size
        self.tile_overlap = tile_overlap
        self.blocks = tile_slices(*size, BLOCK_SIZE, BLOCK_OVERLAP, scale_factor)

        # Tiles in a network call, and calls that run at once. At its peak the first level, the only one of full size,
        # holds about 16 times its channels.
        pixels = min(tile_size, size[0]) * min(tile_size, size[1])
        memory = 16 * unet.config.block_out_channels[0] * unet.dtype.itemsize * pixels // pixel_packing**2
        in_flight = max(1, free_memory(device) // 2 // memory)
        if device.type == "cpu":
            self.tiles_per_call = batch_size or max(1, 2**16 // pixels)
            self.workers = min(torch.get_num_threads(), max(1, in_flight // self.tiles_per_call))
        else:
            self.tiles_per_call = batch_size or in_flight
            self.workers = 1

        self._set_timesteps()
        # Calls of `on_step` for a batch of fields.
        self.num_steps = len(self.scheduler.timesteps) * len(self.blocks)

    @property
    def is_tiled(self) -> bool:
        """Whether the fields are larger than the tiles, which shrink when memory runs out."""
        return max(self.size) > self.tile_size

    def sample(
        self,
        noise: torch.Tensor,
        hazy: torch.Tensor,
        on_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        flips: Sequence[tuple[int, ...]] | None = None,
    ) -> torch.Tensor:
        """
        Posterior samples of whole fields from their noise.

        A field larger than the tiles follows the statistics of [`measure_statistics`]. One of more than 2048 pixels a side
        is integrated in blocks of about that size, which are loaded from `noise` and `hazy` one after the other: with
        shared noise and statistics they agree where they meet.

        Args:
            noise (`torch.Tensor` of shape `[B, 1, h, w]`): The states at t = 0.
            hazy (`torch.Tensor` of shape `[B, 1, h, w]`): Normalised hazy images.
            on_step (`Callable`, *optional*):
                `on_step(timestep, state)` returns the state to go on with; is called after every network call on a block.
            flips (sequence of `tuple[int, ...]`, *optional*): Axes along which the network is shown each field mirrored.

        Returns:
            `torch.Tensor` of shape `[B, 1, h, w]`, float32, on the CPU, like `noise` and `hazy`.
        """
        flips = [()] * len(noise) if flips is None else flips
        while True:
            try:
                return self._sample(noise, hazy, on_step, flips)
            except Exception as error:
                if not is_out_of_memory(error) or not self._shrink():
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(
                f"Out of memory: going on with {self.workers * self.tiles_per_call} tile(s) of at most {self.tile_size} "
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

    def _sample(
        self, noise: torch.Tensor, hazy: torch.Tensor, on_step: Callable | None, flips: Sequence[tuple[int, ...]]
    ) -> torch.Tensor:
        statistics = None
        if self.is_tiled:
            if len(noise) > 1:  # statistics belong to a field
                fields = zip(noise.split(1), hazy.split(1), flips, strict=True)
                return torch.cat([self._sample(*field, on_step, [flip]) for *field, flip in fields])
            statistics = self.measure_statistics(noise, hazy, flips[0])

        def sample_block(rows: slice, columns: slice) -> torch.Tensor:
            condition = hazy[..., rows, columns].to(self.device)

            def velocity(state, t, call):
                return self.predict_velocity(state, condition, t, flips, statistics[call] if statistics else None)

            return self.integrate(noise[..., rows, columns].to(self.device), velocity, on_step).cpu()

        if len(self.blocks) == 1:
            return sample_block(*self.blocks[0])
        sample = allocate(*noise.shape)
        for block, weight in zip(self.blocks, tile_weights(self.blocks), strict=True):
            sample[..., *block] += weight * sample_block(*block)
        return sample

    def measure_statistics(
        self, noise: torch.Tensor, hazy: torch.Tensor, flip: tuple[int, ...] = ()
    ) -> list[GroupNormStatistics]:
        """
        GroupNorm statistics of a field for every network call of a trajectory, measured on 9 patches of the size of the
        training patches from all over the field, which follow trajectories of their own from the field's noise.

        Args:
            noise (`torch.Tensor` of shape `[1, 1, h, w]`): The state at t = 0.
            hazy (`torch.Tensor` of shape `[1, 1, h, w]`): The normalised hazy image.
            flip (`tuple[int, ...]`, *optional*): Axes along which the network is shown the patches mirrored.
        """
        patches = spread_patches(*hazy.shape[-2:], self.patch_size, PATCHES_PER_SIDE, self.scale_factor)
        condition = torch.cat([hazy[..., rows, columns] for rows, columns in patches]).to(self.device)  # [P,1,p,p]
        start = torch.cat([noise[..., rows, columns] for rows, columns in patches]).to(self.device)  # [P,1,p,p]
        measured = []
        with MeasureGroupNorms() as norms:

            def velocity(state, t, call):
                states = torch.cat([state, condition], dim=1).flip(flip)
                velocity = self._call_unet(states, t, channels_last=True).flip(flip)
                measured.append(dict(norms.statistics))
                return velocity

            self.integrate(start, velocity)
        return measured

    def integrate(
        self,
        noise: torch.Tensor,
        velocity: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
        on_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """
        Solve dx/dt = v(x, t) from t = 0 to t = 1 with the scheduler.

        Args:
            noise (`torch.Tensor`): The state at t = 0.
            velocity (`Callable`): `velocity(state, t, call)`, `call` counting network calls from 0.
            on_step (`Callable`, *optional*): `on_step(timestep, state)` returns the state to go on with.
        """
        self._set_timesteps()
        state = noise
        for call, timestep in enumerate(self.scheduler.timesteps):
            # diffusers' σ runs from noise to data downwards, and its velocity is noise − data: both are reversed.
            t = 1 - timestep / self.scheduler.config.num_train_timesteps
            state = self.scheduler.step(-velocity(state, t, call), timestep, state, return_dict=False)[0]
            if on_step is not None:
                state = on_step(timestep, state)
        return state

    def _set_timesteps(self):
        """Set the scheduler's grid and rewind it."""
        if isinstance(self.scheduler, FlowMatchODEScheduler):
            self.scheduler.set_timesteps(self.num_inference_steps, device=self.device)
        else:  # the stock scheduler's own grid stops short of the data
            sigmas = np.linspace(1, 0, self.num_inference_steps + 1)[:-1]
            self.scheduler.set_timesteps(sigmas=sigmas, device=self.device)

    def predict_velocity(
        self,
        latents: torch.Tensor,
        hazy: torch.Tensor,
        t: torch.Tensor,
        flips: Sequence[tuple[int, ...]],
        statistics: GroupNormStatistics | None = None,
    ) -> torch.Tensor:
        """
        v(x_t, hazy, t) of whole fields, from overlapping tiles if they are larger than `tile_size`. Because the
        *velocities* of the tiles are blended, and at every step, all of them integrate one trajectory of one noise field.

        Args:
            latents (`torch.Tensor` of shape `[B, 1, h, w]`): States x_t, float32.
            hazy (`torch.Tensor` of shape `[B, 1, h, w]`): Normalised hazy images.
            t (`torch.Tensor`): Time between 0 (noise) and 1 (clear). A Python float would be cast to 0 by the network.
            flips (sequence of `tuple[int, ...]`): Axes along which the network is shown each field mirrored.
            statistics (`GroupNormStatistics`, *optional*): Shared by all tiles; each takes its own if omitted.

        Returns:
            `torch.Tensor` of shape `[B, 1, h, w]`, float32.
        """
        tiles = tile_slices(*latents.shape[-2:], self.tile_size, self.tile_overlap, self.scale_factor)
        weights = tile_weights(tiles)
        jobs = [
            (index, tile, weight) for tile, weight in zip(tiles, weights, strict=True) for index in range(len(latents))
        ]
        # Tiles of one shape share a call; the largest come first, so that the cores finish together.
        jobs.sort(key=lambda job: job[2].shape, reverse=True)
        batches = []
        for _, group in itertools.groupby(jobs, key=lambda job: job[2].shape):
            same = list(group)
            batches += [same[i : i + self.tiles_per_call] for i in range(0, len(same), self.tiles_per_call)]

        def run(batch) -> torch.Tensor:  # by any thread, which then enters the context itself
            states = torch.stack(
                [torch.stack([latents[i, 0, r, c], hazy[i, 0, r, c]]).flip(flips[i]) for i, (r, c), _ in batch]
            )  # [b,2,h,w]
            with nullcontext() if statistics is None else FixGroupNorms(statistics):
                return self._call_unet(states, t, channels_last=statistics is not None)  # [b,1,h,w]

        velocity = torch.zeros_like(latents)
        for batch, velocities in zip(batches, map_on_cores(run, batches, self.workers), strict=True):
            for (index, (rows, columns), weight), tile_velocity in zip(batch, velocities, strict=True):
                tile_velocity = tile_velocity[0].flip(flips[index])
                velocity[index, 0, rows, columns] += weight.to(velocity.device) * tile_velocity
        return velocity

    def _call_unet(self, states: torch.Tensor, t: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
        """Velocity `[b, 1, h, w]` in float32 of states and hazy images `[b, 2, h, w]`, all of them whole to the network."""
        states = pixel_unshuffle(states, self.pixel_packing)  # [b,2p²,H/p,W/p]
        # Convolutions are faster where the channels of a pixel lie side by side, but torch's own GroupNorm then loses three
        # digits of float32 on the CPU.
        if channels_last or self.unet.dtype != torch.float32:
            states = states.contiguous(memory_format=torch.channels_last)
        velocity = self.unet(states.to(self.unet.dtype), t, return_dict=False)[0]  # [b,p²,H/p,W/p]
        return pixel_shuffle(velocity.float(), self.pixel_packing).contiguous()
