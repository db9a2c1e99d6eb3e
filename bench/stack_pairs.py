"""
Train on pairs made from a confocal z-stack, and dehaze held-out planes of the same stack.

    python bench/stack_pairs.py

The stack is `pollen_stack_confocal.tif` in the folder `HAZE_TEST_DATA`. Its optics are unknown, so they are assumed.
Training uses pairs of the first planes and the test uses pairs of the last planes; two planes between them are left
out. As in a real specimen, all planes add haze. All commands are those of a user. Writes `bench/stack_pairs.json` and
`docs/images/stack_pairs.png`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.data.pairs import pairs_from_folder
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.pipeline_haze_matching import DEFAULT_CHECKPOINT


HERE = Path(__file__).parent
DATA = Path(os.environ.get("HAZE_TEST_DATA", HERE.parent.parent / "shared" / "data"))
OPTICS = ["--na", "1.4", "--pixel-size", "0.1", "--z-step", "0.3"]
TRAINING, TEST = "0:20", "22:32"


def run(*arguments):
    print("$", *arguments, flush=True)
    subprocess.run([str(argument) for argument in arguments], check=True)


def main():
    parser = argparse.ArgumentParser(
        description="Train on pairs made from a confocal z-stack and dehaze held-out planes."
    )
    parser.add_argument("--max_train_steps", type=int, default=7000)
    parser.add_argument("--mixed_precision", default="no", help="bf16 where the processor is fast at it.")
    parser.add_argument("--folder", type=Path, help="Where pairs and checkpoints go; a temporary one if omitted.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        stack = DATA / "single" / "pollen_stack_confocal.tif"
        command = [sys.executable, "-m", "haze_pipeline", "simulate"]
        for name, planes, number, seed in (("train", TRAINING, 200, 1), ("test", TEST, 20, 2)):
            if not (folder / name).exists():
                source = ["--from-stack", stack, "--z-range", planes, *OPTICS]
                run(*command, folder / name, *source, "--num-images", number, "--seed", seed)
        run(
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", 1, "--dynamo_backend", "no",
            "--mixed_precision", args.mixed_precision, HERE.parent / "training" / "train_haze_matching.py",
            "--train_data_dir", folder / "train", "--output_dir", folder / "run", "--resolution", 64,
            "--train_batch_size", 8, "--init_from", DEFAULT_CHECKPOINT, "--learning_rate", 3e-4, "--max_train_steps",
            args.max_train_steps,
            "--checkpointing_steps", 250, "--resume_from_checkpoint", "latest", "--report_to", "none",
        )  # fmt: skip
        pipe = HazeMatchingPipeline.from_pretrained(folder / "run")
        default = HazeMatchingPipeline.from_default()
        pairs = list(pairs_from_folder(folder / "test"))

    scores, panels = {"input": [], "own": [], "default": []}, []
    for index, pair in enumerate(pairs):
        image, target = pair.hazy, pair.clear
        predictions = {"input": image}
        for name, each in (("own", pipe), ("default", default)):
            each.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(index)
            predictions[name] = each(image, num_inference_steps=1, ensemble_size=20, generator=generator).prediction
        for name, prediction in predictions.items():
            scores[name].append(range_invariant_psnr(target, prediction))
        if index in (2, 5, 8):
            panels.append(np.hstack([stretched(each) for each in (*predictions.values(), target)]))
    results = {
        "max_train_steps": args.max_train_steps,
        "num_images": len(pairs),
        "psnr": {name: float(np.mean(each)) for name, each in scores.items()},
        "smallest_gain": float(np.subtract(scores["own"], scores["input"]).min()),
    }
    print(json.dumps(results, indent=2))
    (HERE / "stack_pairs.json").write_text(json.dumps(results, indent=2) + "\n")
    Image.fromarray(np.vstack(panels)).save(HERE.parent / "docs" / "images" / "stack_pairs.png")


def stretched(image):
    low, high = np.percentile(image, [0.5, 99.8])
    return (255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
