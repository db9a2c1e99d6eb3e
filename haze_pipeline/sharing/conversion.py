"""
Conversion of an official HazeMatching checkpoint to a stock diffusers network and the configuration of a pipeline.

The official code trains the `UNetModel` of torchcfm and saves only its `state_dict()` as `best_model.pth`. Patch
sizes, statistics for the normalisation and digests of the published files are part of that code, not of the file. Here
they are in `SUBSETS`.

Source of every number: https://github.com/rayanirban/HazeMatching (`hazematching/datasets/data_norm.py`,
`scripts/train.py`, `scripts/infer.py`, `scripts/download_models.py`).
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel

from haze_pipeline.models.unet_haze_matching import BLOCK_OUT_CHANNELS, build_unet


@dataclass(frozen=True)
class HazeMatchingSubset:
    """
    Facts about one data set of the official code that its checkpoint does not contain.

    Attributes:
        channels (`tuple[dict[str, float], ...]`):
            `input_mean`, `input_std` (widefield), `target_mean` and `target_std` (confocal) of every source channel,
            in the units of the image files. The network is the same for all channels.
        sha256 (`str`):
            SHA-256 digest of the published `best_model.pth`.
        patch_size (`int`):
            Side of the training patches in pixels. The architecture depends on it.
    """

    channels: tuple[dict[str, float], ...]
    sha256: str
    patch_size: int = 128


SUBSETS: dict[str, HazeMatchingSubset] = {
    "zebrafish": HazeMatchingSubset(
        channels=(
            {"input_mean": 176.03, "input_std": 39.342876, "target_mean": 87.74069, "target_std": 51.070114},
            {"input_mean": 155.55043, "input_std": 23.21549, "target_mean": 53.154064, "target_std": 30.28169},
            {"input_mean": 162.67065, "input_std": 27.638577, "target_mean": 62.870373, "target_std": 32.791805},
        ),
        sha256="9e3bdfcdce89ed7d93d8cbc189e00d05d44c2b35c03934e1235ffe7104684cb4",
    ),
    "organoids1": HazeMatchingSubset(
        channels=(
            {"input_mean": 1325.1595, "input_std": 155.96614, "target_mean": 493.80344, "target_std": 311.96014},
        ),
        sha256="0757e308aff6f9fe3ed619a3ce190ab7210e9ed2fdfb002c2ef47752d126e0b6",
    ),
    "organoids2": HazeMatchingSubset(
        channels=(
            {"input_mean": 7911.6943, "input_std": 6652.056, "target_mean": 2480.7273, "target_std": 2576.4062},
        ),
        sha256="329621425efcdc37063701daf3d2b7ea26f006557e3a57a08d17258d22a874d6",
    ),
    "microtubule": HazeMatchingSubset(
        channels=({"input_mean": 145.08662, "input_std": 27.819897, "target_mean": 50.924667, "target_std": 31.688},),
        sha256="20344df5748f3eb36294d80bed67be52a37c095d5d7138d8ec16dceca7a2875a",
    ),
    "neuron": HazeMatchingSubset(
        channels=(
            {"input_mean": 101.10135, "input_std": 2.7681978, "target_mean": 37881.363, "target_std": 116733.914},
        ),
        sha256="2158fe4df870540885d3691cb3ec41b6db5482786106a5f03f24aedfead302e9",
        patch_size=64,
    ),
}

# Layers of a block in torchcfm (left) and diffusers (right). torchcfm stores query, key and value as one tensor.
RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION_PARTS = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj_out": ("to_out.0",)}


def _blocks(num_levels: int) -> Iterator[tuple[str, str]]:
    """Names of the same block in torchcfm and in diffusers, from the input to the output."""
    coarsest, attention_level = num_levels - 1, num_levels - 2
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    for level in range(num_levels):
        # torchcfm numbers its input blocks consecutively: the first convolution, then block and downsampler in turn.
        yield f"input_blocks.{2 * level + 1}.0", f"down_blocks.{level}.resnets.0"
        if level == attention_level:
            yield f"input_blocks.{2 * level + 1}.1", f"down_blocks.{level}.attentions.0"
        if level < coarsest:
            yield f"input_blocks.{2 * level + 2}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    for up in range(num_levels):  # counted from the coarsest level in both libraries
        has_attention = coarsest - up == attention_level
        for i in range(2):
            yield f"output_blocks.{2 * up + i}.0", f"up_blocks.{up}.resnets.{i}"
            if has_attention:
                yield f"output_blocks.{2 * up + i}.1", f"up_blocks.{up}.attentions.{i}"
        if up < coarsest:  # in torchcfm, the upsampler is the last part of the second block
            yield f"output_blocks.{2 * up + 1}.{1 + has_attention}.conv", f"up_blocks.{up}.upsamplers.0.conv"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _layers(num_levels: int) -> dict[str, tuple[str, ...]]:
    """By layer of torchcfm's network, the diffusers layer (or the three of query, key and value) with its weights."""
    layers = {}
    for theirs, ours in _blocks(num_levels):
        if ".resnets." in ours:
            layers |= {f"{theirs}.{part}": (f"{ours}.{name}",) for part, name in RESNET_PARTS.items()}
        elif ".attentions." in ours:
            for part, names in ATTENTION_PARTS.items():
                layers[f"{theirs}.{part}"] = tuple(f"{ours}.{name}" for name in names)
        else:
            layers[theirs] = (ours,)
    return layers


