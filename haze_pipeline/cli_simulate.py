"""The command `haze-pipeline simulate`."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .console import make_parents, progress_bar


def simulate(
    output: Annotated[Path, typer.Argument(help="Folder to make, with hazy/, clear/ and parameters.jsonl.")],
    num_images: Annotated[
        int | None,
        typer.Option(min=1, help="Number of pairs, or of series; 10, or one for every plane of a stack, if omitted."),
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Other seeds give other specimens.")] = 0,
    pinholes: Annotated[
        str | None,
        typer.Option(help='Series of ever hazier images: diameters in Airy units, "open" for widefield: 1,2,4,open.'),
    ] = None,
    from_stack: Annotated[
        Path | None,
        typer.Option(help="Confocal z-stack (ZYX) whose planes become the clear images, or a folder of them."),
    ] = None,
    pixel_size: Annotated[float | None, typer.Option(help="Of the stack, µm; from its metadata if omitted.")] = None,
    z_step: Annotated[float | None, typer.Option(help="Of the stack, µm; from its metadata if omitted.")] = None,
    z_range: Annotated[
        str | None, typer.Option(help="START:STOP, planes of the stack to use; the others don't even add haze.")
    ] = None,
    na: Annotated[float | None, typer.Option(help="Numerical aperture; needed with --from-stack.")] = None,
    emission: Annotated[float, typer.Option(help="Emission wavelength, µm, with --from-stack.")] = 0.52,
    excitation: Annotated[float, typer.Option(help="Excitation wavelength, µm, with --from-stack.")] = 0.488,
    immersion_index: Annotated[
        float | None, typer.Option(help="With --from-stack; 1, 1.33 or 1.515 by the numerical aperture if omitted.")
    ] = None,
    pinhole: Annotated[float, typer.Option(help="Of the microscope of the stack, Airy units.")] = 1.0,
    background: Annotated[
        float | None, typer.Option(help="Intensity of the stack without light; its 1st percentile if omitted.")
    ] = None,
):
    """
    Simulate pairs of hazy and clear micrographs, of random specimens or from your own confocal stacks.

    Example: haze-pipeline simulate runs/train --num-images 1600 --size 192 --seed 1

    Example: haze-pipeline simulate runs/own --from-stack confocal.tif --na 1.4 --pixel-size 0.1 --z-step 0.3
    """
    from .microscopy_io import replace_when_complete

    if output.exists():
        raise FileExistsError(f"{output} exists; choose another name.")
    if from_stack is None:
        of_stack = {
            "--pixel-size": pixel_size,
            "--z-step": z_step,
            "--z-range": z_range,
            "--na": na,
            "--background": background,
        }
        for flag, value in of_stack.items():
            if value is not None:
                raise ValueError(f"{flag} describes a confocal stack: add --from-stack.")
        number = num_images or 10
        series = _random_series(number, size, seed, _parse_pinholes(pinholes))
    else:
        if pinholes is not None:
            raise ValueError(
                "--pinholes needs a random specimen: a confocal stack has lost the light outside its pinhole."
            )
        if na is None:
            raise ValueError("--from-stack needs the numerical aperture of its objective: add --na.")
        wanted = {"pixel_size": pixel_size, "z_step": z_step, "z_range": z_range, "background": background}
        optics = {
            "numerical_aperture": na,
            "emission_wavelength": emission,
            "excitation_wavelength": excitation,
            "refractive_index": immersion_index or next((n for n in (1.0, 1.33) if na < 0.96 * n), 1.515),
            "pinhole": pinhole,
        }
        number, series = _series_from_stacks(from_stack, num_images, seed, wanted, optics)

    make_parents(output)
    with replace_when_complete(output) as folder, ExitStack() as stack:
        (folder / "hazy").mkdir(parents=True)
        (folder / "clear").mkdir()
        parameters = stack.enter_context((folder / "parameters.jsonl").open("w"))
        advance = progress_bar(f"Simulating {output}", number, stack)
        for index, (specimen, pairs) in enumerate(series):
            for level, pair in enumerate(pairs):
                name = f"{index:06d}_level{level}" if pinholes else f"{index:06d}"
                _write_pair(folder, name, pair)
                note = {"image": name, "seed": seed, "specimen_id": specimen, **pair.parameters}
                parameters.write(json.dumps(note) + "\n")
            advance(1)
    print(output)


def _parse_pinholes(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(math.inf if part.strip() == "open" else float(part) for part in (text or "open").split(","))
    except ValueError as error:
        raise ValueError(
            f'--pinholes must be numbers and "open" between commas, such as 1,2,4,open, got {text}.'
        ) from error


def _random_series(number: int, size: int, seed: int, pinholes: tuple[float, ...]):
    """Series of random specimens: `(name of the specimen, its pairs)`."""
    from .simulation import pair_generator, simulate_series

    for index in range(number):
        yield f"simulated-{seed}-{index}", simulate_series(size, pair_generator(seed, index), pinholes=pinholes)


def _series_from_stacks(source: Path, num_images: int | None, seed: int, wanted: dict, optics: dict):
    """The number of pairs that stacks give and an iterator over them: `(name of the specimen, [pair])`."""
    from .optics import Optics
    from .simulation import pair_generator, pairs_from_stack

    paths = (
        sorted(path for path in source.iterdir() if path.suffix in (".tif", ".tiff")) if source.is_dir() else [source]
    )
    if not paths:
        raise ValueError(f"{source} holds no TIFF files; name a confocal z-stack or a folder of them.")
    stacks = [(path, *_read_stack(path, wanted)) for path in paths]
    number = num_images or sum(len(planes) for _, planes, _, _, _ in stacks)

    def generate():
        made = 0
        for round_ in range(number):  # another round over all planes gives each another camera and noise
            for index, (path, planes, first, pixel_size, z_step) in enumerate(stacks):
                generator = pair_generator(seed, round_ * len(stacks) + index)
                microscope = Optics(pixel_size=pixel_size, **optics)
                try:
                    pairs = pairs_from_stack(planes, z_step, microscope, generator, wanted["background"])
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
                for pair in pairs[: number - made]:
                    pair.parameters["plane"] += first
                    yield path.name, [pair]
                made += len(pairs)
                if made >= number:
                    return

    return number, generate()


def _read_stack(path: Path, wanted: dict):
    """Planes `[Z, H, W]`, the number of the first, pixel size and z-step in µm of a confocal stack."""
    from .microscopy_io import read_micrograph

    micrograph = read_micrograph(path)
    planes = micrograph.data
    if planes.ndim != 3:
        raise ValueError(
            f"{path} has axes {micrograph.axes}, but --from-stack needs a stack ZYX; save one channel and time point."
        )
    pixel_size, z_step = wanted["pixel_size"] or micrograph.pixel_size_um, wanted["z_step"] or micrograph.z_step_um
    if pixel_size is None:
        raise ValueError(f"{path} does not say the size of its (square) pixels: add --pixel-size in µm.")
    if z_step is None:
        raise ValueError(f"{path} does not say how far apart its planes are: add --z-step in µm.")
    first = 0
    if wanted["z_range"] is not None:
        try:
            start, stop = (int(part) if part else None for part in wanted["z_range"].split(":"))
        except ValueError as error:
            raise ValueError(f"--z-range must be START:STOP, such as 0:24, got {wanted['z_range']}.") from error
        first = range(len(planes))[start:stop].start
        planes = planes[start:stop]
        if len(planes) < 2:
            raise ValueError(
                f"--z-range {wanted['z_range']} leaves {len(planes)} of the {len(micrograph.data)} planes of {path}; "
                "two or more are needed."
            )
    return planes, first, pixel_size, z_step


def _write_pair(folder: Path, name: str, pair):
    import numpy as np

    from .microscopy_io import Micrograph, write_ome_tiff

    pixel_size = pair.parameters["pixel_size"]
    for kind, image in (("hazy", pair.hazy.numpy().astype(np.uint16)), ("clear", pair.clear.numpy())):
        write_ome_tiff(folder / kind / f"{name}.ome.tif", Micrograph(image, "YX", pixel_size=(pixel_size, pixel_size)))
