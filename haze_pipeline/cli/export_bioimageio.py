"""The command `haze-pipeline export-bioimageio`."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import fetch_model, load_pipeline
from haze_pipeline.utils.console import make_parents, require


# Facts about the checkpoint in the package, as `read_facts` gives them for others.
DEFAULT_FACTS = {
    "training": {
        "data": "Pairs of real specimens behind computed haze, and of random specimens. The file "
        "model_cards/default_checkpoint.md of haze-pipeline lists the specimens and their licences.",
        "license": "apache-2.0",
    }
}


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
        typer.Option(
            metavar="TEXT",
            help="Title of the package: 5 to 128 letters, digits, spaces, or _ + - ( ).",
            show_default="what it does, and the name of the checkpoint",
        ),
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
        typer.Option(
            metavar="FILE",
            help="Hazy TIFF to test with and to show. bioimage.io asks for a real image.",
            show_default="a simulated image",
        ),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="Side of a pixel of the example in µm.", show_default="the pixel size in its file"
        ),
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="NUMBER", help="Version of the package. Raise it with every upload.")
    ] = "1.0.0",
    maintainer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER",
            help="User of GitHub whom bioimage.io may ask about the package. May be given several times.",
            show_default=False,
        ),
    ] = None,
    git_repo: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Repository in which the model is developed.",
            show_default="the repository of the checkpoint on the Hub",
        ),
    ] = None,
):
    """
    Write a package for bioimage.io, which Fiji, deepImageJ and other programs run.

    The package gives the posterior mean of a plane. The same image always gives the same result, without uncertainty.
    Unlike the preset fast, it does not restore dim regions again: structures that are much dimmer than others in the
    plane may be lost. Its weights are those of PyTorch, with the code of the network, and the same as TorchScript and
    in ONNX. The package is written only if it passes the tests of bioimage.io.

    Example: haze-pipeline export-bioimageio runs/first/best -o microscope.zip --license apache-2.0 --example cells.tif
    """
    if output.suffix != ".zip":
        raise ValueError(f"{output} must end in .zip.")
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    require("bioimageio", "bioimageio")

    from haze_pipeline.sharing.model_card import read_facts

    folder = None if model is None else fetch_model(model)
    facts = DEFAULT_FACTS if folder is None else read_facts(folder)
    license_id = license_id or facts.get("training", {}).get("license")
    if license_id is None:
        raise ValueError(f"The licence of {model} is not known: name it with --license.")
    if name is None:
        own = "haze-pipeline" if model is None else Path(model.partition("@")[0]).resolve().name
        accepted = re.sub(r"[^\w+-]", "-", own, flags=re.ASCII)
        name = f"Dehazing of fluorescence micrographs ({accepted})"
    if git_repo is None and model is not None and not Path(model).exists():
        git_repo = f"https://huggingface.co/{model.partition('@')[0]}"

    import torch

    from haze_pipeline.io.micrograph import MICROMETRES
    from haze_pipeline.io.micrograph_files import read_micrograph, replace_when_complete
    from haze_pipeline.sharing.bioimageio_export import export_bioimageio
    from haze_pipeline.sharing.onnx_weights import obstacle_to_onnx
    from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair

    if example is None:
        pair = simulate_pair(256, pair_generator(seed=7, index=0))
        plane = pair.hazy.numpy()[:160, :160]  # filaments
        sides = (round(pair.parameters["pixel_size"], 4),) * 2
    else:
        micrograph = read_micrograph(example)
        plane = micrograph.data.reshape(-1, *micrograph.data.shape[-2:])[0]
        unit = MICROMETRES[micrograph.pixel_size_unit]
        sides = micrograph.pixel_size and tuple(side * unit for side in micrograph.pixel_size)
    if pixel_size is not None:
        sides = (pixel_size, pixel_size)
    pipe = load_pipeline(model).to(torch.float32)
    make_parents(output)
    with replace_when_complete(output) as temporary:
        export_bioimageio(pipe, temporary, name, license_id, plane, sides, version, maintainer or (), git_repo, facts)
    if obstacle := obstacle_to_onnx(not pipe.config.zero_state_mean):
        print(f"The package has no weights in ONNX, {obstacle}.", file=sys.stderr)
    missing = [option for option, value in (("--maintainer", maintainer), ("--git-repo", git_repo)) if not value]
    if missing:
        print(f"Before you upload the package, add what bioimage.io asks for: {', '.join(missing)}.", file=sys.stderr)
    print(output)
