"""
Hub datasets of pairs: hazy and clear planes with their metadata, stored as Parquet files. `datasets.load_dataset`
reads them from a folder or streams them from the Hub.

The library `datasets` belongs to the extra `train`, so each function that needs it imports it itself.
"""

import math
from collections.abc import Iterable
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from haze_pipeline.utils.hub import create_repository


if TYPE_CHECKING:
    import datasets
    from huggingface_hub import DatasetCard

# Pillow's image modes and the types they stand for. Pillow 10.1 opens 16-bit PNGs in mode "I"; no other files that we
# store open in this mode.
DTYPES = {"L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "uint16", "F": "float32"}

HUB_TIMEOUT = 10  # seconds to wait for an answer of the Hub


def encode_plane(plane: np.ndarray) -> dict:
    """
    Encode a plane without loss for a column of type `datasets.Image()`.

    By default, `datasets` converts 16-bit colours to 8 bits and keeps only the first page of a stack. Here, integers
    become a PNG, which browsers display, and real numbers a 32-bit TIFF.

    Args:
        plane (`np.ndarray` of shape `[H, W]`): Finite intensities of type uint8, uint16 or float32. Another real type
            is accepted if uint16 (for integers) or float32 represents every value exactly.

    Returns:
        `dict`: The file's content as `bytes`; `path` is `None`.

    Raises:
        `ValueError`: If the array is not a plane, is empty, holds NaN or infinite values, or would be rounded.
    """
    if plane.ndim != 2 or plane.size == 0:
        raise ValueError(f"The image has shape {plane.shape}, not [H, W]: pass one plane at a time.")
    if plane.dtype.kind not in "iuf":
        raise ValueError(
            f"The image has type {plane.dtype}, which does not hold intensities: convert it to uint16 or float32."
        )
    if not np.isfinite(plane).all():
        raise ValueError("The image holds NaN or infinite values: replace them by finite numbers.")
    exact = plane
    if plane.dtype.name not in ("uint8", "uint16", "float32"):
        low, high = plane.min(), plane.max()
        integers = plane.dtype.kind != "f"
        with np.errstate(over="ignore"):
            exact = plane.astype(np.uint16 if integers and low >= 0 and high <= 65535 else np.float32)
        # `==` compares integers as float64, which is exact up to 2**53.
        if (integers and max(-int(low), int(high)) > 2**53) or not (exact == plane).all():
            raise ValueError(
                f"The image holds {plane.dtype} values that float32 would round: convert it to uint16 or float32 and "
                "choose the rounding yourself."
            )
    file = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(exact, dtype=exact.dtype.newbyteorder("=")))
    if exact.dtype.kind == "f":
        image.save(file, "TIFF", compression="tiff_adobe_deflate")
    else:
        image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def decode_plane(image: "Image.Image | dict") -> np.ndarray:
    """
    Decode a value of the column `hazy` or `clear` to an array `[H, W]` of type uint8, uint16 or float32, without loss.

    Args:
        image (`PIL.Image.Image` or `dict`): The value, decoded by `datasets` or not (`datasets.Image(decode=False)`).

    Raises:
        `ValueError`: If the image has colours, several pages (Pillow would return the first) or integers outside the
            range of uint16.
    """
    if isinstance(image, dict):
        image = Image.open(BytesIO(image["bytes"]) if image.get("bytes") else image["path"])
    if image.mode not in DTYPES or getattr(image, "n_frames", 1) > 1:
        raise ValueError(
            f"The image must be a single plane without colours, got mode {image.mode} and "
            f"{getattr(image, 'n_frames', 1)} page(s): store one grey plane per image."
        )
    plane = np.asarray(image)
    if image.mode == "I" and not (0 <= plane.min() and plane.max() <= 65535):
        raise ValueError("The image holds integers outside the range of uint16: convert it to float32.")
    return plane.astype(DTYPES[image.mode])


