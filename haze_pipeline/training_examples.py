"""What training scripts learn from: patches of hazy and clear images, of a folder or simulated meanwhile."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .image_processing import HazeImageProcessor
from .microscopy_io import list_tiffs, read_micrograph
from .simulation import SimulatedPair, pair_generator, simulate_pair


def read_pairs(folder: str | Path) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """
    Read a folder of pairs: `hazy/` and `clear/` with single-plane TIFFs of equal names.

    Returns:
        `tuple`: Lists of `[H, W]` arrays, the hazy and the clear images, and of the pixel sizes in µm where known.

    Raises:
        `ValueError`: If there are no pairs, or one is not of two planes of one size.
    """
    names = list_tiffs(Path(folder, "hazy"))
    if not names:
        raise ValueError(f"{folder} holds no TIFFs in hazy/; expected pairs of the same name in hazy/ and clear/.")
    hazy, clear, pixel_sizes = [], [], []
    for name in names:
        hazy_path, clear_path = Path(folder, "hazy", name), Path(folder, "clear", name)
        hazy_micrograph, clear_micrograph = read_micrograph(hazy_path), read_micrograph(clear_path)
        if hazy_micrograph.data.ndim != 2 or hazy_micrograph.data.shape != clear_micrograph.data.shape:
            raise ValueError(
                f"{hazy_path} and {clear_path} must be single planes of one size, got shapes "
                f"{hazy_micrograph.data.shape} and {clear_micrograph.data.shape}."
            )
        hazy.append(hazy_micrograph.data)
        clear.append(clear_micrograph.data)
        if hazy_micrograph.pixel_size_um is not None:
            pixel_sizes.append(hazy_micrograph.pixel_size_um)
    return hazy, clear, pixel_sizes


def fit_image_processor(normalization: str, hazy: list[np.ndarray], clear: list[np.ndarray]) -> HazeImageProcessor:
    """The image processor, normalising by `"image"` or `"fixed"`, with the statistics of a training set."""
    if normalization == "fixed":
        pixels = {
            "input": np.concatenate([h.ravel() for h in hazy]),
            "target": np.concatenate([c.ravel() for c in clear]),
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
    count, total, squares = 0, 0.0, 0.0
    for hazy_image, clear_image in zip(hazy, clear, strict=True):
        scale = unit.compute_normalization(unit.preprocess(hazy_image)).target_std.item()
        if scale > 0:
            values = clear_image.astype(np.float64) / scale
            count, total, squares = count + values.size, total + values.sum(), squares + (values**2).sum()
    if count == 0:
        raise ValueError("No hazy training image has any contrast.")
    mean = total / count
    return HazeImageProcessor("image", target_mean=mean, target_std=math.sqrt(squares / count - mean**2))


def normalize_field(hazy: np.ndarray, clear: np.ndarray, image_processor: HazeImageProcessor) -> torch.Tensor | None:
    """Normalised hazy and clear image `[2, H, W]`, or `None` if the hazy one has no contrast, which teaches nothing."""
    planes = image_processor.preprocess(hazy)  # [1,1,H,W]
    statistics = image_processor.compute_normalization(planes)
    if statistics.target_std.item() == 0:
        return None
    clear = (image_processor.preprocess(clear) - statistics.target_mean) / statistics.target_std
    return torch.cat([(planes - statistics.input_mean) / statistics.input_std, clear])[:, 0]


class FolderFields:
    """The fields of a folder, any of which may serve any example."""

    def __init__(
        self,
        hazy: list[np.ndarray],
        clear: list[np.ndarray],
        image_processor: HazeImageProcessor,
        resolution: int,
    ):
        self.fields = []
        for hazy_image, clear_image in zip(hazy, clear, strict=True):
            if min(hazy_image.shape) < resolution:
                raise ValueError(
                    f"An image of shape {hazy_image.shape} is smaller than the patches of {resolution} pixels."
                )
            field = normalize_field(hazy_image, clear_image, image_processor)
            if field is not None:
                self.fields.append(field)

    def choose(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A normalised hazy and clear image `[2, H, W]` for example `index`."""
        return self.fields[rng.integers(len(self.fields))]


