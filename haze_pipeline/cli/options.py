"""The options that several commands share."""

from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType


ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Pipeline folder, or repository of the Hub: ORG/NAME or ORG/NAME@REVISION; by default the checkpoint in "
        "the package."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the noise.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the network runs.")]
DTypeOption = Annotated[
    DType, typer.Option(help="Arithmetic of the network; auto is bfloat16 where the device is fast at it.")
]
