"""The command `haze-pipeline simulate`."""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.utils.console import make_parents, progress_bar

from .options import MAIN


# Panels of the help.
SPECIMENS, IMAGES, STACK = "Random specimens", "From haze-free images", "From a confocal stack"
MICROSCOPE = "Microscope of random specimens or of the stack"


def simulate(
    output: Annotated[Path, typer.Argument(help="Folder to write: hazy/, clear/ and parameters.jsonl.")],
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of pairs, or of series with --pinholes.",
            show_default="10; with --from-stack one per plane",
            rich_help_panel=MAIN,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            metavar="N",
            help="Side of the images in pixels, by default 512. Not for --from-stack.",
            rich_help_panel=MAIN,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="N",
            help="Seed of the specimens, cameras and noise.",
            rich_help_panel=MAIN,
        ),
    ] = 0,
    specimen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SPECIMENS,
            help="Kind of specimen: filaments, tubules, trees, networks, sheets, puncta, blobs, shells or cells. May "
            "be given several times.",
            show_default="one or two of all but cells",
        ),
    ] = None,
    pinholes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=SPECIMENS,
            help="Record every specimen as a series through these pinholes in Airy units, such as 1,2,4,open. open "
            "stands for widefield.",
        ),
    ] = None,
    bleaching: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="FRACTION",
            rich_help_panel=SPECIMENS,
            help="Fraction of the fluorescence lost from one image of a series to the next.",
        ),
    ] = None,
    drift: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="PIXELS",
            rich_help_panel=SPECIMENS,
            help="Standard deviation of the shift from one image of a series to the next.",
        ),
    ] = None,
    from_images: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=IMAGES,
            help="Folder of haze-free micrographs (confocal, deconvolved, light sheet), or dataset of them: a folder "
            "or ORG/NAME on the Hub. Each plane becomes an in-focus layer. Haze and camera are simulated with random "
            "optics.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=IMAGES,
            help="Split of a dataset, by default train.",
        ),
    ] = None,
    from_stack: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=STACK,
            help="Confocal z-stack (ZYX), or a folder of them. Its planes become the clear images.",
        ),
    ] = None,
    na: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=MICROSCOPE,
            help="Numerical aperture of the objective. Needed with --from-stack. Without it, every random specimen "
            "has another microscope.",
        ),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(
            metavar="µm",
            rich_help_panel=MICROSCOPE,
            help="Side of a pixel.",
            show_default="from the metadata of the stack",
        ),
    ] = None,
    z_step: Annotated[
        float | None,
        typer.Option(
            metavar="µm",
            rich_help_panel=STACK,
            help="Distance between planes.",
            show_default="from the metadata of the stack",
        ),
    ] = None,
    z_range: Annotated[
        str | None,
        typer.Option(
            metavar="START:STOP",
            rich_help_panel=STACK,
            help="Planes that become pairs, STOP excluded. The others only add haze.",
        ),
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            rich_help_panel=STACK,
            help="Intensity of the stack where there is no signal.",
            show_default="its 1st percentile",
        ),
    ] = None,
    emission: Annotated[
        float | None,
        typer.Option(metavar="µm", rich_help_panel=MICROSCOPE, help="Emission wavelength, by default 0.52."),
    ] = None,
    excitation: Annotated[
        float | None,
        typer.Option(metavar="µm", rich_help_panel=MICROSCOPE, help="Excitation wavelength, by default 0.488."),
    ] = None,
    immersion_index: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=MICROSCOPE,
            help="Refractive index of the immersion medium.",
            show_default="1, 1.33 or 1.515, by the numerical aperture",
        ),
    ] = None,
    sample_index: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=MICROSCOPE,
            help="Refractive index of the specimen.",
            show_default="that of the immersion medium",
        ),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(
            metavar="µm",
            rich_help_panel=MICROSCOPE,
            help="Depth of the specimen below the coverslip, by default 0. Needs --sample-index.",
        ),
    ] = None,
    pinhole: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=MICROSCOPE,
            help="Pinhole of the stack in Airy units, by default 1.",
        ),
    ] = None,
):
    """
    Simulate pairs of hazy and clear micrographs from random specimens, confocal stacks or haze-free images.

    Example: haze-pipeline simulate runs/train --num-images 1600 --size 192 --seed 1

    Example: haze-pipeline simulate runs/tubules --specimen tubules --na 1.2 --pixel-size 0.1

    Example: haze-pipeline simulate runs/own --from-stack confocal.tif --na 1.4 --pixel-size 0.1 --z-step 0.3

    Example: haze-pipeline simulate runs/real --from-images clean_images --num-images 500 --size 256
    """
    from haze_pipeline.io.micrograph_files import replace_when_complete

    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    if from_images is not None and from_stack is not None:
        raise ValueError("--from-images and --from-stack exclude each other: leave out one.")
    if split is not None and from_images is None:
        raise ValueError("--split is for a dataset of haze-free images: add --from-images.")
    of_random = {
        "--size": size, "--specimen": specimen, "--pinholes": pinholes, "--bleaching": bleaching, "--drift": drift,
    }  # fmt: skip
    of_stack = {"--z-range": z_range, "--background": background, "--z-step": z_step}
    of_microscope = {
        "--pixel-size": pixel_size, "--na": na, "--emission": emission, "--excitation": excitation,
        "--immersion-index": immersion_index, "--sample-index": sample_index, "--depth": depth, "--pinhole": pinhole,
    }  # fmt: skip
    if from_images is not None:
        del of_random["--size"]
        refused, reason = {**of_random, **of_stack, **of_microscope}, "does not go with --from-images: leave it out."
    elif from_stack is not None:
        refused, reason = of_random, "is for random specimens: leave it out, or leave out --from-stack."
    else:
        refused, reason = of_stack, "is for a confocal stack: add --from-stack."
    for flag, value in refused.items():
        if value is not None:
            raise ValueError(f"{flag} {reason}")
    has_microscope = any(value is not None for value in of_microscope.values())
    if na is None and (from_stack is not None or has_microscope):
        raise ValueError("A microscope needs the numerical aperture of the objective: add --na.")
    if depth is not None and sample_index is None:
        raise ValueError("--depth needs the refractive index of the specimen: add --sample-index.")
    optics = None
    if na is not None:
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

    if from_images is not None:
        num_images = num_images or 10
        series = _pairs_of_images(from_images, split, num_images, size or 512, seed)
    elif from_stack is not None:
        series = _pairs_of_stacks(from_stack, num_images, seed, pixel_size, z_step, z_range, background, optics)
    else:
        num_images = num_images or 10
        series = _series_of_specimens(
            num_images, size or 512, seed, specimen, pixel_size, optics,
            pinholes=_parse_pinholes(pinholes), bleaching=bleaching or 0.0, drift=drift or 0.0,
        )  # fmt: skip

    make_parents(output)
    with replace_when_complete(output) as folder, ExitStack() as stack:
        (folder / "hazy").mkdir(parents=True)
        (folder / "clear").mkdir()
        parameters = stack.enter_context((folder / "parameters.jsonl").open("w", encoding="utf-8"))
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
            f"--pinholes must be numbers or open, separated by commas, such as 1,2,4,open, got {text}."
        ) from error


