"""The options that several commands share, and the panels of the help."""

from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType


# Panels of the help. They appear in the order of the first option of each.
MAIN, INPUT, RESULT, QUALITY = "Options used most", "Input", "Result", "Quality"
MANY_FILES, SPEED, OTHER = "Many files", "Speed", "Other"

ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Checkpoint: a pipeline folder, or a repository on the Hub as ORG/NAME or ORG/NAME@REVISION.",
        show_default="the checkpoint in the package",
        rich_help_panel=MAIN,
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of the noise.", rich_help_panel=OTHER)
]
DeviceOption = Annotated[Device, typer.Option(help="Where the network runs.", rich_help_panel=SPEED)]
DTypeOption = Annotated[
    DType,
    typer.Option(
        metavar="NAME",
        help="Number type of the network's arithmetic: float32, bfloat16, float16, or auto for the fastest one on "
        "the device.",
        rich_help_panel=SPEED,
    ),
]
