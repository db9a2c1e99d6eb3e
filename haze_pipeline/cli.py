"""The `haze-pipeline` command. Heavy imports are local to the commands, so that `--help` answers at once."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .cli_calibrate import calibrate
from .cli_dataset import dataset
from .cli_dehaze import dehaze
from .cli_evaluate import evaluate
from .cli_export_bioimageio import export_bioimageio
from .cli_model import load_pipeline
from .cli_push import push
from .cli_simulate import simulate
from .console import make_parents
from .provenance import weights_digest
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


app.command()(dehaze)
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
