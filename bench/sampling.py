"""
Compare sampling with the procedure of the HazeMatching reference, with the same weights and in the same run.

    python bench/sampling.py

The reference procedure is implemented below. Each tile of 128 × 128 pixels has its own noise (with the checkpoint's
spectrum; the reference uses white noise), is sampled with 19 Euler steps in float32, and keeps its inner 64 × 64
pixels. The estimate is the mean of 50 such samples. The procedure runs on a few tiles; its time for a field is
extrapolated from their number. It is timed with the network of the reference as well, which does not pack pixels. Our
sampling runs as in `haze-pipeline dehaze`, with the number format that is fastest on this machine. Where time is
measured, it makes no copies for dim regions, which the reference does not have. Fields are simulated with a seed not
used for training. Writes `bench/sampling.json`.
"""

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path


import haze_pipeline.cli  # sets what the command line sets, before torch is imported  # noqa: F401  # isort: skip
import numpy as np
import torch
from checkpoint import weights_hash

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.evaluation.metrics import range_invariant_psnr
from haze_pipeline.models.unet_haze_matching import build_unet
from haze_pipeline.presets import PRESETS, Preset, choose_members
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sampling.pixel_packing import predict_packed
from haze_pipeline.sampling.tiled_sampler import DEFAULT_TILE_OVERLAP, DEFAULT_TILE_SIZE
from haze_pipeline.sampling.tiling import tile_intervals
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair
from haze_pipeline.utils.devices import fastest_dtype, map_on_cores


HERE = Path(__file__).parent
SEED, FIRST = 3, 1000  # held out: 1 trained, 2 validated; not the images of the other scripts
SIDE, TILE, INNER = 1024, 128, 64
CONVERGED_STEPS = 60  # of the midpoint rule


def solver(pipe, name):
    """Give the pipeline the solver `name`."""
    pipe.scheduler = FlowMatchODEScheduler.from_config(pipe.scheduler.config, solver=name)


def default_tile(pipe):
    """Side of the tiles of fields that are divided by default, pixels."""
    factor = pipe.unet_scale_factor
    return DEFAULT_TILE_SIZE * pipe.config.pixel_packing // factor * factor


def normalised(pipe, hazy):
    """The hazy image in network units, and the map back of results."""
    planes = pipe.image_processor.preprocess(hazy)
    statistics = pipe.image_processor.compute_normalization(planes)
    values = ((planes - statistics.input_mean) / statistics.input_std)[0, 0]
    return values, float(statistics.target_mean), float(statistics.target_std)


def tile_noise(pipe, number, generator):
    """Noises `[T, 1, 128, 128]` of tiles, of the kind that the network knows."""
    corner_frequency = pipe.config.noise_corner_frequency
    return torch.stack([draw_noise((TILE, TILE), corner_frequency, generator) for _ in range(number)])


