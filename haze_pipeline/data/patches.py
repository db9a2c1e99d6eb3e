"""What training scripts learn from: patches of hazy and clear images in network units."""

import math
from collections.abc import Callable, Iterable, Iterator
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


# Of random specimens beside real ones: pixels in units of the largest that samples without aliasing, and the largest
# in µm.
COARSE_SAMPLING, COARSEST_PIXEL = (0.4, 6.0), 2.5
SOLID_FRACTION = 0.25  # of the random specimens, without texture

# The fields of an endless series that patches are cut from at one time; 24 are about 12 MB at 256 px.
WINDOW = 24


def simulated_series(seed: int, size: int, start: int) -> Iterator[Pair]:
    """The endless series `seed` of simulated pairs of `size` pixels a side, from number `start` on."""
    for number in count(start):
        pair = simulate_pair(size, pair_generator(seed, number))
        name = f"simulated pair {number} of seed {seed}"
        yield Pair(pair.hazy.numpy(), pair.clear.numpy(), name, name, None, pair.parameters["pixel_size"])


def specimen_series(
    specimens: list[tuple[RealSpecimen, int]], simulated_fraction: float, seed: int, size: int, start: int
) -> Iterator[Pair]:
    """
    The endless series `seed` of pairs from real specimens, some of them replaced by random ones, from number `start`
    on.

    Args:
        specimens (list of ([`RealSpecimen`], `int`)):
            Specimens with their quality. Every file is drawn equally often, but those of a quality of 3 and less half
            as often.
        simulated_fraction (`float`):
            Fraction of random specimens: a quarter thin solid bodies, half of the others seen with pixels of up to 6
            times Nyquist's.
        seed (`int`): Another seed gives other pairs.
        size (`int`): Side of the pairs, pixels.
        start (`int`): Number of the first pair.
    """
    by_file: dict[str, list[RealSpecimen]] = {}
    for specimen, _ in specimens:
        by_file.setdefault(specimen.file, []).append(specimen)
    quality = {specimen.file: each for specimen, each in specimens}
    weights = torch.tensor([1.0 if quality[file] > 3 else 0.5 for file in by_file])
    for number in count(start):
        generator = pair_generator(seed, number)
        draw = uniform(0, 1, generator)
        if draw < SOLID_FRACTION * simulated_fraction:
            # Thin bodies, which make no haze of their own.
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


def streamed_series(dataset: Iterable[dict], start: int) -> Iterator[Pair]:
    """
    The rows of a dataset, again and again, from number `start` on, counted over all rounds.

    Args:
        dataset (`datasets.IterableDataset`): With the columns `hazy` and `clear`, best not yet decoded. The rows
            before `start` are read once, since only that tells how many there are.
        start (`int`): Number of the first pair.

    Raises:
        `ValueError`: If the dataset has no rows, or one is not a pair.
    """
    number = 0
    while True:
        length = 0
        for length, row in enumerate(dataset, 1):
            if number >= start:
                yield from pairs_from_rows([row], length - 1)
            number += 1
        if length == 0:
            raise ValueError("The dataset has no rows.")
        number += max(0, start - number) // length * length  # whole rounds before `start` need not be read


def fit_image_processor(normalization: str, pairs: list[Pair]) -> HazeImageProcessor:
    """The image processor, normalising by `"image"` or `"fixed"`, with the statistics of training pairs."""
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
    # Per image: the target in units of the hazy image's band-passed deviation, pooled over all images.
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
    Normalised hazy and clear image `[2, H, W]`, or `None` if the hazy one has no contrast, which teaches nothing.

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
    return _in_network_units(hazy, clear, image_processor)


def _in_network_units(
    hazy: torch.Tensor, clear: torch.Tensor, image_processor: HazeImageProcessor
) -> torch.Tensor | None:
    """Both images `[1, 1, H, W]`, normalised, as `[2, H, W]`, or `None` if the hazy one has no contrast."""
    statistics = image_processor.compute_normalization(hazy)
    if statistics.target_std.item() == 0:
        return None
    hazy = (hazy - statistics.input_mean) / statistics.input_std
    clear = (clear - statistics.target_mean) / statistics.target_std
    return torch.cat([hazy, clear])[:, 0]


