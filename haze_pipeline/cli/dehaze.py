"""The command `haze-pipeline dehaze`."""

import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import PRESETS, Preset, with_preset
from haze_pipeline.utils.console import make_parents

from .options import DeviceOption, DTypeOption, ModelOption, SeedOption


class OutputDType(StrEnum):
    """Number type of the results."""

    same = "same"
    float32 = "float32"


class Statistics(StrEnum):
    """What brightness and contrast are measured on before the network sees a plane."""

    stack = "stack"
    plane = "plane"
    percentile = "percentile"
    checkpoint = "checkpoint"


def dehaze(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="TIFF, ImageJ TIFF, OME-TIFF or OME-Zarr (CZI, ND2 and LIF with bioio); several of them, a pattern "
            "or a folder.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="OME-TIFF (.tif) or OME-Zarr (.zarr) to write; for several inputs, a folder."
        ),
    ],
    model: ModelOption = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="Steps, members and solver. fast: posterior mean; balanced: with uncertainty; quality: as the paper."
        ),
    ] = Preset.fast,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Solver steps, in place of the preset's.")
    ] = None,
    ensemble_size: Annotated[
        int | None, typer.Option(min=1, help="Noises per plane, in place of the preset's.")
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write OUTPUT's …_uncertainty, float32.")
    ] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Also write one …_sample000 per member.")] = False,
    preview: Annotated[
        Path | None, typer.Option(help="Also write a PNG: a plane of input and result side by side. One input only.")
    ] = None,
    assess: Annotated[
        bool,
        typer.Option(
            "--assess", help="Also say what speaks against the result, and write where: OUTPUT's …_unexplained."
        ),
    ] = False,
    output_dtype: Annotated[
        OutputDType,
        typer.Option(help="same: that of the input, rounded; what it cannot hold is saturated and counted."),
    ] = OutputDType.same,
    axes: Annotated[
        str | None,
        typer.Option(help="What the axes of the input mean, such as TYX, if its metadata is wrong or missing."),
    ] = None,
    series: Annotated[int | None, typer.Option(min=0, help="Which of several images in a file, from 0.")] = None,
    channel: Annotated[int | None, typer.Option(min=0, help="Take this channel only, from 0.")] = None,
    z_range: Annotated[
        str | None,
        typer.Option(metavar="FIRST:STOP", help="Take these planes only, from 0, without STOP: 5:8 are three."),
    ] = None,
    t_range: Annotated[
        str | None, typer.Option(metavar="FIRST:STOP", help="Take these frames only, likewise.")
    ] = None,
    normalization: Annotated[
        Statistics | None,
        typer.Option(
            help="What brightness and contrast are taken from: all planes of a channel, so that nothing flickers; "
            "each plane; "
            "the stack, clipped to its percentiles 0.1 and 99.9; the fixed values of the checkpoint.",
            show_default="checkpoint if it has fixed values, else stack",
        ),
    ] = None,
    camera_offset: Annotated[float, typer.Option(help="Counts of the camera in the dark, taken off the input.")] = 0.0,
    background_width: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Take off the result what is at least so many pixels broad in both directions (white top-hat), if "
            "you know that the "
            "specimen is not. No calibration knows of it.",
        ),
    ] = None,
    share_noise: Annotated[
        str,
        typer.Option(
            help="Axes along which planes share their noise, such as T, so that movies of samples don't flicker."
        ),
    ] = "",
    recursive: Annotated[bool, typer.Option("--recursive", help="Folders with their sub-folders.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave inputs whose outputs are all there.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes of this machine that share the files (extra train).")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and about how long it would take.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(help="What became of every file, .csv or .json; dehaze_log.csv in OUTPUT if that is a folder."),
    ] = None,
    seed: SeedOption = 0,
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Largest side of the tiles; hardly changes the result. By default 272.")
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object about what was done.")] = False,
):
    """
    Dehaze files.

    An output has the axes, pixel size, units, channel names and number type of its input, is in the counts of the
    input, and says how it was made. A file that fails is reported and the others are done all the same; the exit code
    is then 1.

    Example: haze-pipeline dehaze cells.tif -o cells_clear.ome.tif --preset balanced --uncertainty

    Example: haze-pipeline dehaze "day1/*.tif" -o day1_clear --skip-existing --workers 4
    """
    from haze_pipeline.batch.file_dehazing import FileDehazer
    from haze_pipeline.batch.runs import dehaze_files, print_plan
    from haze_pipeline.batch.tasks import find_inputs, plan
    from haze_pipeline.utils import processes as launching
    from haze_pipeline.utils.atomic_files import remove_leftovers

    # 1. Whatever can be refused without computing is refused first.
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    members = ensemble_size or PRESETS[preset]["ensemble_size"]
    if samples and steps == 1:
        raise ValueError(
            "--samples needs two or more steps, since one step gives the posterior mean and no sample: choose "
            "--preset balanced or "
            "quality without --num-inference-steps 1."
        )
    if uncertainty and (steps == 1 or members == 1):
        raise ValueError(
            f"--uncertainty needs two or more steps and members, got {steps} and {members}: choose --preset balanced "
            f"or "
            "quality without --num-inference-steps 1 or --ensemble-size 1."
        )
    if set(share_noise.upper()) - set("TZC"):
        raise ValueError(f"--share-noise takes axes among T, Z and C, got {share_noise!r}.")
    if log is not None and log.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"{log} must end in .csv or .json.")
    part = {"channel": channel, "z_range": _range("--z-range", z_range), "t_range": _range("--t-range", t_range)}
    found, is_folder_run = find_inputs(inputs, output, recursive, series)
    if preview is not None and is_folder_run:
        raise ValueError("--preview goes with one input and one output file.")
    tasks = plan(found, is_folder_run, uncertainty, assess, members if samples else 0, preview)
    log = log or (output / "dehaze_log.csv" if is_folder_run else None)

    # 2. Join the processes that share the work, or start them.
    if workers > 1 and not dry_run and not launching.is_launched():
        raise typer.Exit(launching.launch(workers, sys.argv[1:]))
    # So that nothing half-written is left when a cluster or a launcher ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes = launching.join_processes(use_cpu=device is Device.cpu)
    with processes.together():
        if skip_existing:
            for task in tasks:
                task.is_skipped = all(path.exists() for path in task.outputs.paths)
        if processes.is_main and not dry_run:
            for task in tasks:
                if is_folder_run:
                    make_parents(task.outputs.prediction)
                for path in task.outputs.paths:
                    remove_leftovers(path)
    tasks = processes.broadcast(tasks)

    # 3. Load the checkpoint.
    pipe = place_pipeline(load_pipeline(model), processes.device or device, dtype)
    pipe, steps, members = with_preset(pipe, preset, num_inference_steps, ensemble_size)
    pipe.set_progress_bar_config(disable=True)
    default = Statistics.checkpoint if pipe.config.normalization == "fixed" else Statistics.stack
    dehazer = FileDehazer(
        pipe, steps, members, seed, tile_size, (normalization or default).value, camera_offset,
        background_width, share_noise.upper(), output_dtype.value, axes, series, **part, model=model,
    )  # fmt: skip
    if dry_run:
        if processes.is_main:
            print_plan(dehazer, tasks)
        return

    # 4. Dehaze, and say what was done.
    records = dehaze_files(dehazer, tasks, processes, log, stop_at_failure=not is_folder_run)
    if not processes.is_main:
        return
    failed = [record for record in records if record["status"] == "failed"]
    if json_output:
        print(json.dumps({"files": records, "log": log and str(log)} if is_folder_run else records[0]))
    else:
        for record in records:
            for path in record["written"]:
                print(path)
            _print_findings(record, is_folder_run)
    if is_folder_run:
        counts = [
            f"{sum(record['status'] == status for record in records)} {status}" for status in ("done", "skipped")
        ]
        print(f"{', '.join(counts)}, {len(failed)} failed; {log}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _range(option: str, text: str | None) -> slice | None:
    """`"5:8"` as a slice; either end may be left out."""
    if text is None:
        return None
    first, colon, stop = text.partition(":")
    if not colon or not all(end.isdigit() or not end for end in (first, stop)):
        raise ValueError(f"{option} takes FIRST:STOP, counted from 0, such as 5:8, got {text!r}.")
    return slice(int(first) if first else None, int(stop) if stop else None)


def _print_findings(record: dict, is_folder_run: bool):
    """What the user should know about a file, on standard error."""
    name = f"{record['source']}: " if is_folder_run else ""
    if record["status"] == "skipped" and not is_folder_run:
        print(f"{record['source']} is done already; leave out --skip-existing to do it again", file=sys.stderr)
    if record["clipped_pixels"]:
        print(
            f"{name}{record['clipped_pixels']} pixels of the result lie beyond the input's number type and were "
            f"saturated; "
            "--output-dtype float32 keeps them",
            file=sys.stderr,
        )
    assessments = record.get("assessment", [])
    if is_folder_run and assessments:
        print(f"{name}{record['verdict']}", file=sys.stderr)
        return
    for index, assessment in enumerate(assessments):
        plane = f"plane {index}: " if len(assessments) > 1 else ""
        print(f"{plane}{assessment['verdict']}", file=sys.stderr)
