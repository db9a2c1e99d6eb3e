"""Dehazing by iterated restoration in the latent space of a hierarchical variational autoencoder."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from haze_pipeline.models.latent_restoration import LatentRestoration
from haze_pipeline.sampling.tiled_sampler import TiledSampler
from haze_pipeline.sampling.tiling import tile_slices, tile_weights
from haze_pipeline.utils.arrays import allocate

from .image_processing import Normalization
from .pipeline_output import RestorationOutput
from .pipeline_restoration import RestorationPipeline
from .pipeline_storage import PipelineStorageMixin


VARIANTS = ("one_step", "direct", "latent_combination", "clean_combination", "refinement", "reprojection")


class LatentRestorationPipeline(PipelineStorageMixin, RestorationPipeline):
    r"""
    Dehazing in the latent space of a hierarchical VAE, one level of haze after another.

    The hazy image has the level T of haze, and the clear one the level 0. At every level t, the restoration R
    estimates the clear latents, ẑ₀ = R(zₜ, t). The variants differ in how they get from there to zₜ₋₁:

    - `"one_step"`: not at all. The result is that of R(z_T, T).
    - `"direct"`: by the learned degradation, zₜ₋₁ = G⁽ᵗ⁾(ẑ₀).
    - `"latent_combination"`: zₜ₋₁ = α G⁽ᵗ⁾(ẑ₀) + (1 - α) zₜ.
    - `"clean_combination"`: as `"direct"`, but with averages of the estimates of both levels, α R(zₜ₋₁, t - 1) +
      (1 - α) ẑ₀.
    - `"refinement"`: restoration, a pass through the autoencoder, and degradation alternate `num_refinements` times at
      every level.
    - `"reprojection"`: from the decoded estimate x̂₀ and the hazy image itself, zₜ₋₁ = E((1 - fₜ₋₁) x̂₀ + fₜ₋₁ x_T). The
      fractions fₜ of the haze were measured on the pinhole series of the training. Estimates are averaged as by
      `"clean_combination"`. This is similar to InDI (Delbracio & Milanfar 2023, arXiv 2303.11435), with the
      autoencoder between the steps.

    Errors of one step are part of the input of the next one. The states therefore drift away from the latents of true
    images, with which R was trained. They drift least in the last variant, if R was trained further with states of its
    own (`train_latent_restoration.py --own_states`).

    Args:
        unet ([`LatentRestoration`]): Autoencoder, restoration and degradation. It has this name in all pipelines.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        haze_fractions (`list[float]`): Haze of the levels 1 … T as a fraction of that of level T, which is 1.
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the pixel sizes in training, µm.

    Raises:
        `ValueError`: If the network is another one, or there are not as many fractions as levels.
    """

    stores_code = False

    def __init__(
        self,
        unet: LatentRestoration,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        haze_fractions: list[float] | None = None,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        if not isinstance(unet, LatentRestoration):
            raise ValueError(f"`unet` must be a LatentRestoration, got {type(unet).__name__}.")
        haze_fractions = list(haze_fractions or ())
        if len(haze_fractions) != unet.config.num_levels:
            raise ValueError(
                f"`haze_fractions` must have one entry for each of {unet.config.num_levels} levels, "
                f"got {len(haze_fractions)}."
            )
        self.register_modules(unet=unet)
        self.register_to_config(
            normalization=normalization,
            input_mean=input_mean,
            input_std=input_std,
            target_mean=target_mean,
            target_std=target_std,
            haze_fractions=haze_fractions,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )
        self.prepare_network(unet, num_states=1)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor | list[np.ndarray | torch.Tensor],
        variant: str = "one_step",
        alpha: float = 0.5,
        num_refinements: int = 1,
        batch_size: int | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        strength: float = 1.0,
        normalization: Normalization | None = None,
        output_type: str = "np",
        output_trajectory: bool = False,
        restore_dim: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> RestorationOutput | tuple:
        r"""
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or a list of them):
                Hazy micrograph(s), see [`HazeMatchingPipeline`].
            variant (`str`, defaults to `"one_step"`): How to get from level to level, see above.
            alpha (`float`, defaults to `0.5`): Weight α of what is new, for both combinations and `"reprojection"`.
            num_refinements (`int`, defaults to `1`):
                Passes through the autoencoder at every level, for `"refinement"`.
            batch_size (`int`, *optional*): Planes per network call.
            tile_size (`int`, *optional*):
                Largest side of the tiles, a multiple of the network's scale factor. If omitted, about 272 pixels, or
                the whole field up to twice that. Tiles are blended after every network call. Each has its own
                statistics of GroupNorm, so that results of tiles and of the whole field differ a little.
            tile_overlap (`int`, *optional*): Pixels shared by neighbouring tiles.
            strength (`float`, defaults to `1.0`): Fraction of what was taken for haze that is removed.
            normalization ([`Normalization`], *optional*): See [`HazeMatchingPipeline`].
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors on the CPU.
            output_trajectory (`bool`, defaults to `False`): Also return the decoded estimate of every level.
            restore_dim (`bool`, defaults to `True`): Restore much dimmer regions again, see [`HazeMatchingPipeline`].
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, t, tensors)` at every level, `"latents"` being
                those of the next level, `[B, C, h, w]`.
            callback_on_step_end_tensor_inputs (sequence of `str`, defaults to `("latents",)`): Its tensors.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`RestorationOutput`] with the `prediction` and, if requested, the `trajectory` `[T, ..., H, W]`; or the
            tuple `(prediction, trajectory)`. Lists if `image` is a list.

        Raises:
            `ValueError`: If an argument is out of range, or the image is infinite, empty or less than 2-D.
            `RuntimeError`: If the callback interrupts the call.
        """
        if isinstance(image, list):
            arguments = {name: value for name, value in locals().items() if name not in ("self", "image", "__class__")}
            outputs = [self(each, **{**arguments, "return_dict": True}) for each in image]
            output = RestorationOutput(
                prediction=[each.prediction for each in outputs],
                trajectory=[each.trajectory for each in outputs] if output_trajectory else None,
                hot_pixels=sum(each.hot_pixels for each in outputs),
            )
            return output if return_dict else (output.prediction, output.trajectory)

        # Shapes: N planes, V copies, B in a batch, T levels, (H,W) the image, latents [B,C,H/s,W/s].

        # 1. Check all inputs; cut the image into planes; find pixels without a measurement and outliers.
        planes = self.image_processor.preprocess(image, allow_masked=True)  # [N,1,H,W]
        shape = tuple(np.shape(image))
        self.check_tiles(batch_size, tile_size, tile_overlap, output_type)
        self.check_strength(strength)
        self.check_variant(variant, alpha, num_refinements)
        masked = planes.isnan() if planes.isnan().any() else None  # [N,1,H,W]
        hot_pixels = self.image_processor.replace_hot_pixels(planes)

        # 2. Normalise, append copies for dim regions, and extend to sides that the network accepts.
        hazy, normalization, dim_regions = self.normalize(planes, normalization, restore_dim)  # [N+V,1,H,W]
        network, num_levels, fractions = self.unet, self.unet.config.num_levels, self.config.haze_fractions
        sampler = self.prepare_sampler(hazy.shape[-2:], tile_size, tile_overlap, batch_size)
        hazy = sampler.pad(hazy)  # [N+V,1,H,W]
        encode = partial(map_tiles, sampler, network.encode, cell_out=network.latent_size)
        decode = partial(map_tiles, sampler, network.decode, cell_in=network.latent_size)

        def on_latents(function, latents, t):
            size = network.latent_size
            return map_tiles(sampler, partial(function, t=t), latents, cell_in=size, cell_out=size)

        degrade, restore = partial(on_latents, network.degrade), partial(on_latents, network.restore)

        # 3. From the haziest level to the clear image, batch by batch.
        batches = torch.arange(len(hazy)).split(sampler.fields_per_batch)
        last = num_levels if variant == "one_step" else 1
        estimates = allocate(num_levels - last + 1, *hazy.shape)  # [T,N+V,1,H,W]
        num_timesteps = len(batches) * len(estimates)
        with self.follow_steps(num_timesteps, callback_on_step_end, callback_on_step_end_tensor_inputs) as on_step:
            for batch in batches:
                latents, clear = encode(hazy[batch]), None  # [B,C,H/s,W/s]
                for index, t in enumerate(range(num_levels, last - 1, -1)):
                    restored = restore(latents, t)
                    if variant in ("clean_combination", "reprojection") and clear is not None:
                        restored = alpha * restored + (1 - alpha) * clear
                    clear = restored
                    if output_trajectory or t == last or variant == "reprojection":
                        estimates[index, batch] = decode(clear)
                    if t > last:
                        if variant == "reprojection":
                            fraction = fractions[t - 2]  # of the level t - 1
                            image = (1 - fraction) * estimates[index, batch] + fraction * hazy[batch]  # [B,1,H,W]
                            latents = encode(image - image.mean(dim=(2, 3), keepdim=True))
                        elif variant == "refinement":
                            for repeat in range(num_refinements):
                                if repeat > 0:
                                    clear = restore(latents, t - 1)
                                latents = degrade(encode(decode(clear)), t)
                        elif variant == "latent_combination":
                            latents = alpha * degrade(clear, t) + (1 - alpha) * latents
                        else:
                            latents = degrade(clear, t)
                    latents = on_step(torch.tensor(t), latents)

        # 4. Return to the size, the units and the shape of the image.
        estimates, hazy = (each[..., : shape[-2], : shape[-1]] for each in (estimates, hazy))
        finish = partial(
            self.postprocess, output_type=output_type, hazy=hazy, normalization=normalization,
            dim_regions=dim_regions, masked=masked, strength=strength,
        )  # fmt: skip
        prediction = finish(estimates[-1].clone(), shape)
        trajectory = finish(estimates, (len(estimates), *shape)) if output_trajectory else None
        output = RestorationOutput(prediction=prediction, trajectory=trajectory, hot_pixels=hot_pixels)
        return output if return_dict else (output.prediction, output.trajectory)

    def check_variant(self, variant: str, alpha: float, num_refinements: int):
        """Raise a `ValueError` that names the first invalid argument."""
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be {', '.join(VARIANTS[:-1])} or {VARIANTS[-1]}, got {variant!r}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must lie between 0 and 1, got {alpha}.")
        if num_refinements < 1:
            raise ValueError(f"`num_refinements` must be positive, got {num_refinements}.")


def map_tiles(
    sampler: TiledSampler, function: Callable, fields: torch.Tensor, cell_in: int = 1, cell_out: int = 1
) -> torch.Tensor:
    """
    Apply a function to the overlapping tiles of fields, and blend its results.

    Args:
        sampler ([`TiledSampler`]): Divides the fields.
        function (`Callable`): From tiles `[B, C, h / cell_in, w / cell_in]` to `[B, c, h / cell_out, w / cell_out]`.
        fields (`torch.Tensor` of shape `[B, C, H / cell_in, W / cell_in]`): Fields of the extended size (H, W).
        cell_in (`int`, defaults to `1`): Pixels of the image per pixel of `fields`, along each side.
        cell_out (`int`, defaults to `1`): The same for the results. Both divide the scale factor of the sampler.

    Returns:
        `torch.Tensor` of shape `[B, c, H / cell_out, W / cell_out]`, float32, on the CPU.
    """

    def in_cells(part: slice, cell: int) -> slice:
        return slice(part.start // cell, part.stop // cell)

    tiles = tile_slices(*sampler.size, sampler.tile_size, sampler.tile_overlap, sampler.scale_factor)
    targets = [tuple(in_cells(part, cell_out) for part in tile) for tile in tiles]
    result = None
    for tile, target, weight in zip(tiles, targets, tile_weights(targets), strict=True):
        part = fields[..., *(in_cells(each, cell_in) for each in tile)].to(sampler.device)
        restored = function(part).float().cpu()
        if result is None:
            result = torch.zeros(*restored.shape[:2], *(side // cell_out for side in sampler.size))
        result[..., *target] += weight * restored
    return result
