"""The command `haze-pipeline export-bioimageio`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import fetch_model, load_pipeline
from haze_pipeline.utils.console import make_parents, require


def export_bioimageio(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Package to write, a .zip.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint: a pipeline folder, or a repository on the Hub as ORG/NAME or ORG/NAME@REVISION.",
            show_default="the checkpoint in the package",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Title of the package.", show_default="the name of the checkpoint"),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="NAME",
            help="Licence of the weights, such as apache-2.0.",
            show_default="the licence that was given to the training",
        ),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hazy TIFF to test with and to show.", show_default="a simulated image"),
    ] = None,
):
    """
    Write a package for bioimage.io, which Fiji, deepImageJ and other programs run.

    The package gives the posterior mean of a plane. The same image always gives the same result, without uncertainty.
    Unlike the preset fast, it does not restore dim regions again: structures that are much dimmer than others in the
    plane may be lost. The package is written only if it passes the tests of bioimage.io.

    Example: haze-pipeline export-bioimageio runs/first/best -o microscope.zip --license apache-2.0
    """
    if output.suffix != ".zip":
        raise ValueError(f"{output} must end in .zip.")
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    require("bioimageio", "bioimageio")
    folder = None if model is None else fetch_model(model)
    if license_id is None:
        training = None if folder is None else folder / "training.json"
        noted = (
            json.loads(training.read_text(encoding="utf-8"))["license"]
            if training is not None and training.is_file()
            else None
        )
        license_id = "apache-2.0" if folder is None else noted
    if license_id is None:
        raise ValueError(f"The licence of {model} is not known: name it with --license.")

    import torch

    from haze_pipeline.io.micrograph_files import read_micrograph, replace_when_complete
    from haze_pipeline.sharing.bioimageio_export import export_bioimageio
    from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair

    if example is None:
        plane = simulate_pair(256, pair_generator(seed=7, index=0)).hazy.numpy()[:160, :160]  # filaments
    else:
        stack = read_micrograph(example).data
        plane = stack.reshape(-1, *stack.shape[-2:])[0]
    pipe = load_pipeline(model).to(torch.float32)
    make_parents(output)
    with replace_when_complete(output) as temporary:
        export_bioimageio(pipe, temporary, name or (folder.name if folder else "Haze pipeline"), license_id, plane)
    print(output)
