"""
Measure the default checkpoint on simulated pairs with a seed not used for training, for a table of the README.

    python bench/simulated_pairs.py

The score is the range-invariant PSNR of the input, the posterior mean (preset `fast`) and classical methods. Each
classical method has the setting that scores best **on each image**. Writes `bench/simulated_pairs.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash

from haze_pipeline.data.pairs import Pair
from haze_pipeline.evaluation.methods import classical_methods
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


HERE = Path(__file__).parent
SEED = 3  # 1 trained, 2 validated
FIRST = 10_000  # the first images of this seed had a say in the choice of the checkpoint
OURS = "haze-pipeline `fast`"


def main():
    parser = argparse.ArgumentParser(description="Measure the default checkpoint on held-out simulated pairs.")
    parser.add_argument("--num_images", type=int, default=60)
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)

    classical = classical_methods()
    scores, kinds = {}, []
    for index in range(FIRST, FIRST + args.num_images):
        simulated = simulate_pair(192, pair_generator(SEED, index))
        name = f"simulated pair {index} of seed {SEED}"
        pair = Pair(simulated.hazy.numpy(), simulated.clear.numpy(), name, name)
        images = {}
        for method in classical.values():
            images.update(method.predict(pair))
        generator = torch.Generator().manual_seed(0)
        images[OURS] = pipe(
            pair.hazy, num_inference_steps=1, ensemble_size=choose_members(pipe, Preset.fast), generator=generator
        ).prediction
        for method, image in images.items():
            scores.setdefault(method, []).append(range_invariant_psnr(pair.clear, image))
        kinds.append(simulated.parameters["specimens"])

    values = {name: np.array(each) for name, each in scores.items()}
    gain = values[OURS] - values["input"]
    thirds = np.array_split(np.argsort(values["input"]), 3)  # from the worst inputs to the best

    def means(chosen):
        return {"num_images": len(chosen), **{name: float(each[chosen].mean()) for name, each in values.items()}}

    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "seed": SEED,
        "first": FIRST,
        "num_images": args.num_images,
        "mean": {name: float(each.mean()) for name, each in values.items()},
        "standard_deviation": {name: float(each.std(ddof=1)) for name, each in values.items()},
        "smallest_gain": float(gain.min()),
        "images_below_input": int((gain < 0).sum()),
        "mean_by_specimen": {
            kind: means([index for index, drawn in enumerate(kinds) if drawn == [kind]])
            for kind in sorted({kind for drawn in kinds for kind in drawn})
        },
        "thirds_by_input": [{**means(third), "below_input": int((gain[third] < 0).sum())} for third in thirds],
    }
    print(json.dumps(results, indent=1))
    (HERE / "simulated_pairs.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
