"""The command `haze-pipeline export-bioimageio`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import fetch_model, load_pipeline
from haze_pipeline.utils.console import make_parents, require


def export_bioimageio(
    output: Annotated[Path, typer.Option("--output", "-o", help="Package to write, ending in .zip.")],
    model: Annotated[
        str | None, typer.Argument(help="Pipeline folder or repository of the Hub; the default if omitted.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What users see it called; by default the name of the model.")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license", help="Licence of the weights, such as apache-2.0; by default what the training was told."
        ),
    ] = None,
    example: Annotated[
        Path | None, typer.Option(help="Hazy TIFF to test with and to show; by default a simulated one.")
    ] = None,
):
    """
    Write a package for bioimage.io, which Fiji, deepImageJ and others run.

    It yields the posterior mean of a plane, always the same one for the same image, and no uncertainty. It is written
    only if it passes the tests of bioimage.io.

    Example: haze-pipeline export-bioimageio runs/first/best -o microscope.zip --license apache-2.0
    """
    if output.suffix != ".zip":
        raise ValueError(f"{output} must end in .zip.")
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another name.")
    require("bioimageio", "bioimageio")
    folder = None if model is None else fetch_model(model)
    if license_id is None:
        training = None if folder is None else folder / "training.json"
        told = json.loads(training.read_text())["license"] if training is not None and training.is_file() else None
        license_id = "apache-2.0" if folder is None else told
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
