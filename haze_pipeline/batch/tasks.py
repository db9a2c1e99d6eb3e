"""Find the files that `haze-pipeline dehaze` reads, and name the files that it writes."""

import re
from collections import Counter
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from haze_pipeline.io.micrograph_files import (
    ZARR_SUFFIX,
    check_address,
    is_address,
    is_zarr,
    list_images,
    list_micrographs,
)


# Longer suffixes come first, since they end in the shorter ones.
OUTPUT_SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".ome.zarr", ".zarr")


@dataclass
class Outputs:
    """The files that hold the results of one input. An output that was not requested is `None`."""

    prediction: Path
    uncertainty: Path | None = None
    unexplained: Path | None = None
    samples: list[Path] = field(default_factory=list)
    preview: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All outputs, the prediction first."""
        single = [self.prediction, self.uncertainty, self.unexplained]
        return [path for path in (*single, *self.samples, self.preview) if path is not None]


@dataclass
class Task:
    """A file to dehaze and its outputs."""

    source: Path | str  # or the address of a remote one
    outputs: Outputs
    is_skipped: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write its planes at once."""
        return self.outputs.prediction.suffix.lower() == ZARR_SUFFIX


def name_of(source: Path | str) -> str:
    """The last part of a path or an address."""
    return source.name if isinstance(source, Path) else PurePosixPath(urlsplit(source).path.rstrip("/")).name


def find_inputs(
    inputs: list[str], output: Path, recursive: bool, series: int | None = None
) -> tuple[list[tuple[Path | str, Path]], bool]:
    """
    Find the input files, and name the result of each.

    Args:
        inputs (`list[str]`): Files, folders, patterns and addresses of remote OME-Zarrs.
        output (`Path`): A file for one input, else a folder. Results keep the names and sub-folders of their inputs.
        recursive (`bool`): Also search the sub-folders of folders.
        series (`int`, *optional*): Number of the image in a file that holds several. If omitted and `output` is a
            folder, all images of an OME-Zarr are found, such as the fields of a plate.

    Returns:
        Pairs of an input and its result, and whether `output` is a folder.

    Raises:
        `FileNotFoundError`: If an input does not exist, or a folder holds no micrographs.
        `ValueError`: If an input is a remote file of another format than OME-Zarr, `output` does not suit the inputs,
            or two results would have one name.
    """
    is_file = output.name.lower().endswith(OUTPUT_SUFFIXES)
    found: list[tuple[Path | str, Path]] = []
    for text in inputs:
        path = Path(text)
        if is_address(text):
            check_address(text)
            found.append((text, Path(name_of(text))))
        elif is_zarr(path):
            found += _images_of_zarr(path, expand=not is_file and series is None)
        elif path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
            names = list_micrographs(path, recursive, expand=series is None)
            if not names and recursive:
                raise FileNotFoundError(
                    f"{path} and its sub-folders hold no micrographs: name a folder with TIFF or OME-Zarr files."
                )
            if not names:
                raise FileNotFoundError(f"{path} holds no micrographs: search its sub-folders with --recursive.")
            found += [(path / name, name) for name in names]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            matching = sorted(glob(text, recursive=True))
            if not matching:
                raise FileNotFoundError(f"{text} does not exist: check the name and the folder.")
            for match in map(Path, matching):
                is_several = is_zarr(match) and not is_file and series is None
                found += _images_of_zarr(match, expand=True) if is_several else [(match, Path(match.name))]

    is_single = len(inputs) == 1 and len(found) == 1 and str(found[0][0]) in (inputs[0], str(Path(inputs[0])))
    if is_single and is_file:
        return [(found[0][0], output)], False
    if is_single and output.suffix and not output.is_dir():
        raise ValueError(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}, or be a folder, got {output}.")
    if is_file or output.is_file():
        raise ValueError(f"{output} cannot hold the results of {len(found)} files: name a folder as --output.")
    # Results of an earlier run are not inputs.
    found = [
        (source, name)
        for source, name in found
        if not isinstance(source, Path) or output.resolve() not in source.resolve().parents
    ]
    if not found:
        raise ValueError(f"{output} is the input itself: choose another folder.")
    targets: dict[Path, Path | str] = {}
    for source, name in found:
        target = output / _result_name(source, name)
        if target in targets:
            raise ValueError(
                f"{source} and {targets[target]} would both become {target}: rename one, or dehaze them in two runs."
            )
        targets[target] = source
    return [(source, target) for target, source in targets.items()], True


