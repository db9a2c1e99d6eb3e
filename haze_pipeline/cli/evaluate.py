"""The command `haze-pipeline evaluate`."""

import json
import math
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.utils.console import make_parents, progress_bar, require
from haze_pipeline.utils.provenance import weights_digest
from haze_pipeline.version import __version__

from .options import MAIN, OTHER, RESULT, DeviceOption, DTypeOption, ModelOption, SeedOption


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
    model: ModelOption = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of a dataset.", rich_help_panel=MAIN)] = "test",
    preset: Annotated[
        list[Preset] | None,
        typer.Option(
            metavar="NAME",
            help="fast, balanced or quality, which takes long. May be given several times.",
            show_default="fast and balanced",
            rich_help_panel=MAIN,
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            help="Also run the classical methods, each with its best setting for every image.",
            rich_help_panel=METHODS,
        ),
    ] = True,
    regression: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also run this pipeline of training/train_regression.py.",
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
    Compare a checkpoint with classical methods on pairs, and write a report that opens offline.

    The folder holds report.html, evaluation.json with all scores of every image, and model-index.json for a model
    card.

    Example: haze-pipeline evaluate --model runs/first/best --dataset runs/test -o report
    """
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    if regression is not None and not (regression / "model_index.json").is_file():
        raise ValueError(f"{regression} is not a pipeline folder: it holds no model_index.json.")
    require("eval", "jinja2", "matplotlib", "microssim", "skimage", "torchmetrics")
    if perceptual:
        require("perceptual", "torchvision", "torch_fidelity")
    if dinov2 is not None:
        require("perceptual", "transformers")

    import torch
    from diffusers import UNet2DModel

    from haze_pipeline.data.pairs import load_pairs
    from haze_pipeline.evaluation import perceptual as perceptual_metrics
    from haze_pipeline.evaluation.report import write_report
    from haze_pipeline.evaluation.scores import (
        IMAGE_METRICS,
        JOINT_METRICS,
        PROTOCOL,
        SET_METRICS,
        classical_methods,
        score_images,
        summarize,
    )
    from haze_pipeline.io.micrograph_files import replace_when_complete
    from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline

    pairs = list(islice(load_pairs(dataset, split), max_pairs))
    small = [pair for pair in pairs if min(pair.clear.shape) < perceptual_metrics.PATCH]
    if (perceptual or dinov2 is not None) and small:
        raise ValueError(
            f"{small[0].source} has {small[0].clear.shape} pixels, too few for the patches of --perceptual and "
            f"--dinov2, whose side is {perceptual_metrics.PATCH} pixels: leave out these options or the image."
        )
    pipe = load_pipeline(model)
    revision = weights_digest(pipe)
    pipe = place_pipeline(pipe, device, dtype)
    pipe.set_progress_bar_config(disable=True)
    number = {id(pair): index for index, pair in enumerate(pairs)}

    def run_preset(name: Preset):
        prepared, steps, members = with_preset(pipe, name)

        def run(pair):
            generator = torch.Generator().manual_seed(seed + number[id(pair)])  # every image has its own noise
            out = prepared(
                pair.hazy,
                num_inference_steps=steps,
                ensemble_size=members,
                generator=generator,
                output_samples=steps > 1,
            )
            if steps == 1:
                return {f"haze-pipeline {name}": out.prediction}
            return {
                f"haze-pipeline {name}, mean of {members}": out.prediction,
                f"haze-pipeline {name}, one sample": out.samples[0],
            }

        return run

    methods = classical_methods() if baselines else {"input": lambda pair: {"input": pair.hazy}}
    if regression is not None:
        regressor = HazeRegressionPipeline.from_pretrained(regression, low_cpu_mem_usage=False, use_safetensors=True)
        regressor = place_pipeline(regressor, device, dtype)
        network = "U-Net" if isinstance(regressor.unet, UNet2DModel) else type(regressor.unet).__name__
        methods[f"{network} regression"] = lambda pair: {f"{network} regression": regressor(pair.hazy).prediction}
    for name in preset or (Preset.fast, Preset.balanced):
        methods[f"haze-pipeline {name}"] = run_preset(name)

    set_metrics, num_features = dict(SET_METRICS), {}
    if perceptual:
        set_metrics |= {"LPIPS": (perceptual_metrics.lpips, False), "FID-768": (perceptual_metrics.fid, False)}
        num_features["FID-768"] = 768
    if dinov2 is not None:
        tokens = perceptual_metrics.ClassTokens(dinov2)  # loaded now, so that a wrong name fails at once
        set_metrics["DINOv2 distance"] = (partial(perceptual_metrics.dinov2_distance, tokens=tokens), False)
        num_features["DINOv2 distance"] = tokens.num_features
    protocol = {name: PROTOCOL[name] for name in (*IMAGE_METRICS, *JOINT_METRICS, *set_metrics)}
    # The covariance of n features needs more than n patches.
    num_patches = sum(math.prod(side // perceptual_metrics.PATCH for side in pair.clear.shape) for pair in pairs)
    unreliable = [name for name, number in num_features.items() if num_patches <= number]
    for name in unreliable:
        protocol[name] += f"; unreliable: {num_patches} patches are too few for {num_features[name]} features"
    with ExitStack() as stack:
        advance = progress_bar("Evaluating", len(pairs) * len(methods), stack)

        def counted(method):
            def run(pair):
                images = method(pair)
                advance(1)
                return images

            return run

        results = score_images(
            pairs, {name: counted(method) for name, method in methods.items()}, set_metrics, num_figures
        )
    model_name = "default checkpoint"
    if model is not None:
        model_name = Path(model).resolve().name if Path(model).exists() else model
    facts = {
        "package": f"haze-pipeline {__version__}",
        "model": model_name,
        "revision": revision,
        "dataset": Path(dataset).resolve().name if Path(dataset).is_dir() else dataset,
        "split": None if Path(dataset, "hazy").is_dir() else split,  # a folder of pairs has none
        "num_images": len(pairs),
        "num_specimens": len({pair.specimen_id for pair in pairs}),
        "seed": seed,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "protocol": protocol,
        "unreliable": unreliable,
        "higher_is_better": {
            name: better for name, (_, better) in (IMAGE_METRICS | JOINT_METRICS | set_metrics).items()
        },
        "summary": summarize(results["scores"], [pair.specimen_id for pair in pairs]),
        "set_scores": results["set_scores"],
        "seconds_per_megapixel": results["seconds_per_megapixel"],
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
    make_parents(output)
    with replace_when_complete(output) as folder:
        folder.mkdir(exist_ok=True)
        write_report(folder, facts, pairs[:num_figures], results["predictions"])
    if json_output:
        print(json.dumps(facts))
        return
    for method, metrics in facts["summary"].items():
        print(f"{method:<36}" + "  ".join(f"{name} {value['mean']:.3g}" for name, value in metrics.items()))
    print(output / "report.html")
