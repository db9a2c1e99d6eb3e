"""
Pipeline that turns hazy (widefield) micrographs into clear (confocal-like) ones by guided conditional flow matching.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

from haze_pipeline.sampling.ensemble import Ensemble
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.uncertainty import predict_deviations
from haze_pipeline.utils.arrays import allocate

from .image_processing import Normalization
from .pipeline_output import RestorationOutput
from .pipeline_restoration import RestorationPipeline
from .pipeline_storage import PipelineStorageMixin
from .scheduling_flow_match_ode import FlowMatchODEScheduler


DEFAULT_CHECKPOINT = Path(__file__).parent / "default_checkpoint"

# Of the call that a thread is in: its number of steps, and whether it shall stop.
_CALL = threading.local()


class HazeMatchingPipeline(PipelineStorageMixin, RestorationPipeline):
    r"""
    Dehazing by HazeMatching (arXiv 2506.22397): the network `unet` is the velocity v(x_t, hazy, t) of a flow from
    noise at t = 0 to the clear image at t = 1, *guided* by the hazy image as a second input channel (there is no
    `guidance_scale`). Every noise leads to one posterior sample; their mean estimates E[clear | hazy], and their
    standard deviation, calibrated as the checkpoint says, how far it is from the truth.

    Args:
        unet ([`UNet2DModel`]):
            Velocity field, channels (state, hazy) in and one out, each times `pixel_packing`²; t in [0, 1] is fed
            unscaled.
        scheduler ([`FlowMatchODEScheduler`] or [`FlowMatchEulerDiscreteScheduler`]): Solver of the ODE.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        default_num_inference_steps (`int`, defaults to `19`): Steps when a call names none; 19 is the paper's number.
        uncertainty_scale (`float`, defaults to `1.0`): Calibration, see [`predicted_deviation`].
        uncertainty_offset (`float`, defaults to `0.0`): The same, in network units (multiples of the target's
            deviation).
        uncertainty_curve (`dict`, *optional*): Takes the place of these two, see [`fit_curve`]; in network units.
        interval_factors (`dict`, *optional*): `{"alpha": factor}` of [`conformal_factors`], for `out.interval`.
        calibrated_for (`dict`, *optional*): `{"ensemble_size": …, "num_inference_steps": …}` that the ones above hold
            for.
        mirror_members (`bool`, defaults to `True`):
            Show the network the members of an ensemble mirrored in turn. Right for networks that were trained on
            mirrored patches.
        noise_corner_frequency (`float`, defaults to `0.0`):
            Of the noise that the network was trained to start from, cycles per pixel, see [`draw_noise`]; 0 for white
            noise.
        pixel_packing (`int`, defaults to `1`):
            The network is shown so many × so many pixels as the channels of one (space to depth), and so sees that
            much farther.
        zero_state_mean (`bool`, defaults to `False`):
            Whether the network was trained with states of zeros at t = 0, where its velocity is the posterior mean
            itself: then one step needs no noise, and its result no seed.
        domain (`dict`, *optional*): What training images look like, see [`fit_domain`], for [`assess`].
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the training images, µm.
    """

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
        self.prepare_network(unet, num_states=2)

    @classmethod
    def from_default(cls, **kwargs) -> "HazeMatchingPipeline":
        """Load the checkpoint that ships inside the package; needs no network. `kwargs` as in `from_pretrained`."""
        # `low_cpu_mem_usage` matters to large models only, and asks for accelerate.
        return cls.from_pretrained(DEFAULT_CHECKPOINT, **{"low_cpu_mem_usage": False, **kwargs})

    @property
    def num_timesteps(self) -> int:
        """
        Step callbacks of this thread's current or last call: network evaluations of a field times batches of fields.
        """
        return getattr(_CALL, "num_timesteps", 0)

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a step callback to stop early; the call then raises a `RuntimeError`."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return getattr(_CALL, "interrupt", False)

    @_interrupt.setter
    def _interrupt(self, value: bool):
        _CALL.interrupt = value

    def check_inputs(
        self,
        planes: torch.Tensor,
        shape: tuple[int, ...],
        num_inference_steps: int,
        ensemble_size: int,
        ensembling_kwargs: dict,
        latents: np.ndarray | torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        output_uncertainty: bool,
        callback_on_step_end_tensor_inputs: list[str],
    ):
        """Raise a `ValueError` that names the first argument at fault."""
        # By name, since code that is stored with a pipeline has a class of its own.
        names = {each.__name__ for each in type(self.scheduler).__mro__}
        if not names & {"FlowMatchODEScheduler", "FlowMatchEulerDiscreteScheduler"}:
            raise ValueError(
                "`scheduler` must be a FlowMatchODEScheduler or a FlowMatchEulerDiscreteScheduler, since the network "
                "is the velocity of "
                f"a flow, got {type(self.scheduler).__name__}."
            )
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be positive, got {num_inference_steps}.")
        if ensemble_size < 1:
            raise ValueError(f"`ensemble_size` must be positive, got {ensemble_size}.")
        if ensembling_kwargs not in ({}, {"reduction": "mean"}, {"reduction": "median"}):
            raise ValueError(
                f'`ensembling_kwargs` must be {{"reduction": "mean" or "median"}}, got {ensembling_kwargs}.'
            )
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("`output_uncertainty` needs `ensemble_size` of 2 or more: one sample has no spread.")
        if output_uncertainty and num_inference_steps == 1:
            raise ValueError(
                "`output_uncertainty` needs `num_inference_steps` of 2 or more: one step yields the posterior mean "
                "from every noise, which has no spread."
            )
        if isinstance(generator, list) and len(generator) != len(planes):
            raise ValueError(f"`generator` must have one entry per plane, {len(planes)}, got {len(generator)}.")
        if latents is not None:
            if not isinstance(latents, (np.ndarray, torch.Tensor)):
                raise ValueError(f"`latents` must be an array or a tensor, got {type(latents).__name__}.")
            if generator is not None:
                raise ValueError("`latents` and `generator` exclude each other: latents are the noise.")
            allowed = [(ensemble_size, *shape), shape] if ensemble_size == 1 else [(ensemble_size, *shape)]
            if tuple(latents.shape) not in allowed:
                raise ValueError(f"`latents` must have the shape {allowed[0]}, got {tuple(latents.shape)}.")
            if not torch.isfinite(torch.as_tensor(latents)).all():
                raise ValueError("`latents` must be finite, got NaN or infinite values.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {list(self._callback_tensor_inputs)}, got "
                f"{sorted(unknown)}."
            )

    def prepare_scheduler(self, num_inference_steps: int) -> FlowMatchODEScheduler | FlowMatchEulerDiscreteScheduler:
        """A copy of the scheduler with its grid set, since it counts its steps, and several calls may run at once."""
        scheduler, device = copy(self.scheduler), self._execution_device
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # whose own grid stops short of the data
            sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler

    def prepare_latents(
        self,
        members: Iterable[tuple[int, int]],
        latents: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
        size: tuple[int, int],
        is_mean: bool,
    ) -> Iterator[torch.Tensor]:
        """
        What members (plane, member) start from, `[1, H, W]` each: `latents` `[E, N, 1, H, W]` if given; zeros for a
        mean of a network that knows them; else the next draw of the CPU generator, one field for the whole plane
        before padding and tiling, so that neither can change it. For a mean from noises, every second one is the
        negative of the one before (antithetic pairs).
        """
        noise = None
        for plane, member in members:
            if latents is not None:
                yield latents[member, plane]
            elif is_mean and self.config.zero_state_mean:
                yield torch.zeros(1, *size)
            elif is_mean and member % 2:
                yield noise.neg_()
            else:
                each = generator[plane] if isinstance(generator, list) else generator
                noise = draw_noise(size, self.config.noise_corner_frequency, each)
                yield noise

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
    ) -> RestorationOutput | tuple:
        r"""
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`, or a list of them):
                Hazy micrograph(s) of any size and real dtype. All leading axes (T, Z, C, …) are looped over, plane by
                plane.
            num_inference_steps (`int`, *optional*):
                Solver steps of every sample; the checkpoint's default when omitted. **One step yields the posterior
                mean**: noise + v(0, noise, hazy) = E[clear | hazy] (Liu et al. 2022; Albergo & Vanden-Eijnden 2022).
            ensemble_size (`int`, defaults to `1`):
                Number of noises, and so of posterior samples, for every plane. With one step, every second noise is
                the negative of the one before, which cancels the greater part of what a noise leaves in the posterior
                mean. The network is shown the members as they are, mirrored from left to right, from top to bottom,
                and both, in turn, unless the checkpoint has `mirror_members=False`: what it has not learned to do
                alike averages out of their mean, and shows in their spread.
            batch_size (`int`, *optional*):
                Fields or tiles per network call; when omitted, what memory and cores allow. If memory runs out all the
                same, less is computed at once, and a warning says so.
            ensembling_kwargs (`dict`, *optional*): `{"reduction": "mean" | "median"}`, `"mean"` by default.
            tile_size (`int`, *optional*):
                Largest side of the tiles, a multiple of the network's scale factor; 272 when omitted. A field of up to
                this size is shown to the network as a whole. The tiles of a larger one share their GroupNorm
                statistics and the solver's state, so that their size hardly changes the result.
            tile_overlap (`int`, *optional*):
                Pixels shared by neighbouring tiles; 16, or a quarter of the tile if that is less, when omitted.
            latents (`np.ndarray` or `torch.Tensor` of shape `[E, *image.shape]`, or `image.shape` if E is 1,
                *optional*): The noise to start from, of the kind that the network knows, see [`draw_noise`].
            generator (`torch.Generator` or a list with one per plane, *optional*):
                CPU generator of the noise, which is drawn per plane and member for the whole field: neither tile size
                nor batch size nor device changes it.
            normalization ([`Normalization`], *optional*):
                Maps between image and network units, one for all planes or one for each, in place of those that the
                checkpoint asks for. `pipe.image_processor` makes them, of a whole stack for instance, so that
                brightness does not
                flicker: `normalization_from(pool(measure(preprocess(stack))))`.
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors on the CPU.
            output_uncertainty (`bool`, defaults to `False`):
                Return the deviation to expect between prediction and truth, calibrated if the checkpoint is.
            output_samples (`bool`, defaults to `False`): Return all members.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, {"latents": …})` after every element of `scheduler.timesteps`
                of every batch of members, and of every block of a field of more than 2048 pixels a side; `step` counts
                on. `latents` returned in a dictionary replace the state.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `("latents",)`): What the callback is given.
            return_dict (`bool`, defaults to `True`): Return an output object rather than a tuple.

        Returns:
            [`RestorationOutput`] or a tuple `(prediction, uncertainty, samples)`; lists of arrays if `image` is a
            list.

        Raises:
            `ValueError`: If an argument is out of range or the image is not finite, empty or less than 2-D.
        """
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        reduction = ensembling_kwargs or {}
        if isinstance(image, list):
            if not image or latents is not None or isinstance(generator, list):
                raise ValueError(
                    "A list of images must not be empty, and goes with neither `latents` nor lists of generators."
                )
            return self.join_outputs(
                [
                    self(
                        each, steps, ensemble_size, batch_size, reduction, tile_size, tile_overlap, None, generator,
                        normalization,
                        output_type, output_uncertainty, output_samples, callback_on_step_end,
                        callback_on_step_end_tensor_inputs,
                    )
                    for each in image
                ],
                return_dict,
            )  # fmt: skip

        # Shapes: N planes, E members, B of them in a batch, (H,W) the image, (h,w) what the network is shown.
        # 1. Check everything; cut the image into planes.
        planes = self.image_processor.preprocess(image)  # [N,1,H,W]
        shape, size = tuple(image.shape), image.shape[-2:]
        self.check_tiles(batch_size, tile_size, tile_overlap, output_type)
        self.check_inputs(
            planes, shape, steps, ensemble_size, reduction, latents, generator, output_uncertainty,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip

        # 2. Normalise; decide on tiles and batches of planes and members.
        hazy, normalization = self.normalize(planes, normalization)  # [N,1,H,W]
        sampler = self.prepare_sampler(size, tile_size, tile_overlap, batch_size)
        members = [(plane, member) for plane in range(len(hazy)) for member in range(ensemble_size)]
        batches = [members[i : i + sampler.fields_per_batch] for i in range(0, len(members), sampler.fields_per_batch)]
        median = reduction.get("reduction") == "median"
        ensemble = Ensemble(hazy.shape, ensemble_size, output_uncertainty, output_samples or median)
        num_calls = len(self.prepare_scheduler(steps).timesteps)
        starts = self.prepare_latents(members, self._stack_latents(latents, hazy), generator, size, num_calls == 1)

        # 3. The flow: from the latents at t = 0 to a clear image at t = 1.
        def predict(network, latents, hazy, on_step=None):  # [B,1,h,w], [B,1,h,w]
            scheduler = self.prepare_scheduler(steps)
            for timestep in scheduler.timesteps:
                # diffusers' σ runs from noise to data downwards, and its velocity is noise − data: both are reversed.
                t = 1 - timestep / scheduler.config.num_train_timesteps
                velocity = network(torch.cat([latents, hazy], dim=1), t)  # [B,1,h,w]
                latents = scheduler.step(-velocity, timestep, latents, return_dict=False)[0]  # [B,1,h,w]
                if on_step is not None:
                    latents = on_step(timestep, latents)
            return latents

        # 4. Batch by batch, the members of a plane in order.
        _CALL.interrupt = False
        _CALL.num_timesteps = len(batches) * len(sampler.blocks) * num_calls
        with self.progress_bar(total=_CALL.num_timesteps) as progress_bar:
            on_step = self._follow(progress_bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            for batch in batches:
                start = allocate(len(batch), 1, *size)  # [B,1,H,W]
                for field in start:
                    field.copy_(next(starts))
                first = batch[0][0]
                condition = hazy[first : first + 1] if len(batch) == 1 else hazy[[plane for plane, _ in batch]]
                flips = self.flips(member for _, member in batch)
                for (plane, member), result in zip(
                    batch, sampler.sample(predict, start, condition, flips, on_step), strict=True
                ):
                    ensemble.add(plane, member, result)
        self.maybe_free_model_hooks()

        # 5. Reduce the ensemble and return to the units and the shape of the image.
        prediction = ensemble.median() if median else ensemble.mean
        uncertainty = None
        if output_uncertainty:
            calibration = [self.config[f"uncertainty_{name}"] for name in ("scale", "offset", "curve")]
            units = normalization.target_std / normalization.input_std  # of the prediction in that of the input
            uncertainty = predict_deviations(ensemble.spread(), ensemble_size, hazy, units, *calibration)  # [N,1,H,W]
        samples = ensemble.samples if output_samples else None
        output = RestorationOutput(
            prediction=self.postprocess(prediction, normalization, shape, output_type),
            uncertainty=self.postprocess(uncertainty, normalization, shape, output_type, offset=False),
            samples=self.postprocess(samples, normalization, (ensemble_size, *shape), output_type),
            interval_factors=self._interval_factors(steps, ensemble_size, reduction),
        )
        return output if return_dict else (output.prediction, output.uncertainty, output.samples)

    @staticmethod
    def _stack_latents(latents: np.ndarray | torch.Tensor | None, hazy: torch.Tensor) -> torch.Tensor | None:
        """Given latents as `[E, N, 1, H, W]`."""
        if latents is None:
            return None
        return torch.as_tensor(latents, dtype=torch.float32, device="cpu").reshape(-1, *hazy.shape)

    def _follow(self, progress_bar, callback: Callable | None, names: Iterable[str]) -> Callable:
        """
        What is called after every step with its timestep and state: moves the bar, calls the user, and stops if told
        to.
        """
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
                self.maybe_free_model_hooks()
                raise RuntimeError(f"Interrupted after {step} solver steps; there is no image yet.")
            return state

        return on_step

    def _interval_factors(self, num_inference_steps, ensemble_size, reduction) -> dict[str, float] | None:
        """The factors of `out.interval`, if they were fitted to means of such ensembles."""
        asked = {"ensemble_size": ensemble_size, "num_inference_steps": num_inference_steps}
        is_mean = reduction.get("reduction", "mean") == "mean"
        return self.config.interval_factors if is_mean and asked == self.config.calibrated_for else None
