"""The command `haze-pipeline push`."""

from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import load_pipeline
from haze_pipeline.utils.console import require


def push(
    folder: Annotated[Path, typer.Argument(help="Pipeline folder, such as the result of a training.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Model repository on the Hub. It is created if there is none.")
    ],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Report of `haze-pipeline evaluate` with these weights, for the model card."
        ),
    ] = None,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Hazy TIFF to upload and to show on the model card. May be given several times."
        ),
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="Licence of the weights, such as apache-2.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository private.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
):
    """
    Upload a pipeline to the Hub: weights, model card, code, examples, evaluation and licence in one commit.

    Others then load it with `--model ORG/NAME` or `HazeMatchingPipeline.from_pretrained("ORG/NAME")`. Without this
    package, `DiffusionPipeline.from_pretrained("ORG/NAME", trust_remote_code=True)` loads it. Log in first with
    `hf auth login`.

    Example: haze-pipeline push runs/first lab/microscope --evaluation report --example cells.tif --license apache-2.0
    """
    from huggingface_hub.errors import HfHubHTTPError

    from haze_pipeline.sharing.publishing import push_pipeline

    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: name the folder of the pipeline.")
    require("hub", "jinja2")
    pipe = load_pipeline(str(folder))
    pipe.set_progress_bar_config(disable=True)
    try:
        url = push_pipeline(
            pipe, repository, folder, evaluation, example or (), license_id, private or None, commit_message=message
        )  # fmt: skip
    except Exception as error:  # errors of the network have many types, not all of which are an OSError
        if isinstance(error, OSError | ValueError | ImportError) and not isinstance(error, HfHubHTTPError):
            raise
        raise OSError(
            f"{folder} was not uploaded to {repository}; log in with `hf auth login`, check the name, and try again: "
            f"{error}"
        ) from error
    print(url)
