"""The methods of an evaluation: functions from a pair to its predictions by name, and what is known about them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch

from haze_pipeline.data.pairs import Pair
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
from haze_pipeline.pipeline_hdn import HDNPipeline
from haze_pipeline.pipeline_restoration import RestorationPipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.sharing.evaluation_results import typable
from haze_pipeline.utils.provenance import weights_digest

from .baselines import BASELINES, WITH_KNOWN_OPTICS
from .metrics import range_invariant_psnr


HDN_MEMBERS = 8  # as many as of the preset `balanced`


class Kind(StrEnum):
    """What a prediction is."""

    classical = "classical method"  # or the unchanged input
    estimate = "point predictor"  # a network that gives one estimate, such as the posterior mean
    sample = "posterior sample"  # one of the many clear images that fit the input


@dataclass
class Method:
    """
    A method of an evaluation. One run of it may give several predictions.

    Args:
        predict (`Callable`): From a pair to the predictions `[H, W]` by name.
        kinds (`dict[str, Kind]`): The kind of every prediction by name.
        parameters (`int`, *optional*): Number of parameters of its network, if it has one.
    """

    predict: Callable[[Pair], dict[str, np.ndarray]]
    kinds: dict[str, Kind]
    parameters: int | None = None


@dataclass
class Model:
    """
    A pipeline to evaluate.

    Args:
        name (`str`): Name of its folder or repository.
        label (`str`): With this, the names of its predictions begin.
        pipe ([`RestorationPipeline`]): The pipeline.
        revision (`str`): Digest of its weights as they are stored, see [`weights_digest`].
    """

    name: str
    label: str
    pipe: RestorationPipeline
    revision: str

    @property
    def has_presets(self) -> bool:
        """Whether it samples, so that the presets apply."""
        return isinstance(self.pipe, HazeMatchingPipeline)


def classical_methods(names: Iterable[str] = tuple(BASELINES), pairs: Sequence[Pair] = ()) -> dict[str, Method]:
    """
    The unchanged input and classical baselines by name. On every image, each baseline has the setting with the highest
    range-invariant PSNR *on that same image*. No user can know this setting, so the score is an upper bound for the
    baseline. Baselines whose only setting is the Airy radius also run with that of the metadata, as users run them, if
    all `pairs` state it.

    Args:
        names (iterable of `str`, *optional*): Names of baselines, see `BASELINES`. By default, all of them.
        pairs (sequence of [`Pair`], *optional*): The pairs of the evaluation.
    """

    def best(name: str) -> Callable[[Pair], dict[str, np.ndarray]]:
        def predict(pair: Pair) -> dict[str, np.ndarray]:
            images = BASELINES[name](pair.hazy)
            return {name: max(images, key=lambda image: range_invariant_psnr(pair.clear, image))}

        return predict

    def with_known_optics(name: str, label: str) -> Callable[[Pair], dict[str, np.ndarray]]:
        return lambda pair: {label: WITH_KNOWN_OPTICS[name](pair.hazy, airy_radius=pair.airy_radius).prediction}

    states_optics = bool(pairs) and all(pair.airy_radius is not None for pair in pairs)
    methods = {"input": Method(lambda pair: {"input": pair.hazy}, {"input": Kind.classical})}
    for name in names:
        methods[name] = Method(best(name), {name: Kind.classical})
        if states_optics and name in WITH_KNOWN_OPTICS:
            label = f"{name}, known optics"
            methods[label] = Method(with_known_optics(name, label), {label: Kind.classical})
    return methods


def choose_baselines(requested: Iterable[str]) -> list[str]:
    """
    The names of baselines that a user may have typed as in `"richardson-lucy"`. `"all"` and `"none"` stand for all
    baselines and none.

    Raises:
        `ValueError`: If a name is unknown, or `"none"` stands beside others.
    """
    known = {typable(name): name for name in BASELINES}
    requested = {typable(name): name for name in requested}
    for name, typed in requested.items():
        if name not in (*known, "all", "none"):
            raise ValueError(f"`baseline` must be {', '.join(known)}, all or none, got {typed!r}.")
    if "none" in requested and len(requested) > 1:
        raise ValueError("`baseline` cannot be none and another name at once: leave one of them out.")
    return [each for name, each in known.items() if name in requested or "all" in requested]


def load_models(models: Sequence[str]) -> list[Model]:
    """
    Load pipelines of any class of this package from folders or repositories of the Hub. Without any, load the default
    checkpoint. A single [`HazeMatchingPipeline`] gets the label `"haze-pipeline"`; otherwise each label is the name of
    the folder or repository.

    Raises:
        `ValueError`: If a pipeline cannot be loaded, or is named twice.
        `OSError`: If the Hub cannot be reached and there is no complete copy on this machine.
    """
    if not models:
        pipe = load_pipeline(None)
        return [Model("default checkpoint", "haze-pipeline", pipe, weights_digest(pipe))]
    names = short_names(models)
    pipes = [load_pipeline(model, PIPELINES) for model in models]
    is_single_flow = len(pipes) == 1 and isinstance(pipes[0], HazeMatchingPipeline)
    labels = ["haze-pipeline"] if is_single_flow else names
    return [Model(*each, weights_digest(each[-1])) for each in zip(names, labels, pipes, strict=True)]


def short_names(models: Sequence[str]) -> list[str]:
    """
    Names for tables: that of a repository, and the last part of the path of a folder. If two were equal, or one were
    that of a classical method, those of folders get as many parts of the path as are needed.

    Raises:
        `ValueError`: If a model is named twice.
    """
    # A name of the Hub has one part. The last part comes first.
    parts = [Path(model).resolve().parts[:0:-1] if Path(model).exists() else (model,) for model in models]
    for index, model in enumerate(models):
        if parts[index] in parts[:index]:
            raise ValueError(f"--model {model} is given twice: name every model once.")
    lengths = [1] * len(models)
    while True:
        names = ["/".join(reversed(part[:length])) for part, length in zip(parts, lengths, strict=True)]
        taken = ["input", *BASELINES, *names]
        longer = [length + (taken.count(name) > 1) for name, length in zip(names, lengths, strict=True)]
        longer = [min(length, len(part)) for part, length in zip(parts, longer, strict=True)]
        if longer == lengths:
            return names
        lengths = longer


def model_methods(model: Model, presets: Iterable[Preset], pairs: Sequence[Pair], seed: int) -> dict[str, Method]:
    """
    The methods by which a model is evaluated: the presets for a [`HazeMatchingPipeline`], the mean of `HDN_MEMBERS`
    samples for an [`HDNPipeline`], or else the one prediction.

    Args:
        model ([`Model`]): The model.
        presets (iterable of [`Preset`]): The presets.
        pairs (sequence of [`Pair`]): All pairs. Each has its own noise.
        seed (`int`): Seed of the noise.
    """
    parameters = sum(weights.numel() for weights in model.pipe.unet.parameters())
    seeds = {id(pair): seed + index for index, pair in enumerate(pairs)}
    if isinstance(model.pipe, HDNPipeline):
        return {model.label: _sampling(model.label, model.pipe, HDN_MEMBERS, {}, seeds, parameters)}
    if model.has_presets:
        methods = {}
        for preset in dict.fromkeys(presets):  # each once
            prepared, steps, members = with_preset(model.pipe, preset)
            name, arguments = f"{model.label} {preset}", {"num_inference_steps": steps}
            # One step gives the posterior mean.
            methods[name] = _sampling(name, prepared, members, arguments, seeds, parameters, is_mean=steps == 1)
        return methods

    def predict(pair: Pair) -> dict[str, np.ndarray]:
        return {model.label: model.pipe(pair.hazy).prediction}

    return {model.label: Method(predict, {model.label: Kind.estimate}, parameters)}


def _sampling(
    name: str,
    pipe: RestorationPipeline,
    members: int,
    arguments: dict,
    seeds: dict[int, int],
    parameters: int,
    is_mean: bool = False,
) -> Method:
    """The mean of an ensemble and, unless every member is a mean (`is_mean`), one sample."""
    names = {f"{name}, mean of {members}": Kind.estimate, f"{name}, one sample": Kind.sample}
    if is_mean:
        names = {name: Kind.estimate}

    def predict(pair: Pair) -> dict[str, np.ndarray]:
        generator = torch.Generator().manual_seed(seeds[id(pair)])
        out = pipe(pair.hazy, ensemble_size=members, generator=generator, output_samples=not is_mean, **arguments)
        images = [out.prediction] if is_mean else [out.prediction, out.samples[0]]
        return dict(zip(names, images, strict=True))

    return Method(predict, names, parameters)
