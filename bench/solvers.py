"""
Compare solvers and time grids at equal numbers of network calls.

    python bench/solvers.py

The score is the root-mean-square distance of posterior samples from the converged solution (120 midpoint steps) **for
the same noise**, in network units, on held-out simulated images. Writes `bench/solvers.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


HERE = Path(__file__).parent
SEED = 3  # held out, as in simulated_pairs.py
SHIFTS = (0.7, 1.0, 1.5, 2.0, 3.0)


def main():
    parser = argparse.ArgumentParser(description="Compare solvers and time grids at equal numbers of network calls.")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    args = parser.parse_args()
    pipe = HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)
    pairs = [simulate_pair(args.size, pair_generator(SEED, index)) for index in range(args.num_images)]
    hazy = np.stack([pair.hazy.numpy() for pair in pairs])
    deviation = pipe.image_processor.compute_normalization(pipe.image_processor.preprocess(hazy)).target_std[:, 0]

    def sample(num_inference_steps, solver, shift=1.0):
        pipe.scheduler = FlowMatchODEScheduler.from_config(pipe.scheduler.config, solver=solver, shift=shift)
        generators = [torch.Generator().manual_seed(index) for index in range(len(hazy))]
        out = pipe(hazy, num_inference_steps=num_inference_steps, generator=generators)
        return out.prediction / deviation.numpy()

    converged = sample(120, "midpoint")
    rows = []
    settings = [("bespoke", 6, 1.0), ("euler", 19, 1.0), ("euler", 8, 1.0), ("heun", 4, 1.0), ("rk4", 2, 1.0)]
    settings += [
        (solver, steps, shift) for solver, steps in (("ab2", 8), ("midpoint", 4), ("ab2", 6)) for shift in SHIFTS
    ]
    for solver, steps, shift in settings:
        error = float(np.sqrt(((sample(steps, solver, shift) - converged) ** 2).mean()))
        calls = steps * pipe.scheduler.order
        rows.append({"solver": solver, "steps": steps, "calls": calls, "shift": shift, "rms_error": error})
        print(rows[-1], flush=True)
    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "num_images": args.num_images,
        "size": args.size,
        "spread": float(converged.std()),
        "rows": rows,
    }
    (HERE / "solvers.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