def pair_row(
    hazy: np.ndarray,
    clear: np.ndarray,
    specimen_id: str,
    source: str,
    level: float | None = None,
    pixel_size_um: float | None = None,
    airy_radius: float | None = None,
) -> dict:
    """
    Make one row of a dataset of pairs.

    Args:
        hazy (`np.ndarray` of shape `[H, W]`): The hazy plane, see [`encode_plane`].
        clear (`np.ndarray` of shape `[H, W]`): The clear plane, aligned with `hazy` pixel by pixel.
        specimen_id (`str`): The same for all planes of one specimen, which must stay in one split.
        source (`str`): Where the pair comes from; error messages name it.
        level (`float`, *optional*): Diameter in Airy units of the pinhole with which `hazy` was recorded. `None` means
            a widefield image, recorded without a pinhole; JSON cannot represent infinity.
        pixel_size_um (`float`, *optional*): Side of a pixel in µm; `None` if unknown or if pixels are not square.
        airy_radius (`float`, *optional*): Airy radius of the widefield microscope in pixels; `None` if unknown.

    Raises:
        `ValueError`: If the shapes differ or a plane cannot be stored exactly.
    """
    if hazy.shape != clear.shape:
        raise ValueError(
            f"{source}: `hazy` and `clear` must have the same shape, got {hazy.shape} and {clear.shape}: crop or "
            "register them."
        )
    if level is not None and not 0 < level < math.inf:
        raise ValueError(
            f"{source}: `level` must be a positive number of Airy units or None (widefield), got {level}."
        )
    row = {}
    for name, plane in (("hazy", hazy), ("clear", clear)):
        try:
            row[name] = encode_plane(plane)
        except ValueError as error:
            raise ValueError(f"{source}, {name}: {error}") from error
    about = {"level": level, "pixel_size_um": pixel_size_um, "airy_radius": airy_radius}
    return {**row, **about, "specimen_id": specimen_id, "source": source}


def build_dataset(rows: Iterable[dict], path: str | Path) -> "datasets.Dataset":
    """
    Build a dataset from rows. They are read one by one, so the dataset may be larger than the memory.

    Args:
        rows (iterable of `dict`): Rows made by [`pair_row`].
        path (`str` or `Path`): Arrow file to write. The dataset is this file, mapped into memory.

    Raises:
        `ImportError`: If the library `datasets` is missing.
        `ValueError`: If there are no rows.
    """
    datasets = import_datasets()
    features = datasets.Features(
        {
            "hazy": datasets.Image(),
            "clear": datasets.Image(),
            # In float32, 0.1 would become 0.10000000149.
            "level": datasets.Value("float64"),
            "pixel_size_um": datasets.Value("float64"),
            "airy_radius": datasets.Value("float64"),
            "specimen_id": datasets.Value("string"),
            "source": datasets.Value("string"),
        }
    )
    return write_rows(rows, features, path, "pair")


def write_rows(rows: Iterable[dict], features: "datasets.Features", path: str | Path, name: str) -> "datasets.Dataset":
    """Write rows one by one to an Arrow file and map it into memory; error messages call a row `name`."""
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=features, writer_batch_size=16) as writer:
        for row in rows:
            writer.write(row)
        num_rows, _ = writer.finalize()
    if num_rows == 0:
        raise ValueError(f"A dataset needs at least one {name}, got none.")
    return import_datasets().Dataset.from_file(str(path))


def split_by_specimen(
    dataset: "datasets.Dataset", validation_share: float = 0.0, test_share: float = 0.0, seed: int = 0
) -> "datasets.DatasetDict":
    """
    Split a dataset so that all planes of a specimen are in one split.

    The split of a specimen depends only on its name and the seed, so specimens added later do not move the others. The
    fractions are therefore met only on average.

    Args:
        dataset (`datasets.Dataset`): Dataset with a column `specimen_id`.
        validation_share (`float`): Expected fraction of specimens in the split `validation`; 0 for no such split.
        test_share (`float`): Expected fraction of specimens in the split `test`; 0 for no such split.
        seed (`int`): Seed of the split.

    Returns:
        `datasets.DatasetDict`: The splits `train`, `validation` and `test`, without those whose fraction is 0.

    Raises:
        `ValueError`: If a fraction is negative, nothing is left for `train`, or a split would be empty.
    """
    datasets = import_datasets()
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ValueError(
            "The fractions of validation and test must not be negative, and their sum must be below 1, got "
            f"{validation_share} and {test_share}."
        )

    def split_of(specimen_id: str) -> str:
        digest = blake2b(f"{seed}/{specimen_id}".encode(), digest_size=8).digest()
        position = int.from_bytes(digest, "big") / 2**64  # uniform in [0,1)
        if position < test_share:
            return "test"
        return "validation" if position < test_share + validation_share else "train"

    specimens = dataset["specimen_id"][:]
    rows = {"train": [], "validation": [], "test": []}
    for index, specimen_id in enumerate(specimens):
        rows[split_of(specimen_id)].append(index)
    for name, share in (("train", 1), ("validation", validation_share), ("test", test_share)):
        if share > 0 and not rows[name]:
            raise ValueError(
                f"None of the {len(set(specimens))} specimens falls into the split {name}: choose another seed or "
                "fraction, or add specimens."
            )
    return datasets.DatasetDict({name: dataset.select(indices) for name, indices in rows.items() if indices})


