"""Storing pipelines such that no code of a repository is ever run, and loading them again."""

from pathlib import Path
from typing import Self

from haze_pipeline.utils.hub import fetch_pipeline, resolve_index, stored_variant
from haze_pipeline.utils.stored_code import add_code

from .scheduling_flow_match_ode import FlowMatchODEScheduler


class PipelineStorageMixin:
    """In front of a class of diffusers' pipelines."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> Self:
        """
        Load a pipeline from a folder or a repository of the Hub, of which no code is fetched or run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): The folder or repository.
            kwargs: As in diffusers. `variant` need not be given where only half-precision weights are stored.

        Raises:
            `ValueError`:
                If it is another pipeline, asks for code that is neither ours nor of diffusers, holds pickles, or is
                not what its repository says.
        """
        # diffusers itself would fetch code. Code that lies in a folder is not run either: see `load_config`.
        names = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        where = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = fetch_pipeline(pretrained_model_name_or_path, kwargs.get("variant"), **where)
        kwargs = {"variant": stored_variant(folder), **kwargs, "use_safetensors": True}
        return super().from_pretrained(folder, **kwargs)

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
            variant (`str`, *optional*): Such as `"fp16"`: part of the names of the weights, which are stored as they
                are.
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
            "Push with `haze_pipeline.sharing.publishing.push_pipeline(pipe, repo_id)` or `haze-pipeline push`, which "
            "also write a card: "
            "pip install 'haze-pipeline[hub]'."
        )
