"""The `haze-pipeline` command. Heavy imports are local to the commands, so that `--help` answers at once."""

import sys
import warnings
from typing import Annotated

import typer

from haze_pipeline.version import __version__

from .calibrate import calibrate
from .convert import convert
from .dataset import dataset
from .dehaze import dehaze
from .evaluate import evaluate
from .export_bioimageio import export_bioimageio
from .info import info
from .push import push
from .simulate import simulate


app = typer.Typer(
    help="Turn hazy (widefield) fluorescence micrographs into clear, confocal-like ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.command()(dehaze)
app.command()(simulate)
app.command()(dataset)
app.command()(calibrate)
app.command()(evaluate)
app.command()(push)
app.command()(export_bioimageio)
app.command()(convert)
app.command()(info)


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
    Run the command. Exit codes: 0 done, 1 a file or a computation failed, 2 wrong usage, 130 interrupted. A failure is
    one sentence on standard error, and so is a warning.
    """
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {' '.join(str(message).split())}\n"
    try:
        app()
    except (OSError, ValueError, MemoryError, RuntimeError, ImportError) as error:
        # RuntimeError: torch, out of memory; ImportError: an extra that is not installed
        print(f"Error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
