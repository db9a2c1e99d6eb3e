"""Dehazing by a hierarchical variational autoencoder, as in Hierarchical DivNoising (HDN)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from haze_pipeline.models.autoencoder_hierarchical import AutoencoderHierarchical
from haze_pipeline.sampling.ensemble import Ensemble
from haze_pipeline.sampling.initial_noise import replays
from haze_pipeline.sampling.uncertainty import predict_stds

from .image_processing import Normalization
from .pipeline_output import RestorationOutput
from .pipeline_restoration import RestorationPipeline
from .pipeline_storage import PipelineStorageMixin


class HDNPipeline(PipelineStorageMixin, RestorationPipeline):
    r"""
    Dehazing by a hierarchical variational autoencoder (VAE) that was trained on pairs: it encodes the hazy image, and
    decodes the clear one (Prakash et al. 2022, arXiv 2104.01374). Every noise leads to other latents, and thus to
    another sample. The mean of the samples estimates E[clear | hazy].

    Samples differ where a latent improves the result less than it costs in the loss to determine this latent. Training
    does not make the spread of the samples equal to the error of their mean. The uncertainty therefore needs a
    calibration, see [`calibrate`].

    With `reconstructs_input`, it is a VAE of clear images: it encodes and reconstructs its input.

    Args:
        unet ([`AutoencoderHierarchical`]): The autoencoder. It has this name in all pipelines.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        reconstructs_input (`bool`, defaults to `False`):
            Whether the network was trained to reconstruct its input, which then has the unit and offset of the target.
        uncertainty_scale (`float`, defaults to `1.0`): Slope of the calibration line, see [`predicted_std`].
        uncertainty_offset (`float`, defaults to `0.0`): Offset of the calibration line, in network units.
        uncertainty_curve (`dict`, *optional*): Curve that replaces the line, see [`fit_curve`], in network units.
        interval_factors (`dict`, *optional*): `{"alpha": factor}` from [`conformal_factors`], for `out.interval`.
        calibrated_for (`dict`, *optional*): `{"ensemble_size": …}` of the calibration.
        mirror_members (`bool`, defaults to `True`):
            Mirror the members of an ensemble in turn, for networks that were trained on mirrored patches.
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the pixel sizes in training, µm.
    """

    stores_code = False

    def __init__(
        self,
        unet: AutoencoderHierarchical,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        reconstructs_input: bool = False,
        uncertainty_scale: float = 1.0,
        uncertainty_offset: float = 0.0,
        uncertainty_curve: dict | None = None,
        interval_factors: dict[str, float] | None = None,
        calibrated_for: dict[str, int] | None = None,
        mirror_members: bool = True,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        if not isinstance(unet, AutoencoderHierarchical):
            raise ValueError(f"`unet` must be an AutoencoderHierarchical, got {type(unet).__name__}.")
        self.register_modules(unet=unet)
        self.register_to_config(
            normalization=normalization,
            input_mean=input_mean,
            input_std=input_std,
            target_mean=target_mean,
            target_std=target_std,
            reconstructs_input=reconstructs_input,
            uncertainty_scale=uncertainty_scale,
            uncertainty_offset=uncertainty_offset,
            uncertainty_curve=uncertainty_curve,
            interval_factors=interval_factors,
            calibrated_for=calibrated_for,
            mirror_members=mirror_members,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )
        self.prepare_network(unet, num_states=1)

    def prepare_noise(
        self,
        members: Iterable[tuple[int, int]],
        generator: torch.Generator | list[torch.Generator] | None,
        number: int,
        size: tuple[int, int],
        sources: Sequence[int] = (),
    ) -> Iterator[torch.Tensor]:
        """
        Noise `[1, C, h, w]` of the latents for members (plane, member) of `number` planes and their copies, of `size`
        `(h, w)`. It is drawn for whole planes, so that tiling does not change it. All planes share the noises of one
        generator; equal planes have equal results. Copies have the noises of their `sources`.
        """
        generators = generator if isinstance(generator, list) else [generator]
        replayed = [replays(each) for each in generators]
        plane_of = [*range(number), *sources]
        for plane, member in members:
            if member == 0:
                source = next(replayed[plane_of[plane] % len(replayed)])
            yield self.unet.draw_noise(1, size, source)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor | list[np.ndarray | torch.Tensor],
        ensemble_size: int = 1,
        batch_size: int | None = None,
        strength: float = 1.0,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        normalization: Normalization | None = None,
        output_type: str = "np",
        output_uncertainty: bool = False,
        output_samples: bool = False,
        restore_dim: bool = True,
        return_dict: bool = True,
    ) -> RestorationOutput | tuple:
        r"""
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or a list of them):
                Hazy micrograph(s), see [`HazeMatchingPipeline`].
            ensemble_size (`int`, defaults to `1`):
                Samples of every plane, each from its own noise. Members are mirrored in turn, see
                [`HazeMatchingPipeline`].
            batch_size (`int`, *optional*): Fields or tiles per network call.
            strength (`float`, defaults to `1.0`): Fraction of the predicted haze that is removed.
            tile_size (`int`, *optional*):
                Largest side of the tiles, a multiple of the network's scale factor. If omitted, about 272 pixels, or
                the whole field up to twice that. A tile has the same noise as in the whole field. The coarse groups
                see beyond their tile, so that results of tiles and of the whole field differ a little.
            tile_overlap (`int`, *optional*):
                Pixels shared by neighbouring tiles, rounded up to a multiple of the scale factor.
            generator (`torch.Generator` or a list with one per plane, *optional*):
                CPU generator of the noise. All planes share the noises of one generator. Tile size, batch size and
                device do not change them.
            normalization ([`Normalization`], *optional*): See [`HazeMatchingPipeline`].
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors on the CPU.
            output_uncertainty (`bool`, defaults to `False`):
                Return the expected standard deviation of the error, calibrated if the checkpoint is calibrated.
            output_samples (`bool`, defaults to `False`): Return all members.
            restore_dim (`bool`, defaults to `True`): Restore much dimmer regions again, see [`HazeMatchingPipeline`].
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`RestorationOutput`] or a tuple `(prediction, uncertainty, samples)`; lists if `image` is a list.

        Raises:
            `ValueError`: If an argument is out of range or the image is infinite, empty or less than 2-D.
        """
        if isinstance(image, list):
            return self.call_each(
                image, None, generator, return_dict, ensemble_size=ensemble_size, batch_size=batch_size,
                strength=strength, tile_size=tile_size, tile_overlap=tile_overlap, normalization=normalization,
                output_type=output_type, output_uncertainty=output_uncertainty, output_samples=output_samples,
                restore_dim=restore_dim,
            )  # fmt: skip

        # Shapes: N planes, V copies, E members, B in a batch, C channels of noise, (H,W) the image.

        # 1. Check all inputs; cut the image into planes; find pixels without a measurement and outliers.
        planes = self.image_processor.preprocess(image, allow_masked=True)  # [N,1,H,W]
        number, shape = len(planes), tuple(np.shape(image))
        self.check_tiles(batch_size, tile_size, tile_overlap, output_type)
        self.check_sampling(number, ensemble_size, strength, generator, output_uncertainty)
        masked = planes.isnan() if planes.isnan().any() else None  # [N,1,H,W]
        hot_pixels = self.image_processor.replace_hot_pixels(planes)

        # 2. Normalise, and append copies for dim regions; choose tiles and batches. Blank planes skip the network.
        if self.config.reconstructs_input:
            maps = normalization or self.image_processor.compute_normalization(planes)
            scale = torch.where(maps.target_std > 0, maps.target_std, 1.0)  # blank planes have none
            normalization = Normalization(maps.target_mean, scale, maps.target_mean, maps.target_std)
            restore_dim = False
        hazy, normalization, dim_regions = self.normalize(planes, normalization, restore_dim)  # [N+V,1,H,W]
        sampler = self.prepare_sampler(hazy.shape[-2:], tile_size, tile_overlap, batch_size)
        active = [plane for plane in range(len(hazy)) if not normalization.is_blank(plane)]
        members = [(plane, member) for plane in active for member in range(ensemble_size)]
        batches = [members[i : i + sampler.fields_per_batch] for i in range(0, len(members), sampler.fields_per_batch)]
        ensemble = Ensemble(hazy.shape, ensemble_size, output_uncertainty, output_samples)
        noises = self.prepare_noise(members, generator, number, sampler.size, dim_regions.sources)

        # 3. Encode the hazy image, and decode the clear one. The autoencoder does both.
        def predict(network, noise, hazy, on_step=None):  # [B,C,h,w], [B,1,h,w]
            return network(torch.cat([noise, hazy], dim=1), None)  # [B,1,h,w]

        # 4. Sample batch by batch. The members of a plane come in order.
        with self.progress_bar(total=len(batches)) as progress_bar:
            for batch in batches:
                noise = torch.cat([next(noises) for _ in batch])  # [B,C,h,w]
                condition = hazy[[plane for plane, _ in batch]]  # [B,1,H,W]
                flips = self.flips(member for _, member in batch)
                results = sampler.sample(predict, noise, condition, flips)  # [B,1,H,W]
                for (plane, member), result in zip(batch, results, strict=True):
                    ensemble.add(plane, member, result)
                progress_bar.update()
        self.maybe_free_model_hooks()

        # 5. Reduce the ensemble, blend with the input by `strength`, and return to units and shape of the image.
        uncertainty = None
        if output_uncertainty:
            calibration = [self.config[f"uncertainty_{name}"] for name in ("scale", "offset", "curve")]
            ratio = normalization.target_std / normalization.input_std  # unit of the prediction in units of the input
            uncertainty = predict_stds(ensemble.spread(), ensemble_size, hazy, ratio, *calibration)  # [N+V,1,H,W]
        units = {"hazy": hazy, "normalization": normalization, "dim_regions": dim_regions}
        finish = partial(self.postprocess, masked=masked, strength=strength, **units)
        is_calibrated = self.config.calibrated_for == {"ensemble_size": ensemble_size}
        output = RestorationOutput(
            prediction=finish(ensemble.mean, shape, output_type),
            uncertainty=finish(uncertainty, shape, output_type, is_spread=True),
            samples=finish(ensemble.samples, (ensemble_size, *shape), output_type),
            interval_factors=self.config.interval_factors if is_calibrated else None,
            hot_pixels=hot_pixels,
        )
        return output if return_dict else (output.prediction, output.uncertainty, output.samples)
