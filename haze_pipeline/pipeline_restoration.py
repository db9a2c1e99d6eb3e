"""What restoration pipelines share: units, tiles, ensembles, and the way back to counts."""

from collections.abc import Iterable

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel

from haze_pipeline.sampling.tiled_sampler import FLIPS, TiledSampler

from .image_processing import HazeImageProcessor, Normalization
from .pipeline_output import RestorationOutput


class RestorationPipeline(DiffusionPipeline):
    r"""
    Base of pipelines that restore micrographs with one network. A call runs through the same steps in all of them:

    1. `image_processor.preprocess` cuts the image into planes `[N, 1, H, W]`.
    2. [`normalize`] brings them to network units.
    3. [`prepare_sampler`] divides fields into tiles. For every batch of planes and members, its `sample` calls the
       function `predict` of the subclass, which sees fields `[B, 1, h, w]` and calls the network as if it saw them as
       a whole.
    4. An [`Ensemble`] reduces the members of a plane.
    5. [`postprocess`] returns counts in the shape of the image.

    A subclass registers its modules and its configuration, and then calls [`prepare_network`].
    """

    model_cpu_offload_seq = "unet"

    def prepare_network(self, unet: UNet2DModel, num_states: int) -> None:
        """
        Check the channels of the network, which is shown `num_states` states or conditions and predicts one image,
        or also a gain of the hazy one, and keep what the registered configuration says about units.

        Raises:
            `ValueError`: If the channels do not fit the `pixel_packing`.
        """
        packing = self.config.pixel_packing
        if packing < 1:
            raise ValueError(f"`pixel_packing` must be 1 or more pixels, got {packing}.")
        channels, packed = (unet.config.in_channels, unet.config.out_channels), packing**2
        if channels not in [(num_states * packed, packed), (num_states * packed, 2 * packed)]:
            raise ValueError(
                f"`unet` must have {num_states * packed} input channels (state, hazy) and {packed} output channel(s), "
                f"or {2 * packed} with a gain, with `pixel_packing` {packing}, got {channels[0]} and {channels[1]}."
            )
        config = self.config
        self.image_processor = HazeImageProcessor(
            config.normalization, config.input_mean, config.input_std, config.target_mean, config.target_std
        )
        # Every level but the last halves the field, so that its sides must be multiples of this.
        self.unet_scale_factor = packing * 2 ** (len(unet.config.block_out_channels) - 1)

    @property
    def components(self) -> dict:
        """Modules and configuration, so that `Pipeline(**pipe.components)` is the same pipeline."""
        config = {name: value for name, value in self.config.items() if name[0] != "_"}
        return {**config, **super().components}

    def check_tiles(self, batch_size: int | None, tile_size: int | None, tile_overlap: int | None, output_type: str):
        """Raise a `ValueError` that names the first argument at fault."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
        if tile_size is not None and (tile_size < 1 or tile_size % self.unet_scale_factor):
            raise ValueError(
                f"`tile_size` must be a positive multiple of {self.unet_scale_factor} for this network, got "
                f"{tile_size}."
            )
        if tile_overlap is not None and tile_size is None:
            raise ValueError("`tile_overlap` needs `tile_size`.")
        if tile_overlap is not None and not 0 <= tile_overlap < tile_size:
            raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap}.")
        if output_type not in ("np", "pt"):
            raise ValueError(f'`output_type` must be "np" or "pt", got {output_type!r}.')

    def normalize(
        self, planes: torch.Tensor, normalization: Normalization | None = None
    ) -> tuple[torch.Tensor, Normalization]:
        """
        Bring planes `[N, 1, H, W]` to network units, in place, with the maps that are given or those that the
        checkpoint asks for.

        Raises:
            `ValueError`: If there is neither one map for all planes nor one for each.
        """
        if normalization is None:
            normalization = self.image_processor.compute_normalization(planes)
        if len(normalization.input_mean) not in (1, len(planes)):
            raise ValueError(
                f"`normalization` must be one for all planes or one for each of {len(planes)}, got "
                f"{len(normalization.input_mean)}."
            )
        return planes.sub_(normalization.input_mean).div_(normalization.input_std), normalization

    def prepare_sampler(
        self, size: tuple[int, int], tile_size: int | None, tile_overlap: int | None, batch_size: int | None
    ) -> TiledSampler:
        """The tiles of fields of `size` pixels on the device of the network."""
        return TiledSampler(
            self.unet, self.config.pixel_packing, self.unet_scale_factor, size, self.config.training_patch_size,
            tile_size,
            tile_overlap, batch_size, self._execution_device,
        )  # fmt: skip

    def flips(self, members: Iterable[int]) -> list[tuple[int, ...]]:
        """Axes along which the network is shown the members of an ensemble mirrored, in turn."""
        return [FLIPS[member % len(FLIPS)] if self.config.mirror_members else () for member in members]

    def postprocess(
        self,
        units: torch.Tensor | None,
        normalization: Normalization,
        shape: tuple[int, ...],
        output_type: str,
        offset=True,
    ) -> np.ndarray | torch.Tensor | None:
        """Results in network units, with or without their offset, in counts and `shape`. In place."""
        if units is None:
            return None
        units.mul_(normalization.target_std)
        if offset:
            units.add_(normalization.target_mean)
        units = units.reshape(shape)
        return units.numpy() if output_type == "np" else units

    @staticmethod
    def join_outputs(outputs: list[RestorationOutput], return_dict: bool) -> RestorationOutput | tuple:
        """The outputs of a list of images as one, whose fields are lists."""

        def join(name: str) -> list | None:
            values = [getattr(output, name) for output in outputs]
            return None if values[0] is None else values

        joined = RestorationOutput(
            prediction=join("prediction"), uncertainty=join("uncertainty"), samples=join("samples"),
            interval_factors=outputs[0].interval_factors,
        )  # fmt: skip
        return joined if return_dict else (joined.prediction, joined.uncertainty, joined.samples)