def _series_of_specimens(
    number: int,
    size: int,
    seed: int,
    kinds: list[str] | None,
    pixel_size: float | None,
    optics: dict | None,
    **arguments,
) -> Iterator[tuple[str, list]]:
    """Yield the name and the pairs of every random specimen."""
    from haze_pipeline.simulation.optics import Optics
    from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_series
    from haze_pipeline.simulation.specimens import ALL_SPECIMENS, SPECIMENS

    for kind in kinds or ():
        if kind not in ALL_SPECIMENS:
            raise ValueError(f"--specimen must be one of {', '.join(ALL_SPECIMENS)}, got {kind}.")
    if optics is not None and pixel_size is None:
        raise ValueError("The microscope of random specimens needs the side of a pixel: add --pixel-size in µm.")
    arguments["optics"] = None if optics is None else Optics(pixel_size=pixel_size, **optics)
    arguments["specimens"] = {kind: ALL_SPECIMENS[kind] for kind in kinds} if kinds else SPECIMENS
    for index in range(number):
        yield f"simulated-{seed}-{index}", simulate_series(size, pair_generator(seed, index), **arguments)


def _pairs_of_images(source: str, split: str | None, number: int, size: int, seed: int) -> Iterator[tuple[str, list]]:
    """Yield the file and the pair of every image, file by file, again and again until there are `number` pairs."""
    from haze_pipeline.data.specimen_datasets import load_specimens
    from haze_pipeline.simulation.real_specimens import pair_series, read_specimen_folder

    folder = Path(source)
    if folder.is_file():
        raise ValueError(f"--from-images needs a folder of images, but {source} is a file: name its folder.")
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
    Yield the name of the stack and the pair of every plane, stack by stack. Repeat this with other cameras and noise
    until there are `num_images` pairs.
    """
    from haze_pipeline.io.micrograph_files import list_tiffs, read_micrograph
    from haze_pipeline.simulation.optics import Optics
    from haze_pipeline.simulation.simulated_pairs import pair_generator, pairs_from_stack

    paths = [source / name for name in list_tiffs(source)] if source.is_dir() else [source]
    if not paths:
        raise ValueError(f"{source} holds no TIFF files: name a confocal z-stack or a folder of them.")
    made = 0
    for index, path in enumerate(itertools.cycle(paths)):
        if made == num_images or (num_images is None and index == len(paths)):
            return
        micrograph = read_micrograph(path)
        size = micrograph.pixel_size_um if pixel_size is None else pixel_size
        step = micrograph.z_step_um if z_step is None else z_step
        if micrograph.data.ndim != 3:
            raise ValueError(
                f"{path} has the axes {micrograph.axes}, but --from-stack needs a stack ZYX: save one of its channels "
                "and time points."
            )
        if size is None:
            raise ValueError(f"{path} does not state the size of square pixels: add --pixel-size in µm.")
        if step is None:
            raise ValueError(f"{path} does not state the distance of its planes: add --z-step in µm.")
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
    """The planes that `--z-range` takes of a stack of `length` planes."""
    try:
        start, stop = (int(part) if part else None for part in (text or ":").split(":"))
    except ValueError as error:
        raise ValueError(f"--z-range must be START:STOP, such as 0:24, got {text}.") from error
    planes = range(length)[start:stop]
    if not planes:
        raise ValueError(f"--z-range {text} leaves none of the {length} planes of {path}: count from 0.")
    return planes


def _write_pair(folder: Path, name: str, pair):
    import numpy as np

    from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff

    pixel_size = pair.parameters["pixel_size"]
    for kind, image in (("hazy", pair.hazy.numpy().astype(np.uint16)), ("clear", pair.clear.numpy())):
        write_ome_tiff(folder / kind / f"{name}.ome.tif", Micrograph(image, "YX", pixel_size=(pixel_size, pixel_size)))
