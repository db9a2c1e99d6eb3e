"""Find the files that `haze-pipeline dehaze` reads, and name the files that it writes."""

import re
from collections import Counter
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from haze_pipeline.io.micrograph_files import ZARR_SUFFIX, list_micrographs


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

    source: Path
    outputs: Outputs
    is_skipped: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write its planes at once."""
        return self.outputs.prediction.suffix.lower() == ZARR_SUFFIX


def find_inputs(inputs: list[str], output: Path, recursive: bool) -> tuple[list[tuple[Path, Path]], bool]:
    """
    Find the input files, and name the result of each.

    Args:
        inputs (`list[str]`): Files, folders and patterns.
        output (`Path`): A file for one input, else a folder. Results keep the names and sub-folders of their inputs.
        recursive (`bool`): Also search the sub-folders of folders.

    Returns:
        Pairs of an input and its result, and whether `output` is a folder.

    Raises:
        `FileNotFoundError`: If an input does not exist, or a folder holds no micrographs.
        `ValueError`: If an input is a URL, `output` does not suit the inputs, or two results
            would have one name.
    """
    found = []
    for text in inputs:
        path = Path(text)
        if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
            names = list_micrographs(path, recursive)
            if not names and recursive:
                raise FileNotFoundError(
                    f"{path} and its sub-folders hold no micrographs: name a folder with TIFF or OME-Zarr files."
                )
            if not names:
                raise FileNotFoundError(f"{path} holds no micrographs: search its sub-folders with --recursive.")
            found += [(path / name, name) for name in names]
        elif path.exists():
            found.append((path, Path(path.name)))
        elif re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
            raise ValueError(f"{text} is remote, and remote files are not read: download it, and name the copy.")
        else:
            matching = sorted(glob(text, recursive=True))
            if not matching:
                raise FileNotFoundError(f"{text} does not exist: check the name and the folder.")
            found += [(Path(match), Path(Path(match).name)) for match in matching]

    is_single = len(inputs) == 1 and len(found) == 1 and found[0][0] == Path(inputs[0])
    if is_single and output.name.lower().endswith(OUTPUT_SUFFIXES):
        return [(found[0][0], output)], False
    if is_single and output.suffix and not output.is_dir():
        raise ValueError(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}, or be a folder, got {output}.")
    if output.name.lower().endswith(OUTPUT_SUFFIXES) or output.is_file():
        raise ValueError(f"{output} cannot hold the results of {len(found)} files: name a folder as --output.")
    # Results of an earlier run are not inputs.
    found = [(source, name) for source, name in found if output.resolve() not in source.resolve().parents]
    if not found:
        raise ValueError(f"{output} is the input itself: choose another folder.")
    targets = {}
    for source, name in found:
        known = name.name.lower().endswith(OUTPUT_SUFFIXES)
        target = output / (name if known else name.with_suffix(".ome.tif"))
        if target in targets:
            raise ValueError(
                f"{source} and {targets[target]} would both become {target}: rename one, or dehaze them in two runs."
            )
        targets[target] = source
    return [(source, target) for target, source in targets.items()], True


def plan(
    found: list[tuple[Path, Path]],
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
            if path.exists() and path.samefile(source):
                raise ValueError(f"{path} is the input itself: choose another name.")
            if path.is_dir() and not path.suffix.lower() == ZARR_SUFFIX:
                raise IsADirectoryError(f"{path} is a folder: choose another name.")
        tasks.append(Task(source, outputs))
    for path, count in Counter(path for task in tasks for path in task.outputs.paths).items():
        if count > 1:
            raise ValueError(f"{path} would be an output of two inputs: rename one, or dehaze them in two runs.")
    return tasks
