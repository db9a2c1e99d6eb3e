"""The command `haze-pipeline simulate`."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.utils.console import make_parents, progress_bar


SPECIMENS, STACK, IMAGES = "Random specimens", "From a confocal stack", "From haze-free images"  # panels of the help


def simulate(
    output: Annotated[Path, typer.Argument(help="Folder to make, with hazy/, clear/ and parameters.jsonl.")],
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of pairs, or of series; 10, or one for every plane of the stacks, if omitted."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Other seeds give other specimens and noise.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            rich_help_panel=SPECIMENS,
            help="Side of the images in pixels, also with --from-images; 512 if omitted.",
        ),
    ] = None,
    pinholes: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPECIMENS,
            help='Series of ever hazier images, by pinholes in Airy units, "open" for widefield: 1,2,4,open.',
        ),
    ] = None,
    bleaching: Annotated[
        float | None,
        typer.Option(min=0, rich_help_panel=SPECIMENS, help="Share of the light lost from one image to the next."),
    ] = None,
    drift: Annotated[
        float | None,
        typer.Option(min=0, rich_help_panel=SPECIMENS, help="Deviation in pixels of the step before every image."),
    ] = None,
    from_stack: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=STACK,
            help="Confocal z-stack (ZYX) whose planes become the clear images, or a folder of them.",
        ),
    ] = None,
    from_images: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=IMAGES,
            help="Folder of haze-free micrographs (confocal, deconvolved, light sheet), or a dataset of them, a "
            "folder or ORG/NAME of "
            "the Hub. Each plane is an in-focus layer; haze and camera are computed, with random optics.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(rich_help_panel=IMAGES, help="Split of a dataset, such as validation; train if omitted."),
    ] = None,
    z_range: Annotated[
        str | None,
        typer.Option(rich_help_panel=STACK, help="START:STOP, planes to make pairs of; the others only add haze."),
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(rich_help_panel=STACK, help="Intensity without light; its 1st percentile if omitted."),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(rich_help_panel=STACK, help="In µm; from its metadata if omitted.")
    ] = None,
    z_step: Annotated[
        float | None, typer.Option(rich_help_panel=STACK, help="In µm; from its metadata if omitted.")
    ] = None,
    na: Annotated[float | None, typer.Option(rich_help_panel=STACK, help="Numerical aperture; needed.")] = None,
    emission: Annotated[
        float | None, typer.Option(rich_help_panel=STACK, help="Emission wavelength, µm; 0.52 if omitted.")
    ] = None,
    excitation: Annotated[
        float | None, typer.Option(rich_help_panel=STACK, help="Excitation wavelength, µm; 0.488 if omitted.")
    ] = None,
    immersion_index: Annotated[
        float | None,
        typer.Option(rich_help_panel=STACK, help="1, 1.33 or 1.515 by the numerical aperture if omitted."),
    ] = None,
    sample_index: Annotated[
        float | None,
        typer.Option(rich_help_panel=STACK, help="Index of the specimen; that of the immersion if omitted."),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=STACK, help="Depth of the specimen below the coverslip, µm; with --sample-index."
        ),
    ] = None,
    pinhole: Annotated[
        float | None, typer.Option(rich_help_panel=STACK, help="Pinhole in Airy units; 1 if omitted.")
    ] = None,
):
    """
    Simulate pairs of hazy and clear micrographs: of random specimens, from confocal stacks, or from any haze-free
    images.

    Example: haze-pipeline simulate runs/train --num-images 1600 --size 192 --seed 1

    Example: haze-pipeline simulate runs/own --from-stack confocal.tif --na 1.4 --pixel-size 0.1 --z-step 0.3

    Example: haze-pipeline simulate runs/real --from-images clean_images --num-images 500 --size 256
    """
    from haze_pipeline.io.micrograph_files import replace_when_complete

    if output.exists():
        raise FileExistsError(f"{output} exists; choose another name.")
    of_random = {"--size": size, "--pinholes": pinholes, "--bleaching": bleaching, "--drift": drift}
    of_stack = {
        "--z-range": z_range, "--background": background, "--pixel-size": pixel_size, "--z-step": z_step, "--na": na,
        "--emission": emission, "--excitation": excitation, "--immersion-index": immersion_index,
        "--sample-index": sample_index, "--depth": depth, "--pinhole": pinhole,
    }  # fmt: skip
    if from_images is not None and from_stack is not None:
        raise ValueError("--from-images and --from-stack exclude each other: leave out one.")
    if from_images is not None:
        del of_random["--size"]
        refused, what = (
            {**of_random, **of_stack},
            "does not go with --from-images, whose optics are drawn: leave it out.",
        )
    elif from_stack is not None:
        refused, what = of_random, "is for random specimens: leave out --from-stack."
    else:
        refused, what = of_stack, "is for a confocal stack: add --from-stack."
    if split is not None and from_images is None:
        raise ValueError("--split is for a dataset of haze-free images: add --from-images.")
    for flag, value in refused.items():
        if value is not None:
            raise ValueError(f"{flag} {what}")
    if from_images is not None:
        num_images = num_images or 10
        series = _pairs_of_images(from_images, split, num_images, size or 512, seed)
    elif from_stack is None:
        num_images = num_images or 10
        arguments = {"pinholes": _parse_pinholes(pinholes), "bleaching": bleaching or 0.0, "drift": drift or 0.0}
        series = _series_of_specimens(num_images, size or 512, seed, arguments)
    else:
        if na is None:
            raise ValueError("--from-stack needs the numerical aperture of its objective: add --na.")
        if depth is not None and sample_index is None:
            raise ValueError("--depth matters in a specimen of another index than the immersion: add --sample-index.")
        immersion = next((n for n in (1.0, 1.33) if na < 0.96 * n), 1.515)
        optics = {
            "numerical_aperture": na,
            "emission_wavelength": 0.52 if emission is None else emission,
            "excitation_wavelength": 0.488 if excitation is None else excitation,
            "refractive_index": immersion if immersion_index is None else immersion_index,
            "sample_index": sample_index,
            "depth": 0.0 if depth is None else depth,
            "pinhole": 1.0 if pinhole is None else pinhole,
        }
        series = _pairs_of_stacks(from_stack, num_images, seed, pixel_size, z_step, z_range, background, optics)

    make_parents(output)
    with replace_when_complete(output) as folder, ExitStack() as stack:
        (folder / "hazy").mkdir(parents=True)
        (folder / "clear").mkdir()
        parameters = stack.enter_context((folder / "parameters.jsonl").open("w"))
        advance = progress_bar(f"Simulating {output}", num_images, stack)
        for index, (specimen, pairs) in enumerate(series):
            for level, pair in enumerate(pairs):
                name = f"{index:06d}_level{level}" if pinholes else f"{index:06d}"
                _write_pair(folder, name, pair)
                note = {"image": name, "seed": seed, "specimen_id": specimen, **pair.parameters}
                parameters.write(json.dumps(note, allow_nan=False) + "\n")
            advance(1)
    print(output)


def _parse_pinholes(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(math.inf if part.strip() == "open" else float(part) for part in (text or "open").split(","))
    except ValueError as error:
        raise ValueError(
            f'--pinholes must be numbers and "open" between commas, such as 1,2,4,open, got {text}.'
        ) from error


def _series_of_specimens(number: int, size: int, seed: int, arguments: dict) -> Iterator[tuple[str, list]]:
    """Name and pairs of every random specimen."""
    from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_series

    for index in range(number):
        yield f"simulated-{seed}-{index}", simulate_series(size, pair_generator(seed, index), **arguments)


def _pairs_of_images(source: str, split: str | None, number: int, size: int, seed: int) -> Iterator[tuple[str, list]]:
    """File and pair of every image, file by file, and again until there are `number`."""
    from haze_pipeline.data.specimen_datasets import load_specimens
    from haze_pipeline.simulation.real_specimens import pair_series, read_specimen_folder

    folder = Path(source)
    if folder.is_file():
        raise ValueError(f"--from-images needs a folder of images, but {source} is a file: name its folder.")
    if not folder.is_dir() and (not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or folder.parent.is_dir()):
        raise ValueError(f"{source} is not there: name a folder of images, or a dataset ORG/NAME of the Hub.")
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        if split is not None:
            raise ValueError(f"--split is for a dataset, but {source} is a folder of images: leave it out.")
        files = read_specimen_folder(folder)
    else:
        files = load_specimens(source, split or "train")
    for name, pair in pair_series(files, number, size, seed):
        yield name, [pair]


def _pairs_of_stacks(
    source: Path,
    num_images: int | None,
    seed: int,
    pixel_size: float | None,
    z_step: float | None,
    z_range: str | None,
    background: float | None,
    optics: dict,
) -> Iterator[tuple[str, list]]:
    """
    Name of the stack and the pair of every plane, stack by stack; then again, with other cameras and noise, until
    there are `num_images`.
    """
    from haze_pipeline.io.micrograph_files import list_tiffs, read_micrograph
    from haze_pipeline.simulation.optics import Optics
    from haze_pipeline.simulation.simulated_pairs import pair_generator, pairs_from_stack

    paths = [source / name for name in list_tiffs(source)] if source.is_dir() else [source]
    if not paths:
        raise ValueError(f"{source} holds no TIFF files; name a confocal z-stack or a folder of them.")
    made = 0
    for index, path in enumerate(itertools.cycle(paths)):
        if made == num_images or (num_images is None and index == len(paths)):
            return
        micrograph = read_micrograph(path)
        size = micrograph.pixel_size_um if pixel_size is None else pixel_size
        step = micrograph.z_step_um if z_step is None else z_step
        if micrograph.data.ndim != 3:
            raise ValueError(
                f"{path} has axes {micrograph.axes}, but --from-stack needs a stack ZYX; save one channel and time "
                f"point."
            )
        if size is None:
            raise ValueError(f"{path} does not say the size of its (square) pixels: add --pixel-size in µm.")
        if step is None:
            raise ValueError(f"{path} does not say how far apart its planes are: add --z-step in µm.")
        focus = _parse_range(z_range, len(micrograph.data), path)
        try:
            pairs = pairs_from_stack(
                micrograph.data,
                step,
                Optics(pixel_size=size, **optics),
                pair_generator(seed, index),
                background,
                focus=focus,
            )
            for pair in itertools.islice(pairs, None if num_images is None else num_images - made):
                made += 1
                yield path.name, [pair]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _parse_range(text: str | None, length: int, path: Path) -> range:
    """The planes of `--z-range` START:STOP in a stack of `length` planes."""
    try:
        start, stop = (int(part) if part else None for part in (text or ":").split(":"))
    except ValueError as error:
        raise ValueError(f"--z-range must be START:STOP, such as 0:24, got {text}.") from error
    planes = range(length)[start:stop]
    if not planes:
        raise ValueError(f"--z-range {text} leaves none of the {length} planes of {path}.")
    return planes


def _write_pair(folder: Path, name: str, pair):
    import numpy as np

    from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff

    pixel_size = pair.parameters["pixel_size"]
    for kind, image in (("hazy", pair.hazy.numpy().astype(np.uint16)), ("clear", pair.clear.numpy())):
        write_ome_tiff(folder / kind / f"{name}.ome.tif", Micrograph(image, "YX", pixel_size=(pixel_size, pixel_size)))
