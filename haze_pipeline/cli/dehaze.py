"""The command `haze-pipeline dehaze`."""

import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import PIPELINES, Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import PRESETS, Preset, with_preset
from haze_pipeline.utils.console import make_parents

from .options import (
    INPUT,
    MAIN,
    MANY_FILES,
    OTHER,
    QUALITY,
    RESULT,
    SPEED,
    DeviceOption,
    DTypeOption,
    ModelOption,
    SeedOption,
)


class OutputDType(StrEnum):
    """Number type of the results."""

    same = "same"
    float32 = "float32"


class Statistics(StrEnum):
    """The pixels whose brightness and contrast set the network's units."""

    stack = "stack"
    plane = "plane"
    percentile = "percentile"
    checkpoint = "checkpoint"


def dehaze(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help='Files, folders, and patterns such as "day1/*.tif". TIFF, ImageJ TIFF, OME-TIFF and OME-Zarr are '
            "read, and CZI, ND2 and LIF if bioio is installed.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="OME-TIFF (.tif) or OME-Zarr (.zarr) to write. For several inputs, a folder.",
            rich_help_panel=MAIN,
        ),
    ],
    preset: Annotated[
        Preset,
        typer.Option(
            metavar="NAME",
            help="fast: the posterior mean, quickly. balanced: an ensemble, which --uncertainty needs. quality: the "
            "larger ensemble of the paper, slowly. A preset sets the steps, the ensemble members and the solver.",
            rich_help_panel=MAIN,
        ),
    ] = Preset.fast,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write the standard deviation of every pixel, as OUTPUT_uncertainty. Needs --preset balanced "
            "or quality.",
            rich_help_panel=MAIN,
        ),
    ] = False,
    assess: Annotated[
        bool | None,
        typer.Option(
            "--assess/--no-assess",
            help="By default, up to 4 planes of a file are assessed, and reasons to doubt the result are printed. "
            "--assess assesses all planes, and maps the structure that the result does not explain, as "
            "OUTPUT_unexplained. --no-assess saves the time.",
            show_default=False,
            rich_help_panel=MAIN,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw input and result of the middle plane side by side, as a PNG. For one input only.",
            rich_help_panel=MAIN,
        ),
    ] = None,
    background_width: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Subtract structures that are N or more pixels wide in both directions (white top-hat), if nothing "
            "in focus is that wide. The uncertainty does not include this step.",
            rich_help_panel=MAIN,
        ),
    ] = None,
    model: ModelOption = None,
    channel: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Take only this channel, counted from 0.", rich_help_panel=MAIN),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Also search the sub-folders of input folders.", rich_help_panel=MAIN)
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Skip inputs whose outputs all exist.", rich_help_panel=MAIN),
    ] = False,
    z_range: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Take only the planes FIRST to STOP - 1, counted from 0: 5:8 takes the planes 5, 6 and 7.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    t_range: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP", help="Take only these frames, counted as for --z-range.", rich_help_panel=INPUT
        ),
    ] = None,
    series: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Take this image of a file that holds several, counted from 0.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(
            metavar="AXES",
            help="Axes of the input, such as TYX, if its metadata does not name them or is wrong.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    camera_offset: Annotated[
        float,
        typer.Option(
            metavar="COUNTS",
            help="Subtract the counts of the camera in the dark from the input.",
            rich_help_panel=INPUT,
        ),
    ] = 0.0,
    mask_value: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            help="Intensity of pixels without a measurement, such as the border of a registered image. They are left "
            "out, and keep this value. NaN always has this meaning.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option(
            "--samples",
            help="Also write every ensemble member, as OUTPUT_sample000 and so on. Needs two or more steps.",
            rich_help_panel=RESULT,
        ),
    ] = False,
    output_dtype: Annotated[
        OutputDType,
        typer.Option(
            metavar="NAME",
            help="Number type of the result. same: that of the input; values are rounded, and values outside its "
            "range are saturated and counted. float32: values stay as they are.",
            rich_help_panel=RESULT,
        ),
    ] = OutputDType.same,
    num_inference_steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Solver steps.", show_default="set by the preset", rich_help_panel=QUALITY
        ),
    ] = None,
    ensemble_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Ensemble members per plane, each from its own noise.",
            show_default="set by the preset",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="FRACTION",
            help="Fraction of what was taken for haze that is removed. 0 gives the input.",
            rich_help_panel=QUALITY,
        ),
    ] = 1.0,
    protect: Annotated[
        bool,
        typer.Option(
            "--protect",
            help="Lower the strength of channels that dehazing is predicted to harm, such as those without haze.",
            rich_help_panel=QUALITY,
        ),
    ] = False,
    normalization: Annotated[
        Statistics | None,
        typer.Option(
            metavar="NAME",
            help="How brightness and contrast are measured. stack: over all planes of a channel, so that planes stay "
            "comparable. plane: for each plane by itself. percentile: as stack, with intensities clipped to their "
            "percentiles 0.1 and 99.9. checkpoint: the fixed values in the checkpoint.",
            show_default="checkpoint if it has fixed values, else stack",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    share_noise: Annotated[
        str,
        typer.Option(
            metavar="AXES",
            help="Axes along which all planes share one noise, so that equal planes have equal results. "
            '"" gives every plane its own noise.',
            rich_help_panel=QUALITY,
        ),
    ] = "TZC",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes on this machine that share the files. Needs the extra train.",
            rich_help_panel=MANY_FILES,
        ),
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only list what would be done, and estimate the time.",
            rich_help_panel=MANY_FILES,
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table to write, .csv or .json, with the outcome of every file.",
            show_default="dehaze_log.csv in OUTPUT if that is a folder",
            rich_help_panel=MANY_FILES,
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
    tile_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Largest side of the tiles in pixels, by default 544. Planes up to twice as large are not divided.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="CPU threads of a process, by default one per core that it may use.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    seed: SeedOption = 0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object about what was done.", rich_help_panel=OTHER)
    ] = False,
):
    """
    Remove the haze from micrographs.

    An output has the axes, pixel size, units, channel names and number type of its input. Its intensities are in the
    counts of the input, and its metadata state how it was made. If one of several files fails, the others are dehazed
    all the same, and the exit code is 1.

    Example: haze-pipeline dehaze cells.tif -o cells_clear.ome.tif --preset balanced --uncertainty

    Example: haze-pipeline dehaze "day1/*.tif" -o day1_clear --skip-existing --workers 4
    """
    import torch

    from haze_pipeline.batch.file_dehazing import FileDehazer
    from haze_pipeline.batch.runs import dehaze_files, print_findings, print_plan
    from haze_pipeline.batch.tasks import find_inputs, plan
    from haze_pipeline.utils import processes as launching
    from haze_pipeline.utils.atomic_files import remove_leftovers

    # 1. Refuse wrong requests before anything is computed.
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    members = ensemble_size or PRESETS[preset]["ensemble_size"]
    if samples and steps == 1:
        raise ValueError(
            "--samples needs two or more steps, since one step gives the posterior mean and no sample: choose "
            "--preset balanced or quality without --num-inference-steps 1."
        )
    if uncertainty and (steps == 1 or members == 1):
        raise ValueError(
            f"--uncertainty needs two or more steps and members, got {steps} and {members}: choose --preset balanced "
            "or quality without --num-inference-steps 1 or --ensemble-size 1."
        )
    if set(share_noise.upper()) - set("TZC"):
        raise ValueError(f"--share-noise takes the axes T, Z and C, got {share_noise!r}.")
    if log is not None and log.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"--log must end in .csv or .json, got {log}.")
    part = {"channel": channel, "z_range": _range("--z-range", z_range), "t_range": _range("--t-range", t_range)}
    found, is_folder_run = find_inputs(inputs, output, recursive, series)
    if preview is not None and is_folder_run:
        raise ValueError("--preview needs one input and one output file: leave it out, or dehaze the files singly.")
    tasks = plan(found, is_folder_run, uncertainty, bool(assess), members if samples else 0, preview)
    log = log or (output / "dehaze_log.csv" if is_folder_run else None)

    # 2. Join the processes that share the work, or start them.
    if workers > 1 and not dry_run and not launching.is_launched():
        raise typer.Exit(launching.launch(workers, sys.argv[1:]))
    # A cluster or a launcher ends this process by SIGTERM. An exit lets it remove its unfinished outputs.
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
    torch.set_num_threads(threads or min(torch.get_num_threads(), launching.available_cores()))
    pipe = place_pipeline(load_pipeline(model, PIPELINES), processes.device or device, dtype)
    pipe, steps, members = with_preset(pipe, preset, num_inference_steps, ensemble_size)
    pipe.set_progress_bar_config(disable=True)
    dehazer = FileDehazer(
        pipe,
        steps,
        members,
        seed,
        tile_size,
        normalization and normalization.value,
        camera_offset,
        background_width,
        share_noise.upper(),
        strength,
        protect,
        mask_value,
        assess is not False,
        model,
        output_dtype=output_dtype.value,
        axes=axes,
        series=series,
        **part,
    )
    if dry_run:
        if processes.is_main:
            print_plan(dehazer, tasks)
        return

    # 4. Dehaze the files and report on them.
    records = dehaze_files(
        dehazer, tasks, processes, log, stop_at_failure=not is_folder_run, describe_error=ctx.command.describe_error
    )
    if not processes.is_main:
        return
    failed = [record for record in records if record["status"] == "failed"]
    if json_output:
        print(json.dumps({"files": records, "log": log and str(log)} if is_folder_run else records[0]))
    else:
        for record in records:
            for path in record["written"]:
                print(path)
            print_findings(record, is_folder_run, bool(assess))
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
        raise ValueError(f"{option} must be FIRST:STOP, counted from 0, such as 5:8, got {text!r}.")
    return slice(int(first) if first else None, int(stop) if stop else None)
