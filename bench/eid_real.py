"""
Adapt the checkpoint in the package to real hazy images without targets, by EID. `bench/eid.py` runs this comparison.

The images and their references are those of `bench/real_pairs.py`. Every adaptation sees one hazy image alone. The
image of C. elegans has little haze, and shows whether an adaptation does harm.
"""

import json
import shutil

import torch
from eid import EMISSION, HERE, launch, load, seconds_per_step, steps_of
from real_pairs import PAIRS, read_pair

from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.models.haze_operator import OpticalHaze
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


CHECKPOINT = HERE.parent / "haze_pipeline" / "default_checkpoint"
NA = 1.4  # assumed of the microscopes, whose files do not state it
RESOLUTION, BATCH = 96, 4
FILES = {"celegans": "hazy/celegans_airyscan_pseudoconfocal.tif"}


def adapt_to_real_images(folder, data, minutes):
    """Range-invariant PSNR in dB of inputs and results, by image, reference and method."""
    default, results = load(CHECKPOINT), {}
    pipe = HazeRegressionPipeline(default.unet, pixel_packing=default.config.pixel_packing)
    cost = seconds_per_step(pipe, OpticalHaze(), (BATCH, 1, RESOLUTION, RESOLUTION))
    for name, protocol in PAIRS.items():
        inputs, output = folder / "real" / name, folder / f"real, {name}"
        if not (output / "model_index.json").is_file():
            inputs.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / FILES.get(name, f"paired/{name}_hazy.tif"), inputs / "hazy.tif")
            optics = {"airy_radius": 0.61 * EMISSION / NA / protocol["pixel_size"]}
            launch(
                "train_eid", output, "--train_data_dir", inputs, "--init_from", CHECKPOINT, "--learning_rate", 1e-4,
                "--operator_config", json.dumps(optics), "--resolution", RESOLUTION, "--train_batch_size", BATCH,
                *steps_of(max(2, round(60 * minutes / cost))),
            )  # fmt: skip
        adapted = load(output)
        hazy, targets = read_pair(data, name, protocol)
        inner = slice(protocol["crop"], -protocol["crop"] or None)
        generator = torch.Generator().manual_seed(0)
        images = {
            "input": hazy,
            "checkpoint": default(hazy, num_inference_steps=1, ensemble_size=1, generator=generator).prediction,
            "adapted": adapted(hazy).prediction,
        }
        results[name] = {
            key: {
                method: range_invariant_psnr(target[inner, inner], image[inner, inner])
                for method, image in images.items()
            }
            for key, target in targets.items()
        }
        print(name, json.dumps(results[name]), flush=True)
    return results
