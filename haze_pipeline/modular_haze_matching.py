"""
HazeMatching as modular blocks of diffusers: normalise, draw noise, denoise, denormalise.

Stored with a pipeline, for `ModularPipeline.from_pretrained(folder, trust_remote_code=True)`. Every block can be
replaced. The blocks use the methods of [`HazeMatchingPipeline`], and their image is the same.
"""

from functools import partial
from typing import ClassVar

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image, ImageSequence

from .pipeline_haze_matching import HazeMatchingPipeline
from .scheduling_flow_match_ode import FlowMatchODEScheduler


# Shapes: N planes, V copies for dim regions, M = (planes with contrast) × E members, (H,W) the image.


class _Block(ModularPipelineBlocks):
    """A step of the pipeline that [`pipeline_of`] makes of the components."""

    model_name = "haze_matching"

    @property
    def description(self) -> str:
        return self.__doc__

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("unet", UNet2DModel, description="Velocity of the flow."),
            ComponentSpec("scheduler", SchedulerMixin, description="Solver; that of the checkpoint if there is none."),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [
            ConfigSpec("settings", {}, "Arguments of `HazeMatchingPipeline`."),
            ConfigSpec("solver", {}, "Configuration of the checkpoint's `FlowMatchODEScheduler`."),
        ]


def pipeline_of(components) -> HazeMatchingPipeline:
    """The pipeline of the loaded components."""
    scheduler = components.scheduler or FlowMatchODEScheduler.from_config(dict(components.config.solver))
    return HazeMatchingPipeline(components.unet, scheduler, **components.config.settings)


STEPS = InputParam("num_inference_steps", int, description="Solver steps. One step gives the posterior mean.")
MEMBERS = InputParam("ensemble_size", int, default=1, description="Posterior samples of every plane.")


class NormalizeStep(_Block):
    """Cut the image into planes, and convert their counts to network units."""

    inputs: ClassVar = [
        InputParam("image", np.ndarray, description="Hazy micrograph [..., H, W]; NaN marks missing pixels."),
        InputParam("file", str, description="TIFF or PNG of one channel, instead of `image`."),
        InputParam("restore_dim", bool, default=True, description="Restore much dimmer regions from copies."),
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("hazy", torch.Tensor, description="Planes and copies in network units [N+V,1,H,W]."),
        OutputParam("units", dict, description="Maps between counts and network units."),
        OutputParam("shape", tuple, description="Shape of the image."),
    ]

    @torch.no_grad()
    def __call__(self, components, state):
        block, pipe = self.get_block_state(state), pipeline_of(components)
        if (block.image is None) == (block.file is None):
            raise ValueError("Pass exactly one of `image` and `file`.")
        image = block.image
        if image is None:
            with Image.open(block.file) as file:
                frames = [np.asarray(frame) for frame in ImageSequence.Iterator(file)]
            image = frames[0] if len(frames) == 1 else np.stack(frames)
        planes = pipe.image_processor.preprocess(image, allow_masked=True)  # [N,1,H,W]
        masked = planes.isnan() if planes.isnan().any() else None
        pipe.image_processor.replace_hot_pixels(planes)
        block.hazy, normalization, dim_regions = pipe.normalize(planes, None, block.restore_dim)
        block.units = {"normalization": normalization, "dim_regions": dim_regions, "masked": masked}
        block.shape = tuple(np.shape(image))
        self.set_block_state(state, block)
        return components, state


