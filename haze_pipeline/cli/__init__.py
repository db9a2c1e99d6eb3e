"""The `haze-pipeline` command. Its sub-commands import large libraries when they run, so that `--help` is quick."""

import os
import warnings
from typing import Annotated

import typer

from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.version import __version__

from .calibrate import calibrate
from .command import Command
from .convert import convert
from .dataset import dataset
from .dehaze import dehaze
from .dehaze_photographs import dehaze_photographs
from .evaluate import evaluate
from .export_bioimageio import export_bioimageio
from .info import info
from .push import push
from .simulate import simulate


# torch reads these settings when it is imported. Threads that wait for each other leave their cores to other programs;
# and large memory pages save the time to map many small ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

app = typer.Typer(
    help="Turn hazy (widefield) fluorescence micrographs into clear, confocal-like ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # breaks the lines of paragraphs anew for the width of the terminal
)
for command in (
    dehaze, dehaze_photographs, simulate, dataset, calibrate, evaluate, push, export_bioimageio, convert, info
):  # fmt: skip
    app.command(cls=Command)(command)


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
    Run the command. A failure prints one sentence on standard error, and so does a warning.

    Exit codes: 0 done, 1 a file or a computation failed, 2 wrong usage, 130 interrupted.
    """
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {' '.join(str(message).split())}\n"
    with errors_in_one_line():
        app()


if __name__ == "__main__":
    main()