class SimulatedFields:
    """
    An endless series of simulated fields. Example `index` gets one of a window of fields, which moves on by one every
    `patches_per_field` examples, so that each is simulated once in every process and worker and serves as many. Field k is a
    function of the seed and k, up to the rounding of float32.
    """

    WINDOW = 24  # about 12 MB of fields of 256 px

    def __init__(
        self,
        image_processor: HazeImageProcessor,
        seed: int,
        size: int,
        patches_per_field: int,
        first_pairs: Sequence[SimulatedPair] = (),
    ):
        self.image_processor = image_processor
        self.seed, self.size, self.patches_per_field = seed, size, patches_per_field
        # What has been simulated of the series already need not be made again; workers inherit it.
        made = [normalize_field(pair.hazy.numpy(), pair.clear.numpy(), image_processor) for pair in first_pairs]
        self.fields = {number: field for number, field in enumerate(made) if field is not None}

    def choose(self, index: int, rng: np.random.Generator) -> torch.Tensor:
        """A normalised hazy and clear image `[2, H, W]` for example `index`."""
        first = index // self.patches_per_field
        number = first + int(rng.integers(self.WINDOW))
        if number not in self.fields:
            self.fields = {old: field for old, field in self.fields.items() if old >= first}
            self.fields[number] = self.simulate(number)
        return self.fields[number]

    def simulate(self, number: int) -> torch.Tensor:
        """Field `number`, normalised."""
        for attempt in range(100):  # hardly ever is a field without contrast
            pair = simulate_pair(self.size, pair_generator(self.seed, number + 10**9 * attempt))
            field = normalize_field(pair.hazy.numpy(), pair.clear.numpy(), self.image_processor)
            if field is not None:
                return field
        raise RuntimeError(f"No simulated field of series {self.seed} has any contrast.")


class TrainingExamples(torch.utils.data.Dataset):
    """
    The endless sequence of training examples, cut off at `length`. Example `index` is a function of the seed and `index`
    alone (which image, patch, orientation, time and noise), so that neither the number of processes or workers nor an
    interruption changes what is trained on.

    Args:
        fields ([`FolderFields`] or [`SimulatedFields`]): What patches are cut from.
        resolution (`int`): Side of the patches, pixels.
        posterior_mean_share (`float`): Share of examples at t = 0.
        t_sampling (`str`): Times of the others: `"grid"`, `"uniform"` or `"logit_normal"`.
        seed (`int`): Another seed gives other examples.
        length (`int`): Their number.
    """

    def __init__(
        self,
        fields: FolderFields | SimulatedFields,
        resolution: int,
        posterior_mean_share: float,
        t_sampling: str,
        seed: int,
        length: int,
    ):
        self.fields = fields
        self.resolution = resolution
        self.posterior_mean_share = posterior_mean_share
        self.t_sampling = t_sampling
        self.seed = seed
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        field = self.fields.choose(index, rng)
        y = rng.integers(field.shape[1] - self.resolution + 1)
        x = rng.integers(field.shape[2] - self.resolution + 1)
        patch = field[:, y : y + self.resolution, x : x + self.resolution]
        patch = torch.rot90(patch, int(rng.integers(4)), dims=(1, 2))
        if rng.integers(2):
            patch = patch.flip(2)
        if rng.random() < self.posterior_mean_share:
            t = 0.0  # trains the posterior mean
        elif self.t_sampling == "grid":  # the paper's
            t = np.linspace(0, 1, 20)[rng.integers(20)]
        elif self.t_sampling == "uniform":
            t = rng.random()
        else:  # logit-normal (Esser et al. 2024, arXiv 2403.03206)
            t = 1 / (1 + np.exp(-rng.standard_normal()))
        noise = torch.from_numpy(rng.standard_normal((1, self.resolution, self.resolution), dtype=np.float32))
        return {"hazy": patch[:1], "clear": patch[1:], "noise": noise, "t": torch.tensor(t, dtype=torch.float32)}
