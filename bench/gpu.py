"""
Measure a CUDA GPU. Ends within nine minutes and needs no internet.

    python bench/gpu.py

It compares with the CPU, and measures the speed and memory of every preset by size of the image, the network's
fraction of the arithmetic that matrix products reach, channels-last memory, CUDA graphs, `torch.compile` with the
number of calls after which compiling pays, and two processes on one GPU. The tests that need a GPU come last. Every
measurement is stored in `bench/gpu.json` as soon as it is made.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash
from torch.utils.flop_counter import FlopCounterMode

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


HERE = Path(__file__).parent
SEED, FIRST = 3, 1000  # held out, as in sampling.py
SECONDS = 8.5 * 60
IMAGES = {"512 × 512": (512, 512), "2048 × 2048": (2048, 2048), "64 planes of 512 × 512": (64, 512, 512)}


def load_pipe(dtype=torch.bfloat16, device="cuda"):
    pipe = HazeMatchingPipeline.from_default(dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seconds_of(measure, repeats=5):
    """Seconds of the fastest of several repeats, until the GPU has finished."""
    seconds = []
    for repeat in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        measure()
        torch.cuda.synchronize()
        if repeat > 0:  # the first warms up
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def noise(*shape):
    return np.random.default_rng(0).poisson(100, shape).astype(np.float32)


def run_tests():
    """The tests that need a CUDA GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu", str(HERE.parent / "tests")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    return {"exit_code": result.returncode, "summary": result.stdout.strip().splitlines()[-1:]}


def compare_with_cpu():
    """Largest difference between GPU and CPU in float32, in standard deviations of the result; tiles included."""
    largest = {}
    for side in (512, 1536):
        hazy = np.asarray(simulate_pair(side, pair_generator(SEED, FIRST)).hazy)
        for preset in (Preset.fast, Preset.balanced):
            results = []
            for device in ("cpu", "cuda"):
                pipe, steps, _ = with_preset(load_pipe(torch.float32, device), preset)
                generator = torch.Generator().manual_seed(0)
                results.append(pipe(hazy, num_inference_steps=steps, generator=generator).prediction)
            difference = np.abs(results[1] - results[0]).max() / results[0].std()
            largest[f"{preset}, {side} px"] = float(difference)
    return largest


def measure_presets():
    """Seconds and peak memory of every preset by size of the image."""
    rows = {}
    for preset in Preset:
        pipe, steps, members = with_preset(load_pipe(), preset)
        for name, shape in IMAGES.items():
            # Time grows linearly with the members: few of them stand for all of a long ensemble.
            measured = min(members, 8 if len(shape) == 2 else 1)
            image = noise(*shape)
            torch.cuda.reset_peak_memory_stats()
            seconds = seconds_of(
                lambda pipe=pipe, image=image, steps=steps, measured=measured: pipe(
                    image, num_inference_steps=steps, ensemble_size=measured, restore_dim=False
                ),
                repeats=2 if preset is not Preset.quality else 1,
            )
            planes = int(np.prod(shape[:-2]))
            rows[f"{preset}, {name}"] = {
                "samples_per_second": planes * measured / seconds,
                "seconds": seconds * members / measured,
                "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
            }
    return rows


@torch.no_grad()
def measure_network():
    """The forward pass by memory format and way of launching, and the fraction of the matrix products' arithmetic."""
    side = 8192
    matrix = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    peak = 2 * side**3 / seconds_of(lambda: matrix @ matrix)
    unet = load_pipe().unet
    packing = round((unet.config.in_channels / 2) ** 0.5)
    fields = torch.randn(4, unet.config.in_channels, 1024 // packing, 1024 // packing, device="cuda")
    t = torch.zeros(1, device="cuda")
    plain = fields.to(unet.dtype)
    last = plain.contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as flops:
        unet(plain, t)
    seconds = {"contiguous": seconds_of(lambda: unet(plain, t)), "channels last": seconds_of(lambda: unet(last, t))}

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        unet(last, t)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        unet(last, t)
    seconds["channels last, CUDA graph"] = seconds_of(graph.replay)

    started = time.perf_counter()
    compiled = torch.compile(unet)
    try:
        compiled(last, t)
    except Exception as error:  # compilers differ between machines
        return {"seconds": seconds, "compile_error": str(error).splitlines()[0]}
    torch.cuda.synchronize()
    compiling = time.perf_counter() - started
    seconds["channels last, torch.compile"] = seconds_of(lambda: compiled(last, t))
    saved = seconds["channels last"] - seconds["channels last, torch.compile"]
    return {
        "megapixels": 4 * 1024**2 / 2**20,
        "seconds": seconds,
        "flops_per_second_of_matrix_products": peak,
        "fraction_of_matrix_products": flops.get_total_flops() / min(seconds.values()) / peak,
        "seconds_to_compile": compiling,
        "calls_until_compiling_pays": compiling / saved if saved > 0 else None,
    }


def measure_two_processes():
    """Samples per second of one and of two processes on this GPU."""
    rates = {}
    for number in (1, 2):
        command = [sys.executable, __file__, "--rate"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
        rates[number] = sum(float(process.communicate()[0].split()[-1]) for process in processes)
    return rates


def print_rate(seconds=10.0):
    """Print the samples per second of `balanced` on fields of 512 px."""
    pipe, steps, members = with_preset(load_pipe(), Preset.balanced)
    image = noise(512, 512)
    pipe(image, num_inference_steps=steps, ensemble_size=members, restore_dim=False)
    started, samples = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        pipe(image, num_inference_steps=steps, ensemble_size=members, restore_dim=False)
        samples += members
    print(samples / (time.perf_counter() - started))


MEASUREMENTS = {
    "equality with the CPU": compare_with_cpu,
    "presets": measure_presets,
    "network": measure_network,
    "two processes": measure_two_processes,
    "tests": run_tests,
}


def main():
    parser = argparse.ArgumentParser(description="Measure a CUDA GPU.")
    parser.add_argument("--rate", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU that torch can use.")
    if args.rate:
        return print_rate()
    started = time.monotonic()
    results = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    results["checkpoint"] = weights_hash(HazeMatchingPipeline.from_default().unet.state_dict())
    for name, measure in MEASUREMENTS.items():
        if time.monotonic() - started > SECONDS:
            print(f"{name} left out: the time is over", flush=True)
            continue
        results[name] = measure()
        print(name, json.dumps(results[name], indent=1, ensure_ascii=False), flush=True)
        (HERE / "gpu.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
