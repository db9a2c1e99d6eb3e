"""Dehazing of fluorescence micrographs by guided conditional flow matching, with an uncertainty for every pixel."""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__


if TYPE_CHECKING:
    from .image_processing import HazeImageProcessor
    from .pipeline_haze_matching import HazeMatchingPipeline
    from .pipeline_output import HazeMatchingOutput
    from .scheduling_flow_match_ode import FlowMatchODEScheduler

# Loaded on first use. The pipeline imports most of diffusers, which would slow down `haze-pipeline --help`.
_MODULES = {
    "FlowMatchODEScheduler": "scheduling_flow_match_ode",
    "HazeImageProcessor": "image_processing",
    "HazeMatchingOutput": "pipeline_output",
    "HazeMatchingPipeline": "pipeline_haze_matching",
}

__all__ = ["FlowMatchODEScheduler", "HazeImageProcessor", "HazeMatchingOutput", "HazeMatchingPipeline", "__version__"]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