def unet_from_torchcfm(state_dict: dict[str, torch.Tensor]) -> UNet2DModel:
    """
    Build the stock diffusers network that computes the same function as HazeMatching's torchcfm network.

    The names of the tensors tell the patch size (128 px for five levels, 64 px for four). As in torchcfm, pass the
    time t in [0, 1] unscaled. Pass it as a tensor, because `UNet2DModel` casts a Python float to an integer.

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            Weights of the torchcfm `UNetModel` as the official code builds it, under their original names.

    Returns:
        `UNet2DModel`: The network in float32 and evaluation mode; `config.sample_size` is the patch size.

    Raises:
        `ValueError`: If a tensor is missing, unexpected, of another shape or not finite. The message names the first.
    """
    # A level has two of torchcfm's input blocks. This count only selects the network; all tensors are checked below.
    num_input_blocks = len({name.split(".")[1] for name in state_dict if name.startswith("input_blocks.")})
    patch_size = 64 if num_input_blocks <= 2 * len(BLOCK_OUT_CHANNELS[64]) else 128
    unet = build_unet(patch_size)

    ours = unet.state_dict()
    expected, converted, misshapen = set(), {}, []
    for source, targets in _layers(len(BLOCK_OUT_CHANNELS[patch_size])).items():
        for parameter in ("weight", "bias"):
            if f"{targets[0]}.{parameter}" not in ours:  # shortcuts exist only where the number of channels changes
                continue
            name = f"{source}.{parameter}"
            expected.add(name)
            if name not in state_dict:
                continue
            tensor, shape = state_dict[name], list(ours[f"{targets[0]}.{parameter}"].shape)
            shape[0] *= len(targets)
            if source.endswith((".qkv", ".proj_out")) and parameter == "weight":
                shape.append(1)  # torchcfm has a convolution over the flattened pixels, diffusers a linear layer
            if list(tensor.shape) != shape:
                misshapen.append(f"`{name}` has the shape {list(tensor.shape)}, expected {shape}")
                continue
            for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                converted[f"{target}.{parameter}"] = part.reshape(ours[f"{target}.{parameter}"].shape)

    missing, unexpected = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    problems = [
        f"{len(names)} {what} (such as `{names[0]}`)"
        for names, what in ((missing, "tensor(s) missing"), (unexpected, "tensor(s) unexpected"))
        if names
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} tensor(s) of another shape ({misshapen[0]})")
    if problems:
        raise ValueError(
            f"The weights do not fit HazeMatching's {patch_size}-pixel network of {len(expected)} tensors: "
            f"{', '.join(problems)}; use a checkpoint of the official code."
        )
    for name, tensor in state_dict.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"The weights cannot be used: `{name}` contains NaN or infinite values.")

    unet.load_state_dict(converted, strict=True)
    return unet.eval()


