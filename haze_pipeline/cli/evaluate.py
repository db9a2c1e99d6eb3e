"""The command `haze-pipeline evaluate`."""

import json
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.presets import Preset
from haze_pipeline.utils.console import make_parents, progress_bar, require
from haze_pipeline.version import __version__

from .options import MAIN, OTHER, RESULT, DeviceOption, DTypeOption, SeedOption


METHODS = "Methods and scores"  # panel of the help


def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="PAIRS",
            help="Folder with hazy/ and clear/, published HazeMatching folder, or dataset on the Hub. Its specimens "
            "must not have been used for training.",
            rich_help_panel=MAIN,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write the report to.", rich_help_panel=MAIN),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Pipeline of any kind: a folder, or a repository on the Hub as ORG/NAME or ORG/NAME@REVISION. May be "
            "given several times.",
            show_default="the checkpoint in the package",
            rich_help_panel=MAIN,
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of a dataset.", rich_help_panel=MAIN)] = "test",
    preset: Annotated[
        list[Preset] | None,
        typer.Option(
            metavar="NAME",
            help="For pipelines that sample: fast, balanced or quality, which takes long. May be given several times.",
            show_default="fast and balanced",
            rich_help_panel=MAIN,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Classical method to compare with, such as rolling-ball, or all or none. Each has its best setting "
            "for every image. May be given several times.",
            show_default="all",
            rich_help_panel=METHODS,
        ),
    ] = None,
    perceptual: Annotated[
        bool,
        typer.Option(
            "--perceptual",
            help="Also compute LPIPS and FID-768. Their networks are downloaded once.",
            rich_help_panel=METHODS,
        ),
    ] = False,
    dinov2: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Also compute the Fréchet distance of the features of this DINOv2, such as facebook/dinov2-small.",
            rich_help_panel=METHODS,
        ),
    ] = None,
    max_pairs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Largest number of pairs to use.", rich_help_panel=RESULT)
    ] = 100,
    num_figures: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of pairs shown with their predictions and error maps.",
            rich_help_panel=RESULT,
        ),
    ] = 4,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
    seed: SeedOption = 0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the scores as one JSON object.", rich_help_panel=OTHER)
    ] = False,
):
    """
    Compare checkpoints with each other and with classical methods on pairs, and write a report that opens offline.

    The folder holds report.html, evaluation.json with all scores of every image, and model-index.json for model cards.
    For a dataset on the Hub, it also holds .eval_results for the repositories of the models.

    Example: haze-pipeline evaluate --model runs/first --model runs/second --dataset runs/test -o report
    """
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    require("eval", "jinja2", "matplotlib", "microssim", "skimage", "torchmetrics")
    if perceptual:
        require("perceptual", "torchvision", "torch_fidelity")
    if dinov2 is not None:
        require("perceptual", "transformers")

    from haze_pipeline.data.pairs import load_pairs
    from haze_pipeline.evaluation.methods import choose_baselines, classical_methods, load_models, model_methods
    from haze_pipeline.evaluation.report import format_table, write_report
    from haze_pipeline.evaluation.scores import choose_metrics, paired_differences, score_images, summarize
    from haze_pipeline.io.micrograph_files import replace_when_complete

    # 1. Load what is compared. Wrong names fail before anything is computed.
    chosen = choose_baselines(baseline or ["all"])
    pairs = list(islice(load_pairs(dataset, split), max_pairs))
    methods = classical_methods(chosen, pairs)
    set_metrics, about_metrics = choose_metrics(pairs, perceptual, dinov2)
    models = load_models(model or [])
    if preset and not any(each.has_presets for each in models):
        raise ValueError("--preset needs a HazeMatchingPipeline, and none of the models is one: leave it out.")
    about_models = []
    for each in models:
        each.pipe = place_pipeline(each.pipe, device, dtype)
        each.pipe.set_progress_bar_config(disable=True)
        own = model_methods(each, preset or (Preset.fast, Preset.balanced), pairs, seed)
        if clash := methods.keys() & own:
            raise ValueError(f"Two methods would be called {clash.pop()!r}: rename the folder of one model.")
        methods |= own
        about_models.append(
            {
                "name": each.name,
                "pipeline": type(each.pipe).__name__,
                "revision": each.revision,
                "dtype": str(each.pipe.unet.dtype).removeprefix("torch."),
                "methods": [name for method in own.values() for name in method.kinds],
            }
        )

    # 2. Run every method on every pair, and score the results.
    with ExitStack() as stack:
        advance = progress_bar("Evaluating", len(pairs) * len(methods), stack)

        def counted(predict):
            def run(pair):
                images = predict(pair)
                advance(1)
                return images

            return run

        functions = {name: counted(method.predict) for name, method in methods.items()}
        results = score_images(pairs, functions, set_metrics, num_figures)
    specimens = [pair.specimen_id for pair in pairs]
    reference = about_models[0]["methods"][0]
    is_folder = Path(dataset).is_dir()
    facts = {
        "package": f"haze-pipeline {__version__}",
        "models": about_models,
        "dataset": Path(dataset).resolve().name if is_folder else dataset,
        "dataset_id": None if is_folder else dataset,
        "split": None if Path(dataset, "hazy").is_dir() else split,  # a folder of pairs has none
        "num_images": len(pairs),
        "num_specimens": len(set(specimens)),
        "seed": seed,
        **about_metrics,
        "kinds": {name: kind for method in methods.values() for name, kind in method.kinds.items()},
        "parameters": {name: method.parameters for method in methods.values() for name in method.kinds},
        "seconds_per_megapixel": results["seconds_per_megapixel"],
        "summary": summarize(results["scores"], specimens),
        "set_scores": results["set_scores"],
        "reference": reference,
        "differences": summarize(paired_differences(results["scores"], reference), specimens),
        "images": [
            {
                "source": pair.source,
                "specimen": pair.specimen_id,
                "scores": {
                    method: {metric: values[index] for metric, values in metrics.items()}
                    for method, metrics in results["scores"].items()
                },
            }
            for index, pair in enumerate(pairs)
        ],
    }

    # 3. Write the report.
    make_parents(output)
    with replace_when_complete(output) as folder:
        folder.mkdir(exist_ok=True)
        write_report(folder, facts, pairs[:num_figures], results["predictions"])
    print(json.dumps(facts) if json_output else f"{format_table(facts)}\n{output / 'report.html'}")
