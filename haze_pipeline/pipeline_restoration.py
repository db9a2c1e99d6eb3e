"""Base of the restoration pipelines: units, tiles, ensembles, and the conversion of results to counts."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline

from haze_pipeline.sampling.dim_regions import DimRegions, find_dim_regions
from haze_pipeline.sampling.tiled_sampler import FLIPS, TiledSampler
from haze_pipeline.utils.bad_pixels import fill_masked

from .image_processing import HazeImageProcessor, Normalization
from .pipeline_output import RestorationOutput


# State of the current call of every thread: its number of steps, and whether it should stop.
_CALL = threading.local()


class RestorationPipeline(DiffusionPipeline):
    r"""
    Base of pipelines that restore micrographs with one network. A call has the same steps in all of them:

    1. `image_processor.preprocess` cuts the image into planes `[N, 1, H, W]`.
    2. [`normalize`] converts them to network units, and appends copies for regions that are dim beside others.
    3. [`prepare_sampler`] divides fields into tiles. For every batch of planes and members, its `sample` calls the
       function `predict` of the subclass. `predict` receives fields `[B, 1, h, w]` and calls the network as if the
       network processed whole fields.
    4. An [`Ensemble`] reduces the members of a plane.
    5. [`postprocess`] converts the results to counts in the shape of the image.

    A subclass registers its modules and its configuration, and then calls [`prepare_network`].
    """

    model_cpu_offload_seq = "unet"

    def prepare_network(self, unet: torch.nn.Module, num_states: int) -> None:
        """
        Check the channels of the network, and make the image processor from the registered configuration. The network
        receives `num_states` states or conditions and predicts one image, or also a gain of the hazy image.

        Raises:
            `ValueError`: If the channels do not fit the `pixel_packing`.
        """
        packing = self.config.get("pixel_packing", 1)
        if packing < 1:
            raise ValueError(f"`pixel_packing` must be 1 or more pixels, got {packing}.")
        # Networks of images alone register no channels, since they have one of each.
        channels, packed = (unet.config.get("in_channels", 1), unet.config.get("out_channels", 1)), packing**2
        if channels not in [(num_states * packed, packed), (num_states * packed, 2 * packed)]:
            raise ValueError(
                f"`unet` must have {num_states * packed} input channels (state, hazy) and {packed} output channel(s), "
                f"or {2 * packed} with a gain, with `pixel_packing` {packing}, got {channels[0]} and {channels[1]}."
            )
        config = self.config
        self.image_processor = HazeImageProcessor(
            config.normalization, config.input_mean, config.input_std, config.target_mean, config.target_std
        )
        # Every level of a U-Net but the last halves the field, so that the sides of a field must be multiples of this.
        scale_factor = getattr(unet, "scale_factor", None) or 2 ** (len(unet.config.block_out_channels) - 1)
        self.unet_scale_factor = packing * scale_factor

    @property
    def components(self) -> dict:
        """Modules and configuration: `Pipeline(**pipe.components)` is the same pipeline."""
        config = {name: value for name, value in self.config.items() if name[0] != "_"}
        return {**config, **super().components}

    @property
    def num_timesteps(self) -> int:
        """Number of step callbacks in the current or last call of this thread."""
        return getattr(_CALL, "num_timesteps", 0)

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a step callback to stop early. The call then raises a `RuntimeError`."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return getattr(_CALL, "interrupt", False)

    @_interrupt.setter
    def _interrupt(self, value: bool):
        _CALL.interrupt = value

    def check_tiles(self, batch_size: int | None, tile_size: int | None, tile_overlap: int | None, output_type: str):
        """Raise a `ValueError` that names the first invalid argument."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
        if tile_size is not None and (tile_size < 1 or tile_size % self.unet_scale_factor):
            raise ValueError(
                f"`tile_size` must be a positive multiple of {self.unet_scale_factor} for this network, "
                f"got {tile_size}."
            )
        if tile_overlap is not None and tile_size is None:
            raise ValueError("`tile_overlap` needs `tile_size`.")
        if tile_overlap is not None and not 0 <= tile_overlap < tile_size:
            raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap}.")
        if output_type not in ("np", "pt"):
            raise ValueError(f'`output_type` must be "np" or "pt", got {output_type!r}.')

    def check_strength(self, strength: float):
        """Raise a `ValueError` if results cannot be blended with the input in this proportion."""
        if not 0 <= strength <= 1:
            raise ValueError(f"`strength` must lie between 0 and 1, got {strength}.")
        config = self.config
        same_units = (config.input_mean, config.input_std) == (config.target_mean, config.target_std)
        if strength < 1 and config.normalization == "fixed" and not same_units:
            raise ValueError(
                "`strength` must be 1 with this checkpoint, whose predictions are not in the counts of the input."
            )

    def check_sampling(
        self,
        number: int,
        ensemble_size: int,
        strength: float,
        generator: torch.Generator | list[torch.Generator] | None,
        output_uncertainty: bool,
    ):
        """Raise a `ValueError` that names the first invalid argument of a call for `number` planes."""
        if ensemble_size < 1:
            raise ValueError(f"`ensemble_size` must be positive, got {ensemble_size}.")
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("`output_uncertainty` needs `ensemble_size` of 2 or more: one sample has no spread.")
        self.check_strength(strength)
        generators = generator if isinstance(generator, list) else [generator or torch.default_generator]
        if not all(isinstance(each, torch.Generator) and each.device.type == "cpu" for each in generators):
            raise ValueError(
                "`generator` must be a torch.Generator on the CPU or a list of them, "
                f"such as torch.Generator().manual_seed(0), got {generator!r}."
            )
        if isinstance(generator, list) and len(generator) != number:
            raise ValueError(f"`generator` must have one entry per plane, {number}, got {len(generator)}.")

    def normalize(
        self, planes: torch.Tensor, normalization: Normalization | None = None, restore_dim: bool = True
    ) -> tuple[torch.Tensor, Normalization, DimRegions]:
        """
        Convert planes `[N, 1, H, W]` to network units, with the given maps or those of the checkpoint. The copies of
        [`find_dim_regions`] follow the planes, each normalised by itself, unless the checkpoint has fixed statistics.
        Pixels without a measurement (NaN) receive the value of the nearest valid pixel. The maps of a plane without
        contrast turn every prediction into 0.

        Returns:
            Planes and copies `[N + V, 1, H, W]`, their maps, and where the results of the copies are used.

        Raises:
            `ValueError`: If there is neither one map for all planes nor one for each plane.
        """
        if normalization is None:
            normalization = self.image_processor.compute_normalization(planes)
        if len(normalization.input_mean) not in (1, len(planes)):
            raise ValueError(
                f"`normalization` must have one map for all planes or one for each of {len(planes)}, "
                f"got {len(normalization.input_mean)}."
            )
        restore_dim = restore_dim and self.config.normalization == "image"
        dim_regions = find_dim_regions(planes) if restore_dim else DimRegions()
        if dim_regions.sources:
            number, planes = len(planes), dim_regions.followed_by_copies(planes)
            own = self.image_processor.compute_normalization(planes[number:])
            normalization = normalization.expand(number).followed_by(own)
        for plane in planes[:, 0].numpy():
            plane[:] = fill_masked(plane)[0]
        is_blank = (planes.amax(dim=(1, 2, 3)) == planes.amin(dim=(1, 2, 3))).tolist()
        if any(is_blank):
            normalization = normalization.without(is_blank)
        return planes.sub_(normalization.input_mean).div_(normalization.input_std), normalization, dim_regions

    def prepare_sampler(
        self, size: tuple[int, int], tile_size: int | None, tile_overlap: int | None, batch_size: int | None
    ) -> TiledSampler:
        """Sampler for fields of `size` pixels, on the device of the network."""
        return TiledSampler(
            self.unet, self.config.get("pixel_packing", 1), self.unet_scale_factor, size,
            self.config.training_patch_size, tile_size, tile_overlap, batch_size, self._execution_device,
        )  # fmt: skip

    @contextmanager
    def follow_steps(self, num_timesteps: int, callback: Callable | None, names: Iterable[str]) -> Iterator[Callable]:
        """
        Progress bar and step callbacks of one call.

        Args:
            num_timesteps (`int`): Total number of steps.
            callback (`Callable`, *optional*): Called as `callback(pipe, step, timestep, tensors)` after every step.
            names (iterable of `str`): Tensors that the callback receives; `"latents"` is the state.

        Yields:
            `Callable`: Function to call with timestep and state after every step. It returns the next state.

        Raises:
            `RuntimeError`: If the callback interrupts the call.
        """
        _CALL.interrupt, _CALL.num_timesteps = False, num_timesteps
        step = 0

        def on_step(timestep: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            nonlocal step
            if callback is not None:
                tensors = {}
                for name in names:
                    tensors[name] = {"latents": state}[name]
                replaced = callback(self, step, timestep, tensors) or {}
                state = replaced.get("latents", state)
            step += 1
            progress_bar.update()
            if self.interrupt:
                raise RuntimeError(f"Interrupted after {step} solver steps; there is no image yet.")
            return state

        with self.progress_bar(total=num_timesteps) as progress_bar:
            try:
                yield on_step
            finally:
                self.maybe_free_model_hooks()

    def flips(self, members: Iterable[int]) -> list[tuple[int, ...]]:
        """Axes along which the members of an ensemble are mirrored for the network, in turn."""
        return [FLIPS[member % len(FLIPS)] if self.config.mirror_members else () for member in members]

    def postprocess(
        self,
        units: torch.Tensor | None,
        shape: tuple[int, ...],
        output_type: str,
        hazy: torch.Tensor,
        normalization: Normalization,
        dim_regions: DimRegions,
        masked: torch.Tensor | None = None,
        strength: float = 1.0,
        is_spread: bool = False,
    ) -> np.ndarray | torch.Tensor | None:
        """
        Convert results from network units to counts, in place, and merge those of planes and copies.

        Args:
            units (`torch.Tensor` of shape `[..., N + V, 1, H, W]`, *optional*): The results in network units.
            shape (`tuple[int, ...]`): Shape to return.
            output_type (`str`): `"np"` or `"pt"`.
            hazy (`torch.Tensor` of shape `[N + V, 1, H, W]`): The input in network units, as for the next two.
            normalization ([`Normalization`]): Maps between counts and network units.
            dim_regions ([`DimRegions`]): Where the results of the copies are used.
            masked (`torch.Tensor` of shape `[N, 1, H, W]`, *optional*): Pixels that become NaN.
            strength (`float`, defaults to `1.0`): Fraction of the difference between input and result to apply.
            is_spread (`bool`, defaults to `False`): Whether the results are standard deviations, which have no offset.
        """
        if units is None:
            return None
        units.mul_(normalization.target_std)
        if is_spread:
            units.mul_(strength)
        else:
            units.add_(normalization.target_mean)
        units = dim_regions.merge(units, have_offset=not is_spread)
        if strength < 1 and not is_spread:
            number = units.shape[-4]  # without the copies
            counts = hazy[:number] * normalization.input_std[:number] + normalization.input_mean[:number]
            units.lerp_(counts, 1 - strength)
        if masked is not None:
            units.masked_fill_(masked, torch.nan)
        units = units.reshape(shape)
        return units.numpy() if output_type == "np" else units

    def call_each(self, images: list, latents, generator, return_dict: bool, **arguments) -> RestorationOutput | tuple:
        """Call the pipeline on every image of a list. The fields of the output are lists."""
        if not images or latents is not None or isinstance(generator, list):
            raise ValueError(
                "A list of images must not be empty, and cannot be combined with `latents` or a list of generators."
            )
        outputs = [self(image, generator=generator, **arguments) for image in images]

        def join(name: str) -> list | None:
            values = [getattr(output, name) for output in outputs]
            return None if values[0] is None else values

        joined = RestorationOutput(
            prediction=join("prediction"), uncertainty=join("uncertainty"), samples=join("samples"),
            interval_factors=outputs[0].interval_factors, hot_pixels=sum(output.hot_pixels for output in outputs),
        )  # fmt: skip
        return joined if return_dict else (joined.prediction, joined.uncertainty, joined.samples)
