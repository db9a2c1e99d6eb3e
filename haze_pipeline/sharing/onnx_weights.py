"""Weights in ONNX for packages of bioimage.io. ONNX Runtime runs them without torch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch


OPSET = 18  # the lowest that the exporter of torch writes
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the last runs the tests of the package


def obstacle_to_onnx(starts_from_noise: bool) -> str | None:
    """Why a checkpoint can have no weights in ONNX here, if so. It may start from noise or from zeros."""
    if starts_from_noise:
        return "since this checkpoint starts from noise, for which the export takes very long"
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"which need {', '.join(missing)}: pip install {' '.join(missing)}" if missing else None


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps back what the exporter says about torchvision, which is not needed, and about changes within torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def write_onnx(module: torch.nn.Module, output: Path):
    """
    Write a network as one ONNX file. Batch, height and width of the image remain free.

    Args:
        module (`torch.nn.Module`): Maps `[B, 1, H, W]` to `[B, 1, H, W]`.
        output (`Path`): The `.onnx` file to write.
    """
    example = torch.rand(2, 1, 88, 104)  # the exporter may take a size of 1, or two equal ones, for constants
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["hazy"],
            output_names=["clear"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        )
    for node in program.model.graph:
        node.metadata_props.clear()  # paths on this machine
    program.save(output, external_data=False)
