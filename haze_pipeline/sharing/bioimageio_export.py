"""
Packages for bioimage.io, and so for Fiji, deepImageJ, QuPath and others: TorchScript that needs neither diffusers nor
this package.
"""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.tiled_sampler import FLIPS, predict_packed
from haze_pipeline.utils.console import require


TITLE = "HazeMatching: Dehazing Light Microscopy Images with Guided Conditional Flow Matching"
URL = "https://arxiv.org/abs/2506.22397"
NOISE_SIZE = 256  # px; larger images see the same noise again, which does not matter to a mean


class Velocity(nn.Module):
    """The network at t = 0, from states and hazy images `[B, 2, h, w]` to velocities `[B, 1, h, w]`."""

    def __init__(self, unet: nn.Module, pixel_packing: int):
        super().__init__()
        self.unet = unet
        self.pixel_packing = pixel_packing

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        t = torch.zeros(len(inputs), device=inputs.device)
        return predict_packed(lambda *states: self.unet(*states, return_dict=False)[0], inputs, t, self.pixel_packing)


class PosteriorMean(nn.Module):
    """
    What the preset `fast` yields, as one function of the image: E[clear | hazy] by one step from zeros, or from two
    fixed noises and their negatives, each shown mirrored in another way if the checkpoint has learned that.

    Args:
        velocity (`nn.Module`): From `[B, 2, h, w]` to `[B, 1, h, w]`, sides being multiples of `scale_factor`.
        noise (`torch.Tensor` of shape `[E, 1, n, n]`): Noise of the members, or zeros.
        flips (`list[list[int]]`): Axes along which each is shown mirrored.
        scale_factor (`int`): What the network can halve.
        fixed (`bool`): Normalise with `input_mean` and `input_std`, not with the mean and the unit of the image.
        input_mean (`float`): Of hazy training images.
        input_std (`float`): The same.
        target_mean (`float`): Of clear training images, in counts if `fixed`, else in band-pass deviations of the
            image.
        target_std (`float`): The same.
    """

    flips: list[list[int]]  # TorchScript cannot tell the type of what may be empty

    def __init__(
        self,
        velocity: nn.Module,
        noise: torch.Tensor,
        flips: list[list[int]],
        scale_factor: int,
        fixed: bool,
        input_mean: float,
        input_std: float,
        target_mean: float,
        target_std: float,
    ):
        super().__init__()
        self.velocity = velocity
        self.register_buffer("noise", noise)
        self.flips = flips
        self.scale_factor = scale_factor
        self.fixed = fixed
        self.input_mean = input_mean
        self.input_std = input_std
        self.target_mean = target_mean
        self.target_std = target_std

    def forward(self, hazy: torch.Tensor) -> torch.Tensor:
        """From counts `[B, 1, H, W]` of any size to counts of the clear image."""
        height, width = hazy.shape[-2], hazy.shape[-1]
        input_mean = torch.full_like(hazy[:, :, :1, :1], self.input_mean)
        input_std = torch.full_like(input_mean, self.input_std)
        unit = torch.ones_like(input_mean)
        if not self.fixed:
            exact = hazy.double()
            input_mean = exact.mean([2, 3], keepdim=True).to(hazy.dtype)
            unit = self.band_pass_std(exact).to(hazy.dtype)
            input_std = torch.where(unit > 0, self.target_std * unit, torch.ones_like(unit))
        normalized = (hazy - input_mean) / input_std
        rows = self.mirror(height, 0, -height % self.scale_factor, hazy.device)
        columns = self.mirror(width, 0, -width % self.scale_factor, hazy.device)
        normalized = normalized[:, :, rows][:, :, :, columns]  # [B,1,h,w]
        repeats = [height // self.noise.shape[-2] + 1, width // self.noise.shape[-1] + 1]
        mean = torch.zeros_like(hazy)
        for member in range(len(self.flips)):
            noise = self.noise[member : member + 1].repeat(len(hazy), 1, repeats[0], repeats[1])
            noise = noise[:, :, :height, :width][:, :, rows][:, :, :, columns]
            inputs = torch.cat([noise, normalized], dim=1).flip(self.flips[member])  # [B,2,h,w]
            sample = noise + self.velocity(inputs).flip(self.flips[member])  # [B,1,h,w]
            mean = mean + sample[:, :, :height, :width] / len(self.flips)
        return (mean * self.target_std + self.target_mean) * unit

    def mirror(self, length: int, before: int, after: int, device: torch.device) -> torch.Tensor:
        """
        Indices of an axis that is continued by its mirror image on either side, the edge pixel twice, as in SciPy.
        """
        index = torch.arange(-before, length + after, device=device) % (2 * length)
        return torch.where(index < length, index, 2 * length - 1 - index)

    def blur(self, image: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian of `sigma` px, cut at four of them, as in SciPy."""
        radius = int(4 * sigma + 0.5)
        kernel = torch.exp(
            -0.5 * (torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype) / sigma) ** 2
        )
        kernel = kernel / kernel.sum()
        image = F.conv2d(
            image[:, :, self.mirror(image.shape[2], radius, radius, image.device)], kernel[None, None, :, None]
        )
        return F.conv2d(
            image[:, :, :, self.mirror(image.shape[3], radius, radius, image.device)], kernel[None, None, None]
        )

    def band_pass_std(self, image: torch.Tensor) -> torch.Tensor:
        """Deviation between Gaussians of 1 px and 10 px `[B, 1, 1, 1]`, see [`HazeImageProcessor`]."""
        band = self.blur(image, 1.0) - self.blur(image, 10.0)
        deviation = (band - band.mean([2, 3], keepdim=True)).square().mean([2, 3], keepdim=True).sqrt()
        largest = image.abs().amax([2, 3], keepdim=True)
        return torch.where(deviation > 1e-6 * largest, deviation, torch.zeros_like(deviation))


def posterior_mean_module(pipe: HazeMatchingPipeline, seed: int = 0) -> torch.jit.ScriptModule:
    """The pipeline's posterior means as TorchScript `[B, 1, H, W]` → `[B, 1, H, W]`, see [`PosteriorMean`]."""
    if pipe.config.zero_state_mean:
        noise, flips = torch.zeros(1, 1, 1, 1), FLIPS[:1]
    else:
        generator = torch.Generator().manual_seed(seed)
        corner_frequency = pipe.config.noise_corner_frequency
        size = (NOISE_SIZE, NOISE_SIZE)
        first, second = (draw_noise(size, corner_frequency, generator, NOISE_SIZE) for _ in range(2))
        noise, flips = torch.stack([first, -first, second, -second]), FLIPS
    size = 4 * pipe.unet_scale_factor
    with warnings.catch_warnings():
        # Sizes of batches up to 64 and of images follow the input; that was measured, not assumed.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        velocity = torch.jit.trace(
            Velocity(pipe.unet, pipe.config.pixel_packing).eval(), torch.randn(1, 2, size, size)
        )
        config = pipe.config
        return torch.jit.script(
            PosteriorMean(
                velocity,
                noise,
                [list(flip) if config.mirror_members else [] for flip in flips],
                pipe.unet_scale_factor,
                config.normalization == "fixed",
                float(config.input_mean or 0.0),
                float(config.input_std or 1.0),
                float(config.target_mean),
                float(config.target_std),
            ).eval()
        )


def export_bioimageio(pipe: HazeMatchingPipeline, output: Path, name: str, license_id: str, example: np.ndarray):
    """
    Write a package for bioimage.io, and run the tests that it is held to there.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline, on the CPU and in float32.
        output (`Path`): The `.zip` file to write.
        name (`str`): What users will see it called.
        license_id (`str`): Licence of SPDX, such as `"Apache-2.0"`, in any case.
        example (`np.ndarray` of shape `[H, W]`): Hazy image to test with.

    Raises:
        `ImportError`: If the extra `bioimageio` is not installed.
        `ValueError`: If there is no such licence.
        `RuntimeError`: If the package fails the tests.
    """
    require("bioimageio", "bioimageio")
    from bioimageio.core import test_description
    from bioimageio.spec import save_bioimageio_package
    from bioimageio.spec.generic.v0_3 import LicenseId
    from bioimageio.spec.model import v0_5

    licenses = {known.lower(): known for known in get_args(LicenseId.root_model.model_fields["root"].annotation)}
    if license_id.lower() not in licenses:
        raise ValueError(
            f"{license_id} is not a licence of https://spdx.org/licenses, such as Apache-2.0 or CC-BY-4.0."
        )
    module = posterior_mean_module(pipe)
    with TemporaryDirectory() as folder, torch.no_grad():
        files = {
            part: Path(folder, file)
            for part, file in (
                ("weights", "weights.pt"),
                ("input", "hazy.npy"),
                ("output", "clear.npy"),
                ("cover", "cover.png"),
                ("documentation", "README.md"),
            )
        }
        module.save(files["weights"])
        hazy = torch.from_numpy(example.astype(np.float32))[None, None]
        clear = module(hazy)
        np.save(files["input"], hazy.numpy())
        np.save(files["output"], clear.numpy())
        HazeImageProcessor.visualize_side_by_side(example, clear[0, 0].numpy()).save(files["cover"])
        files["documentation"].write_text(_documentation(pipe, name), encoding="utf-8")

        def axes(space):
            return [v0_5.BatchAxis(), v0_5.ChannelAxis(channel_names=["intensity"]), space("y"), space("x")]

        counts = v0_5.IntervalOrRatioDataDescr(type="float32", unit="arbitrary unit")
        hazy_tensor = v0_5.InputTensorDescr(
            id="hazy",
            description="Planes of one channel, in counts",
            axes=axes(
                lambda axis: v0_5.SpaceInputAxis(
                    id=axis, size=v0_5.ParameterizedSize(min=4 * pipe.unet_scale_factor, step=1)
                )
            ),
            test_tensor=v0_5.FileDescr(source=files["input"]),
            data=counts,
        )
        clear_tensor = v0_5.OutputTensorDescr(
            id="clear",
            description="Their posterior means",
            axes=axes(
                lambda axis: v0_5.SpaceOutputAxis(id=axis, size=v0_5.SizeReference(tensor_id="hazy", axis_id=axis))
            ),
            test_tensor=v0_5.FileDescr(source=files["output"]),
            data=counts,
        )
        model = v0_5.ModelDescr(
            name=name,
            description="Turns hazy (widefield) fluorescence micrographs into clear, confocal-like ones",
            authors=[v0_5.Author(name="The haze-pipeline developers")],
            cite=[v0_5.CiteEntry(text=TITLE, url=URL)],
            license=licenses[license_id.lower()],
            documentation=v0_5.FileDescr(source=files["documentation"]),
            covers=[v0_5.FileDescr(source=files["cover"])],
            tags=["fluorescence-light-microscopy", "2d", "image-restoration", "dehazing", "pytorch"],
            inputs=[hazy_tensor],
            outputs=[clear_tensor],
            weights=v0_5.WeightsDescr(
                torchscript=v0_5.TorchscriptWeightsDescr(
                    source=files["weights"], pytorch_version=torch.__version__.split("+")[0]
                )
            ),
        )
        save_bioimageio_package(model, output_path=output)
    summary = test_description(output, weight_format="torchscript")
    if summary.status != "passed":
        raise RuntimeError(f"The package fails the tests of bioimage.io: {summary.format()}")


def _documentation(pipe: HazeMatchingPipeline, name: str) -> str:
    size = pipe.config.training_patch_size
    return f"""# {name}

A HazeMatching pipeline ({
        URL
    }): it estimates the mean of all clear images that a hazy one allows. It does not say how sure it is; for
posterior samples and uncertainty use the pipeline itself (haze-pipeline).

Give it whole planes in counts, {f"at least about {size} pixels a side, " if size else ""}in any linear unit{
        " of the training set" if pipe.config.normalization == "fixed" else ", the prediction being in the same one"
    }. Brightness is
normalised over what it is shown, so that tiles of one image come out differently: show it as a whole,
or in tiles as large as memory
allows. The same image always leads to the same result.

What a network has not seen it may take away as haze, or draw from memory.

## Validation

Compare with the input, and with clear images of your own specimens,
before you measure or count anything in the result.
"""
