"""The command `haze-pipeline dehaze-photographs`."""

from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.utils.console import make_parents

from .options import DeviceOption, DTypeOption


def dehaze_photographs(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Photographs: PNG, JPEG or TIFF with three colours of 8 bits."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="PNG to write; or a folder, for one PNG of the same name per file."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Network of photographs, as of train_eid.py: a pipeline folder, or a repository on the Hub as "
            "ORG/NAME or ORG/NAME@REVISION.",
            show_default="none: the dark-channel prior",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
):
    """
    Remove the haze of the atmosphere from photographs.

    The dark-channel prior needs no training. Existing results are replaced.

    Example: haze-pipeline dehaze-photographs street.jpg -o street_clear.png
    """
    from haze_pipeline.data.unpaired import read_photograph, to_picture
    from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior_of_display
    from haze_pipeline.utils.atomic_files import replace_when_complete

    results = [output] if output.suffix.lower() == ".png" else [output / f"{path.stem}.png" for path in inputs]
    if len(set(results)) < len(inputs):
        raise ValueError(
            f"--output {output} gives several photographs one name: name a folder, and files with different names."
        )
    for path, result in zip(inputs, results, strict=True):
        if result.exists() and path.exists() and result.samefile(path):
            raise ValueError(f"--output {output} would replace the photograph {path}: choose another name.")
    if model is None:
        restore = dark_channel_prior_of_display
    else:
        pipe = place_pipeline(load_pipeline(model, ("HazeRegressionPipeline",)), device, dtype)
        if pipe.num_channels != 3:
            raise ValueError(f"--model {model} restores micrographs: use `haze-pipeline dehaze` for them.")
        pipe.set_progress_bar_config(disable=True)

        def restore(photograph):
            return pipe(photograph).prediction

    for path, result in zip(inputs, results, strict=True):
        picture = to_picture(restore(read_photograph(path)))
        make_parents(result)
        with replace_when_complete(result) as name:
            picture.save(name)
        print(result)
