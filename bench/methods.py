"""
Train the methods of the paper at equal cost on simulated pairs of one kind, and compare them on held-out pairs.

    python bench/methods.py

One microscope images random specimens of tubules. Every network trains for the same processor time on one core
(`--minutes`), so the networks are narrow or packed, and train far less than in the papers. The commands are those of a
user. What exists in `--folder` is not made again. Writes `bench/methods.json` and the figures
`docs/images/methods*.png`.
"""

import argparse
import base64
import io
import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from commands import run_on_one_thread
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image

from haze_pipeline.loading import load_pipeline
from haze_pipeline.models.autoencoder_hierarchical import AutoencoderHierarchical
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.models.mprnet import MPRNet
from haze_pipeline.models.rcan import RCAN
from haze_pipeline.models.restormer import Restormer
from haze_pipeline.models.rrdb import RRDBNet
from haze_pipeline.models.unet_haze_matching import build_unet


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "training"))
from adversarial import Adversary, content_loss  # noqa: E402


KIND = ("--specimen", "tubules", "--na", 1.2, "--pixel-size", 0.1)
# Name: number of pairs, seed. Other benchmarks use other seeds.
PAIRS = {"train": (1000, 31), "test": (100, 33)}
SIZE, RESOLUTION = 160, 64
PACKED = ("--pixel_packing", 2)
FLOW = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.2)
INDI = (*PACKED, "--report_to", "none", "--t_sampling", "uniform", "--posterior_mean_share", 0.5)

# The best rate of 5e-4 and 1e-3 for these two; the others have 5e-4.
FASTER = ("--learning_rate", 1e-3)
HDN = ("--kl_weight", 0.03, *FASTER)
ADVERSARIAL = ("--adversarial_weight", 0.005, "--discriminator_features", 32)

METRICS = ("range-invariant PSNR (dB)", "MicroMS3IM", "FSIM", "spectrum distance (dB)")


@dataclass
class Training:
    """A training: its script, its flags, and the network, which is narrow."""

    script: str
    flags: tuple
    make_network: Callable[[], torch.nn.Module]
    starts_from: str | None = None  # the training that trained the network for the first half of the time
    share: float = 1.0  # of the time
    batch: int = 4  # patches per step; packed networks are too small for a core with so few


def packed_unet(guided=True):
    return build_unet(pixel_packing=2, guided=guided)


def rrdb():
    return RRDBNet(num_features=32, num_blocks=2, growth=16)


def hdn():
    return AutoencoderHierarchical(
        num_latent_groups=4, latent_channels=16, num_features=48, num_blocks=1, pixel_packing=2
    )


# The first one is the reference of the differences.
METHODS = {
    "HazeMatching": Training("haze_matching", FLOW, packed_unet, batch=16),
    "U-Net": Training("regression", (*PACKED, *FASTER), packed_unet, batch=8),
    "RCAN": Training(
        "regression",
        ("--architecture", "rcan"),
        lambda: RCAN(num_features=32, num_groups=3, num_blocks=3, reduction=8),
    ),
    "MPRNet": Training(
        "regression",
        ("--architecture", "mprnet"),
        lambda: MPRNet(num_features=16, added_features=8, last_features=16, num_last_blocks=2),
    ),
    "MIMO-UNet": Training(
        "regression", ("--architecture", "mimo-unet"), lambda: MIMOUNet(num_features=16, num_blocks=4)
    ),
    "Restormer": Training(
        "regression",
        ("--architecture", "restormer"),
        lambda: Restormer(num_features=16, num_blocks=(1, 2, 2, 2), num_refinement_blocks=1),
    ),
    # As in its paper, ESRGAN starts from a network that was trained without a discriminator. Each takes half the time.
    "RRDBNet": Training("regression", ("--architecture", "esrgan"), rrdb, share=0.5),
    "ESRGAN": Training(
        "regression", ("--architecture", "esrgan", *ADVERSARIAL), rrdb, starts_from="RRDBNet", share=0.5
    ),
    "InDI": Training(
        "haze_matching",
        (*INDI, "--source", "hazy", "--source_noise", 0.01, "--prediction_type", "clear", "--unguided"),
        lambda: packed_unet(guided=False),
        batch=16,
    ),
    "SIFM 0": Training("haze_matching", (*FLOW, "--source", "hazy"), packed_unet, batch=16),
    "SIFM 0.1": Training("haze_matching", (*FLOW, "--source", "hazy", "--source_noise", 0.1), packed_unet, batch=16),
    "HDN": Training("hierarchical_vae", HDN, hdn, batch=8),
}


