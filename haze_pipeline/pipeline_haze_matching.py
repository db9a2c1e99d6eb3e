"""Pipeline that turns hazy (widefield) micrographs into clear (confocal-like) ones by guided conditional flow matching."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel

from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.tiled_sampler import DEFAULT_PATCH_SIZE, FLIPS, FieldSampler
from haze_pipeline.sampling.uncertainty import local_light, predicted_deviation
from haze_pipeline.utils.arrays import allocate
from haze_pipeline.utils.hub import add_code, fetch_pipeline, resolve_index, stored_variant

from .image_processing import BAND_ROWS, HazeImageProcessor, Normalization
from .pipeline_output import HazeMatchingOutput
from .scheduling_flow_match_ode import FlowMatchODEScheduler


DEFAULT_CHECKPOINT = Path(__file__).parent / "default_checkpoint"


class HazeMatchingPipeline(DiffusionPipeline):
    r"""
    Dehazing by HazeMatching (arXiv 2506.22397): the network `unet` is the velocity v(x_t, hazy, t) of a flow from noise
    at t = 0 to the clear image at t = 1, *guided* by the hazy image as a second input channel (there is no
    `guidance_scale`). Every noise leads to one posterior sample; their mean estimates E[clear | hazy], and their standard
    deviation, calibrated as the checkpoint says, how far it is from the truth.

    Args:
        unet ([`UNet2DModel`]):
            Velocity field, channels (state, hazy) in and one out, each times `pixel_packing`²; t in [0, 1] is fed unscaled.
        scheduler ([`FlowMatchODEScheduler`] or [`FlowMatchEulerDiscreteScheduler`]): Solver of the ODE.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        default_num_inference_steps (`int`, defaults to `19`): Steps when a call names none; 19 is the paper's number.
        uncertainty_scale (`float`, defaults to `1.0`): Calibration, see [`predicted_deviation`].
        uncertainty_offset (`float`, defaults to `0.0`): The same, in network units (multiples of the target's deviation).
        uncertainty_curve (`dict`, *optional*): Takes the place of these two, see [`fit_curve`]; in network units.
        interval_factors (`dict`, *optional*): `{"alpha": factor}` of [`conformal_factors`], for `out.interval`.
        calibrated_for (`dict`, *optional*): `{"ensemble_size": …, "num_inference_steps": …}` that the ones above hold for.
        mirror_members (`bool`, defaults to `True`):
            Show the network the members of an ensemble mirrored in turn. Right for networks that were trained on mirrored patches.
        noise_corner_frequency (`float`, defaults to `0.0`):
            Of the noise that the network was trained to start from, cycles per pixel, see [`draw_noise`]; 0 for white noise.
        pixel_packing (`int`, defaults to `1`):
            The network is shown so many × so many pixels as the channels of one (space to depth), and so sees that much farther.
        zero_state_mean (`bool`, defaults to `False`):
            Whether the network was trained with states of zeros at t = 0, where its velocity is the posterior mean itself: then one
            step needs no noise, and its result no seed.
        domain (`dict`, *optional*): What training images look like, see [`fit_domain`], for [`assess`].
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the training images, µm.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: FlowMatchODEScheduler | FlowMatchEulerDiscreteScheduler,
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
        domain: dict | None = None,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        if pixel_packing < 1:
            raise ValueError(f"`pixel_packing` must be 1 or more pixels, got {pixel_packing}.")
        channels, packed = (unet.config.in_channels, unet.config.out_channels), pixel_packing**2
        if channels != (2 * packed, packed):
            raise ValueError(
                f"`unet` must have {2 * packed} input channels (state, hazy) and {packed} output channel(s) (velocity) with "
                f"`pixel_packing` {pixel_packing}, got {channels[0]} and {channels[1]}."
            )
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
            domain=domain,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )
        self.image_processor = HazeImageProcessor(normalization, input_mean, input_std, target_mean, target_std)
        # Every level but the last halves the field, so that its sides must be multiples of this.
        self.unet_scale_factor = pixel_packing * 2 ** (len(unet.config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "HazeMatchingPipeline":
        """
        Load a pipeline from a folder or a repository of the Hub, of which no code is fetched or run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): The folder or repository.
            kwargs: As in diffusers. `variant` need not be given where only half-precision weights are stored.

        Raises:
            `ValueError`:
                If it is another pipeline, asks for code that is neither ours nor of diffusers, holds pickles, or is not what
                its repository says.
        """
        # diffusers itself would fetch code. Code that lies in a folder is not run either: see `load_config`.
        names = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        where = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = fetch_pipeline(pretrained_model_name_or_path, kwargs.get("variant"), **where)
        kwargs = {"variant": stored_variant(folder), **kwargs, "use_safetensors": True}
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def from_default(cls, **kwargs) -> "HazeMatchingPipeline":
        """Load the checkpoint that ships inside the package; needs no network. `kwargs` as in `from_pretrained`."""
        # `low_cpu_mem_usage` matters to large models only, and asks for accelerate.
        return cls.from_pretrained(DEFAULT_CHECKPOINT, **{"low_cpu_mem_usage": False, **kwargs})

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> dict:
        """The index of a stored pipeline, with this package's classes in place of the code that is stored with it."""
        index = super().load_config(pretrained_model_name_or_path, **kwargs)
        return resolve_index(index, pretrained_model_name_or_path, FlowMatchODEScheduler.__module__)

    def save_pretrained(
        self,
        save_directory: str | Path,
        variant: str | None = None,
        with_code: bool = True,
        **kwargs,
    ):
        """
        Write a folder that [`from_pretrained`] loads and, where this package is not installed, also
        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

        Args:
            save_directory (`str` or `Path`): The folder, made if need be.
            variant (`str`, *optional*): Such as `"fp16"`: part of the names of the weights, which are stored as they are.
            with_code (`bool`, defaults to `True`): Store the code that `DiffusionPipeline` needs.
            kwargs: `max_shard_size`.

        Raises:
            `ValueError`: If anything but safetensors is asked for.
            `NotImplementedError`: If it shall be uploaded as well, see [`push_to_hub`].
        """
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name))
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("`safe_serialization` must be True: only safetensors are stored, since pickles run code.")
        super().save_pretrained(save_directory, variant=variant, max_shard_size=kwargs.pop("max_shard_size", None))
        if with_code:
            add_code(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Not here, since a repository also needs a card, a licence and weights in half precision: see
        `haze_pipeline.sharing.publishing.push_pipeline` and the command `haze-pipeline push`.
        """
        raise NotImplementedError(
            "Push with `haze_pipeline.sharing.publishing.push_pipeline(pipe, repo_id)` or `haze-pipeline push`, which also write a card: "
            "pip install 'haze-pipeline[hub]'."
        )

    @property
    def num_timesteps(self) -> int:
        """Number of step callbacks of the current or last call: network evaluations of a field times batches of fields."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a step callback to stop early; the call then raises a `RuntimeError`."""
        return self._interrupt

    def check_inputs(
        self,
        planes: torch.Tensor,
        leading_shape: torch.Size,
        num_inference_steps: int,
        ensemble_size: int,
        batch_size: int | None,
        ensembling_kwargs: dict,
        tile_size: int | None,
        tile_overlap: int | None,
        latents: np.ndarray | torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        normalization: Normalization | None,
        output_type: str,
        output_uncertainty: bool,
        callback_on_step_end_tensor_inputs: list[str],
    ):
        """Raise a `ValueError` that names the first argument at fault."""
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be positive, got {num_inference_steps}.")
        if ensemble_size < 1:
            raise ValueError(f"`ensemble_size` must be positive, got {ensemble_size}.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
        if ensembling_kwargs not in ({}, {"reduction": "mean"}, {"reduction": "median"}):
            raise ValueError(
                f'`ensembling_kwargs` must be {{"reduction": "mean" or "median"}}, got {ensembling_kwargs}.'
            )
        if tile_size is not None and (tile_size < 1 or tile_size % self.unet_scale_factor):
            raise ValueError(
                f"`tile_size` must be a positive multiple of {self.unet_scale_factor} for this network, got {tile_size}."
            )
        if tile_overlap is not None and tile_size is None:
            raise ValueError("`tile_overlap` needs `tile_size`.")
        if tile_overlap is not None and not 0 <= tile_overlap < tile_size:
            raise ValueError(f"`tile_overlap` must lie between 0 and `tile_size` - 1, got {tile_overlap}.")
        if output_type not in ("np", "pt"):
            raise ValueError(f'`output_type` must be "np" or "pt", got {output_type!r}.')
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("`output_uncertainty` needs `ensemble_size` of 2 or more: one sample has no spread.")
        if output_uncertainty and num_inference_steps == 1:
            raise ValueError(
                "`output_uncertainty` needs `num_inference_steps` of 2 or more: one step yields the posterior mean "
                "from every noise, which has no spread."
            )
        if isinstance(generator, list) and len(generator) != len(planes):
            raise ValueError(f"`generator` must have one entry per plane, {len(planes)}, got {len(generator)}.")
        if normalization is not None and len(normalization.input_mean) not in (1, len(planes)):
            raise ValueError(
                f"`normalization` must be one for all planes or one for each of {len(planes)}, got "
                f"{len(normalization.input_mean)}."
            )
        if latents is not None:
            if not isinstance(latents, (np.ndarray, torch.Tensor)):
                raise ValueError(f"`latents` must be an array or a tensor, got {type(latents).__name__}.")
            if generator is not None:
                raise ValueError("`latents` and `generator` exclude each other: latents are the noise.")
            shape = (*leading_shape, *planes.shape[-2:])
            allowed = [(ensemble_size, *shape), shape] if ensemble_size == 1 else [(ensemble_size, *shape)]
            if tuple(latents.shape) not in allowed:
                raise ValueError(f"`latents` must have the shape {allowed[0]}, got {tuple(latents.shape)}.")
            if not torch.isfinite(torch.as_tensor(latents)).all():
                raise ValueError("`latents` must be finite, got NaN or infinite values.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {list(self._callback_tensor_inputs)}, got {sorted(unknown)}."
            )

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor | list[np.ndarray | torch.Tensor],
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        batch_size: int | None = None,
        ensembling_kwargs: dict | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        latents: np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        normalization: Normalization | None = None,
        output_type: str = "np",
        output_uncertainty: bool = False,
        output_samples: bool = False,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        return_dict: bool = True,
    ) -> HazeMatchingOutput | tuple:
        r"""
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or a list of them):
                Hazy micrograph(s) of any size and real dtype. All leading axes (T, Z, C, …) are looped over, plane by plane.
            num_inference_steps (`int`, *optional*):
                Solver steps of every sample; the checkpoint's default when omitted. **One step yields the posterior mean**:
                noise + v(0, noise, hazy) = E[clear | hazy] (Liu et al. 2022; Albergo & Vanden-Eijnden 2022).
            ensemble_size (`int`, defaults to `1`):
                Number of noises, and so of posterior samples, for every plane. With one step, every second noise is the
                negative of the one before, which cancels the greater part of what a noise leaves in the posterior mean. The
                network is shown the members as they are, mirrored from left to right, from top to bottom, and both, in
                turn, unless the checkpoint has `mirror_members=False`: what it has not learned to do alike averages out
                of their mean, and shows in their spread.
            batch_size (`int`, *optional*):
                Fields or tiles per network call; when omitted, what memory and cores allow. If memory runs out all the
                same, less is computed at once, and a warning says so.
            ensembling_kwargs (`dict`, *optional*): `{"reduction": "mean" | "median"}`, `"mean"` by default.
            tile_size (`int`, *optional*):
                Largest side of the tiles, a multiple of the network's scale factor; 272 when omitted. A field of up to
                this size is shown to the network as a whole. The tiles of a larger one share their GroupNorm statistics
                and the solver's state, so that their size hardly changes the result.
            tile_overlap (`int`, *optional*):
                Pixels shared by neighbouring tiles; 16, or a quarter of the tile if that is less, when omitted.
            latents (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, or `image.shape` if E is 1, *optional*):
                The noise to start from, of the kind that the network knows, see [`draw_noise`].
            generator (`torch.Generator` or a list with one per plane, *optional*):
                CPU generator of the noise, which is drawn per plane and member for the whole field: neither tile size nor
                batch size nor device changes it.
            normalization ([`Normalization`], *optional*):
                Maps between image and network units, one for all planes or one for each, in place of those that the checkpoint
                asks for. `pipe.image_processor` makes them, of a whole stack for instance, so that brightness does not
                flicker: `normalization_from(pool(measure(preprocess(stack))))`.
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors on the CPU.
            output_uncertainty (`bool`, defaults to `False`):
                Return the deviation to expect between prediction and truth, calibrated if the checkpoint is.
            output_samples (`bool`, defaults to `False`): Return all members.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, {"latents": …})` after every element of `scheduler.timesteps` of
                every batch of members, and of every block of a field of more than 2048 pixels a side; `step` counts on.
                `latents` returned in a dictionary replace the state.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`): What the callback is given.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`HazeMatchingOutput`] or a tuple `(prediction, uncertainty, samples)`; lists of arrays if `image` is a list.

        Raises:
            `ValueError`: If an argument is out of range or the image is not finite, empty or less than 2-D.
        """
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        ensembling_kwargs = ensembling_kwargs or {}
        if isinstance(image, list):
            if not image:
                raise ValueError("`image` must not be an empty list.")
            if latents is not None or isinstance(generator, list):
                raise ValueError(
                    "`latents` and lists of generators go with a single array, not with a list of images."
                )
            outputs = [
                self(
                    each, num_inference_steps, ensemble_size, batch_size, ensembling_kwargs, tile_size, tile_overlap,
                    None, generator, normalization, output_type, output_uncertainty, output_samples, callback_on_step_end,
                    callback_on_step_end_tensor_inputs, return_dict=False,
                )
                for each in image
            ]  # fmt: skip
            prediction, uncertainty, samples = (list(field) for field in zip(*outputs, strict=True))
            output = HazeMatchingOutput(
                prediction=prediction,
                uncertainty=uncertainty if output_uncertainty else None,
                samples=samples if output_samples else None,
                interval_factors=self._interval_factors(num_inference_steps, ensemble_size, ensembling_kwargs),
            )
            return output if return_dict else (output.prediction, output.uncertainty, output.samples)

        # Shapes: N planes, E members, B members in a batch, (H,W) the image, (h,w) the padded field.
        # 1. Check everything.
        planes = self.image_processor.preprocess(image)  # [N,1,H,W]
        leading_shape, (height, width) = image.shape[:-2], image.shape[-2:]
        self.check_inputs(
            planes, leading_shape, num_inference_steps, ensemble_size, batch_size, ensembling_kwargs, tile_size, tile_overlap,
            latents, generator, normalization, output_type, output_uncertainty, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        if latents is not None:
            latents = torch.as_tensor(latents, dtype=torch.float32, device="cpu").reshape(
                ensemble_size, -1, 1, height, width
            )
        device = self._execution_device
        self._interrupt = False

        # 2. Pad to what the network can halve; decide on tiles.
        padding = (-height % self.unet_scale_factor, -width % self.unet_scale_factor)
        padded = (height + padding[0], width + padding[1])
        sampler = FieldSampler(
            self.unet, self.scheduler, num_inference_steps, padded, self.unet_scale_factor, self.config.pixel_packing,
            self.config.training_patch_size or DEFAULT_PATCH_SIZE, tile_size, tile_overlap, batch_size, device,
        )  # fmt: skip
        fields_per_batch = 1  # the members of a tiled field follow one another
        if not sampler.is_tiled:
            fields_per_batch = batch_size or max(1, 2**20 // (padded[0] * padded[1]))

        # 3. Normalise every plane.
        if normalization is None:
            normalization = self.image_processor.compute_normalization(planes)
        hazy = planes.sub_(normalization.input_mean).div_(normalization.input_std)  # [N,1,H,W]

        # 4. Planes × members in batches: noise, then the ODE dx/dt = v from t = 0 to t = 1. Mean and squared deviations are
        # accumulated as the members come (Welford 1962, Technometrics 4), so that memory does not grow with the ensemble.
        members = [(plane, member) for plane in range(len(planes)) for member in range(ensemble_size)]
        batches = [members[start : start + fields_per_batch] for start in range(0, len(members), fields_per_batch)]
        median = ensembling_kwargs.get("reduction") == "median"
        samples = allocate(ensemble_size, *planes.shape) if output_samples or median else None  # [E,N,1,H,W]
        mean = allocate(*planes.shape)  # [N,1,H,W]
        squares = allocate(*planes.shape) if output_uncertainty else None  # [N,1,H,W]
        self._num_timesteps = len(batches) * sampler.num_steps
        step = 0
        noise = None
        with self.progress_bar(total=self._num_timesteps) as progress_bar:

            def on_step(timestep: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
                nonlocal step
                if callback_on_step_end is not None:
                    tensors = {}
                    for name in callback_on_step_end_tensor_inputs:
                        tensors[name] = {"latents": state}[name]
                    replaced = callback_on_step_end(self, step, timestep, tensors) or {}
                    state = replaced.get("latents", state)
                step += 1
                progress_bar.update()
                if self.interrupt:
                    self.maybe_free_model_hooks()
                    raise RuntimeError(f"Interrupted after {step} solver steps; there is no image yet.")
                return state

            for batch in batches:
                start = allocate(len(batch), 1, height, width)  # [B,1,H,W]
                for index, (plane, member) in enumerate(batch):
                    if num_inference_steps == 1 and latents is None and self.config.zero_state_mean:
                        start[index] = 0
                        continue
                    if num_inference_steps == 1 and latents is None and member % 2:
                        noise.neg_()
                    else:
                        noise = self.prepare_latents(latents, generator, plane, member, (height, width))
                    start[index] = noise
                start = _pad(start, padding)  # [B,1,h,w]
                condition = hazy[plane : plane + 1] if len(batch) == 1 else hazy[[plane for plane, _ in batch]]
                condition = _pad(condition, padding)  # [B,1,h,w]
                flips = [FLIPS[member % len(FLIPS)] if self.config.mirror_members else () for _, member in batch]
                results = sampler.sample(start, condition, on_step, flips)  # [B,1,h,w]
                for (plane, member), result in zip(batch, results[..., :height, :width], strict=True):
                    if samples is not None:
                        samples[member, plane] = result
                    difference = result.sub_(mean[plane])
                    mean[plane].add_(difference, alpha=1 / (member + 1))
                    if squares is not None:
                        squares[plane].addcmul_(difference, difference, value=member / (member + 1))
        self.maybe_free_model_hooks()

        # 5. Reduce the ensemble and return to image units.
        prediction = mean
        if median:
            # torch's median of an even number is the lower of the middle two, and so biased.
            prediction = torch.from_numpy(np.median(samples.numpy(), axis=0))  # [N,1,H,W]
        prediction.mul_(normalization.target_std).add_(normalization.target_mean)
        uncertainty = None
        if output_uncertainty:
            scale, offset = self.config.uncertainty_scale, self.config.uncertainty_offset
            curve = self.config.uncertainty_curve
            units = (normalization.target_std / normalization.input_std).expand(
                len(planes), 1, 1, 1
            )  # of the prediction
            for spread, condition, unit in zip(squares.div_(ensemble_size - 1).sqrt_(), hazy, units, strict=True):
                light = local_light(condition[0], unit.item())  # [H,W]
                # Band by band, since a large plane may not fit in memory twice.
                for part, part_light in zip(spread[0].split(BAND_ROWS), light.split(BAND_ROWS), strict=True):
                    part.copy_(predicted_deviation(part, ensemble_size, scale, offset, curve, part_light))
            uncertainty = squares.mul_(normalization.target_std)  # [N,1,H,W]
        if output_samples:
            samples.mul_(normalization.target_std).add_(normalization.target_mean)
        else:
            samples = None

        # 6. Give every result the shape of the image.
        def finish(result: torch.Tensor | None, *leading: int) -> np.ndarray | torch.Tensor | None:
            if result is None:
                return None
            result = result.reshape(*leading, *leading_shape, height, width)
            return result.numpy() if output_type == "np" else result

        output = HazeMatchingOutput(
            prediction=finish(prediction), uncertainty=finish(uncertainty), samples=finish(samples, ensemble_size),
            interval_factors=self._interval_factors(num_inference_steps, ensemble_size, ensembling_kwargs),
        )  # fmt: skip
        return output if return_dict else (output.prediction, output.uncertainty, output.samples)

    def _interval_factors(self, num_inference_steps, ensemble_size, ensembling_kwargs) -> dict[str, float] | None:
        """The factors of `out.interval`, if they were fitted to means of such ensembles."""
        asked = {"ensemble_size": ensemble_size, "num_inference_steps": num_inference_steps}
        is_mean = ensembling_kwargs.get("reduction", "mean") == "mean"
        return self.config.interval_factors if is_mean and asked == self.config.calibrated_for else None

    def prepare_latents(
        self,
        latents: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        plane: int,
        member: int,
        size: tuple[int, int],
    ) -> torch.Tensor:
        """
        Noise `[1, H, W]` of one member of one plane: from `latents` `[E, N, 1, H, W]` if given, else the next draw of the
        CPU generator. One field for the whole plane, before padding and tiling, so that neither can change it.
        """
        if latents is not None:
            return latents[member, plane]
        if isinstance(generator, list):
            generator = generator[plane]
        return draw_noise(size, self.config.noise_corner_frequency, generator)


def _pad(planes: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Mirror `[B, 1, H, W]` past its lower and right edges; NumPy's mirror, unlike torch's, may be wider than the image."""
    if padding == (0, 0):
        return planes
    *leading, height, width = planes.shape
    rows = np.pad(np.arange(height), (0, padding[0]), mode="symmetric")
    columns = np.pad(np.arange(width), (0, padding[1]), mode="symmetric")
    padded = allocate(*leading, len(rows), len(columns))
    padded[..., :height, :width] = planes
    padded[..., height:, :width] = planes[..., rows[height:], :]
    padded[..., width:] = padded[..., columns[width:]]
    return padded
