"""Training examples: patches of hazy and clear images in network units."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import numpy as np
import torch

from haze_pipeline.image_processing import HazeImageProcessor
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.simulation.real_specimens import RealSpecimen, simulate_real_pair
from haze_pipeline.simulation.simulated_pairs import draw_optics, pair_generator, simulate_pair, simulate_series
from haze_pipeline.simulation.specimens import ALL_SPECIMENS, blobs, uniform

from .augmentation import add_haze, weaken_haze
from .pairs import Pair, pairs_from_rows
from .pinhole_series import PinholeSeries


# Coarse pixels for random specimens mixed with real ones: range of pixel sizes, in units of the largest pixel that
# samples without aliasing, and the upper limit in µm.
COARSE_SAMPLING, COARSEST_PIXEL = (0.4, 6.0), 2.5
SOLID_FRACTION = 0.25  # fraction of the random specimens that are solid bodies with hardly any texture

# Number of fields of an endless series from which patches are cut at one time; 24 fields of 256 px take about 12 MB.
WINDOW = 24


def simulated_series(seed: int, size: int, start: int, step: int = 1) -> Iterator[Pair]:
    """Yield every `step`-th pair, from `start` on, of the endless simulated series of a seed, `size` pixels a side."""
    for number in count(start, step):
        pair = simulate_pair(size, pair_generator(seed, number))
        name = f"simulated pair {number} of seed {seed}"
        yield Pair(pair.hazy.numpy(), pair.clear.numpy(), name, name, None, pair.parameters["pixel_size"])


def specimen_series(
    specimens: list[tuple[RealSpecimen, int]],
    simulated_fraction: float,
    seed: int,
    size: int,
    start: int,
    step: int = 1,
) -> Iterator[Pair]:
    """
    Yield an endless series of pairs from real specimens, mixed with pairs from random specimens.

    Args:
        specimens (list of ([`RealSpecimen`], `int`)):
            Specimens with their quality. Files of quality 4 and 5 are drawn equally often, files of lower quality half
            as often.
        simulated_fraction (`float`):
            Fraction of pairs from random specimens. A quarter of these show thin solid bodies. Half of the rest have
            pixels of up to 6 times the Nyquist size.
        seed (`int`): Seed of the series.
        size (`int`): Side of the images, pixels.
        start (`int`): Number of the first pair.
        step (`int`, defaults to `1`): Yield every `step`-th pair.
    """
    by_file: dict[str, list[RealSpecimen]] = {}
    for specimen, _ in specimens:
        by_file.setdefault(specimen.file, []).append(specimen)
    quality = {specimen.file: each for specimen, each in specimens}
    weights = torch.tensor([1.0 if quality[file] > 3 else 0.5 for file in by_file])
    for number in count(start, step):
        generator = pair_generator(seed, number)
        draw = uniform(0, 1, generator)
        if draw < SOLID_FRACTION * simulated_fraction:
            # The bodies are one plane thick, so that their own depth adds no haze.
            side = 2 * size
            planes = blobs((1, side, side), 1.0, generator, most_texture=0.1).numpy()
            pair, name = (
                simulate_real_pair(RealSpecimen.from_counts(planes, None, "bodies"), size, generator),
                "solid bodies",
            )
        elif draw < simulated_fraction:
            optics = None
            if uniform(0, 1, generator) < 0.5:
                optics = draw_optics(generator, COARSE_SAMPLING, COARSEST_PIXEL)
            pair, name = simulate_series(size, generator, optics, specimens=ALL_SPECIMENS)[0], "random specimen"
        else:
            channels = list(by_file.values())[int(torch.multinomial(weights, 1, generator=generator))]
            specimen = channels[int(torch.randint(len(channels), (), generator=generator))]
            pair, name = simulate_real_pair(specimen, size, generator), specimen.name
        name = f"pair {number} of seed {seed}, {name}"
        yield Pair(pair.hazy.numpy(), pair.clear.numpy(), name, name, None, pair.parameters["pixel_size"])


def streamed_series(dataset: Iterable[dict], start: int, step: int = 1) -> Iterator[Pair]:
    """
    Yield the pairs of a dataset, and repeat them without end.

    Args:
        dataset (`datasets.IterableDataset`): Dataset with the columns `hazy` and `clear`, best not yet decoded: rows
            that are not yielded are read but not used.
        start (`int`): Number of the first pair, counted over all repetitions.
        step (`int`, defaults to `1`): Yield every `step`-th pair.

    Raises:
        `ValueError`: If the dataset has no rows, or a row is not a pair.
    """
    number = 0
    while True:
        length = 0
        for length, row in enumerate(dataset, 1):
            if number >= start and (number - start) % step == 0:
                yield from pairs_from_rows([row], length - 1)
            number += 1
        if length == 0:
            raise ValueError("The dataset has no rows.")
        number += max(0, start - number) // length * length  # skip whole repetitions before `start`


def fit_image_processor(normalization: str, pairs: list[Pair]) -> HazeImageProcessor:
    """
    Make an image processor with the statistics of training pairs.

    Args:
        normalization (`str`): `"image"` or `"fixed"`, see [`HazeImageProcessor`].
        pairs (`list[Pair]`): The training pairs.

    Raises:
        `ValueError`: If `normalization` is `"image"` and a hazy image is not finite or none has any contrast.
    """
    if normalization == "fixed":
        pixels = {
            "input": np.concatenate([pair.hazy.ravel() for pair in pairs]),
            "target": np.concatenate([pair.clear.ravel() for pair in pairs]),
        }
        return HazeImageProcessor(
            "fixed",
            input_mean=float(pixels["input"].mean(dtype=np.float64)),
            input_std=float(pixels["input"].std(dtype=np.float64)),
            target_mean=float(pixels["target"].mean(dtype=np.float64)),
            target_std=float(pixels["target"].std(dtype=np.float64)),
        )
    # "image": divide each clear image by the band-passed standard deviation of its hazy image, then pool all images.
    unit = HazeImageProcessor("image")
    number, total, squares = 0, 0.0, 0.0
    for pair in pairs:
        try:
            scale = unit.compute_normalization(unit.preprocess(pair.hazy)).target_std.item()
        except ValueError as error:
            raise ValueError(f"{pair.source}: {error}") from error
        if scale > 0:
            values = pair.clear.astype(np.float64) / scale
            number, total, squares = number + values.size, total + values.sum(), squares + (values**2).sum()
    if number == 0:
        raise ValueError("No hazy training image has any contrast.")
    mean = total / number
    return HazeImageProcessor("image", target_mean=mean, target_std=math.sqrt(squares / number - mean**2))


def normalize_pair(pair: Pair, image_processor: HazeImageProcessor, resolution: int) -> torch.Tensor | None:
    """
    Normalise a pair to `[2, H, W]` (hazy, clear), or a [`PinholeSeries`] to `[1 + T, H, W]` (hazy, clear, smaller
    pinholes). The result is `None` if the hazy image has no contrast, since nothing can be learned from it.

    Raises:
        `ValueError`: If the images are smaller than patches of `resolution` pixels, or not finite.
    """
    if min(pair.hazy.shape) < resolution:
        raise ValueError(
            f"{pair.source}: an image of shape {pair.hazy.shape} is smaller than the patches of {resolution} pixels."
        )
    try:
        hazy, clear = image_processor.preprocess(pair.hazy), image_processor.preprocess(pair.clear)  # [1,1,H,W]
    except ValueError as error:
        raise ValueError(f"{pair.source}: {error}") from error
    smaller = image_processor.preprocess(pair.smaller) if isinstance(pair, PinholeSeries) else hazy[:0]  # [T-1,1,H,W]
    return _in_network_units(hazy, clear, image_processor, smaller)


def _in_network_units(
    hazy: torch.Tensor, clear: torch.Tensor, image_processor: HazeImageProcessor, smaller: torch.Tensor | None = None
) -> torch.Tensor | None:
    """
    Normalise both images `[1, 1, H, W]`, and images of smaller pinholes like the hazy one, and stack them to
    `[2 or more, H, W]`; `None` if the hazy one has no contrast.
    """
    statistics = image_processor.compute_normalization(hazy)
    if statistics.target_std.item() == 0:
        return None
    recorded = hazy if smaller is None else torch.cat([hazy, smaller])
    recorded = (recorded - statistics.input_mean) / statistics.input_std
    clear = (clear - statistics.target_mean) / statistics.target_std
    return torch.cat([recorded[:1], clear, recorded[1:]])[:, 0]


class FieldsInMemory:
    """
    Normalised pairs ("fields") held in memory. Every example draws one of them at random.

    Args:
        pairs (iterable of [`Pair`]): The pairs; those without contrast are left out.
        image_processor ([`HazeImageProcessor`]): Defines the network units.
        resolution (`int`): Side of the patches, pixels.

    Raises:
        `ValueError`: If no pair has any contrast, or an image is too small or not finite.
    """

    def __init__(self, pairs: Iterable[Pair], image_processor: HazeImageProcessor, resolution: int):
        self.image_processor = image_processor
        fields = (normalize_pair(pair, image_processor, resolution) for pair in pairs)
        self.fields = [field for field in fields if field is not None]
        if not self.fields:
            raise ValueError("No hazy training image has any contrast.")

    def choose(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A normalised hazy and clear image `[2, H, W]` for example `index`."""
        return self.fields[rng.integers(len(self.fields))]