@torch.no_grad()
def reference_tiles(unet, hazy, corners, noise, times):
    """Samples `[T, 1, 128, 128]` of the tiles at `corners` by Euler steps along `times`, one tile a network call."""
    samples, packing = [], math.isqrt(unet.config.in_channels // 2)
    for (y, x), state in zip(corners, noise, strict=True):
        condition = hazy[None, None, y : y + TILE, x : x + TILE]
        for now, following in itertools.pairwise(times):
            states = torch.cat([state[None], condition], dim=1)
            velocity = predict_packed(lambda *inputs: unet(*inputs).sample, states, now, packing)
            state = state + (following - now) * velocity[0]
        samples.append(state)
    return torch.stack(samples)


def block_of_corners(side, origin):
    """Corners of the reference tiles whose inner parts fill a square of `side` pixels at (origin, origin)."""
    starts = range(origin - (TILE - INNER) // 2, origin - (TILE - INNER) // 2 + side, INNER)
    return [(y, x) for y in starts for x in starts]


def join_inner(samples, side):
    """The square `[side, side]` that the inner parts of the tiles of `block_of_corners` fill."""
    margin, number = (TILE - INNER) // 2, side // INNER
    inner = samples[:, 0, margin:-margin, margin:-margin].reshape(number, number, INNER, INNER)
    return inner.transpose(1, 2).reshape(side, side)


def compare_cost(unet, pipe, pairs):
    """Seconds per megapixel and network calls of the reference and of every preset on one field."""
    hazy, times = pairs[0][0], torch.linspace(0, 1, 20)
    values, _, _ = normalised(pipe, hazy)
    corners = block_of_corners(2 * INNER, 256)
    noise = tile_noise(pipe, len(corners), torch.Generator().manual_seed(0))

    def ours(name, members):
        preset = PRESETS[name]
        solver(pipe, preset["solver"])
        pipe(
            hazy,
            num_inference_steps=preset["num_inference_steps"],
            ensemble_size=members,
            generator=torch.Generator().manual_seed(0),
            restore_dim=False,
        )

    own = build_unet().eval()

    # What is timed, and how much of the whole that is: the reference's tiles stand for all of the field, and one
    # sample of the preset `quality` for all of its members.
    measurements = {
        "reference, one sample": (
            lambda: reference_tiles(unet, values, corners, noise, times),
            (SIDE // INNER) ** 2 / len(corners),
        ),
        "reference with its own network, one sample": (
            lambda: reference_tiles(own, values, corners, noise, times),
            (SIDE // INNER) ** 2 / len(corners),
        ),
        "balanced, one sample": (lambda: ours("balanced", 1), 1),
        "fast": (lambda: ours("fast", choose_members(pipe, Preset.fast)), 1),
        "balanced": (lambda: ours("balanced", PRESETS["balanced"]["ensemble_size"]), 1),
        "quality": (lambda: ours("quality", 1), PRESETS["quality"]["ensemble_size"]),
    }
    seconds = {name: [] for name in measurements}
    for repeat in range(5):  # by turns, since a machine is not always as fast
        for name, (measure, factor) in measurements.items():
            if repeat > 0 and name in ("balanced", "quality"):
                continue  # long enough to be timed once
            started = time.perf_counter()
            measure()
            seconds[name].append(factor * (time.perf_counter() - started))
    best = {name: min(each) for name, each in seconds.items()}
    calls = {name: PRESETS[name]["num_inference_steps"] * choose_members(pipe, name) for name in PRESETS}
    rows = {
        "reference, one sample": {"calls": 19, "seconds": best["reference, one sample"]},
        "reference with its own network, one sample": {
            "calls": 19,
            "seconds": best["reference with its own network, one sample"],
        },
        "balanced, one sample": {
            "calls": PRESETS["balanced"]["num_inference_steps"],
            "seconds": best["balanced, one sample"],
        },
        "reference, mean of 50 samples": {"calls": 950, "seconds": 50 * best["reference, one sample"]},
        "reference with its own network, mean of 50 samples": {
            "calls": 950,
            "seconds": 50 * best["reference with its own network, one sample"],
        },
        **{str(name): {"calls": calls[name], "seconds": best[name]} for name in ("fast", "balanced", "quality")},
    }
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "rows": rows,
        "mean_ratio": rows["reference, mean of 50 samples"]["seconds"] / rows["fast"]["seconds"],
        "sample_ratio": rows["reference, one sample"]["seconds"] / rows["balanced, one sample"]["seconds"],
    }


def compare_seams(unet, pipe, pairs):
    """
    Mean absolute jump across tile borders over that elsewhere, of samples; and that of the same field shown to the
    network as a whole at the same lines, which tells what they would show without tiles.
    """

    def ratio(sample, borders):
        ratios = []
        for image in (sample, sample.T):
            jumps = np.abs(np.diff(image, axis=0)).mean(axis=1)
            at = np.zeros(len(jumps), bool)
            at[[border - 1 for border in borders]] = True
            ratios.append(jumps[at].mean() / jumps[~at].mean())
        return float(np.mean(ratios))

    solver(pipe, "bespoke")
    steps = PRESETS["balanced"]["num_inference_steps"]
    intervals = tile_intervals(SIDE, default_tile(pipe), DEFAULT_TILE_OVERLAP, pipe.unet_scale_factor)
    ours = sorted({side for interval in intervals for side in interval} - {0, SIDE})
    ratios = {"reference": [], "ours": [], "untiled": []}
    for hazy, _ in pairs:
        for name, tile_size in (("ours", default_tile(pipe)), ("untiled", SIDE)):
            generator = torch.Generator().manual_seed(0)
            sample = pipe(hazy, num_inference_steps=steps, tile_size=tile_size, generator=generator).prediction
            ratios[name].append(ratio(sample, ours))
        values, _, _ = normalised(pipe, hazy)
        corners = block_of_corners(4 * INNER, 256)
        noise = tile_noise(pipe, len(corners), generator)
        tiles = reference_tiles(unet, values, corners, noise, torch.linspace(0, 1, 20))
        ratios["reference"].append(ratio(join_inner(tiles, 4 * INNER).numpy(), [INNER, 2 * INNER, 3 * INNER]))
    return {name: {"mean": float(np.mean(each)), "largest": max(each)} for name, each in ratios.items()}


def compare_tiling(pipe, pairs):
    """Range-invariant PSNR of posterior means with the default tiles and with the whole field shown at once."""
    solver(pipe, "euler")
    scores = {"input": [], "tiled": [], "untiled": []}
    for hazy, clear in pairs:
        scores["input"].append(range_invariant_psnr(clear, hazy))
        for name, tile_size in (("tiled", default_tile(pipe)), ("untiled", SIDE)):
            out = pipe(
                hazy,
                num_inference_steps=1,
                ensemble_size=choose_members(pipe, Preset.fast),
                tile_size=tile_size,
                generator=torch.Generator().manual_seed(0),
            )
            scores[name].append(range_invariant_psnr(clear, out.prediction))
    losses = np.subtract(scores["untiled"], scores["tiled"])
    means = {name: float(np.mean(each)) for name, each in scores.items()}
    return {"num_fields": len(pairs), "psnr": means, "largest_loss": float(losses.max())}


def compare_distance(unet, pipe, num_fields=8, side=320):
    """
    RMS distance of samples to the converged ones of the same noise, in network units, on the same pixels of fields of
    `side` × `side` pixels.
    """
    fields = []
    fine = torch.linspace(0, 1, 2 * CONVERGED_STEPS + 1)
    scored = slice((side - 2 * INNER) // 2, (side + 2 * INNER) // 2)
    exact = HazeMatchingPipeline.from_default()
    exact.set_progress_bar_config(disable=True)
    for index in range(num_fields):
        hazy = simulate_pair(side, pair_generator(SEED, 2 * FIRST + index)).hazy.numpy()
        values, _, deviation = normalised(pipe, hazy)
        corners = block_of_corners(2 * INNER, scored.start)
        noise = tile_noise(pipe, len(corners), torch.Generator().manual_seed(0))
        sample = reference_tiles(unet, values, corners, noise, torch.linspace(0, 1, 20))
        # By Euler steps too fine to matter: as many network calls as the midpoint rule below.
        converged = reference_tiles(unet, values, corners, noise, fine)

        def ours(pipeline, name, steps, hazy=hazy, deviation=deviation):
            solver(pipeline, name)
            out = pipeline(hazy, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
            return out.prediction[scored, scored] / deviation

        error = ours(pipe, "bespoke", PRESETS["balanced"]["num_inference_steps"])
        error = error - ours(exact, "midpoint", CONVERGED_STEPS)
        fields.append(
            {
                "reference": float(join_inner(sample - converged, 2 * INNER).square().mean().sqrt()),
                "ours": float(np.sqrt((error**2).mean())),
            }
        )
        print(fields[-1], flush=True)
    means = {name: float(np.sqrt(np.mean([field[name] ** 2 for field in fields]))) for name in fields[0]}
    return {"num_fields": num_fields, **means, "fields": fields}


def compare_means(unet, pipe, pairs, parts_per_side=2):
    """
    Range-invariant PSNR of the reference's mean of 50 samples and of `fast` on the same parts of every field: what the
    inner pixels of 2 × 2 reference tiles, spread evenly over the field, show. The parts of a field are scored
    together.
    """
    solver(pipe, "euler")
    margin = (TILE - INNER) // 2
    starts = [(2 * i + 1) * SIDE // (2 * parts_per_side) - INNER // 2 for i in range(parts_per_side)]

    def parts(image):
        return np.block([[image[y : y + INNER, x : x + INNER] for x in starts] for y in starts])

    fields = []
    for hazy, clear in pairs:
        values, mean, deviation = normalised(pipe, hazy)
        corners = [(y - margin, x - margin) for y in starts for x in starts]
        noise = tile_noise(pipe, 50 * len(corners), torch.Generator().manual_seed(0)).split(len(corners))

        def sample(member, values=values, corners=corners, noise=noise):
            return reference_tiles(unet, values, corners, noise[member], torch.linspace(0, 1, 20))

        total = sum(map_on_cores(sample, range(50), torch.get_num_threads()))
        reference = join_inner(total / 50, parts_per_side * INNER) * deviation + mean
        fast = pipe(
            hazy,
            num_inference_steps=1,
            ensemble_size=choose_members(pipe, Preset.fast),
            generator=torch.Generator().manual_seed(0),
        )
        estimates = {"input": parts(hazy), "reference": reference.numpy(), "fast": parts(fast.prediction)}
        fields.append({name: range_invariant_psnr(parts(clear), each) for name, each in estimates.items()})
        print(fields[-1], flush=True)
    return {
        "num_fields": len(fields),
        "parts_per_field": len(corners),
        **{name: float(np.mean([field[name] for field in fields])) for name in fields[0]},
        "fields": fields,
    }


def measure_memory():
    """Peak resident memory of `fast`, in GB, each in a process of its own."""
    peaks = {}
    for side, members in ((SIDE, 4), (SIDE, 32), (4096, 2)):
        command = [sys.executable, __file__, "--peak_memory_of", str(side), str(members)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[f"{side} × {side}, {members} members"] = float(output.split()[-1])
    return peaks


def print_peak_memory(side, members):
    """Dehaze noise of `side` × `side` pixels and print the peak of the resident memory in GB."""
    pipe = HazeMatchingPipeline.from_default(dtype=fastest_dtype(torch.device("cpu")))
    pipe.set_progress_bar_config(disable=True)
    hazy = np.random.default_rng(0).poisson(100, (side, side)).astype(np.uint16)
    pipe(hazy, num_inference_steps=1, ensemble_size=members)
    # Not getrusage, whose maximum a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9)


def main():
    parser = argparse.ArgumentParser(description="Measure sampling against the procedure of the reference.")
    parser.add_argument(
        "--num_fields", type=int, default=12, help="Fields of 1024 × 1024 pixels; means are compared on four."
    )
    parser.add_argument(
        "--measurements", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="Those to make anew."
    )
    parser.add_argument("--peak_memory_of", type=int, nargs=2, metavar=("SIDE", "MEMBERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory_of:
        return print_peak_memory(*args.peak_memory_of)

    unet = HazeMatchingPipeline.from_default().unet  # of the reference, in float32
    pipe = HazeMatchingPipeline.from_default(dtype=fastest_dtype(unet.device))
    pipe.set_progress_bar_config(disable=True)
    pairs = [simulate_pair(SIDE, pair_generator(SEED, FIRST + index)) for index in range(args.num_fields)]
    pairs = [(pair.hazy.numpy(), pair.clear.numpy()) for pair in pairs]

    path, checkpoint = HERE / "sampling.json", weights_hash(unet.state_dict())
    for name in args.measurements:
        result = MEASUREMENTS[name](unet, pipe, pairs)
        print(name, json.dumps(result, indent=1), flush=True)
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = result
        # Of a file in which other weights were measured as well, no checkpoint can be told.
        known = len(args.measurements) == len(MEASUREMENTS) or results.get("checkpoint") == checkpoint
        results["checkpoint"] = checkpoint if known else None
        path.write_text(json.dumps(results, indent=2) + "\n")


MEASUREMENTS = {
    "cost": lambda unet, pipe, pairs: compare_cost(unet, pipe, pairs),
    "memory": lambda unet, pipe, pairs: measure_memory(),
    "tiling": lambda unet, pipe, pairs: compare_tiling(pipe, pairs),
    "seams": lambda unet, pipe, pairs: compare_seams(unet, pipe, pairs[:2]),
    "distance": lambda unet, pipe, pairs: compare_distance(unet, pipe),
    "means": lambda unet, pipe, pairs: compare_means(unet, pipe, pairs[:4]),
}


if __name__ == "__main__":
    main()