def _images_of_zarr(path: Path, expand: bool) -> list[tuple[Path | str, Path]]:
    """The images in an OME-Zarr, or, unless `expand`, itself, and their paths from the folder that holds the whole."""
    root = path.resolve()
    while is_zarr(root.parent):
        root = root.parent
    return [(image, image.resolve().relative_to(root.parent)) for image in (list_images(path) if expand else [path])]


def _result_name(source: Path | str, name: Path) -> Path:
    """
    The name of a result: that of its input, or with another suffix where results cannot have its own. An image in an
    OME-Zarr, such as `plate.zarr/A/1/0`, becomes an OME-Zarr of its own, `plate_A_1_0.ome.zarr`.
    """
    if not isinstance(source, Path) or is_zarr(source):
        outer = [part for part in name.parts if part.lower().endswith(ZARR_SUFFIX)]
        inner = name.parts[name.parts.index(outer[0]) :] if outer else name.parts[-1:]
        if len(inner) > 1 or not outer:
            stem = re.sub(r"(\.ome)?\.zarr$", "", inner[0], flags=re.IGNORECASE)
            joined = "_".join([stem, *inner[1:]]) + ".ome.zarr"
            return Path(*name.parts[: len(name.parts) - len(inner)], joined)
    return name if name.name.lower().endswith(OUTPUT_SUFFIXES) else name.with_suffix(".ome.tif")


def plan(
    found: list[tuple[Path | str, Path]],
    is_folder_run: bool,
    uncertainty: bool,
    unexplained: bool,
    samples: int,
    preview: Path | None,
) -> list[Task]:
    """
    Name all outputs of every file.

    Args:
        found (`list`): Pairs of an input and its result from [`find_inputs`].
        is_folder_run (`bool`): Whether the output is a folder, from [`find_inputs`]. It need not exist then.
        uncertainty (`bool`): Write standard deviations.
        unexplained (`bool`): Write maps of the structure that the result does not explain.
        samples (`int`): Number of samples to write.
        preview (`Path`, *optional*): PNG to write.

    Returns:
        `list[Task]`: A task per file.

    Raises:
        `OSError` or `ValueError`: If an output is its input or a folder, its folder is missing, or two inputs have
            one output.
    """
    tasks = []
    for source, target in found:
        suffix = next(suffix for suffix in OUTPUT_SUFFIXES if target.name.lower().endswith(suffix))
        stem, suffix = target.name[: -len(suffix)], target.name[-len(suffix) :]
        outputs = Outputs(
            target,
            target.with_name(f"{stem}_uncertainty{suffix}") if uncertainty else None,
            target.with_name(f"{stem}_unexplained{suffix}") if unexplained else None,
            [target.with_name(f"{stem}_sample{member:03d}{suffix}") for member in range(samples)],
            preview,
        )
        if preview is not None and preview.suffix.lower() != ".png":
            raise ValueError(f"--preview must end in .png, got {preview}.")
        for path in outputs.paths:
            if not is_folder_run and not path.parent.is_dir():
                raise FileNotFoundError(f"{path.parent} is not a folder: create it first.")
            if path.exists() and isinstance(source, Path) and path.samefile(source):
                raise ValueError(f"{path} is the input itself: choose another name.")
            if path.is_dir() and not path.suffix.lower() == ZARR_SUFFIX:
                raise IsADirectoryError(f"{path} is a folder: choose another name.")
        tasks.append(Task(source, outputs))
    for path, count in Counter(path for task in tasks for path in task.outputs.paths).items():
        if count > 1:
            raise ValueError(f"{path} would be an output of two inputs: rename one, or dehaze them in two runs.")
    return tasks
