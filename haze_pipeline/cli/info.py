"""The command `haze-pipeline info`."""

import json
from typing import Annotated

import typer

from haze_pipeline.loading import load_pipeline
from haze_pipeline.utils.provenance import weights_digest


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
