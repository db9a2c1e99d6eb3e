"""
Compare EID with the dark-channel prior on photographs with simulated haze. `bench/eid.py` runs this comparison.

Haze of the atmosphere is added to the photographs that come with scikit-image, with a depth that increases towards the
top of the image, a random density and the same airlight. EID is trained on these hazy photographs alone, so that both
methods know the same. No method knows depth, density or airlight. The training takes four times as long as the others
of `bench/eid.py`, since it is not compared with them.
"""

import json

import numpy as np
import skimage.data
import torch
from eid import launch, load, seconds_per_step, steps_of
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
AIRLIGHT = 230  # of 255
RESOLUTION, BATCH = 96, 4
NETWORK = {"num_features": 16, "num_channels": 3}


def add_haze(clear, seed):
    """A photograph `[3, H, W]` from 0 to 255 with haze."""
    rng, (height, width) = np.random.default_rng(seed), clear.shape[1:]
    relief = gaussian_filter(rng.normal(size=(height, width)), height / 8)
    depth = np.linspace(1, 0.2, height)[:, None] + 0.3 * relief / np.abs(relief).max()
    transmission = np.exp(-rng.uniform(0.8, 1.6) * depth.clip(0.05))
    return (clear * transmission + AIRLIGHT * (1 - transmission)).round().astype(np.uint8)


@torch.no_grad()
def guess(pipe, operator, image):
    """What the operator guesses of the clear photograph, in counts."""
    mean, unit = pipe.config.target_mean, pipe.config.target_std
    return operator.guess((torch.from_numpy(image[None].astype(np.float32)) - mean) / unit)[0].numpy() * unit + mean


def compare_photographs(folder, minutes):
    """PSNR in dB and SSIM of the photographs before and after dehazing, by method."""
    clear = [np.moveaxis(getattr(skimage.data, name)(), -1, 0) for name in PHOTOGRAPHS]  # [3,H,W]
    hazy = [add_haze(image, seed) for seed, image in enumerate(clear)]
    inputs, output = folder / "photographs", folder / "photographs, trained"
    inputs.mkdir(exist_ok=True)
    for name, image in zip(PHOTOGRAPHS, hazy, strict=True):
        Image.fromarray(np.moveaxis(image, 0, -1)).save(inputs / f"{name}.png")
    if not (output / "model_index.json").is_file():
        network = ResidualUNet(**NETWORK)
        network.save_config(folder / "network of colours")
        shape = (BATCH, 3, RESOLUTION, RESOLUTION)
        pipe = HazeRegressionPipeline(network, "fixed", 0.0, 1.0)
        cost = seconds_per_step(pipe, AtmosphericHaze(9.0), shape)
        launch(
            "train_eid", output, "--train_data_dir", inputs, "--photographs", "--haze_operator", "atmospheric",
            "--resolution", RESOLUTION, "--train_batch_size", BATCH, *steps_of(max(2, round(60 * 4 * minutes / cost))),
            "--learning_rate", 1e-3, "--model_config_name_or_path", folder / "network of colours",
        )  # fmt: skip
    pipe = load(output)
    operator = AtmosphericHaze.from_pretrained(output / "haze_operator", low_cpu_mem_usage=False)
    methods = {
        "input": lambda image: image,
        "dark-channel prior": lambda image: dark_channel_prior(image).prediction,
        "first guess of EID": lambda image: guess(pipe, operator, image),
        "EID, atmospheric": lambda image: pipe(image).prediction,
    }
    results = {}
    for method, predict in methods.items():
        images = [np.clip(predict(image).astype(np.float64), 0, 255) for image in hazy]
        errors = [np.square(image - truth).mean() for image, truth in zip(images, clear, strict=True)]
        similarities = [
            structural_similarity(truth.astype(np.float64), image, channel_axis=0, data_range=255)
            for image, truth in zip(images, clear, strict=True)
        ]
        results[method] = {
            "psnr": float(np.mean([10 * np.log10(255**2 / error) for error in errors])),
            "ssim": float(np.mean(similarities)),
        }
        print(method, json.dumps(results[method]), flush=True)
    return {"methods": results, "num_images": len(hazy)}
