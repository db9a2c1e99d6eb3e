"""HazeMatching: dehazing of widefield micrographs to confocal-like ones by guided conditional flow matching."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from haze_pipeline.sampling.ensemble import Ensemble
from haze_pipeline.sampling.initial_noise import check_latents, draw_noise, replays
from haze_pipeline.sampling.interpolant import Interpolant
from haze_pipeline.sampling.uncertainty import predict_stds
from haze_pipeline.utils.arrays import allocate

from .image_processing import Normalization
from .pipeline_output import RestorationOutput
from .pipeline_restoration import RestorationPipeline
from .pipeline_storage import PipelineStorageMixin


DEFAULT_CHECKPOINT = Path(__file__).parent / "default_checkpoint"


class HazeMatchingPipeline(PipelineStorageMixin, RestorationPipeline):
    r"""
    Dehazing by HazeMatching (arXiv 2506.22397). The network `unet` is the velocity v(x_t, hazy, t) of a flow from
    noise at t = 0 to the clear image at t = 1. The hazy image *guides* it as a second input channel; there is no
    `guidance_scale`. Every noise leads to one posterior sample. The mean of the samples estimates E[clear | hazy].
    Their standard deviation, after calibration, estimates the error of that mean.

    Flows from the hazy image (SIFM), and networks that predict the clear image (InDI, cold diffusion), have the same
    form. The four arguments of [`Interpolant`] select them.

    Args:
        unet ([`UNet2DModel`]):
            Velocity field with the input channels (state, hazy) and one output channel, or two with a gain of the hazy
            image, see [`predict_packed`]; each times `pixel_packing`². It receives t in [0, 1].
        scheduler ([`FlowMatchODEScheduler`] or [`FlowMatchEulerDiscreteScheduler`]): Solver of the ODE.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        default_num_inference_steps (`int`, defaults to `19`): Steps if a call gives none; the paper uses 19.
        uncertainty_scale (`float`, defaults to `1.0`): Slope of the calibration line, see [`predicted_std`].
        uncertainty_offset (`float`, defaults to `0.0`): Offset of the calibration line, in network units.
        uncertainty_curve (`dict`, *optional*): Curve that replaces the line, see [`fit_curve`], in network units.
        interval_factors (`dict`, *optional*): `{"alpha": factor}` from [`conformal_factors`], for `out.interval`.
        calibrated_for (`dict`, *optional*): `{"ensemble_size": …, "num_inference_steps": …}` of the calibration.
        mirror_members (`bool`, defaults to `True`):
            Mirror the members of an ensemble in turn, for networks that were trained on mirrored patches.
        noise_corner_frequency (`float`, defaults to `0.0`):
            Corner frequency of the initial noise, cycles per pixel, see [`draw_noise`]; 0 for white noise.
        pixel_packing (`int`, defaults to `1`):
            Side of the squares of pixels that become the channels of one (space to depth): a larger receptive field.
        zero_state_mean (`bool`, defaults to `False`):
            Whether the network was trained with states of zeros at t = 0, where its velocity is the posterior mean.
            One step then needs neither noise nor seed.
        source (`str`, defaults to `"noise"`): See [`Interpolant`], as for the next three.
        source_noise (`float`, defaults to `1.0`): Standard deviation of the noise in the start, in network units.
        prediction_type (`str`, defaults to `"velocity"`): `"velocity"`, or `"clear"` for the clear image.
        guided (`bool`, defaults to `True`): Whether the hazy image is a second input of the network.
        domain (`dict`, *optional*): Feature distribution of the training images, see [`fit_domain`], for [`assess`].
        benefit (`dict`, *optional*): Regression for the gain of dehazing, see [`fit_benefit`], for [`assess`].
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the pixel sizes in training, µm.
    """

    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        default_num_inference_steps: int = 19,
        uncertainty_scale: float = 1.0,
        uncertainty_offset: float = 0.0,
        uncertainty_curve: dict | None = None,
        interval_factors: dict[str, float] | None = None,
        calibrated_for: dict[str, int] | None = None,
        mirror_members: bool = True,
        noise_corner_frequency: float = 0.0,
        pixel_packing: int = 1,
        zero_state_mean: bool = False,
        source: str = "noise",
        source_noise: float = 1.0,
        prediction_type: str = "velocity",
        guided: bool = True,
        domain: dict | None = None,
        benefit: dict | None = None,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        if not 0 <= noise_corner_frequency < math.inf:
            raise ValueError(
                f"`noise_corner_frequency` must be 0 or more cycles per pixel, got {noise_corner_frequency}."
            )
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            normalization=normalization,
            input_mean=input_mean,
            input_std=input_std,
            target_mean=target_mean,
            target_std=target_std,
            default_num_inference_steps=default_num_inference_steps,
            uncertainty_scale=uncertainty_scale,
            uncertainty_offset=uncertainty_offset,
            uncertainty_curve=uncertainty_curve,
            interval_factors=interval_factors,
            calibrated_for=calibrated_for,
            mirror_members=mirror_members,
            noise_corner_frequency=noise_corner_frequency,
            pixel_packing=pixel_packing,
            zero_state_mean=zero_state_mean,
            source=source,
            source_noise=source_noise,
            prediction_type=prediction_type,
            guided=guided,
            domain=domain,
            benefit=benefit,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )
        self.interpolant = Interpolant(source, source_noise, prediction_type, guided)
        self.prepare_network(unet, num_states=2 if guided else 1)

    @classmethod
    def from_default(cls, **kwargs) -> "HazeMatchingPipeline":
        """Load the checkpoint in the package, without internet access. `kwargs` as in `from_pretrained`."""
        # `low_cpu_mem_usage` matters only for large models, and requires accelerate.
        return cls.from_pretrained(DEFAULT_CHECKPOINT, **{"low_cpu_mem_usage": False, **kwargs})

    def check_inputs(
        self,
        planes: torch.Tensor,
        shape: tuple[int, ...],
        num_inference_steps: int,
        ensemble_size: int,
        ensembling_kwargs: dict,
        strength: float,
        latents: np.ndarray | torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        source_noise: float,
        output_uncertainty: bool,
        callback_on_step_end_tensor_inputs: list[str],
    ):
        """Raise a `ValueError` that names the first invalid argument."""
        # Compared by name, since code that is stored with a pipeline defines its own class.
        names = {each.__name__ for each in type(self.scheduler).__mro__}
        if not names & {"FlowMatchODEScheduler", "FlowMatchEulerDiscreteScheduler"}:
            raise ValueError(
                "`scheduler` must be a FlowMatchODEScheduler or a FlowMatchEulerDiscreteScheduler, "
                f"got {type(self.scheduler).__name__}."
            )
        solver = self.scheduler.config.get("solver")
        if self.interpolant.prediction_type == "clear" and solver in ("heun", "rk4"):
            raise ValueError(
                f"`scheduler` must not have the solver {solver!r}, which needs the velocity at the clear image: this "
                "network predicts clear images, from which no velocity follows there."
            )
        self.interpolant.check_source_noise(source_noise)
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be positive, got {num_inference_steps}.")
        self.check_sampling(len(planes), ensemble_size, strength, generator, output_uncertainty)
        if ensembling_kwargs not in ({}, {"reduction": "mean"}, {"reduction": "median"}):
            raise ValueError(
                f'`ensembling_kwargs` must be {{"reduction": "mean" or "median"}}, got {ensembling_kwargs}.'
            )
        if output_uncertainty and source_noise == 0:
            raise ValueError(
                "`output_uncertainty` needs noise in the start of the path, but its standard deviation `source_noise` "
                "is 0 for this checkpoint or call: all samples are equal."
            )
        if output_uncertainty and num_inference_steps == 1:
            raise ValueError(
                "`output_uncertainty` needs `num_inference_steps` of 2 or more: "
                "one step gives the posterior mean, which has no spread."
            )
        if latents is not None:
            check_latents(latents, shape, ensemble_size)
            if generator is not None:
                raise ValueError("`latents` and `generator` exclude each other: pass one of them.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {list(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)}."
            )

    def prepare_scheduler(self, num_inference_steps: int) -> SchedulerMixin:
        """Copy of the scheduler with its grid set. Schedulers count their steps, and several calls may run at once."""
        scheduler, device = copy(self.scheduler), self._execution_device
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # its own grid stops before the data
            sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler

    def prepare_latents(
        self,
        members: Iterable[tuple[int, int]],
        latents: np.ndarray | torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        hazy: torch.Tensor,
        source_noise: float,
        is_mean: bool,
        sources: Sequence[int] = (),
    ) -> Iterator[torch.Tensor]:
        """
        Initial states `[1, H, W]` of members (plane, member) of `hazy`, planes and copies `[N + V, 1, H, W]`. They are
        made of the `latents` if given, of zeros for the mean of a network trained with them, else of noise. Noise is
        drawn for whole planes, so that padding and tiling do not change it. All planes share the noises of one
        generator; equal planes have equal results. Copies have the noises of their `sources`. For a mean, every second
        noise is the negative of the one before (antithetic pairs).
        """
        shape = hazy.shape
        number = shape[0] - len(sources)
        plane_of = [*range(number), *sources]
        if latents is not None:
            latents = torch.as_tensor(latents, dtype=torch.float32, device="cpu").reshape(-1, number, *shape[1:])
        generators = generator if isinstance(generator, list) else [generator]
        replayed = [replays(each) for each in generators]
        noise = None
        for plane, member in members:
            if latents is not None:
                noise = latents[member, plane_of[plane]]
            elif is_mean and self.config.zero_state_mean:
                noise = torch.zeros(shape[1:])
            elif is_mean and member % 2:
                noise = noise.neg_()
            else:
                if member == 0:
                    source = next(replayed[plane_of[plane] % len(replayed)])
                noise = draw_noise(shape[2:], self.config.noise_corner_frequency, source)
            yield self.interpolant.start(noise, hazy[plane], source_noise)

    def integrate(
        self, num_inference_steps: int, network: Callable, latents: torch.Tensor, hazy: torch.Tensor, on_step=None
    ) -> torch.Tensor:
        """The flow: from latents `[B, 1, h, w]` at t = 0 to clear images at t = 1. See [`TiledSampler`]."""
        scheduler = self.prepare_scheduler(num_inference_steps)
        for timestep in scheduler.timesteps:
            # In diffusers, σ falls from noise to data, and the velocity is noise − data: both are reversed here.
            t = 1 - timestep / scheduler.config.num_train_timesteps
            prediction = network(self.interpolant.network_input(latents, hazy), t)  # [B,1,h,w]
            velocity = self.interpolant.velocity(prediction, latents, t)
            latents = scheduler.step(-velocity, timestep, latents, return_dict=False)[0]  # [B,1,h,w]
            if on_step is not None:
                latents = on_step(timestep, latents)
        return latents

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor | list[np.ndarray | torch.Tensor],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        batch_size: int | None = None,
        ensembling_kwargs: dict | None = None,
        strength: float = 1.0,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        latents: np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        normalization: Normalization | None = None,
        source_noise: float | None = None,
        output_type: str = "np",
        output_uncertainty: bool = False,
        output_samples: bool = False,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        restore_dim: bool = True,
        return_dict: bool = True,
    ) -> RestorationOutput | tuple:
        r"""
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or a list of them):
                Hazy micrograph(s) of any size and real dtype, also as xarray, dask or one-channel PIL images. Planes
                along other axes (T, Z, C, …) are dehazed independently. NaN marks pixels without a measurement.
            num_inference_steps (`int`, *optional*):
                Solver steps of every sample; the checkpoint's default if omitted. **One step gives the posterior
                mean**: noise + v(0, noise, hazy) = E[clear | hazy] (Liu et al. 2022; Albergo & Vanden-Eijnden 2022).
            ensemble_size (`int`, defaults to `1`):
                Posterior samples of every plane, each from its own noise. With one step, every second noise is the
                negative of the one before (antithetic pairs), which cancels most of the noise in the mean. Members are
                processed unchanged, mirrored horizontally, mirrored vertically, and mirrored in both directions, in
                turn, unless the checkpoint has `mirror_members=False`.
            batch_size (`int`, *optional*):
                Fields or tiles per network call; as many as memory and cores allow if omitted. If memory runs out, a
                warning is given and fewer are computed at once.
            ensembling_kwargs (`dict`, *optional*): `{"reduction": "mean" | "median"}`, `"mean"` by default.
            strength (`float`, defaults to `1.0`):
                Fraction of the predicted haze that is removed: 0 returns the input, and values below 1 blend input and
                result linearly in counts. The uncertainty is multiplied by it.
            tile_size (`int`, *optional*):
                Largest side of the tiles, a multiple of the network's scale factor. If omitted, 272 times the packing,
                or the whole field up to twice that. Tiles share GroupNorm statistics and the state of the solver, so
                that their size hardly changes the result.
            tile_overlap (`int`, *optional*):
                Pixels shared by neighbouring tiles; 16, or a quarter of the tile if that is less, if omitted.
            latents (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, *optional*):
                Initial noise, see [`draw_noise`]. If E is 1, the shape may also be `image.shape`.
            generator (`torch.Generator` or a list with one per plane, *optional*):
                CPU generator of the noise. All planes share the noises of one generator. Tile size, batch size and
                device do not change them.
            normalization ([`Normalization`], *optional*):
                Maps between image and network units, one for all planes or one for each, instead of the checkpoint's.
                The map of a whole stack, which keeps its planes comparable, is
                `normalization_from(pool(measure(preprocess(stack))))` with the methods of `pipe.image_processor`.
            source_noise (`float`, *optional*):
                Standard deviation of the noise in the start, instead of the checkpoint's, see [`Interpolant`].
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors on the CPU.
            output_uncertainty (`bool`, defaults to `False`):
                Return the expected standard deviation of the error, calibrated if the checkpoint is calibrated.
            output_samples (`bool`, defaults to `False`): Return all members.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, {"latents": …})` after every element of `scheduler.timesteps`
                for every batch of members, and for every block of a field of more than 2048 pixels a side. `step`
                counts all these calls. `latents` in the returned dictionary replaces the state.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`): Tensors for the callback.
            restore_dim (`bool`, defaults to `True`):
                Restore much dimmer regions again, from copies of the plane in which brighter intensities are cut off.
                Such planes take two to five times as long. The copies follow the planes in further batches.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`RestorationOutput`] or a tuple `(prediction, uncertainty, samples)`; lists if `image` is a list.

        Raises:
            `ValueError`: If an argument is out of range or the image is infinite, empty or less than 2-D.
        """
        steps, reduction = num_inference_steps, ensembling_kwargs or {}
        steps = self.config.default_num_inference_steps if steps is None else steps
        source_noise = self.config.source_noise if source_noise is None else source_noise
        if isinstance(image, list):
            return self.call_each(
                image, latents, generator, return_dict, num_inference_steps=steps, ensemble_size=ensemble_size,
                batch_size=batch_size, ensembling_kwargs=reduction, strength=strength, restore_dim=restore_dim,
                tile_size=tile_size, tile_overlap=tile_overlap, normalization=normalization,
                source_noise=source_noise, output_type=output_type, output_uncertainty=output_uncertainty,
                output_samples=output_samples, callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )  # fmt: skip

        # Shapes: N planes, V copies, E members, B in a batch, (H,W) the image, (h,w) the part in a network call.

        # 1. Check all inputs; cut the image into planes; find pixels without a measurement and outliers.
        planes = self.image_processor.preprocess(image, allow_masked=True)  # [N,1,H,W]
        shape, size = tuple(np.shape(image)), planes.shape[-2:]
        self.check_tiles(batch_size, tile_size, tile_overlap, output_type)
        self.check_inputs(
            planes, shape, steps, ensemble_size, reduction, strength, latents, generator, source_noise,
            output_uncertainty, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        masked = planes.isnan() if planes.isnan().any() else None  # [N,1,H,W]
        hot_pixels = self.image_processor.replace_hot_pixels(planes)

        # 2. Normalise, and append copies for dim regions; choose tiles and batches. Blank planes skip the network.
        hazy, normalization, dim_regions = self.normalize(planes, normalization, restore_dim)  # [N+V,1,H,W]
        sampler = self.prepare_sampler(size, tile_size, tile_overlap, batch_size)
        active = [plane for plane in range(len(hazy)) if not normalization.is_blank(plane)]
        members = [(plane, member) for plane in active for member in range(ensemble_size)]
        batches = [members[i : i + sampler.fields_per_batch] for i in range(0, len(members), sampler.fields_per_batch)]
        median = reduction.get("reduction") == "median"
        ensemble = Ensemble(hazy.shape, ensemble_size, output_uncertainty, output_samples or median)
        num_calls = len(self.prepare_scheduler(steps).timesteps)
        starts = self.prepare_latents(
            members, latents, generator, hazy, source_noise, num_calls == 1, dim_regions.sources
        )

        # 3. Integrate the flow batch by batch. The members of a plane come in order.
        integrate = partial(self.integrate, steps)
        num_steps = len(batches) * len(sampler.blocks) * num_calls
        with self.follow_steps(num_steps, callback_on_step_end, callback_on_step_end_tensor_inputs) as on_step:
            for batch in batches:
                start = allocate(len(batch), 1, *size)  # [B,1,H,W]
                for field in start:
                    field.copy_(next(starts))
                first = batch[0][0]
                condition = hazy[first : first + 1] if len(batch) == 1 else hazy[[plane for plane, _ in batch]]
                flips = self.flips(member for _, member in batch)
                for (plane, member), result in zip(
                    batch, sampler.sample(integrate, start, condition, flips, on_step), strict=True
                ):
                    ensemble.add(plane, member, result)

        # 4. Reduce the ensemble, blend with the input by `strength`, and return to units and shape of the image.
        prediction = ensemble.median() if median else ensemble.mean
        uncertainty = None
        if output_uncertainty:
            calibration = [self.config[f"uncertainty_{name}"] for name in ("scale", "offset", "curve")]
            ratio = normalization.target_std / normalization.input_std  # unit of the prediction in units of the input
            uncertainty = predict_stds(ensemble.spread(), ensemble_size, hazy, ratio, *calibration)  # [N+V,1,H,W]
        samples = ensemble.samples if output_samples else None
        units = {"hazy": hazy, "normalization": normalization, "dim_regions": dim_regions}
        finish = partial(self.postprocess, masked=masked, strength=strength, **units)
        output = RestorationOutput(
            prediction=finish(prediction, shape, output_type),
            uncertainty=finish(uncertainty, shape, output_type, is_spread=True),
            samples=finish(samples, (ensemble_size, *shape), output_type),
            interval_factors=self._interval_factors(steps, ensemble_size, reduction),
            hot_pixels=hot_pixels,
        )
        return output if return_dict else (output.prediction, output.uncertainty, output.samples)

    def _interval_factors(self, num_inference_steps, ensemble_size, reduction) -> dict[str, float] | None:
        """Factors of `out.interval`, if they were fitted to the means of such ensembles."""
        asked = {"ensemble_size": ensemble_size, "num_inference_steps": num_inference_steps}
        is_mean = reduction.get("reduction", "mean") == "mean"
        return self.config.interval_factors if is_mean and asked == self.config.calibrated_for else None
