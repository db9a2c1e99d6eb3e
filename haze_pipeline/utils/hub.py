"""Pipeline folders on disk and on the Hub: weights, configurations, and the code that they need."""

import hashlib
import re
from importlib import import_module
from pathlib import Path

from huggingface_hub import HfApi, RepoUrl, get_cached_repo_tree, snapshot_download


# Modules and classes of the code stored with a pipeline. `DiffusionPipeline.from_pretrained(…,
# trust_remote_code=True)` runs this code if this package is not installed. This package never runs it.
PIPELINE = ["pipeline_haze_matching", "HazeMatchingPipeline"]
SCHEDULER = ["scheduling_flow_match_ode", "FlowMatchODEScheduler"]
BLOCKS = ["modular_haze_matching", "HazeMatchingBlocks"]

# Modules of this package with networks that a stored pipeline may name.
NETWORKS = [
    f"haze_pipeline.models.{name}"
    for name in (
        "autoencoder_hierarchical",
        "latent_restoration",
        "mimo_unet",
        "mprnet",
        "rcan",
        "residual_unet",
        "restormer",
        "rrdb",
    )
]

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")  # may run code when they are read


def fetch_pipeline(name: str | Path, variant: str | None = None, cache_dir: str | Path | None = None, **kwargs) -> str:
    """
    The folder of a pipeline, after a download if it is on the Hub. Only configurations and weights are downloaded,
    never code. Every call compares them with the checksums of the repository, so that a damaged or altered copy is
    never used.

    Args:
        name (`str` or `Path`): A folder, or a repository of the Hub.
        variant (`str`, *optional*): Variant of the weights, such as `"fp16"`. By default, the weights in full
            precision, or all variants if there are none.
        cache_dir (`str` or `Path`, *optional*): Folder for downloaded files.
        kwargs: `revision`, `token`, `local_files_only`, `force_download` of `huggingface_hub.snapshot_download`.

    Returns:
        `str`: Path of the folder.

    Raises:
        `ValueError`: If the weights include pickles, the variant does not exist, or a checksum differs.
        `huggingface_hub.errors.HfHubHTTPError`, `LocalEntryNotFoundError` or `HFValidationError`: If there is no such
            folder or repository, or it cannot be downloaded.
    """
    if Path(name).is_dir():
        # Deeper folders are not checked: those of a training contain pickled states of its optimiser.
        folders = [Path(name), Path(name, "unet"), Path(name, "scheduler")]
        _refuse_pickles(name, [str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()])
        return str(name)
    index = snapshot_download(str(name), cache_dir=cache_dir, allow_patterns=["model_index.json"], **kwargs)
    kwargs["revision"] = Path(index).name  # the commit, so that all files are of the same one
    files = get_cached_repo_tree(str(name), revision=kwargs["revision"], cache_dir=cache_dir)
    _refuse_pickles(name, [file.path for file in files])
    weights = [file.path for file in files if re.fullmatch(r"unet/.*\.safetensors", file.path)]
    chosen = [path for path in weights if _variant(path) == variant]
    if not chosen and variant is not None:
        there = sorted({_variant(path) or "full precision" for path in weights})
        raise ValueError(
            f"{name} has no weights of the variant {variant!r}: name one of its variants "
            f"({', '.join(there) or 'it has none'})."
        )
    configurations = ["model_index.json", "unet/*.json", "scheduler/*.json"]
    folder = snapshot_download(
        str(name), cache_dir=cache_dir, allow_patterns=[*configurations, *(chosen or weights)], **kwargs
    )
    for file in files:
        path = Path(folder, file.path)
        if path.is_file() and (path.suffix == ".json" or file.path in weights):
            # The Hub lists the SHA-256 of large files, and Git's hash of the others.
            content = path.read_bytes()
            digest = hashlib.sha256(content) if file.lfs else hashlib.sha1(b"blob %d\0" % len(content) + content)
            if digest.hexdigest() != (file.lfs.sha256 if file.lfs else file.blob_id):
                raise ValueError(
                    f"{file.path} of {name} does not match the checksum of its repository, so the download or the "
                    f"cache is damaged or altered: delete {path.resolve()}, or load once with `force_download=True`."
                )
    return folder


def stored_variant(folder: str | Path) -> str | None:
    """
    The variant of the weights in a pipeline folder if there is only one, such as `"fp16"`, else `None`.
    `from_pretrained(variant=…)` needs it to find weights that exist in half precision only.
    """
    variants = {_variant(path.name) for path in Path(folder, "unet").glob("*.safetensors")}
    return variants.pop() if len(variants) == 1 else None


def resolve_index(index: dict, name: str | Path, scheduler_module: str, pipeline_classes: list[str]) -> dict:
    """
    A `model_index.json` that names the installed classes instead of the code files stored beside it.

    Args:
        index (`dict`): The stored `model_index.json`.
        name (`str` or `Path`): Name of the pipeline, for error messages.
        scheduler_module (`str`): Name of the installed module with our scheduler.
        pipeline_classes (`list[str]`): Names of the class that loads it and of its bases.

    Raises:
        `ValueError`: If it belongs to another pipeline class, or a component is neither ours nor of diffusers.
    """
    pipeline = index.get("_class_name")
    pipeline = pipeline[1] if isinstance(pipeline, list) else pipeline
    if pipeline not in pipeline_classes:
        raise ValueError(
            f"{name} contains a {pipeline}, not a {pipeline_classes[0]}: load it with the class {pipeline}."
        )
    index = {**index, "_class_name": pipeline}
    if list(index.get("scheduler", []))[1:] == SCHEDULER[1:]:
        index["scheduler"] = [scheduler_module, SCHEDULER[1]]
    for component, (library, class_name) in ((key, index[key]) for key in ("unet", "scheduler") if key in index):
        is_ours = [library, class_name] == [scheduler_module, SCHEDULER[1]] or library in NETWORKS
        if not is_ours and library != "diffusers":
            raise ValueError(
                f"The {component} of {name} is a {class_name} of {library}: only classes of diffusers and of this "
                "package are loaded."
            )
        if library in NETWORKS:
            import_module(library)  # diffusers finds only classes of modules that are imported already
    return index


def create_repository(
    name: str, repo_type: str, private: bool | None = None, token: str | bool | None = None
) -> RepoUrl:
    """
    A repository of the Hub. It is created if it does not exist.

    Args:
        name (`str`): `"organisation/name"`.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Make a new repository private. By default, the organisation's setting applies.
        token (`str` or `bool`, *optional*): Access token. By default, that of `hf auth login`.

    Raises:
        `ValueError`: If `private` is set, but the repository exists and is public.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses the request.
    """
    api = HfApi(token=token)
    url = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} exists and is public: choose another name, or make it private on the Hub first."
        )
    return url


def _variant(path: str) -> str | None:
    """The variant in the name of a weights file, if it has one. The file may be one of several shards."""
    match = re.fullmatch(r"[^.]+\.([^.-]+)(?:-\d+-of-\d+)?\.safetensors", Path(path).name)
    return match[1] if match else None


def _refuse_pickles(name: str | Path, paths: list[str]):
    for path in paths:
        if path.endswith(PICKLES):
            raise ValueError(
                f"{name} contains the pickle {Path(path).name}, which could run any code when it is read, so only "
                "safetensors are loaded: ask its authors to store it again with `save_pretrained`."
            )
