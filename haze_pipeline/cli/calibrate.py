"""The command `haze-pipeline calibrate`."""

import json
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer

from haze_pipeline.loading import Device, DType, fetch_model, load_pipeline, place_pipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.utils.console import make_parents, progress_bar, require

from .options import MAIN, OTHER, QUALITY, RESULT, DeviceOption, DTypeOption, ModelOption, SeedOption


# The kinds of pipelines whose samples have a spread to calibrate.
SAMPLING = ("HazeMatchingPipeline", "HDNPipeline")


def calibrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="Folder with hazy/ and clear/, published HazeMatching folder, or dataset on the Hub. Its specimens "
            "must not have been used for training.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Pipeline folder to write.", rich_help_panel=MAIN),
    ],
    model: ModelOption = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split of a dataset.", rich_help_panel=MAIN)
    ] = "validation",
    preset: Annotated[
        Preset,
        typer.Option(
            metavar="NAME",
            help="Preset to calibrate for: balanced or quality. It sets the steps, the ensemble members and the "
            "solver.",
            rich_help_panel=MAIN,
        ),
    ] = Preset.balanced,
    gain_pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--gain-pairs",
            metavar="PAIRS",
            help="More pairs, such as simulated ones, for the prediction of the gain only. Can be repeated.",
            rich_help_panel=MAIN,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw the error against the predicted standard deviation, before and after, as a PNG.",
            rich_help_panel=RESULT,
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Solver steps.", show_default="set by the preset", rich_help_panel=QUALITY
        ),
    ] = None,
    ensemble_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Ensemble members per plane.",
            show_default="set by the preset",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    max_pairs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Largest number of pairs to use from each source.", rich_help_panel=QUALITY
        ),
    ] = 500,
    device: DeviceOption = Device.auto,
    dtype: DTypeOption = DType.auto,
    seed: SeedOption = 0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object about what was done.", rich_help_panel=OTHER)
    ] = False,
):
    """
    Calibrate the uncertainty of a checkpoint, and write a copy of it that stores the calibration.

    With the copy, `--uncertainty` gives the standard deviation of the error to expect. In Python, `out.interval(0.1)`
    gives bounds that hold the true intensity in 90 % of the pixels, on average over images like these. The clear
    images must be in the unit of the predictions: that of the hazy images, or that of the training targets for a
    checkpoint with fixed statistics.

    Example: haze-pipeline calibrate runs/validation --model runs/first/best -o runs/first_calibrated --plot
    calibration.png
    """
    if preset is Preset.fast:
        raise ValueError("--preset fast gives posterior means, which have no spread: choose balanced or quality.")
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another name.")
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot must end in .png, got {plot}.")
    if plot is not None and not plot.parent.is_dir():
        raise FileNotFoundError(f"{plot.parent} is not a folder: create it first.")

    import shutil

    from haze_pipeline.data.pairs import load_pairs
    from haze_pipeline.io.micrograph_files import replace_when_complete
    from haze_pipeline.pipeline_haze_matching import DEFAULT_CHECKPOINT, HazeMatchingPipeline
    from haze_pipeline.reliability import benefit, calibration

    if plot is not None:
        require("eval", "matplotlib")
        from haze_pipeline.evaluation.figures import plot_calibration
    pairs = load_pairs(source, split)
    for each in gain_pairs or ():
        next(load_pairs(each, split))  # fails before the long measurement if it must fail
    pipe = place_pipeline(load_pipeline(model, SAMPLING), device, dtype)
    is_flow = isinstance(pipe, HazeMatchingPipeline)
    if gain_pairs and not is_flow:
        raise ValueError("--gain-pairs needs a HazeMatchingPipeline: leave it out.")
    pipe, steps, members = with_preset(pipe, preset, num_inference_steps, ensemble_size)
    steps = steps if is_flow else None
    pipe.set_progress_bar_config(disable=True)

    def counted(pairs, advance):
        for pair in pairs:
            yield pair
            advance(1)

    with ExitStack() as stack:
        advance = progress_bar("Calibrating", None, stack)
        specimens = calibration.measure_errors(pipe, counted(islice(pairs, max_pairs), advance), steps, members, seed)
    fitted = calibration.calibrate(specimens, members, steps)
    if is_flow:
        with ExitStack() as stack:
            advance = progress_bar("Predicting the gain", None, stack)
            sources = (source, *(gain_pairs or ()))
            pairs = chain.from_iterable(islice(load_pairs(each, split), max_pairs) for each in sources)
            features, gains, names = benefit.measure_benefit(pipe, counted(pairs, advance))
        fitted["benefit"] = benefit.fit_benefit(features, gains, names)
    line = {"scale": fitted["uncertainty_scale"], "offset": fitted["uncertainty_offset"]}
    curves = {
        name: calibration.pool(calibration.predict_errors(specimens, members, **how))
        for name, how in {"before": {}, "line": line, "after": {"curve": fitted["uncertainty_curve"]}}.items()
    }
    facts = {
        "specimens": len(specimens),
        **fitted,
        "before": calibration.scores(*curves["before"]),
        "with a line, on the same pairs": calibration.scores(*curves["line"]),
        "after, on the same pairs": calibration.scores(*curves["after"]),
    }
    if len(specimens) > 1:
        left_out = calibration.pool(calibration.cross_validate(specimens, members))
        facts["after, on specimens left out"] = calibration.scores(*left_out)

    make_parents(output)
    with replace_when_complete(output) as folder:
        shutil.copytree(fetch_model(model) if model else DEFAULT_CHECKPOINT, folder, dirs_exist_ok=True)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        (folder / "model_index.json").write_text(
            json.dumps({**index, **fitted}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        (folder / "calibration.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if plot is not None:
            figure = plot_calibration(curves)
            figure.savefig(folder / "calibration.png")
            with replace_when_complete(plot) as temporary:
                figure.savefig(temporary)
    written = [str(path) for path in (output, plot) if path is not None]
    if json_output:
        print(json.dumps({**facts, "written": written}))
        return
    print(f"{len(specimens)} specimens, {members} members" + (f" of {steps} steps" if is_flow else ""))
    print("line: scale {scale:.3f}, offset {offset:.3f}".format(**line))
    print(f"curve: weight of the local intensity {fitted['uncertainty_curve']['light_weight']:.2f}")
    for name, values in facts.items():
        if name.startswith(("before", "with", "after")):
            print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    factors = ", ".join(
        f"{100 * (1 - float(alpha)):g} %: {factor:.2f}" for alpha, factor in fitted["interval_factors"].items()
    )
    print(f"standard deviations that bound the true intensity in a fraction of the pixels: {factors}")
    for path in written:
        print(path)
