"""The command `haze-pipeline convert`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from haze_pipeline.utils.console import make_parents


class Subset(StrEnum):
    """Datasets of the HazeMatching paper."""

    zebrafish = "zebrafish"
    organoids1 = "organoids1"
    organoids2 = "organoids2"
    microtubule = "microtubule"
    neuron = "neuron"


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="best_model.pth of the official HazeMatching code.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Pipeline folder to write.")],
    subset: Annotated[
        Subset,
        typer.Option(
            metavar="NAME",
            help="Data that the checkpoint was trained on, which sets the intensity statistics: zebrafish, "
            "organoids1, organoids2, microtubule or neuron.",
        ),
    ],
    channel: Annotated[int, typer.Option(min=0, metavar="N", help="Channel of the zebrafish data: 0, 1 or 2.")] = 0,
):
    """
    Convert a published HazeMatching checkpoint to a pipeline folder.

    Example: haze-pipeline convert best_model.pth --subset organoids1 -o hazematching-organoids1
    """
    import warnings

    from haze_pipeline.io.micrograph_files import replace_when_complete
    from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
    from haze_pipeline.scheduling_flow_match_ode import FlowMatchODEScheduler
    from haze_pipeline.sharing.conversion import convert_hazematching_checkpoint

    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        unet, config = convert_hazematching_checkpoint(checkpoint, subset.value, channel)
    for warning in caught:
        Console(stderr=True).print(f"Warning: {warning.message}", style="yellow", highlight=False, markup=False)
    make_parents(output)
    with replace_when_complete(output) as folder:
        # The published networks were trained without mirrored images.
        HazeMatchingPipeline(
            unet, FlowMatchODEScheduler(), normalization="fixed", mirror_members=False, **config
        ).save_pretrained(folder)
        facts = {"subset": subset.value, "channel": channel, "published": not caught}
        (folder / "conversion.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(output)
