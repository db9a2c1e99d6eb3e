"""Saving and loading of pipelines. Code in a repository is never run."""

from pathlib import Path
from typing import Self

from haze_pipeline.utils.hub import fetch_pipeline, resolve_index, stored_variant
from haze_pipeline.utils.stored_code import add_code

from .scheduling_flow_match_ode import FlowMatchODEScheduler


class PipelineStorageMixin:
    """Saving and loading for a class of diffusers' pipelines, before which it stands in the list of bases."""

    # Whether the code of this class is stored with a pipeline, for users who have not installed this package.
    stores_code = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> Self:
        """
        Load a pipeline from a folder or a repository of the Hub. No code is downloaded or run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): The folder or repository.
            kwargs: As in diffusers. `variant` may be omitted if only half-precision weights are stored.

        Raises:
            `ValueError`: If the folder holds another pipeline or pickles, asks for code of neither this package nor
                diffusers, or does not match the checksums of its repository.
        """
        # diffusers itself would download code. Code in a local folder is not run either: see `load_config`.
        names = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        where = {name: kwargs.pop(name) for name in names if name in kwargs}
        folder = fetch_pipeline(pretrained_model_name_or_path, kwargs.get("variant"), **where)
        kwargs = {"variant": stored_variant(folder), **kwargs, "use_safetensors": True}
        return super().from_pretrained(folder, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> dict:
        """Index of a stored pipeline, with the classes of this package in place of the code stored with it."""
        index = super().load_config(pretrained_model_name_or_path, **kwargs)
        classes = [base.__name__ for base in cls.__mro__]
        return resolve_index(index, pretrained_model_name_or_path, FlowMatchODEScheduler.__module__, classes)

    def save_pretrained(
        self,
        save_directory: str | Path,
        variant: str | None = None,
        with_code: bool = True,
        **kwargs,
    ):
        """
        Write a folder that [`from_pretrained`] loads. If this package is not installed,
        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads a [`HazeMatchingPipeline`] too.

        Args:
            save_directory (`str` or `Path`): The folder, created if necessary.
            variant (`str`, *optional*):
                Part of the file names of the weights, such as `"fp16"`. The weights keep their precision.
            with_code (`bool`, defaults to `True`): Store the code that `DiffusionPipeline` needs.
            kwargs: `max_shard_size`.

        Raises:
            `ValueError`: If another format than safetensors is requested.
            `NotImplementedError`: If an upload is requested, see [`push_to_hub`].
        """
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name))
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("`safe_serialization` must be True: only safetensors are stored, since pickles run code.")
        super().save_pretrained(save_directory, variant=variant, max_shard_size=kwargs.pop("max_shard_size", None))
        if with_code and self.stores_code:
            add_code(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Not available, since a repository also needs a card, a licence and weights in half precision. Use
        `haze_pipeline.sharing.publishing.push_pipeline` or the command `haze-pipeline push`.
        """
        raise NotImplementedError(
            "Use `haze_pipeline.sharing.publishing.push_pipeline(pipe, repo_id)` or `haze-pipeline push`, which also "
            "write a card and need pip install 'haze-pipeline[hub]'."
        )
