"""
Measure how long training on simulated pairs waits for data.

    python bench/loader.py

The paper's network is trained on batches of 16 patches of 64 px: first on fields that another process simulates during
the training, then on the same number of fields held in memory. The waiting time is the time between requesting and
receiving a batch. The start, when the first fields are simulated, is timed separately. Writes `bench/loader.json`.
"""

import argparse
import json
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.data.patches import WINDOW, FieldsInMemory, FieldsInSeries, TrainingExamples, simulated_series
from haze_pipeline.image_processing import HazeImageProcessor


HERE = Path(__file__).parent
BATCH, RESOLUTION, SIZE, PATCHES_PER_FIELD = 16, 64, 256, 512


def train(fields, steps, workers):
    """Seconds of waiting and seconds in all of every step."""
    dataset = TrainingExamples(
        fields, RESOLUTION, posterior_mean_share=0.0, t_sampling="grid", seed=0, length=BATCH * steps
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, prefetch_factor=4 if workers else None
    )
    unet = UNet2DModel.from_config(HazeMatchingPipeline.from_default().unet.config)
    optimizer = torch.optim.AdamW(unet.parameters())
    batches, waited, taken = iter(loader), [], []
    for _ in range(steps):
        started = time.perf_counter()
        batch = next(batches)
        waited.append(time.perf_counter() - started)
        t = batch["t"].view(-1, 1, 1, 1)
        latents = (1 - t) * batch["noise"] + t * batch["clear"]
        velocity = unet(torch.cat([latents, batch["hazy"]], dim=1), batch["t"], return_dict=False)[0]
        F.mse_loss(velocity, batch["clear"] - batch["noise"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - started)
    return waited, taken


def main():
    parser = argparse.ArgumentParser(description="Measure how long training on simulated pairs waits for them.")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument(
        "--warm_up", type=int, default=40, help="Steps not counted, in which the first fields are made."
    )
    args = parser.parse_args()
    processor = HazeImageProcessor("image")
    series = partial(simulated_series, 1, SIZE)
    ready = FieldsInMemory(islice(series(0), WINDOW), processor, RESOLUTION)
    results = {}
    for name, fields, workers in (
        ("simulated meanwhile", FieldsInSeries(series, processor, RESOLUTION, PATCHES_PER_FIELD), 1),
        ("ready", ready, 0),
    ):
        waited, taken = train(fields, args.steps, workers)
        start = sum(waited[: args.warm_up])
        waited, taken = waited[args.warm_up :], taken[args.warm_up :]
        results[name] = {
            "seconds_waiting_at_start": start,
            "share_waiting": sum(waited) / sum(taken),
            "seconds_per_step": sum(taken) / len(taken),
        }
        print(name, results[name], flush=True)
    results["slower"] = results["simulated meanwhile"]["seconds_per_step"] / results["ready"]["seconds_per_step"] - 1
    results |= {
        "batch": BATCH,
        "resolution": RESOLUTION,
        "patches_per_field": PATCHES_PER_FIELD,
        "threads": torch.get_num_threads(),
    }
    (HERE / "loader.json").write_text(json.dumps(results, indent=2) + "\n")
    print("slower", results["slower"])


if __name__ == "__main__":
    main()
