"""
Fit a solver with few steps to the network of a checkpoint (Shaul et al. 2024, arXiv 2403.01329).

    python training/fit_bespoke_solver.py --model runs/first --train_data_dir runs/pairs

Each step of the solver adds a weighted sum of all slopes so far. For given times, the weights of a step are fitted by
least squares to the converged trajectories at the end of the step. The times are chosen to minimise the distance of
the last state from the converged sample. The result is written to the scheduler of the checkpoint, beside solvers with
other numbers of steps.
"""

import argparse
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from haze_pipeline import FlowMatchODEScheduler
from haze_pipeline.data.pairs import load_pairs
from haze_pipeline.loading import load_pipeline
from haze_pipeline.models.unet_haze_matching import check_network
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.console import errors_in_one_line
from haze_pipeline.utils.devices import map_on_cores


logger = logging.getLogger("fit_bespoke_solver")

CONVERGED_STEPS = 120  # midpoint steps of a converged trajectory


def parse_args():
    parser = argparse.ArgumentParser(description="Fit a solver with few steps to the network of a checkpoint.")
    parser.add_argument("--model", type=Path, required=True, help="Pipeline folder; its scheduler is rewritten.")
    parser.add_argument("--train_data_dir", type=Path, required=True, help="Folder of pairs; never use test data.")
    parser.add_argument("--num_inference_steps", type=int, default=5, help="Steps of the solver, at least 2.")
    parser.add_argument("--num_images", type=int, default=12, help="Number of images for the fit.")
    parser.add_argument("--resolution", type=int, default=192, help="Side of the patches (one per image) in pixels.")
    parser.add_argument("--max_evaluations", type=int, default=40, help="Number of time grids to try.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the noise.")
    args = parser.parse_args()
    if args.num_inference_steps < 2:
        parser.error(f"--num_inference_steps must be 2 or more, got {args.num_inference_steps}.")
    return args


def main():
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipe = load_pipeline(str(args.model))
    if not args.model.is_dir():
        raise ValueError(f"--model {args.model} is on the Hub: download it first, since its scheduler is rewritten.")
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    # Data: patches, one noise for each, and the converged trajectories that start from this noise.
    packing = pipe.config.pixel_packing
    check_network(pipe.unet, args.resolution, packing, pipe.config.guided)
    images = []
    for pair in itertools.islice(load_pairs(args.train_data_dir, "train"), args.num_images):
        if min(pair.hazy.shape) < args.resolution:
            raise ValueError(
                f"{pair.source}: an image of shape {pair.hazy.shape} is smaller than --resolution {args.resolution}: "
                "pass a smaller one."
            )
        images.append(pair.hazy[: args.resolution, : args.resolution])
    planes = pipe.image_processor.preprocess(np.stack(images))
    statistics = pipe.image_processor.compute_normalization(planes)
    hazy = ((planes - statistics.input_mean) / statistics.input_std).to(pipe.device)  # [N,1,h,w]
    generator = torch.Generator().manual_seed(args.seed)
    corner_frequency = pipe.config.noise_corner_frequency
    noise = torch.stack([draw_noise(plane.shape[-2:], corner_frequency, generator) for plane in hazy]).to(pipe.device)

    @torch.no_grad()
    def slope(state, sigma):
        """dx/dσ = −v, patch by patch."""
        t = torch.tensor(1 - sigma, dtype=torch.float32, device=pipe.device)
        workers = torch.get_num_threads() if pipe.device.type == "cpu" else 1

        def predict(inputs):
            return predict_packed(lambda *each: pipe.unet(*each).sample, inputs, t, packing)

        inputs = pipe.interpolant.network_input(state, hazy)
        prediction = torch.cat(list(map_on_cores(predict, inputs.split(1), workers)))
        return -pipe.interpolant.velocity(prediction, state, t)

    step = -1 / CONVERGED_STEPS
    start = pipe.interpolant.start(noise, hazy)
    trajectory = [start]
    for sigma in np.linspace(1, 0, CONVERGED_STEPS + 1)[:-1]:
        middle = trajectory[-1] + step / 2 * slope(trajectory[-1], sigma)
        trajectory.append(trajectory[-1] + step * slope(middle, sigma + step / 2))

    def converged(sigma):
        position = (1 - sigma) * CONVERGED_STEPS
        index = min(int(position), CONVERGED_STEPS - 1)
        return torch.lerp(trajectory[index], trajectory[index + 1], position - index)

    def fit(sigmas):
        """
        Fit the weights for the grid `sigmas`, which ends with 0. Also return the RMS distance of the samples from the
        converged ones.
        """
        state, slopes, weights = start, [], []
        for sigma, following in itertools.pairwise(sigmas):
            slopes.append(slope(state, sigma))
            # The weights sum to the length of the step. The fit finds how earlier slopes correct the last one.
            length = following - sigma
            residual = (converged(following) - state - length * slopes[-1]).flatten().double()
            corrections = [(each - slopes[-1]).flatten().double() for each in slopes[:-1]]
            row = [float(length)]
            if corrections:
                matrix = torch.stack(corrections)
                solution = torch.linalg.lstsq(matrix @ matrix.T, matrix @ residual).solution
                row = [*solution.tolist(), float(length - solution.sum())]
            weights.append(row)
            state = state + sum(weight * each for weight, each in zip(row, slopes, strict=True))
        error = float((state - trajectory[-1]).square().mean().sqrt())
        logger.info("sigmas %s, RMS distance %.4f", np.round(sigmas, 3).tolist(), error)
        return weights, error

    # The parameters are the logarithms of the step lengths, relative to the last step.
    def grid(parameters):
        lengths = np.exp(np.append(parameters, 0.0))
        return np.append(1 - np.cumsum(np.insert(lengths / lengths.sum(), 0, 0.0))[:-1], 0.0)

    # Start with short steps near the noise and a short last step.
    lengths = np.linspace(0, 1.2, args.num_inference_steps - 1)
    simplex = np.vstack([lengths, lengths + 0.3 * np.eye(len(lengths))])
    best = minimize(
        lambda parameters: fit(grid(parameters))[1],
        lengths,
        method="Nelder-Mead",
        options={"maxfev": args.max_evaluations, "initial_simplex": simplex},
    )
    sigmas = grid(best.x)
    weights, error = fit(sigmas)

    bespoke = dict(pipe.scheduler.config.get("bespoke") or {})
    bespoke[str(args.num_inference_steps)] = {"sigmas": sigmas[:-1].tolist(), "weights": weights}
    scheduler = FlowMatchODEScheduler.from_config(pipe.scheduler.config, bespoke=bespoke)
    with replace_when_complete(args.model / "scheduler" / scheduler.config_name) as temporary:
        scheduler.to_json_file(temporary)
    print(json.dumps({"sigmas": sigmas.tolist(), "weights": weights, "rms_distance": error}))


if __name__ == "__main__":
    with errors_in_one_line():
        main()
