"""The network of the official HazeMatching code with random weights, as the reference of parity tests."""

import importlib
import importlib.util
import sys
import types

import pytest
import torch


def _import_unet_model():
    """torchcfm's `UNetModel`, without the other imports of torchcfm (optimal transport, torchdyn, torchvision)."""
    spec = importlib.util.find_spec("torchcfm")
    if spec is None:
        pytest.skip("parity with the official network needs torchcfm (`pip install --no-deps torchcfm`)")
    # An empty package stands in for torchcfm, so that its __init__ is not run. It is removed again afterwards.
    package = types.ModuleType("torchcfm")
    package.__path__ = list(spec.submodule_search_locations)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchcfm"}
    for name in before:
        del sys.modules[name]
    sys.modules["torchcfm"] = package
    try:
        return importlib.import_module("torchcfm.models.unet.unet").UNetModel
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchcfm"]:
            del sys.modules[name]
        sys.modules.update(before)


def reference_unet(patch_size: int = 128, seed: int = 0, **overrides) -> torch.nn.Module:
    """
    HazeMatching's torchcfm network, called as `model(t, x)` with `x` `[B, 2, h, w]`. Skips the test if torchcfm is not
    installed.

    Args:
        patch_size (`int`): 128, or 64 for the network of the neuron data.
        seed (`int`): Seed of the weights. All are random, also the convolutions that a training would initialise with
            zeros, because a network of zeros would agree with any other.
        overrides: Arguments of `UNetModel` with other values.
    """
    arguments = {
        "image_size": patch_size,
        "in_channels": 2,
        "model_channels": 32,
        "out_channels": 1,
        "num_res_blocks": 1,
        "attention_resolutions": (patch_size // 16,),  # downsampling at which a patch has 16 px a side
        "channel_mult": {128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}[patch_size],
        "num_heads": 1,
    }
    model = _import_unet_model()(**(arguments | overrides)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                # Keeps the variance of the signal. The embedding of t is amplified, because t in [0, 1] would
                # otherwise hardly change the output.
                gain = 4 if name.startswith("time_embed") else 1
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
            else:  # 1-D weights are the scales of normalisations
                parameter.copy_(0.2 * noise + name.endswith("weight"))
    return model
