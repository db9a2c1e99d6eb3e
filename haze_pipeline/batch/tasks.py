"""Which files `dehaze` reads, and the names of those that it writes."""

from collections import Counter
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from haze_pipeline.io.micrograph_files import ZARR_SUFFIX, list_micrographs


# The longer ones first, since they end in the shorter.
OUTPUT_SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".ome.zarr", ".zarr")


@dataclass
class Outputs:
    """Where the results of a file go; what is not asked for is `None`."""

    prediction: Path
    uncertainty: Path | None = None
    unexplained: Path | None = None
    samples: list[Path] = field(default_factory=list)
    preview: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All of them, the prediction first."""
        single = [self.prediction, self.uncertainty, self.unexplained]
        return [path for path in (*single, *self.samples, self.preview) if path is not None]


@dataclass
class Task:
    """A file to dehaze."""

    source: Path
    outputs: Outputs
    is_skipped: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write its planes at once."""
        return self.outputs.prediction.suffix.lower() == ZARR_SUFFIX


def find_inputs(inputs: list[str], output: Path, recursive: bool) -> tuple[list[tuple[Path, Path]], bool]:
    """
    The files that the arguments mean, and where the result of each goes.

    Args:
        inputs (`list[str]`): Files, folders and patterns.
        output (`Path`): A file for one input, else a folder, in which names and sub-folders are kept.
        recursive (`bool`): Look into the sub-folders of folders.

    Returns:
        Pairs of a file and its result, and whether `output` is a folder.

    Raises:
        `FileNotFoundError`: If there is nothing of that name.
        `ValueError`: If `output` does not suit the inputs, or two results would have one name.
    """
    found = []
    for text in inputs:
        path = Path(text)
        if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
            names = list_micrographs(path, recursive)
            if not names:
                raise FileNotFoundError(
                    f"{path} holds no micrographs: look for them in its sub-folders with --recursive."
                )
            found += [(path / name, name) for name in names]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            matching = sorted(glob(text, recursive=True))
            if not matching:
                raise FileNotFoundError(f"`{text}` does not exist: check the name and the folder.")
            found += [(Path(match), Path(Path(match).name)) for match in matching]

    is_single = len(inputs) == 1 and len(found) == 1 and found[0][0] == Path(inputs[0])
    if is_single and output.name.lower().endswith(OUTPUT_SUFFIXES):
        return [(found[0][0], output)], False
    if is_single and output.suffix and not output.is_dir():
        raise ValueError(f"{output} must end in {', '.join(OUTPUT_SUFFIXES)}, or be a folder.")
    if output.name.lower().endswith(OUTPUT_SUFFIXES) or output.is_file():
        raise ValueError(f"{output} is to hold the results of {len(found)} files: name a folder.")
    # Results of an earlier run are no inputs.
    found = [(source, name) for source, name in found if output.resolve() not in source.resolve().parents]
    if not found:
        raise ValueError(f"{output} is the input itself; choose another folder.")
    targets = {}
    for source, name in found:
        known = name.name.lower().endswith(OUTPUT_SUFFIXES)
        target = output / (name if known else name.with_suffix(".ome.tif"))
        if target in targets:
            raise ValueError(
                f"{source} and {targets[target]} would both become {target}: rename one, or do them apart."
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
    The task that each file is, with the names of all its outputs.

    Args:
        found (`list`): As from [`find_inputs`].
        is_folder_run (`bool`): As from [`find_inputs`]; folders are then made.
        uncertainty (`bool`): Whether deviations are written.
        unexplained (`bool`): Whether maps of what is not explained are written.
        samples (`int`): How many samples are written.
        preview (`Path`, *optional*): Where a picture goes.

    Raises:
        `OSError` or `ValueError`: If an output is its input or a folder, or its folder is missing.
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
            raise ValueError(f"{preview} must end in .png.")
        for path in outputs.paths:
            if not is_folder_run and not path.parent.is_dir():
                raise FileNotFoundError(f"{path.parent} is not a folder; create it first.")
            if path.exists() and path.samefile(source):
                raise ValueError(f"{path} is the input itself; choose another name.")
            if path.is_dir() and not path.suffix.lower() == ZARR_SUFFIX:
                raise IsADirectoryError(f"{path} is a folder; choose another name.")
        tasks.append(Task(source, outputs))
    for path, count in Counter(path for task in tasks for path in task.outputs.paths).items():
        if count > 1:
            raise ValueError(f"{path} would be the result of two inputs: rename one, or do them apart.")
    return tasks