class FieldsInMemory:
    """A set of fields, any of which may serve any example."""

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
    Fields of an endless series. Example `index` gets one of a window of them, which moves on by one every
    `patches_per_field` examples, so that every process and worker reads each once and cuts as many patches from it.
    Which one is a function of index and random numbers alone.

    Args:
        series (`Callable`): Yields the pairs from a number on, see [`simulated_series`] and [`streamed_series`].
        image_processor ([`HazeImageProcessor`]): Knows the network's units.
        resolution (`int`): Side of the patches, pixels.
        patches_per_field (`int`): Patches from every field on average.
        first_pairs (iterable of [`Pair`], *optional*): The first ones of the series, if they are known already.
    """

    def __init__(
        self,
        series: Callable[[int], Iterator[Pair]],
        image_processor: HazeImageProcessor,
        resolution: int,
        patches_per_field: int,
        first_pairs: Iterable[Pair] = (),
    ):
        self.series, self.patches_per_field = series, patches_per_field
        self.image_processor, self.resolution = image_processor, resolution
        self.fields = {
            number: self._normalize(pair) for number, pair in enumerate(first_pairs)
        }  # workers inherit them
        self.next, self.rest = len(self.fields), None

    def choose(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A normalised hazy and clear image `[2, H, W]` for example `index`."""
        first = index // self.patches_per_field
        for _ in range(100):  # hardly ever is a field without contrast
            field = self._field(first, first + int(rng.integers(WINDOW)))
            if field is not None:
                return field
        raise ValueError(f"None of the training images around number {first} has any contrast.")

    def _field(self, first: int, number: int) -> torch.Tensor | None:
        """Field `number`; those before `first` are forgotten."""
        if number not in self.fields:
            if number < self.next or first > self.next:  # a jump, as at the start of a resumed training
                self.fields, self.next, self.rest = {}, first, None
            if self.rest is None:
                self.rest = self.series(self.next)
            while self.next <= number:
                self.fields[self.next] = self._normalize(next(self.rest))
                self.next += 1
            self.fields = {old: field for old, field in self.fields.items() if old >= first}
        return self.fields[number]

    def _normalize(self, pair: Pair) -> torch.Tensor | None:
        return normalize_pair(pair, self.image_processor, self.resolution)


class TrainingExamples(torch.utils.data.Dataset):
    """
    The endless sequence of training examples, cut off at `length`. Example `index` is a function of the seed and
    `index` alone (which image, patch, orientation, time and noise), so that neither the number of processes or workers
    nor an interruption changes what is trained on.

    Args:
        fields ([`FieldsInMemory`] or [`FieldsInSeries`]): What patches are cut from.
        resolution (`int`): Side of the patches, pixels.
        posterior_mean_share (`float`): Fraction of examples at t = 0.
        zero_state_share (`float`, defaults to `0.0`): Fraction of examples at t = 0 whose state is zero instead of
            noise.
        t_sampling (`str`): Times of the others: `"grid"`, `"uniform"` or `"logit_normal"`.
        seed (`int`): Another seed gives other examples.
        length (`int`): Their number.
        intensity_augmentation (`float`, defaults to `0.0`):
            Deviation of a random logarithmic gain of both images, and of an offset of the hazy one in network units.
        weakened_haze (`float`, defaults to `0.0`):
            Share of examples with less haze than they came with. Hazy and clear images must count light in the same
            unit, and be normalised by themselves.
        added_haze (`float`, defaults to `0.0`): Share of other examples with added smooth light.
        noise_corner_frequency (`float`, defaults to `0.0`): Of the noise, see [`draw_noise`]; 0 for white noise.

    Raises:
        `ValueError`: If the haze of images that are normalised by fixed statistics shall vary.
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
    ):
        if weakened_haze + added_haze > 0 and fields.image_processor.normalization == "fixed":
            raise ValueError(
                '`weakened_haze` and `added_haze` need images that are normalised by themselves, `"image"`.'
            )
        self.fields = fields
        self.resolution = resolution
        self.posterior_mean_share, self.zero_state_share = posterior_mean_share, zero_state_share
        self.t_sampling = t_sampling
        self.intensity_augmentation = intensity_augmentation
        self.weakened_haze, self.added_haze = weakened_haze, added_haze
        self.noise_corner_frequency = noise_corner_frequency
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
            dark = self.fields.image_processor.target_dark_level  # light scales about its absence
            patch = torch.stack([patch[0] * math.exp(gain) + offset, (patch[1] - dark) * math.exp(gain) + dark])
        kind = rng.random()
        if kind < self.posterior_mean_share + self.zero_state_share:
            t = 0.0  # trains the posterior mean
        elif self.t_sampling == "grid":  # the paper's
            t = np.linspace(0, 1, 20)[rng.integers(20)]
        elif self.t_sampling == "uniform":
            t = rng.random()
        else:  # logit-normal (Esser et al. 2024, arXiv 2403.03206)
            t = 1 / (1 + np.exp(-rng.standard_normal()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        if kind < self.zero_state_share:
            noise = torch.zeros(1, self.resolution, self.resolution)  # the velocity is then the clear image
        else:
            noise = draw_noise((self.resolution, self.resolution), self.noise_corner_frequency, generator)  # [1,h,w]
        return {"hazy": patch[:1], "clear": patch[1:], "noise": noise, "t": torch.tensor(t, dtype=torch.float32)}

    def _vary_haze(self, field: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """A field `[2, H, W]` as it is, or with less haze or more, in network units of its own."""
        processor, draw = self.fields.image_processor, rng.random()
        hazy, light = field[0], field[1] - processor.target_dark_level  # light has one unit in both
        if draw < self.weakened_haze:
            hazy = weaken_haze(hazy.numpy(), light.numpy(), rng)
        elif draw < self.weakened_haze + self.added_haze:
            hazy = add_haze(hazy.numpy(), rng)
        else:
            return field
        varied = _in_network_units(torch.from_numpy(hazy)[None, None], light[None, None], processor)
        return field if varied is None else varied