class FieldsInSeries:
    """
    Normalised pairs ("fields") of an endless series.

    Examples draw from a window of `WINDOW` fields, which moves on by one field every `patches_per_field` examples.
    Every process reads each field once. The workers of a process share its fields: with W workers, each has a window
    of every W-th field. The chosen field depends only on the example's index, its random numbers and its worker.

    Args:
        series (`Callable`): Yields the pairs from a given number on with a given step, such as [`simulated_series`]
            and [`streamed_series`].
        image_processor ([`HazeImageProcessor`]): Defines the network units.
        resolution (`int`): Side of the patches, pixels.
        patches_per_field (`int`): Mean number of patches cut from each field.
        first_pairs (iterable of [`Pair`], *optional*): First pairs of the series, if already computed.
    """

    def __init__(
        self,
        series: Callable[[int, int], Iterator[Pair]],
        image_processor: HazeImageProcessor,
        resolution: int,
        patches_per_field: int,
        first_pairs: Iterable[Pair] = (),
    ):
        self.series, self.patches_per_field = series, patches_per_field
        self.image_processor, self.resolution = image_processor, resolution
        # Computed here, so that worker processes inherit them.
        self.fields = {number: self._normalize(pair) for number, pair in enumerate(first_pairs)}
        self.next, self.rest = None, None  # number of the next field of `rest`

    def choose(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A normalised hazy and clear image `[2, H, W]` for example `index`."""
        worker = torch.utils.data.get_worker_info()
        step = 1 if worker is None else worker.num_workers
        first = index // (self.patches_per_field * step) * step + (0 if worker is None else worker.id)
        for _ in range(100):  # fields without contrast are rare
            field = self._field(first, first + step * int(rng.integers(WINDOW)), step)
            if field is not None:
                return field
        raise ValueError(f"None of the training images around number {first} has any contrast.")

    def _field(self, first: int, number: int, step: int) -> torch.Tensor | None:
        """Return field `number` of those from `first` on with this step, and drop the fields before `first`."""
        for missing in range(first, number + 1, step):
            if missing not in self.fields:
                if missing != self.next:  # at first, or after a jump, such as the start of a resumed training
                    self.rest = self.series(missing, step)
                self.fields[missing] = self._normalize(next(self.rest))
                self.next = missing + step
        self.fields = {old: field for old, field in self.fields.items() if old >= first}
        return self.fields[number]

    def _normalize(self, pair: Pair) -> torch.Tensor | None:
        return normalize_pair(pair, self.image_processor, self.resolution)


class TrainingExamples(torch.utils.data.Dataset):
    """
    The sequence of training examples.

    The image, patch, orientation, time and noise of example `index` depend only on the seed and `index`, and for
    [`FieldsInSeries`] on the worker. The examples are therefore the same after an interruption and, unless several
    workers share a series, for any number of processes.

    Args:
        fields ([`FieldsInMemory`] or [`FieldsInSeries`]): Normalised pairs from which patches are cut.
        resolution (`int`): Side of the patches, pixels.
        posterior_mean_share (`float`): Fraction of examples at t = 0 that start from noise.
        zero_state_share (`float`, defaults to `0.0`): Fraction of examples at t = 0 whose state is zero instead of
            noise.
        t_sampling (`str`): Times of the other examples: `"grid"`, `"uniform"` or `"logit_normal"`.
        seed (`int`): Seed of the sequence.
        length (`int`): Number of examples.
        intensity_augmentation (`float`, defaults to `0.0`):
            Standard deviation of a random logarithmic gain of both images, and of a random offset of the hazy image in
            network units.
        weakened_haze (`float`, defaults to `0.0`):
            Fraction of examples whose haze is weakened. The hazy and the clear image must have the same intensity
            unit, and every image must be normalised by its own statistics.
        added_haze (`float`, defaults to `0.0`):
            Fraction of examples with added smooth haze, besides those with weakened haze. The same conditions apply.
        noise_corner_frequency (`float`, defaults to `0.0`): Corner frequency of the noise spectrum, see
            [`draw_noise`]; 0 for white noise.
        level_times (sequence of `float`, *optional*):
            For fields of [`PinholeSeries`], the times of the images: of the largest pinhole, then of the smallest to
            the second largest. An example then has the `state` of one of these images, drawn at random, at its time,
            and the `series` of all, smallest pinhole first.
        noise_channels (`int`, defaults to `1`): Channels of the noise, drawn one after another.

    Raises:
        `ValueError`: If `weakened_haze` or `added_haze` is used with fixed statistics, or any variation of the haze or
            of the intensity with series.
    """

    def __init__(
        self,
        fields: FieldsInMemory | FieldsInSeries,
        resolution: int,
        *,
        posterior_mean_share: float,
        t_sampling: str,
        seed: int,
        length: int,
        intensity_augmentation: float = 0.0,
        weakened_haze: float = 0.0,
        added_haze: float = 0.0,
        noise_corner_frequency: float = 0.0,
        zero_state_share: float = 0.0,
        level_times: Sequence[float] = (),
        noise_channels: int = 1,
    ):
        if level_times and (weakened_haze + added_haze > 0 or intensity_augmentation > 0):
            raise ValueError("The haze and the intensity of pinhole series cannot be varied: leave these options out.")
        if weakened_haze + added_haze > 0 and fields.image_processor.normalization == "fixed":
            raise ValueError(
                '`weakened_haze` and `added_haze` do not work with fixed statistics: use the normalization `"image"`.'
            )
        self.fields = fields
        self.resolution = resolution
        self.posterior_mean_share, self.zero_state_share = posterior_mean_share, zero_state_share
        self.t_sampling = t_sampling
        self.intensity_augmentation = intensity_augmentation
        self.weakened_haze, self.added_haze = weakened_haze, added_haze
        self.noise_corner_frequency, self.noise_channels = noise_corner_frequency, noise_channels
        self.level_times = level_times
        self.seed = seed
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        field = self.fields.choose(index, rng)
        if self.weakened_haze + self.added_haze > 0:
            field = self._vary_haze(field, rng)
        y = rng.integers(field.shape[1] - self.resolution + 1)
        x = rng.integers(field.shape[2] - self.resolution + 1)
        patch = field[:, y : y + self.resolution, x : x + self.resolution]
        patch = torch.rot90(patch, int(rng.integers(4)), dims=(1, 2))
        if rng.integers(2):
            patch = patch.flip(2)
        if self.intensity_augmentation > 0:
            gain, offset = rng.normal(0, self.intensity_augmentation, 2)
            dark = self.fields.image_processor.target_dark_level  # a gain leaves zero intensity unchanged
            patch = torch.stack([patch[0] * math.exp(gain) + offset, (patch[1] - dark) * math.exp(gain) + dark])
        kind = rng.random()
        if kind < self.posterior_mean_share + self.zero_state_share:
            t = 0.0  # trains the posterior mean
        elif self.t_sampling == "grid":  # the 20 times of the paper
            t = np.linspace(0, 1, 20)[rng.integers(20)]
        elif self.t_sampling == "uniform":
            t = rng.random()
        else:  # logit-normal (Esser et al. 2024, arXiv 2403.03206)
            t = 1 / (1 + np.exp(-rng.standard_normal()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        if kind < self.zero_state_share:
            # The target velocity is then the clear image.
            noise = torch.zeros(self.noise_channels, self.resolution, self.resolution)
        else:
            size = (self.resolution, self.resolution)
            channels = [draw_noise(size, self.noise_corner_frequency, generator) for _ in range(self.noise_channels)]
            noise = torch.cat(channels)  # [c,h,w]
        example = {"hazy": patch[:1], "clear": patch[1:2], "noise": noise}
        if self.level_times:
            level = int(rng.integers(len(self.level_times)))
            t = self.level_times[level]
            example["state"] = patch[:1] if level == 0 else patch[1 + level : 2 + level]
            example["series"] = torch.cat([patch[2:], patch[:1]])  # [T,h,w]
        return {**example, "t": torch.tensor(t, dtype=torch.float32)}

    def _vary_haze(self, field: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Weaken or add haze in a field `[2, H, W]`, or leave it unchanged; then normalise the field again."""
        processor, draw = self.fields.image_processor, rng.random()
        hazy, signal = field[0], field[1] - processor.target_dark_level  # both now have the same intensity unit
        if draw < self.weakened_haze:
            hazy = weaken_haze(hazy.numpy(), signal.numpy(), rng)
        elif draw < self.weakened_haze + self.added_haze:
            hazy = add_haze(hazy.numpy(), rng)
        else:
            return field
        varied = _in_network_units(torch.from_numpy(hazy)[None, None], signal[None, None], processor)
        return field if varied is None else varied
