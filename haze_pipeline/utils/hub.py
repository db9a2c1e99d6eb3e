"""
Pipeline folders, which are also how pipelines lie on the Hub: weights, configurations, and the code that they need.
"""

import hashlib
import re
from pathlib import Path

from huggingface_hub import HfApi, RepoUrl, get_cached_repo_tree, snapshot_download


# Of `DiffusionPipeline.from_pretrained(…, trust_remote_code=True)` where this package is not installed; we never run
# it.
PIPELINE = ["pipeline_haze_matching", "HazeMatchingPipeline"]
SCHEDULER = ["scheduling_flow_match_ode", "FlowMatchODEScheduler"]

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")  # run code when they are read


def fetch_pipeline(name: str | Path, variant: str | None = None, cache_dir: str | Path | None = None, **kwargs) -> str:
    """
    The folder of a pipeline. Of a repository of the Hub, configurations and weights are fetched, and nothing that
    runs. They are compared with the checksums of the repository every time, so that a damaged or altered copy is not
    used.

    Args:
        name (`str` or `Path`): A folder, or a repository of the Hub.
        variant (`str`, *optional*): Weights to fetch, such as `"fp16"`; else the full ones, or all where there are
            none.
        cache_dir (`str` or `Path`, *optional*): Where fetched files are kept.
        kwargs: `revision`, `token`, `local_files_only`, `force_download` of `huggingface_hub.snapshot_download`.

    Raises:
        `ValueError`: If there are pickles among the weights, no weights of the variant, or a file with another
            checksum.
        `huggingface_hub.errors.HfHubHTTPError`, `LocalEntryNotFoundError` or `HFValidationError`: If there is neither.
    """
    if Path(name).is_dir():
        # Not deeper: folders of a training hold states of its optimiser.
        folders = [Path(name), Path(name, "unet"), Path(name, "scheduler")]
        _refuse_pickles(name, [str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()])
        return str(name)
    index = snapshot_download(str(name), cache_dir=cache_dir, allow_patterns=["model_index.json"], **kwargs)
    kwargs["revision"] = Path(index).name  # the commit, so that all files are of one
    files = get_cached_repo_tree(str(name), revision=kwargs["revision"], cache_dir=cache_dir)
    _refuse_pickles(name, [file.path for file in files])
    weights = [file.path for file in files if re.fullmatch(r"unet/.*\.safetensors", file.path)]
    chosen = [path for path in weights if _variant(path) == variant]
    if not chosen and variant is not None:
        there = sorted({_variant(path) or "the full ones" for path in weights})
        raise ValueError(f"{name} has no weights of the variant {variant!r}, but {', '.join(there) or 'none at all'}.")
    configurations = ["model_index.json", "unet/*.json", "scheduler/*.json"]
    folder = snapshot_download(
        str(name), cache_dir=cache_dir, allow_patterns=[*configurations, *(chosen or weights)], **kwargs
    )
    for file in files:
        path = Path(folder, file.path)
        if path.is_file() and (path.suffix == ".json" or file.path in weights):
            # Large files are known by the SHA-256 of their content, others by the hash that Git gives them.
            content = path.read_bytes()
            digest = hashlib.sha256(content) if file.lfs else hashlib.sha1(b"blob %d\0" % len(content) + content)
            if digest.hexdigest() != (file.lfs.sha256 if file.lfs else file.blob_id):
                raise ValueError(
                    f"{file.path} of {name} is not what its repository says: it was damaged or altered on the way or "
                    f"in the "
                    f"cache. Delete {path.resolve()}, or load once with `force_download=True`."
                )
    return folder


def stored_variant(folder: str | Path) -> str | None:
    """
    `"fp16"` if a pipeline folder holds its weights in half precision only, as `from_pretrained(variant=…)` must be
    told.
    """
    variants = {_variant(path.name) for path in Path(folder, "unet").glob("*.safetensors")}
    return variants.pop() if len(variants) == 1 else None


def resolve_index(index: dict, name: str | Path, scheduler_module: str) -> dict:
    """
    A `model_index.json` with classes that are installed in place of code files that lie beside it.

    Args:
        index (`dict`): As stored.
        name (`str` or `Path`): Of the pipeline, for errors.
        scheduler_module (`str`): Name of the module that has our scheduler.

    Raises:
        `ValueError`: If it is of another pipeline, or asks for other code.
    """
    pipeline = index.get("_class_name")
    pipeline = pipeline[1] if isinstance(pipeline, list) else pipeline
    if pipeline != PIPELINE[1]:
        raise ValueError(f"{name} holds a {pipeline}, not a {PIPELINE[1]}.")
    index = {**index, "_class_name": pipeline}
    if list(index.get("scheduler", []))[1:] == SCHEDULER[1:]:
        index["scheduler"] = [scheduler_module, SCHEDULER[1]]
    for component, (library, class_name) in ((key, index[key]) for key in ("unet", "scheduler") if key in index):
        if [library, class_name] != [scheduler_module, SCHEDULER[1]] and library != "diffusers":
            raise ValueError(
                f"The {component} of {name} is a {class_name} of {library}, which is neither of this package nor of "
                f"diffusers."
            )
    return index


def create_repository(
    name: str, repo_type: str, private: bool | None = None, token: str | bool | None = None
) -> RepoUrl:
    """
    A repository of the Hub, made if need be.

    Args:
        name (`str`): `"organisation/name"`.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Who may see a new repository; by default what the organisation has set.
        token (`str` or `bool`, *optional*): By default that of `hf auth login`.

    Raises:
        `ValueError`: If the repository was to be private, but exists and is public.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
    """
    api = HfApi(token=token)
    url = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} exists and is public: choose another name, or make it private on the Hub first."
        )
    return url


def _variant(path: str) -> str | None:
    """The variant in the name of a weights file, which may be one of several shards."""
    match = re.fullmatch(r"[^.]+\.([^.-]+)(?:-\d+-of-\d+)?\.safetensors", Path(path).name)
    return match[1] if match else None


def _refuse_pickles(name: str | Path, paths: list[str]):
    for path in paths:
        if path.endswith(PICKLES):
            raise ValueError(
                f"{name} holds the pickle {Path(path).name}, which could run anything when it is read: only "
                f"safetensors are "
                "loaded. Ask its authors to store it anew with `save_pretrained`."
            )
