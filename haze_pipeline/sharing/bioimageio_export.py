"""
Packages for bioimage.io, which Fiji, deepImageJ, QuPath and others can run. Their TorchScript needs neither diffusers
nor haze-pipeline.
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
from haze_pipeline.sampling.interpolant import Interpolant
from haze_pipeline.sampling.pixel_packing import predict_packed, remove_lattice
from haze_pipeline.sampling.tiled_sampler import FLIPS
from haze_pipeline.utils.console import require


TITLE = "HazeMatching: Dehazing Light Microscopy Images with Guided Conditional Flow Matching"
URL = "https://arxiv.org/abs/2506.22397"
NOISE_SIZE = 256  # px; the noise repeats across larger images, which does not affect a mean


class Velocity(nn.Module):
    """The network at t = 0. It maps states and hazy images `[B, 2, h, w]` to velocities `[B, 1, h, w]`."""

    def __init__(self, unet: nn.Module, pixel_packing: int):
        super().__init__()
        self.unet = unet
        self.pixel_packing = pixel_packing

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        t = torch.zeros(len(inputs), device=inputs.device)
        return predict_packed(lambda *states: self.unet(*states, return_dict=False)[0], inputs, t, self.pixel_packing)


class PosteriorMean(nn.Module):
    """
    The result of the preset `fast` as one function of the image: the posterior mean E[clear | hazy] by one step. The
    step starts from zeros or, for a checkpoint that needs noise, from two fixed antithetic pairs of noises. If the
    checkpoint was trained for it, the network sees each member mirrored along other axes. Regions that are dim beside
    others are not restored again, see [`DimRegions`].

    Args:
        velocity (`nn.Module`): Maps `[B, 2, h, w]` to `[B, 1, h, w]`, where h and w are multiples of `scale_factor`.
        noise (`torch.Tensor` of shape `[E, 1, n, n]`): Noise of the members, or zeros.
        flips (`list[list[int]]`): For each member, the axes along which the network sees it mirrored.
        pixel_packing (`int`): Side of the squares of pixels that the network receives as the channels of one.
        scale_factor (`int`): The sides of the network's input must be multiples of this number of pixels.
        fixed (`bool`): Normalise with `input_mean` and `input_std` instead of with the statistics of the image.
        input_mean (`float`): Mean of the hazy training images in counts; only used if `fixed`.
        input_std (`float`): Standard deviation of the hazy training images in counts; only used if `fixed`.
        target_mean (`float`): Mean of the clear training images, in counts if `fixed`, else in units of the standard
            deviation of the band-pass filtered hazy image.
        target_std (`float`): Standard deviation of the clear training images, in the same unit.
    """

    flips: list[list[int]]  # TorchScript cannot infer the type of a list that may be empty

    def __init__(
        self,
        velocity: nn.Module,
        noise: torch.Tensor,
        flips: list[list[int]],
        pixel_packing: int,
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
        self.pixel_packing = pixel_packing
        self.scale_factor = scale_factor
        self.fixed = fixed
        self.input_mean = input_mean
        self.input_std = input_std
        self.target_mean = target_mean
        self.target_std = target_std

    def forward(self, hazy: torch.Tensor) -> torch.Tensor:
        """Map counts `[B, 1, H, W]` of any size to counts of the clear image, of the same shape."""
        height, width = hazy.shape[-2], hazy.shape[-1]
        input_mean = torch.full_like(hazy[:, :, :1, :1], self.input_mean)
        input_std = torch.full_like(input_mean, self.input_std)
        unit = torch.ones_like(input_mean)
        if not self.fixed:
            exact = hazy.double()
            input_mean = exact.mean([2, 3], keepdim=True).to(hazy.dtype)
            unit = self.band_pass_std(exact).to(hazy.dtype)
            input_std = torch.where(unit > 0, self.target_std * unit, torch.ones_like(unit))
        is_blank = hazy.amax([2, 3], keepdim=True) == hazy.amin([2, 3], keepdim=True)
        unit = torch.where(is_blank, torch.zeros_like(unit), unit)
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
        clear = (mean * self.target_std + self.target_mean) * unit
        return remove_lattice(clear) if self.pixel_packing == 2 else clear

    def mirror(self, length: int, before: int, after: int, device: torch.device) -> torch.Tensor:
        """
        Indices that continue an axis by its mirror image on either side. The edge pixel is repeated, as in SciPy's
        mode "reflect".
        """
        index = torch.arange(-before, length + after, device=device) % (2 * length)
        return torch.where(index < length, index, 2 * length - 1 - index)

    def blur(self, image: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian filter with a standard deviation of `sigma` px, cut off at four standard deviations as in SciPy."""
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
        """
        Standard deviation `[B, 1, 1, 1]` of the difference of Gaussians of 1 px and 10 px, see [`HazeImageProcessor`].
        """
        band = self.blur(image, 1.0) - self.blur(image, 10.0)
        std = (band - band.mean([2, 3], keepdim=True)).square().mean([2, 3], keepdim=True).sqrt()
        largest = image.abs().amax([2, 3], keepdim=True)
        return torch.where(std > 1e-6 * largest, std, torch.zeros_like(std))


def posterior_mean_module(pipe: HazeMatchingPipeline, seed: int = 0) -> torch.jit.ScriptModule:
    """
    The posterior mean of a pipeline as TorchScript that maps `[B, 1, H, W]` to `[B, 1, H, W]`, see [`PosteriorMean`].

    Raises:
        `ValueError`: If the checkpoint is not a flow from noise.
    """
    if pipe.interpolant != Interpolant():
        raise ValueError(
            "Only checkpoints of HazeMatching can be exported; this one has another path or prediction: "
            f"{pipe.interpolant}."
        )
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
        # The tracer warns that sizes may become constants. Tests show that batch and image sizes follow the input.
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
                config.pixel_packing,
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
    Write a package for bioimage.io, and run the tests of bioimage.io on it.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline, on the CPU and in float32.
        output (`Path`): The `.zip` file to write.
        name (`str`): Name of the model that users will see.
        license_id (`str`): SPDX identifier of the licence, such as `"Apache-2.0"`, in upper or lower case.
        example (`np.ndarray` of shape `[H, W]`): Hazy image to test the package with.

    Raises:
        `ImportError`: If the extra `bioimageio` is not installed.
        `ValueError`: If SPDX lists no such licence.
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
            f"{license_id} is not a licence of https://spdx.org/licenses: name one of them, such as Apache-2.0 or "
            "CC-BY-4.0."
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
            description="Hazy planes of one channel, in counts",
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
            description="Posterior means of the clear planes, in counts",
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
    patch_size = pipe.config.training_patch_size
    size = f" of at least about {patch_size} pixels a side" if patch_size else ""
    unit = (
        "The intensities must be in the counts of the training set."
        if pipe.config.normalization == "fixed"
        else "The intensities may be in any linear unit; the prediction is in the same unit."
    )
    return f"""# {name}

A HazeMatching pipeline ({URL}). It estimates the mean of all clear images that are consistent with a hazy image. It
gives no uncertainty; for posterior samples and uncertainties use the pipeline itself (haze-pipeline).

The input is a whole plane{size}. {unit}
The network normalises over all pixels of its input, so that tiles of one image give different results. Process an
image as a whole, or in tiles as large as the memory allows. The same image always gives the same result.

The network may remove structures of a kind it has not seen in training as haze, or invent structures. Structures that
are much dimmer than others in the plane may be lost; the preset fast of haze-pipeline restores them again.

## Validation

Compare the result with the input, and with clear images of your own specimens, before you measure or count anything in
it.
"""