def save_dataset(
    splits: "datasets.DatasetDict", card: "DatasetCard", folder: str | Path, max_shard_bytes: int = 500_000_000
) -> None:
    """
    Write Parquet files and `README.md` to a folder, laid out as a dataset repository of the Hub.
    `load_dataset(folder)` reads the folder, and uploading it unchanged makes a dataset on the Hub.

    Args:
        splits (`datasets.DatasetDict`): The data.
        card (`huggingface_hub.DatasetCard`): See [`make_dataset_card`].
        folder (`str` or `Path`): The folder, new or existing; it must not contain `data/`.
        max_shard_bytes (`int`): Approximate size limit of a file. The default is that of `datasets`.
    """
    folder = Path(folder)
    (folder / "data").mkdir(parents=True)
    for name, split in splits.items():
        num_bytes = split.data.nbytes * len(split) / len(split.data)  # `split` may select rows of `split.data`
        num_shards = min(len(split), math.ceil(num_bytes / max_shard_bytes))
        for index in range(num_shards):
            shard = split.shard(num_shards, index, contiguous=True)
            shard.to_parquet(str(folder / "data" / f"{name}-{index:05d}-of-{num_shards:05d}.parquet"))
    card.save(folder / "README.md")


def push_dataset(
    splits: "datasets.DatasetDict", card: "DatasetCard", repo_id: str, private: bool | None = None
) -> str:
    """
    Upload a dataset and its card to the Hub. Files of an earlier upload are replaced.

    The card is uploaded first. The Hub checks its licence and tags, so no data are published without them.

    Args:
        splits (`datasets.DatasetDict`): The data.
        card (`huggingface_hub.DatasetCard`): See [`make_dataset_card`].
        repo_id (`str`): `"organisation/name"`.
        private (`bool`, *optional*): Whether a new repository is private; by default as the organisation has set.

    Returns:
        `str`: Address of the dataset.

    Raises:
        `ValueError`: If `private` is true, but the repository exists and is public.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub rejects the upload.
    """
    url = create_repository(repo_id, "dataset", private)
    card.push_to_hub(url.repo_id, commit_message="Upload dataset card")
    splits.push_to_hub(url.repo_id)
    return str(url)


def stream_split(source: str, split: str) -> "datasets.IterableDataset":
    """
    The rows of one split of a dataset, read while they are used.

    Args:
        source (`str`): The dataset, a folder or a repository on the Hub.
        split (`str`): Name of the split.

    Raises:
        `ImportError`: If the library `datasets` is missing.
        `ValueError`: If `source` is neither a folder nor a dataset on the Hub, or has no such split.
        `OSError`: If `source` is not a folder, and the Hub cannot be reached.
    """
    datasets = import_datasets()
    if not Path(source).is_dir():
        _check_dataset_on_hub(source)
    # A cached copy could be that of another folder, since `datasets` tells folders by name, card and size only.
    return datasets.load_dataset(source, split=split, streaming=True)


def _check_dataset_on_hub(source: str):
    """
    Refuse a name that is no dataset on the Hub, such as a mistyped path. One request decides; `datasets` itself would
    repeat its requests for half a minute.
    """
    owner = Path(source).parent
    try:
        validate_repo_id(source)
        is_name = source.count("/") == 1
    except errors.HFValidationError:
        is_name = False
    if not is_name or Path(source).exists():
        raise ValueError(f"{source} is not a folder: check the path, or name a dataset on the Hub as ORG/NAME.")
    if owner.is_dir():
        raise ValueError(
            f"{source} is not in the folder {owner}: check the path, or, for a dataset on the Hub, run the command "
            f"where there is no folder {owner}."
        )
    try:
        HfApi().dataset_info(source, timeout=HUB_TIMEOUT)
    except errors.OfflineModeIsEnabled:
        pass  # `datasets` looks for a copy in its cache
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{source} is neither a folder here nor a dataset on the Hub that you may read: check the path or name, "
            "or log in with `hf auth login`."
        ) from error
    except Exception as error:  # errors of the network have many types, not all of which are an OSError
        raise OSError(
            f"{source} is not a folder here, and the Hub cannot be reached to look for a dataset of this name: check "
            "the path or the connection."
        ) from error


def import_datasets():
    """Import the library `datasets`; if it is missing, raise an `ImportError` with the command that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'The library datasets is missing: install it with `pip install "haze-pipeline[train]"`.'
        ) from error
    return datasets
