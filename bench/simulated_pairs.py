"""
Measure the default checkpoint on simulated pairs of a seed that no training used: a table of the README.

    python bench/simulated_pairs.py

Range-invariant PSNR of input, posterior mean (the preset `fast`) and the rolling ball of the best radius for each very
image. Writes `bench/simulated_pairs.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import rolling_ball

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.metrics import range_invariant_psnr
from haze_pipeline.simulation import pair_generator, simulate_pair


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 validated
RADII = (3, 5, 8, 12, 20, 30, 50)


def main():
    parser = argparse.ArgumentParser(description="Measure the default checkpoint on held-out simulated pairs.")
    parser.add_argument("--num_images", type=int, default=60)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = HazeMatchingPipeline.from_pretrained(args.model) if args.model else HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)

    scores = {"input": [], "rolling_ball": [], "posterior_mean": []}
    kinds = []
    for index in range(args.num_images):
        pair = simulate_pair(192, pair_generator(SEED, index))
        hazy, clear = pair.hazy.numpy(), pair.clear.numpy()
        generator = torch.Generator().manual_seed(0)
        mean = pipe(hazy, num_inference_steps=1, ensemble_size=4, generator=generator).prediction
        balls = [hazy - rolling_ball(hazy, radius=radius) for radius in RADII]
        scores["input"].append(range_invariant_psnr(clear, hazy))
        scores["rolling_ball"].append(max(range_invariant_psnr(clear, ball) for ball in balls))
        scores["posterior_mean"].append(range_invariant_psnr(clear, mean))
        kinds.append(pair.parameters["specimens"])

    values = {name: np.array(each) for name, each in scores.items()}
    gain = values["posterior_mean"] - values["input"]
    results = {
        "seed": SEED,
        "num_images": args.num_images,
        "mean": {name: float(each.mean()) for name, each in values.items()},
        "standard_deviation": {name: float(each.std(ddof=1)) for name, each in values.items()},
        "smallest_gain": float(gain.min()),
        "images_below_input": int((gain < 0).sum()),
        "mean_by_specimen": {
            kind: {
                "num_images": sum(drawn == [kind] for drawn in kinds),
                **{name: float(each[[drawn == [kind] for drawn in kinds]].mean()) for name, each in values.items()},
            }
            for kind in sorted({kind for drawn in kinds for kind in drawn})
        },
    }
    print(json.dumps(results, indent=1))
    (HERE / "simulated_pairs.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