class NoiseStep(_Block):
    """Draw the initial states. The seed alone decides them."""

    inputs: ClassVar = [
        STEPS,
        MEMBERS,
        InputParam("generator", torch.Generator, description="CPU generator of the noise."),
        InputParam("hazy", torch.Tensor, required=True),
        InputParam("units", dict, required=True),
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("latents", torch.Tensor, description="Initial states [M,1,H,W]."),
        OutputParam("members", list, description="Plane and member of every state."),
        OutputParam("num_inference_steps", int, description="Solver steps."),
    ]

    @torch.no_grad()
    def __call__(self, components, state):
        block, pipe = self.get_block_state(state), pipeline_of(components)
        block.num_inference_steps = block.num_inference_steps or pipe.config.default_num_inference_steps
        normalization, dim_regions = block.units["normalization"], block.units["dim_regions"]
        active = [plane for plane in range(len(block.hazy)) if not normalization.is_blank(plane)]
        block.members = [(plane, member) for plane in active for member in range(block.ensemble_size)]
        is_mean = len(pipe.prepare_scheduler(block.num_inference_steps).timesteps) == 1
        starts = pipe.prepare_latents(
            block.members, None, block.generator, block.hazy, pipe.config.source_noise, is_mean, dim_regions.sources
        )
        starts = [start.clone() for start in starts]
        block.latents = torch.stack(starts) if starts else block.hazy[:0]  # [M,1,H,W]
        self.set_block_state(state, block)
        return components, state


class DenoiseStep(_Block):
    """Integrate the flow from every initial state to a clear image, tile by tile."""

    inputs: ClassVar = [
        STEPS,
        MEMBERS,
        InputParam("hazy", torch.Tensor, required=True),
        InputParam("latents", torch.Tensor, required=True),
        InputParam("members", list, required=True),
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("clear", torch.Tensor, description="Posterior samples in network units [E,N+V,1,H,W].")
    ]

    @torch.no_grad()
    def __call__(self, components, state):
        block, pipe = self.get_block_state(state), pipeline_of(components)
        sampler = pipe.prepare_sampler(tuple(block.hazy.shape[-2:]), None, None, None)
        integrate = partial(pipe.integrate, block.num_inference_steps)
        block.clear = torch.zeros(block.ensemble_size, *block.hazy.shape)
        for first in range(0, len(block.members), sampler.fields_per_batch):
            batch = block.members[first : first + sampler.fields_per_batch]
            start = block.latents[first : first + len(batch)]  # [B,1,H,W]
            condition = block.hazy[[plane for plane, _ in batch]]  # [B,1,H,W]
            flips = pipe.flips(member for _, member in batch)
            results = sampler.sample(integrate, start, condition, flips, None)
            for (plane, member), result in zip(batch, results, strict=True):
                block.clear[member, plane] = result
        self.set_block_state(state, block)
        return components, state


class DenormalizeStep(_Block):
    """Average the samples, and convert them to counts in the shape of the image."""

    inputs: ClassVar = [
        InputParam("clear", torch.Tensor, required=True),
        InputParam("hazy", torch.Tensor, required=True),
        InputParam("units", dict, required=True),
        InputParam("shape", tuple, required=True),
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("prediction", np.ndarray, description="Posterior mean [..., H, W], float32, in counts."),
        OutputParam("samples", np.ndarray, description="Posterior samples [E, ..., H, W], float32, in counts."),
        OutputParam("pictures", list, description="The planes of the prediction as 16-bit pictures, to be saved."),
    ]

    @torch.no_grad()
    def __call__(self, components, state):
        block, pipe = self.get_block_state(state), pipeline_of(components)
        finish = partial(pipe.postprocess, output_type="np", hazy=block.hazy, **block.units)
        block.prediction = finish(block.clear.mean(dim=0), block.shape)
        block.samples = finish(block.clear.clone(), (len(block.clear), *block.shape))
        counts = np.nan_to_num(block.prediction).clip(0, 65535).round().astype(np.uint16)
        block.pictures = [Image.fromarray(plane) for plane in counts.reshape(-1, *block.shape[-2:])]
        self.set_block_state(state, block)
        return components, state


class HazeMatchingBlocks(SequentialPipelineBlocks):
    """Dehazing by HazeMatching: hazy counts in, clear counts out."""

    model_name = "haze_matching"
    block_classes: ClassVar = [NormalizeStep, NoiseStep, DenoiseStep, DenormalizeStep]
    block_names: ClassVar = ["normalize", "noise", "denoise", "denormalize"]

    @property
    def description(self) -> str:
        return "Dehazing of widefield micrographs by guided conditional flow matching (arXiv 2506.22397)."
