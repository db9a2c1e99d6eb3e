"""The command `haze-pipeline dataset`."""

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from haze_pipeline.utils.console import make_parents, progress_bar


class Layout(StrEnum):
    """Layout of the files in the folder of a dataset."""

    pairs = "pairs"
    hazematching = "hazematching"


def dataset(
    source: Annotated[
        Path, typer.Argument(help="Folder with hazy/ and clear/, or folder of a published HazeMatching subset.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write, laid out as a repository of the Hub."),
    ],
    layout: Annotated[
        Layout,
        typer.Option(
            metavar="NAME",
            help="pairs: TIFFs of equal names in hazy/ and clear/. hazematching: TIFFs of two channels.",
        ),
    ] = Layout.pairs,
    level: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Pinhole of the hazy images of --layout pairs, in Airy units. Leave it out for widefield images.",
        ),
    ] = None,
    validation_share: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="FRACTION", help="Expected fraction of the specimens in validation."),
    ] = 0.0,
    test_share: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="FRACTION", help="Expected fraction of the specimens in test."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of the random split.")] = 0,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", help="Licence of the images, such as cc-by-4.0. Needed for --push-to."
        ),
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Also upload to this dataset repository on the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository of --push-to private.")] = False,
):
    """
    Make a dataset of pairs that `datasets.load_dataset` reads from a folder or streams from the Hub.

    All planes of a specimen, which is a file or a sub-folder of files, go into the same split. All intensities are
    stored exactly.

    Example: haze-pipeline dataset pairs -o pairs_dataset --validation-share 0.1 --license cc-by-4.0 --push-to
    lab/pairs
    """
    import shlex
    import tempfile

    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    from haze_pipeline.data.dataset_card import make_dataset_card
    from haze_pipeline.data.hub_datasets import (
        build_dataset,
        import_datasets,
        pair_row,
        push_dataset,
        save_dataset,
        split_by_specimen,
    )
    from haze_pipeline.data.pairs import (
        describe_simulation,
        hazematching_splits,
        pairs_from_folder,
        pairs_from_hazematching,
        simulation_notes,
    )
    from haze_pipeline.io.micrograph_files import replace_when_complete

    # Refuse wrong requests before the images are read.
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder: name the folder of the pairs.")
    if level == 0:
        raise ValueError("--level must be positive, got 0: leave it out for widefield images.")
    if validation_share + test_share >= 1:
        raise ValueError(
            "--validation-share and --test-share must sum to less than 1, to leave something to train on."
        )
    if push_to is not None and license_id is None:
        raise ValueError("--push-to needs --license, so that others know what they may do with the images.")
    if private and push_to is None:
        raise ValueError("--private needs --push-to: add it, or leave out --private.")
    if layout is Layout.hazematching and (validation_share or test_share or level is not None):
        raise ValueError(
            "--layout hazematching keeps the published splits of widefield images: leave out --level, "
            "--validation-share and --test-share."
        )
    if push_to is not None:
        validate_repo_id(push_to)
    datasets = import_datasets()
    datasets.logging.set_verbosity_error()
    if not Console(stderr=True).is_terminal:
        datasets.disable_progress_bars()
        disable_progress_bars()

    make_parents(output)
    with ExitStack() as stack:
        arrow = stack.enter_context(tempfile.TemporaryDirectory(prefix=".haze-", dir=output.parent))
        advance = progress_bar(f"Reading {source.name}", None, stack)

        def build(pairs, split: str):
            def rows():
                for pair in pairs:
                    yield pair_row(**vars(pair))
                    advance(1)

            return build_dataset(rows(), Path(arrow, f"{split}.arrow"))

        # The card and the command in it do not reveal the paths of the user.
        arguments = ["haze-pipeline", "dataset", source.resolve().name, "-o", output.name]
        if layout is Layout.hazematching:
            arguments += ["--layout", "hazematching"]
            origin = f"Imported from the folder `{source.resolve().name}` of the published HazeMatching data."
            split_rule = "As published. The files do not name their specimens, so each file counts as one."
            splits = datasets.DatasetDict(
                {split: build(pairs_from_hazematching(source, split), split) for split in hazematching_splits(source)}
            )
        else:
            arguments += ["--level", str(level)] if level is not None else []
            arguments += ["--validation-share", str(validation_share), "--test-share", str(test_share)]
            arguments += ["--seed", str(seed)]
            origin = f"Made from TIFF files of equal names in `{source.resolve().name}/hazy` and `…/clear`."
            if notes := simulation_notes(source):
                origin += f" {describe_simulation(notes)}"
            split_rule = (
                "By specimen: all planes of a specimen are in one split, chosen by a hash of `specimen_id` and the "
                f"seed {seed}. Expected fractions: validation {validation_share:g}, test {test_share:g}."
            )
            if not validation_share and not test_share:
                split_rule = "All pairs are in `train`."
            everything = build(pairs_from_folder(source, level), "all")
            splits = split_by_specimen(everything, validation_share, test_share, seed)
        card = make_dataset_card(splits, push_to or output.name, origin, split_rule, shlex.join(arguments), license_id)
        with replace_when_complete(output) as folder:
            save_dataset(splits, card, folder)
        if push_to is not None:
            try:
                url = push_dataset(splits, card, push_to, private or None)
            except ValueError as error:  # an unknown licence, or a public repository with --private
                raise ValueError(f"{output} is complete, but was not uploaded: {error}") from error
            except Exception as error:  # errors of the network have many types, not all of which are an OSError
                mend = f"hf upload {push_to} {output} --repo-type dataset{' --private' * private}"
                raise OSError(
                    f"{output} is complete, but was not uploaded to {push_to}; log in with `hf auth login`, then run "
                    f"`{mend}`: {error}"
                ) from error
    print(output)
    if push_to is not None:
        print(url)
