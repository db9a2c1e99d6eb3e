"""The command `haze-pipeline dataset`."""

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from haze_pipeline.utils.console import make_parents, progress_bar


class Layout(StrEnum):
    """How the files of a dataset lie in their folder."""

    pairs = "pairs"
    hazematching = "hazematching"


def dataset(
    source: Annotated[
        Path, typer.Argument(help="Folder with hazy/ and clear/, or of a published HazeMatching subset.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make, laid out as a Hub repository.")],
    layout: Annotated[
        Layout,
        typer.Option(help="pairs: TIFFs of equal names in hazy/ and clear/; hazematching: two-channel TIFFs."),
    ] = Layout.pairs,
    level: Annotated[
        float | None,
        typer.Option(min=0, help="Pinhole of the hazy images of pairs in Airy units; omit it for widefield images."),
    ] = None,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Expected share of the specimens kept for validation.")
    ] = 0.0,
    test_share: Annotated[
        float, typer.Option(min=0, max=1, help="Expected share of the specimens kept for tests.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Other seeds split differently.")] = 0,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Licence of the images, such as cc-by-4.0; needed for --push-to.")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Also upload to this dataset repository of the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository of --push-to private.")] = False,
):
    """
    Make a dataset of pairs that `datasets.load_dataset` reads, from the folder or streamed from the Hub.

    All planes of a specimen, which is a file or a sub-folder of files, go into the same split. Every value is kept
    exactly.

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

    # Whatever can be refused without reading the images is refused first.
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another name.")
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder; name the folder of the pairs.")
    if level == 0:
        raise ValueError("--level must be positive; leave it out for widefield images.")
    if validation_share + test_share >= 1:
        raise ValueError("--validation-share and --test-share must leave something to train on.")
    if push_to is not None and license_id is None:
        raise ValueError("--push-to needs --license, so that others know what they may do with the images.")
    if private and push_to is None:
        raise ValueError("--private needs --push-to.")
    if layout is Layout.hazematching and (validation_share or test_share or level is not None):
        raise ValueError(
            "--layout hazematching keeps the published splits of widefield images: leave out --validation-share, "
            "--test-share and --level."
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

        # Neither the card nor the command in it say where the folders of the user are.
        arguments = ["haze-pipeline", "dataset", source.resolve().name, "-o", output.name]
        if layout is Layout.hazematching:
            arguments += ["--layout", "hazematching"]
            origin = f"Imported from the folder `{source.resolve().name}` of the published HazeMatching data."
            split_rule = "As published. The files don't say which specimen they show, so that each counts as one."
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
                "By specimen: all planes of a specimen are in one split, which follows from a hash of `specimen_id` "
                "and "
                f"the seed {seed}. Expected shares: validation {validation_share:g}, test {test_share:g}."
            )
            if not validation_share and not test_share:
                split_rule = "Everything is in `train`."
            everything = build(pairs_from_folder(source, level), "all")
            splits = split_by_specimen(everything, validation_share, test_share, seed)
        card = make_dataset_card(splits, push_to or output.name, origin, split_rule, shlex.join(arguments), license_id)
        with replace_when_complete(output) as folder:
            save_dataset(splits, card, folder)
        if push_to is not None:
            try:
                url = push_dataset(splits, card, push_to, private or None)
            except ValueError as error:  # a licence that the Hub doesn't know, or a public repository for --private
                raise ValueError(f"{output} is complete, but was not uploaded: {error}") from error
            except Exception as error:  # a network fails in many ways, of which not all are an OSError
                mend = f"hf upload {push_to} {output} --repo-type dataset{' --private' * private}"
                raise OSError(
                    f"{output} is complete, but could not be uploaded to {push_to}; log in with `hf auth login`, then "
                    f"run "
                    f"`{mend}`: {error}"
                ) from error
    print(output)
    if push_to is not None:
        print(url)
