"""The command `haze-pipeline info`."""

import json
from typing import Annotated

import typer

from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.utils.provenance import weights_digest


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint of any kind: a pipeline folder, or a repository on the Hub as ORG/NAME or "
            "ORG/NAME@REVISION.",
            show_default="the checkpoint in the package",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
):
    """Print the settings and the calibration that a checkpoint stores."""
    pipe = load_pipeline(model, PIPELINES)
    scheduler = getattr(pipe, "scheduler", None)  # other pipelines than flows have none
    config = {
        key: value
        for key, value in pipe.config.items()
        if key not in ("unet", "scheduler", "domain") and key[0] != "_"
    }
    facts = {
        "model": model or "default checkpoint",
        "revision": weights_digest(pipe),
        "pipeline": type(pipe).__name__,
        "network": type(pipe.unet).__name__,
        "parameters": pipe.unet.num_parameters(),
        "block_out_channels": list(pipe.unet.config.get("block_out_channels", [])) or None,
        "scheduler": scheduler and type(scheduler).__name__,
        **config,
        "domain": "stored" if pipe.config.get("domain") else None,
    }
    if json_output:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            print(f"{key:<{width}}  {value}")