def load_hazematching_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Read the weights that the official training script saved, without running code from the file.

    Args:
        path (`str` or `os.PathLike`): A `.pth` file with only a `state_dict()`, as `scripts/train.py` writes it.

    Returns:
        `dict[str, torch.Tensor]`: Tensors on the CPU. The prefix `module.` of a `DataParallel` training is removed.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it is not a PyTorch checkpoint, is damaged, or contains anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file at `{path}`: check the path.")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch raises errors of many kinds, such as OSError for a truncated archive
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # the file is not an archive
            foreign = []
        if foreign:
            raise ValueError(
                f"`{path}` was not opened because it contains Python objects (`{foreign[0]}`) that may run code when "
                "they are loaded: save only `model.state_dict()`."
            ) from error
        raise ValueError(
            f"`{path}` is not a PyTorch checkpoint, or it is damaged or incomplete: download or copy it again."
        ) from error

    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"`{path}` contains no named tensors: save `model.state_dict()`.")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"`{path}` contains a `{type(value).__name__}` named `{name}` instead of a tensor: save only "
                "`model.state_dict()`."
            )
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def convert_hazematching_checkpoint(
    path: str | os.PathLike, subset: str, channel: int = 0
) -> tuple[UNet2DModel, dict[str, float | int]]:
    """
    Convert an official `best_model.pth` to the network and the configuration of a pipeline.

    Args:
        path (`str` or `os.PathLike`): The `.pth` file.
        subset (`str`): Data set the file was trained on, one of `SUBSETS`. It sets the normalisation.
        channel (`int`, defaults to 0): Source channel whose statistics to use. Only `zebrafish` has more than one.

    Returns:
        `tuple[UNet2DModel, dict]`: The network, and the pipeline's `input_mean`, `input_std`, `target_mean`,
        `target_std` (units of the image files), `training_patch_size` (px) and `default_num_inference_steps`.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If `subset` or `channel` is unknown, or the file does not contain the network of that subset.

    Warns:
        `UserWarning`: If the file is not the published one, as after a training of one's own with the official code.
    """
    if subset not in SUBSETS:
        raise ValueError(f"`subset` must be one of {', '.join(SUBSETS)}, got {subset!r}.")
    known = SUBSETS[subset]
    if channel not in range(len(known.channels)):
        choices = ", ".join(str(index) for index in range(len(known.channels)))
        raise ValueError(f"`channel` of the subset {subset} must be one of {choices}, got {channel!r}.")

    unet = unet_from_torchcfm(load_hazematching_checkpoint(path))

    # The statistics of another data set would give wrong intensities without any error.
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for other, published in SUBSETS.items():
        if other != subset and digest == published.sha256:
            raise ValueError(
                f"`{path}` is the published checkpoint of the subset {other}, not of {subset}: use `--subset {other}`."
            )
    if unet.config.sample_size != known.patch_size:
        raise ValueError(
            f"`{path}` contains the {unet.config.sample_size}-pixel network, but the subset {subset} uses the "
            f"{known.patch_size}-pixel network: name the subset of the checkpoint."
        )
    if digest != known.sha256:
        warnings.warn(
            f"`{path}` (sha256 {digest[:12]}...) is not the published checkpoint of the subset {subset} (sha256 "
            f"{known.sha256[:12]}...). It gets the statistics of that subset. These are correct only if you trained "
            "the checkpoint on that subset with the official code.",
            stacklevel=2,
        )

    config = {
        **known.channels[channel],
        "training_patch_size": known.patch_size,
        "default_num_inference_steps": 19,  # the official sampler uses 20 points in time, that is, 19 Euler steps
    }
    return unet, config