def seconds_per_step(training, precision):
    """Shortest time of a training step on one thread: network, gradients, optimiser and averages."""
    torch.set_num_threads(1)
    network, batch = training.make_network(), training.batch
    side, channels = RESOLUTION, network.config.get("in_channels", 1)
    if is_packed := isinstance(network, UNet2DModel):
        side //= 2
    elif isinstance(network, AutoencoderHierarchical):
        channels += network.noise_channels
    inputs, adversary = torch.randn(batch, channels, side, side), None
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMAModel(network.parameters())
    if training.flags[-len(ADVERSARIAL) :] == ADVERSARIAL:
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        adversary = Adversary(accelerator, ADVERSARIAL[-1], 1e-4, torch.optim.lr_scheduler.ConstantLR)
    seconds = []
    for _ in range(10):
        started = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            images = [network(inputs, torch.zeros(batch)).sample] if is_packed else network(inputs)
        if isinstance(network, AutoencoderHierarchical):
            images = [images.prediction, images.kl]
        loss = sum(image.float().square().mean() for image in images)
        if adversary is not None:
            loss = loss + adversary.generator_loss(images[-1], inputs) + content_loss(images[-1], inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        if adversary is not None:
            adversary.step(images[-1], inputs)
        seconds.append(time.monotonic() - started)
    return min(seconds)


def train(name, folder, minutes, precision):
    """Train one method in `folder / name`, unless it exists."""
    training, output, config = METHODS[name], folder / name, folder / f"{name}.config"
    if (output / "cost.json").is_file():
        return
    cost = seconds_per_step(training, precision)
    steps = round(60 * minutes * training.share / cost)
    if training.starts_from is None:
        training.make_network().save_config(config)
        start = ("--model_config_name_or_path", config)
    else:
        start = ("--init_from", folder / training.starts_from)
    run_on_one_thread(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1,
        "--dynamo_backend", "no", "--mixed_precision", precision,
        HERE.parent / "training" / f"train_{training.script}.py",
        "--train_data_dir", folder / "train", "--resolution", RESOLUTION, "--train_batch_size", training.batch,
        "--max_train_steps", steps, "--lr_warmup_steps", 50, "--ema_decay", 0.995, "--checkpointing_steps", steps,
        *start, "--output_dir", output, *training.flags,
    )  # fmt: skip
    (output / "cost.json").write_text(json.dumps({"steps": steps, "batch": training.batch, "seconds_per_step": cost}))


def compare(folder, minutes):
    """Evaluate all methods on the held-out pairs, and write the results and the figures."""
    # The paper also samples the interpolant that was trained without noise with noise.
    pipe = load_pipeline(str(folder / "SIFM 0"))
    pipe.register_to_config(source_noise=0.1)
    pipe.save_pretrained(folder / "SIFM 0, noise 0.1")
    models = [*METHODS]
    models.insert(models.index("SIFM 0") + 1, "SIFM 0, noise 0.1")
    shutil.rmtree(folder / "report", ignore_errors=True)
    named = itertools.chain.from_iterable(("--model", folder / name) for name in models)
    run_on_one_thread(
        sys.executable, "-m", "haze_pipeline", "evaluate", "--dataset", folder / "test", "--baseline", "all",
        "--num-figures", 1, "-o", folder / "report", *named,
    )  # fmt: skip
    evaluation = json.loads((folder / "report" / "evaluation.json").read_text())
    kept = ("num_images", "kinds", "parameters", "seconds_per_megapixel", "reference")
    results = {name: evaluation[name] for name in kept}
    for part in ("summary", "differences"):
        results[part] = {
            method: {metric: values[metric] for metric in METRICS} for method, values in evaluation[part].items()
        }
    results["trainings"] = {name: json.loads((folder / name / "cost.json").read_text()) for name in METHODS}
    results |= {"minutes": minutes, "num_pairs": PAIRS["train"][0], "size": SIZE, "resolution": RESOLUTION}
    (HERE / "methods.json").write_text(json.dumps(results, indent=1) + "\n")
    # The first figure of the report is the plot, the second one shows the first pair.
    figures = re.findall('data:image/png;base64,([^"]+)', (folder / "report" / "report.html").read_text())
    for name, figure in zip(("methods", "methods_example"), figures, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(figure))).convert("RGB")
        # A page is at most this wide, and 128 colours keep the file small.
        image.thumbnail((960, image.height))
        image.quantize(128).save(HERE.parent / "docs" / "images" / f"{name}.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description="Train the methods of the paper at equal cost, and compare them.")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "methods", help="Pairs and networks.")
    parser.add_argument("--minutes", type=float, default=6, help="Processor time of each training.")
    parser.add_argument("--mixed_precision", default="bf16", help="no where the processor is slow at bf16.")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="Train these methods, and compare nothing.")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (number, seed) in PAIRS.items():
        if not (args.folder / name).is_dir():
            run_on_one_thread(
                sys.executable, "-m", "haze_pipeline", "simulate", args.folder / name, "--num-images", number,
                "--size", SIZE, "--seed", seed, *KIND,
            )  # fmt: skip
    for name in args.only or METHODS:
        train(name, args.folder, args.minutes, args.mixed_precision)
    if not args.only:
        compare(args.folder, args.minutes)


if __name__ == "__main__":
    main()
