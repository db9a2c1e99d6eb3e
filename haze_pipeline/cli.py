"""The `haze-pipeline` command. Heavy imports are local to the commands, so that `--help` answers at once."""

import dataclasses
import json
import sys
import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .cli_calibrate import calibrate
from .cli_dataset import dataset
from .cli_evaluate import evaluate
from .cli_export_bioimageio import export_bioimageio
from .cli_model import (
    Device,
    DeviceOption,
    DType,
    DTypeOption,
    ModelOption,
    SeedOption,
    load_pipeline,
    place_pipeline,
    weights_digest,
)
from .cli_push import push
from .cli_simulate import simulate
from .console import make_parents, progress_bar
from .presets import PRESETS, Preset, choose_solver
from .version import __version__


app = typer.Typer(
    help="Turn hazy (widefield) fluorescence micrographs into clear, confocal-like ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Subset(StrEnum):
    """Datasets of the HazeMatching paper."""

    zebrafish = "zebrafish"
    organoids1 = "organoids1"
    organoids2 = "organoids2"
    microtubule = "microtubule"
    neuron = "neuron"


@app.command()
def dehaze(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="TIFF, ImageJ TIFF or OME-TIFF; T, Z and C axes are looped over.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="OME-TIFF to write: float32, in the counts of the input.")
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
        bool, typer.Option("--uncertainty", help="Also write OUTPUT's …_uncertainty.ome.tif.")
    ] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Also write one …_sample000.ome.tif per member.")] = False,
    preview: Annotated[
        Path | None, typer.Option(help="Also write a PNG: a plane of input and result side by side.")
    ] = None,
    assess: Annotated[
        bool,
        typer.Option(
            "--assess",
            help="Also say what speaks against the result, and write where: OUTPUT's …_unexplained.ome.tif.",
        ),
    ] = False,
    seed: SeedOption = 0,
    tile_size: Annotated[
        int | None, typer.Option(min=1, help="Largest side of the tiles; hardly changes the result. By default 272.")
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object about what was done.")] = False,
):
    """
    Dehaze one file.

    The output has the shape, axes, pixel size, units and channel names of the input, and says how it was made.

    Example: haze-pipeline dehaze cells.tif -o cells_clear.ome.tif --preset balanced --uncertainty
    """
    from .microscopy_io import read_micrograph, replace_when_complete, write_ome_tiff

    # Whatever can be refused without computing is refused first.
    steps = num_inference_steps or PRESETS[preset]["num_inference_steps"]
    members = ensemble_size or PRESETS[preset]["ensemble_size"]
    if uncertainty and (steps == 1 or members == 1):
        raise ValueError(
            f"--uncertainty needs two or more steps and members, got {steps} and {members}: choose --preset balanced or "
            "quality without --num-inference-steps 1 or --ensemble-size 1."
        )
    suffix = next((s for s in (".ome.tiff", ".ome.tif", ".tiff", ".tif") if output.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{output} must end in .ome.tif, .ome.tiff, .tif or .tiff.")
    if preview is not None and preview.suffix.lower() != ".png":
        raise ValueError(f"{preview} must end in .png.")
    stem = output.name[: -len(suffix)]
    uncertainty_output = output.with_name(f"{stem}_uncertainty{suffix}")
    sample_outputs = [output.with_name(f"{stem}_sample{member:03d}{suffix}") for member in range(members)]
    outputs = [output]
    outputs += [uncertainty_output] if uncertainty else []
    unexplained_output = output.with_name(f"{stem}_unexplained{suffix}")
    outputs += [unexplained_output] if assess else []
    outputs += sample_outputs if samples else []
    outputs += [preview] if preview is not None else []
    for path in outputs:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is not a folder; create it first.")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; choose another name.")
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path} is the input itself; choose another name.")
    micrograph = read_micrograph(source)

    import numpy as np
    import torch

    pipe = load_pipeline(model)
    revision = weights_digest(pipe)
    pipe = place_pipeline(pipe, device, dtype)
    pipe.scheduler, steps = choose_solver(pipe, preset, num_inference_steps)
    pipe.set_progress_bar_config(disable=True)

    # Plane by plane, with one generator for all, which equals one call on the stack and shows progress.
    planes = micrograph.data.reshape(-1, *micrograph.data.shape[-2:])
    generator = torch.Generator().manual_seed(seed)
    prediction = np.empty(planes.shape, np.float32)
    deviation = np.empty(planes.shape, np.float32) if uncertainty else None
    sample_stack = np.empty((members, *planes.shape), np.float32) if samples else None
    unexplained = np.empty(planes.shape, np.float32) if assess else None
    assessments = []
    started = time.perf_counter()
    with ExitStack() as stack:
        advance = progress_bar(f"Dehazing {source.name}", len(planes), stack)
        for index, plane in enumerate(planes):
            try:
                out = pipe(
                    plane,
                    num_inference_steps=steps,
                    ensemble_size=members,
                    tile_size=tile_size,
                    generator=generator,
                    output_uncertainty=uncertainty,
                    output_samples=samples,
                    callback_on_step_end=lambda pipe, *_: advance(1 / pipe.num_timesteps),
                )
            except ValueError as error:
                raise ValueError(f"{source}, plane {index}: {error}") from error
            prediction[index] = out.prediction
            if uncertainty:
                deviation[index] = out.uncertainty
            if samples:
                sample_stack[:, index] = out.samples
            if assess:
                assessment = pipe.assess(plane, out, micrograph.pixel_size_um, seed)
                unexplained[index] = assessment.error_map
                assessments.append(assessment.to_dict())
    seconds = time.perf_counter() - started

    provenance = {
        "package": f"haze-pipeline {__version__}",
        "model": model or "default checkpoint",
        "revision": revision,
        "seed": seed,
        "num_inference_steps": steps,
        "solver": pipe.scheduler.config.solver,
        "shift": pipe.scheduler.config.shift,
        "ensemble_size": members,
        "tile_size": tile_size,
        "device": pipe.device.type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "source": source.name,
        **({"assessment": assessments} if assess else {}),
    }

    def write(path: Path, planes: np.ndarray, content: str):
        result = dataclasses.replace(micrograph, data=planes.reshape(micrograph.data.shape))
        write_ome_tiff(path, result, provenance={**provenance, "content": content})

    write(output, prediction, "prediction")
    if uncertainty:
        write(uncertainty_output, deviation, "standard deviation")
    if assess:
        write(unexplained_output, unexplained, "root mean square of the structure that is not explained")
    if samples:
        for member, path in enumerate(sample_outputs):
            write(path, sample_stack[member], f"posterior sample {member}")
    if preview is not None:
        middle = len(planes) // 2
        picture = pipe.image_processor.visualize_side_by_side(
            planes[middle],
            prediction[middle],
            deviation[middle] if uncertainty else None,
            pixel_size=micrograph.pixel_size and micrograph.pixel_size[1],
            unit=micrograph.pixel_size_unit,
        )
        with replace_when_complete(preview) as temporary:
            picture.save(temporary)

    if json_output:
        print(json.dumps({**provenance, "written": [str(path) for path in outputs], "seconds": round(seconds, 3)}))
    else:
        for path in outputs:
            print(path)
        for index, assessment in enumerate(assessments):
            name = f"plane {index}: " if len(assessments) > 1 else ""
            print(f"{name}{assessment['verdict']}", file=sys.stderr)


app.command()(simulate)
app.command()(dataset)
app.command()(calibrate)
app.command()(evaluate)
app.command()(push)
app.command()(export_bioimageio)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="best_model.pth of the official HazeMatching code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Pipeline folder to write.")],
    subset: Annotated[Subset, typer.Option(help="The data that it was trained on, which decides the statistics.")],
    channel: Annotated[int, typer.Option(min=0, help="Channel of the zebrafish data: 0, 1 or 2.")] = 0,
):
    """
    Turn a published HazeMatching checkpoint into a pipeline folder.

    Example: haze-pipeline convert best_model.pth --subset organoids1 -o hazematching-organoids1
    """
    import warnings

    from .conversion import convert_hazematching_checkpoint
    from .microscopy_io import replace_when_complete
    from .pipeline_haze_matching import HazeMatchingPipeline
    from .scheduling_flow_match_ode import FlowMatchODEScheduler

    if output.exists():
        raise FileExistsError(f"{output} exists; choose another name.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        unet, config = convert_hazematching_checkpoint(checkpoint, subset.value, channel)
    for warning in caught:
        Console(stderr=True).print(f"Warning: {warning.message}", style="yellow", highlight=False, markup=False)
    make_parents(output)
    with replace_when_complete(output) as folder:
        # It was trained without mirroring.
        HazeMatchingPipeline(
            unet, FlowMatchODEScheduler(), normalization="fixed", mirror_members=False, **config
        ).save_pretrained(folder)
        facts = {"subset": subset.value, "channel": channel, "published": not caught}
        (folder / "conversion.json").write_text(json.dumps(facts) + "\n")
    print(output)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="Pipeline folder or repository of the Hub; the default if omitted.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
):
    """Print what a checkpoint says about itself."""
    pipe = load_pipeline(model)
    facts = {
        "model": model or "default checkpoint",
        "revision": weights_digest(pipe),
        "parameters": pipe.unet.num_parameters(),
        "block_out_channels": list(pipe.unet.config.block_out_channels),
        "scheduler": type(pipe.scheduler).__name__,
        **{
            key: value
            for key, value in pipe.config.items()
            if key not in ("unet", "scheduler", "domain") and key[0] != "_"
        },
        "domain": "stored" if pipe.config.domain else None,
    }
    if json_output:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:<{width}}  {value}")


def _version(value: bool):
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass


def main():
    """
    Run the command. Exit codes: 0 done, 1 a file or a computation failed, 2 wrong usage, 130 interrupted. A failure is one
    sentence on standard error.
    """
    try:
        app()
    except (OSError, ValueError, MemoryError, RuntimeError, ImportError) as error:
        # RuntimeError: torch, out of memory; ImportError: an extra that is not installed
        print(f"Error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
