"""
Packages for bioimage.io, which Fiji, deepImageJ, QuPath and others can run. Their weights need neither diffusers nor
haze-pipeline.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np
import tifffile
import torch
from PIL import Image

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.interpolant import Interpolant
from haze_pipeline.sampling.tiled_sampler import FLIPS
from haze_pipeline.utils.console import require
from haze_pipeline.utils.stored_code import join_modules

from .bioimageio_readme import DESCRIPTION, METHOD, NOT_MEANT_FOR, URL, training_dataset, write_readme
from .onnx_weights import OPSET, obstacle_to_onnx, write_onnx
from .posterior_mean import PosteriorMean


if TYPE_CHECKING:
    from diffusers import UNet2DModel

NOISE_SIZE = 256  # px; the noise repeats across larger images, which does not affect a mean
# The runtime of bioimage.io has this torch, and a bioimageio.core that reads these formats, see
# bench/bioimageio_runtime.py.
OLDEST_TORCH = "2.5.1"
OLDEST_FORMAT, OLDEST_DATASET_FORMAT = "0.5.10", "0.3.0"
COVER_SIZE = 448  # px, at most: two panels of this side are smaller than 500 kB, the limit of bioimage.io

ARCHITECTURE_HEAD = '''"""
A HazeMatching pipeline as a network of torch alone. Written by haze-pipeline (Apache-2.0).
"""'''

# Settings of `UNet2DModel` that `posterior_mean.UNet` has built in.
BUILT_IN = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def network_arguments(unet: "UNet2DModel") -> dict:
    """
    Arguments of [`posterior_mean.UNet`] that give the network of a pipeline.

    Raises:
        `ValueError`: If the network has layers that `posterior_mean.UNet` does not have.
    """
    config = unet.config
    for name, value in BUILT_IN.items():
        if config[name] != value:
            raise ValueError(
                f"This network cannot be exported, since its `{name}` is {config[name]!r}: train one with {value!r}."
            )
    for block in (*config.down_block_types, *config.up_block_types):
        if block not in ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"):
            raise ValueError(
                f"This network cannot be exported, since it has a {block}: train one with the blocks DownBlock2D, "
                "AttnDownBlock2D, UpBlock2D and AttnUpBlock2D."
            )
    channels = list(config.block_out_channels)
    heads = [width // (config.attention_head_dim or width) for width in channels]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": channels,
        "down_heads": [
            number if "Attn" in block else 0 for number, block in zip(heads, config.down_block_types, strict=True)
        ],
        "mid_heads": heads[-1],
        "up_heads": [
            number if "Attn" in block else 0 for number, block in zip(heads[::-1], config.up_block_types, strict=True)
        ],
        "layers_per_block": config.layers_per_block,
        "groups": config.norm_num_groups,
        "eps": config.norm_eps,
    }


def posterior_mean_arguments(pipe: HazeMatchingPipeline) -> dict:
    """
    Arguments of [`PosteriorMean`] that give the posterior mean of a pipeline.

    Raises:
        `ValueError`: If the checkpoint is not a flow from noise, or its network cannot be exported.
    """
    if pipe.interpolant != Interpolant():
        raise ValueError(
            "Only checkpoints of HazeMatching can be exported; this one has another path or prediction: "
            f"{pipe.interpolant}."
        )
    config = pipe.config
    flips = FLIPS[:1] if config.zero_state_mean else FLIPS
    return {
        "network": network_arguments(pipe.unet),
        "noise_shape": [1, 1, 1, 1] if config.zero_state_mean else [4, 1, NOISE_SIZE, NOISE_SIZE],
        "flips": [list(flip) if config.mirror_members else [] for flip in flips],
        "pixel_packing": config.pixel_packing,
        "scale_factor": pipe.unet_scale_factor,
        "fixed": config.normalization == "fixed",
        "input_mean": float(config.input_mean or 0.0),
        "input_std": float(config.input_std or 1.0),
        "target_mean": float(config.target_mean),
        "target_std": float(config.target_std),
    }


def posterior_mean_module(pipe: HazeMatchingPipeline, seed: int = 0) -> PosteriorMean:
    """
    The posterior mean of a pipeline as a module that maps `[B, 1, H, W]` to `[B, 1, H, W]`. TorchScript can compile
    it.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline, on the CPU and in float32.
        seed (`int`, defaults to 0): Seed of the noise.

    Raises:
        `ValueError`: See [`posterior_mean_arguments`].
    """
    module = PosteriorMean(**posterior_mean_arguments(pipe))
    module.unet.load_state_dict(pipe.unet.state_dict())
    if not pipe.config.zero_state_mean:
        generator = torch.Generator().manual_seed(seed)
        corner_frequency = pipe.config.noise_corner_frequency
        size = (NOISE_SIZE, NOISE_SIZE)
        first, second = (draw_noise(size, corner_frequency, generator, NOISE_SIZE) for _ in range(2))
        module.noise.copy_(torch.stack([first, -first, second, -second]))
    return module.requires_grad_(False).eval()


def export_bioimageio(
    pipe: HazeMatchingPipeline,
    output: Path,
    name: str,
    license_id: str,
    example: np.ndarray,
    pixel_size: tuple[float, float] | None = None,
    version: str = "1.0.0",
    maintainers: Sequence[str] = (),
    git_repo: str | None = None,
    facts: dict | None = None,
):
    """
    Write a package for bioimage.io, and run the tests of bioimage.io on it. Weights in ONNX are left out if something
    stands in their way, see [`obstacle_to_onnx`].

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline, on the CPU and in float32.
        output (`Path`): The `.zip` file to write.
        name (`str`): Name of the model that users will see.
        license_id (`str`): SPDX identifier of the licence, such as `"Apache-2.0"`, in upper or lower case.
        example (`np.ndarray` of shape `[H, W]`): Hazy image to test the package with.
        pixel_size (`tuple[float, float]`, *optional*): Height and width of a pixel of the example in µm.
        version (`str`, defaults to `"1.0.0"`): Version of the package.
        maintainers (sequence of `str`): Users of GitHub who maintain the package.
        git_repo (`str`, *optional*): Address of the repository in which the model is developed.
        facts (`dict`, *optional*): What is known of training and evaluation, see [`read_facts`].

    Raises:
        `ImportError`: If the extra `bioimageio` is not installed.
        `ValueError`: If an argument cannot be used, or the checkpoint cannot be exported.
        `OSError`: If GitHub cannot be asked for a maintainer.
        `RuntimeError`: If the package fails the tests.
    """
    require("bioimageio", "bioimageio")
    from bioimageio.core import test_description
    from bioimageio.spec import save_bioimageio_package_as_folder
    from bioimageio.spec.model import v0_5

    facts = facts or {}
    _check_fields(name, version, git_repo, pixel_size)
    fields = {
        "license": _find_license(license_id),
        "maintainers": _find_maintainers(maintainers),
        "training_data": training_dataset(facts),
        "git_repo": git_repo,
    }
    arguments = posterior_mean_arguments(pipe)
    module = posterior_mean_module(pipe)
    hazy = torch.from_numpy(example.astype(np.float32))[None, None]
    with torch.no_grad():
        clear = module(hazy)

    with TemporaryDirectory() as folder:
        files = {
            part: v0_5.FileDescr(source=file)
            for part, file in _write_files(Path(folder), pipe, module, hazy, clear, name, pixel_size, facts).items()
        }

        def axes(space, size):
            scales = [{"unit": "micrometer", "scale": side} for side in pixel_size or ()] or [{}, {}]
            plane = [space(id=axis, size=size(axis), **scale) for axis, scale in zip(("y", "x"), scales, strict=True)]
            return [v0_5.BatchAxis(), v0_5.ChannelAxis(channel_names=["intensity"]), *plane]

        counts = v0_5.IntervalOrRatioDataDescr(type="float32", unit="arbitrary unit")
        smallest = v0_5.ParameterizedSize(min=4 * pipe.unet_scale_factor, step=1)
        hazy_tensor = v0_5.InputTensorDescr(
            id="hazy",
            description="Hazy planes of one channel, in counts",
            axes=axes(v0_5.SpaceInputAxis, lambda axis: smallest),
            test_tensor=files["test_input"],
            sample_tensor=files["sample_input"],
            data=counts,
        )
        clear_tensor = v0_5.OutputTensorDescr(
            id="clear",
            description="Posterior means of the clear planes, in counts",
            axes=axes(v0_5.SpaceOutputAxis, lambda axis: v0_5.SizeReference(tensor_id="hazy", axis_id=axis)),
            test_tensor=files["test_output"],
            sample_tensor=files["sample_output"],
            data=counts,
        )
        onnx = {}
        if "onnx" in files:
            source = files["onnx"].source
            onnx["onnx"] = v0_5.OnnxWeightsDescr(source=source, opset_version=OPSET, parent="pytorch_state_dict")
        weights = v0_5.WeightsDescr(
            pytorch_state_dict=v0_5.PytorchStateDictWeightsDescr(
                source=files["state_dict"].source,
                architecture=v0_5.ArchitectureFromFileDescr(
                    source=files["architecture"].source, callable="PosteriorMean", kwargs=arguments
                ),
                pytorch_version=OLDEST_TORCH,
            ),
            torchscript=v0_5.TorchscriptWeightsDescr(
                source=files["torchscript"].source, pytorch_version=OLDEST_TORCH, parent="pytorch_state_dict"
            ),
            **onnx,
        )
        model = v0_5.ModelDescr(
            name=name,
            version=version,
            description=DESCRIPTION,
            authors=[v0_5.Author(name="The haze-pipeline developers")],
            cite=[v0_5.CiteEntry(text=METHOD, url=URL)],
            documentation=files["readme"],
            covers=[files["cover"]],
            tags=["fluorescence-light-microscopy", "2d", "image-restoration", "dehazing", "unet", "pytorch"],
            inputs=[hazy_tensor],
            outputs=[clear_tensor],
            weights=weights,
            config=v0_5.Config(
                bioimageio=v0_5.BioimageioConfig(
                    architecture_type="U-Net",
                    modality="widefield fluorescence microscopy",
                    task="dehazing (image restoration)",
                    out_of_scope_use=NOT_MEANT_FOR,
                    model_parameter_count=pipe.unet.num_parameters(),
                )
            ),
            **{field: value for field, value in fields.items() if value},
        )
        package = save_bioimageio_package_as_folder(model, output_path=Path(folder, "package"))
        _lower_format(package / "rdf.yaml")
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(package.iterdir()):
                archive.write(file, file.name)
    summary = test_description(output)
    if summary.status != "passed":
        raise RuntimeError(f"The package fails the tests of bioimage.io: {summary.format()}")


def _write_files(
    folder: Path,
    pipe: HazeMatchingPipeline,
    module: PosteriorMean,
    hazy: torch.Tensor,
    clear: torch.Tensor,
    name: str,
    pixel_size: tuple[float, float] | None,
    facts: dict,
) -> dict[str, Path]:
    """Write the files of a package to a folder. For the arguments, see [`export_bioimageio`]."""
    files = {
        part: folder / file
        for part, file in (
            ("state_dict", "weights.pt"),
            ("architecture", "posterior_mean.py"),
            ("torchscript", "weights_torchscript.pt"),
            ("test_input", "test_input.npy"),
            ("test_output", "test_output.npy"),
            ("sample_input", "sample_input.tif"),
            ("sample_output", "sample_output.tif"),
            ("cover", "cover.png"),
            ("readme", "README.md"),
        )
    }
    torch.save(module.state_dict(), files["state_dict"])
    code = join_modules(Path(__file__).parents[1], "sharing.posterior_mean", ARCHITECTURE_HEAD)
    files["architecture"].write_text(code, encoding="utf-8")
    torch.jit.script(module).save(files["torchscript"])
    if obstacle_to_onnx(not pipe.config.zero_state_mean) is None:
        files["onnx"] = folder / "weights.onnx"
        write_onnx(module, files["onnx"])
    for kind, image in (("input", hazy.numpy()), ("output", clear.numpy())):
        np.save(files[f"test_{kind}"], image)
        scale = {}
        if pixel_size is not None:
            scale = {"resolution": (1 / pixel_size[1], 1 / pixel_size[0]), "metadata": {"unit": "um"}}
        tifffile.imwrite(files[f"sample_{kind}"], image[0, 0], imagej=True, **scale)
    draw_cover(hazy[0, 0].numpy(), clear[0, 0].numpy()).save(files["cover"])
    files["readme"].write_text(write_readme(pipe, name, facts), encoding="utf-8")
    return files


def _lower_format(description: Path):
    """
    Rewrite a description in the format that the runtime of bioimage.io reads. It differs from later ones in that
    covers and documentation have no checksums.
    """
    from bioimageio.spec.utils import read_yaml, write_yaml

    content = read_yaml(description)
    content["format_version"] = OLDEST_FORMAT
    content["covers"] = [cover["source"] for cover in content["covers"]]
    content["documentation"] = content["documentation"]["source"]
    if "training_data" in content:
        content["training_data"]["format_version"] = OLDEST_DATASET_FORMAT
    write_yaml(content, description)


def draw_cover(hazy: np.ndarray, clear: np.ndarray) -> Image.Image:
    """
    The centres of an image and of its result side by side, twice as wide as high. Each half has its own contrast.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The image.
        clear (`np.ndarray` of shape `[H, W]`): The result.
    """
    side = min(*hazy.shape, COVER_SIZE)
    top, left = ((length - side) // 2 for length in hazy.shape)
    cover = Image.new("L", (2 * side, side))
    for index, plane in enumerate((hazy, clear)):
        centre = plane[top : top + side, left : left + side]
        cover.paste(HazeImageProcessor.visualize_intensity(centre), (index * side, 0))
    zoom = COVER_SIZE // side  # an integer, so that pixels stay sharp
    return cover.resize((2 * side * zoom, side * zoom), Image.Resampling.NEAREST)


def _check_fields(name: str, version: str, git_repo: str | None, pixel_size: tuple[float, float] | None):
    """Raise a `ValueError` for an argument of [`export_bioimageio`] that bioimage.io does not accept."""
    if not re.fullmatch(r"[\w+\- ()]{5,128}", name, re.ASCII):
        raise ValueError(
            f"bioimage.io does not accept the name {name!r}: use 5 to 128 letters, digits, spaces, or _ + - ( )."
        )
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"{version!r} is not a version: give three numbers, such as 1.0.0.")
    if git_repo is not None and not re.fullmatch(r"https?://\S+\.\S+", git_repo):
        raise ValueError(f"{git_repo!r} is not the address of a repository: give one that starts with https://.")
    if pixel_size is not None and not min(pixel_size) > 0:
        raise ValueError(f"The pixel size must be positive, got {min(pixel_size):g} µm.")


def _find_license(license_id: str) -> str:
    """The licence as SPDX spells it. Raises a `ValueError` if there is none."""
    from bioimageio.spec.generic.v0_3 import LicenseId

    licenses = {known.lower(): known for known in get_args(LicenseId.root_model.model_fields["root"].annotation)}
    if license_id.lower() not in licenses:
        raise ValueError(
            f"{license_id} is not a licence of https://spdx.org/licenses: name one of them, such as Apache-2.0 or "
            "CC-BY-4.0."
        )
    return licenses[license_id.lower()]


def _find_maintainers(users: Sequence[str]) -> list:
    """Maintainers by their names on GitHub, which bioimage.io asks for each of them."""
    import httpx
    from bioimageio.spec.generic.v0_3 import Maintainer

    maintainers = []
    for user in users:
        try:
            maintainers.append(Maintainer(github_user=user))
        except httpx.HTTPError as error:
            raise OSError(
                f"GitHub cannot be asked for the maintainer {user}: check the connection, or leave out --maintainer."
            ) from error
        except ValueError as error:
            raise ValueError(f"GitHub does not know the maintainer {user}: name a user of GitHub.") from error
    return maintainers
