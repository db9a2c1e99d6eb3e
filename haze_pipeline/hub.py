"""Pipeline folders, and repositories of the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, RepoUrl, snapshot_download


# Nothing that runs: no code, no pickles.
PIPELINE_FILES = ["*.json", "*.safetensors"]


def fetch_pipeline(name: str | Path, **kwargs) -> str:
    """
    The folder of a pipeline.

    Args:
        name (`str` or `Path`): A folder, or a repository of the Hub, of which configurations and weights are fetched.
        kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and others of `huggingface_hub.snapshot_download`.

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`, `LocalEntryNotFoundError` or `HFValidationError`: If there is neither.
    """
    if Path(name).is_dir():
        return str(name)
    return snapshot_download(str(name), allow_patterns=PIPELINE_FILES, **kwargs)


def create_repository(name: str, repo_type: str, private: bool | None = None) -> RepoUrl:
    """
    A repository of the Hub, made if need be.

    Args:
        name (`str`): `"organisation/name"`.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Who may see a new repository; by default what the organisation has set.

    Raises:
        `ValueError`: If the repository was to be private, but exists and is public.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
    """
    api = HfApi()
    url = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} exists and is public: choose another name, or make it private on the Hub first."
        )
    return url


def stored_variant(folder: str | Path) -> str | None:
    """`"fp16"` if a pipeline folder holds its weights in half precision only, as `from_pretrained(variant=…)` must be told."""
    weights = list(Path(folder, "unet").glob("*.safetensors"))
    return "fp16" if weights and all(".fp16." in path.name for path in weights) else None
