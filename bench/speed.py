"""
Measure the speed of the command line against its floor, classical methods, busy machines, and files.

    python bench/speed.py [floor peers busy stack engines]

*Floor*: work of the network, the time of its bare forward pass, and the stages above it. *Peers*: other methods on the
same field. *Busy*: `fast` beside other processes that compute. *Stack*: a stack in a file against the computation
alone. *Engines*: OpenVINO, if it is installed. Fields are simulated with a seed not used for training. Methods take
turns, and the fastest of several repeats counts. Writes `bench/speed.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path


import haze_pipeline.cli  # sets what the command line sets, before torch is imported  # noqa: F401  # isort: skip
import numpy as np
import torch
from checkpoint import weights_hash
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.batch.file_dehazing import FileDehazer
from haze_pipeline.batch.tasks import Outputs
from haze_pipeline.evaluation import baselines
from haze_pipeline.io.micrograph import Micrograph
from haze_pipeline.io.ome_tiff_writer import OmeTiffWriter
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.sampling.pixel_packing import predict_packed, remove_lattice
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair
from haze_pipeline.utils.devices import fastest_dtype, map_on_cores


HERE = Path(__file__).parent
SEED, FIRST = 3, 1000  # held out, as in sampling.py
SIDE = 1024
PLANES = 200
MEGAPIXEL = 2**20


class Bytes(TorchDispatchMode):
    """Counts the bytes that all operators read and write, views apart."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, results)) if isinstance(each, torch.Tensor)]
            self.total += sum(each.numel() * each.itemsize for each in tensors)
        return results


def fastest(measurements, repeats):
    """Seconds of the fastest of several repeats of each measurement, which take turns."""
    seconds = {name: [] for name in measurements}
    for repeat in range(repeats + 1):
        for name, measure in measurements.items():
            started = time.perf_counter()
            measure()
            if repeat > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: min(each) for name, each in seconds.items()}


def name_of(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


def load_pipe():
    pipe = HazeMatchingPipeline.from_default(dtype=fastest_dtype(torch.device("cpu")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network_input(pipe, side=SIDE):
    """Packed states of one field, as the network receives them."""
    packing = pipe.config.pixel_packing
    states = torch.zeros(1, pipe.unet.config.in_channels, side // packing, side // packing)
    states.normal_(generator=torch.Generator().manual_seed(0))
    return states.to(pipe.unet.dtype).contiguous(memory_format=torch.channels_last)


def field(index=FIRST, side=SIDE):
    return np.asarray(simulate_pair(side, pair_generator(SEED, index)).hazy)


def fields_by_calls(pipe):
    """Twelve fields; those whose posterior mean needs the fewest network calls come first."""
    return sorted((field(index) for index in range(FIRST, FIRST + 12)), key=lambda image: calls_of(pipe, image))


def calls_of(pipe, image):
    """Number of fields that the network processes for a posterior mean: the plane and its copies for dim regions."""
    planes = pipe.image_processor.preprocess(image)
    return len(pipe.normalize(planes)[0])


@torch.no_grad()
def measure_floor():
    """Work of the network per pixel, and the time of a plane by stage, with one thread and with all."""
    pipe = load_pipe()
    states, t, hazy = network_input(pipe), torch.zeros(1), field()
    processor, rows = pipe.image_processor, {}
    with FlopCounterMode(display=False) as flops, Bytes() as transferred:
        pipe.unet(states, t)
    planes = processor.preprocess(hazy)
    both = torch.cat([planes, planes], dim=1)
    packing = pipe.config.pixel_packing

    def pack(packed, _):
        packed = packed.contiguous(memory_format=torch.channels_last).to(pipe.unet.dtype)
        return packed[:, : pipe.unet.config.out_channels]

    cores = torch.get_num_threads()
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        rows[name_of(threads)] = fastest(
            {
                "bare forward pass": lambda: pipe.unet(states, t),
                "whole call": lambda: pipe(hazy, num_inference_steps=1, restore_dim=False),
                "check the image": lambda: processor.preprocess(hazy),
                "hot pixels": lambda: processor.replace_hot_pixels(planes),
                "normalisation": lambda: pipe.normalize(planes.clone(), restore_dim=False),
                "search for dim regions": lambda: pipe.normalize(planes.clone()),
                "packing": lambda: predict_packed(pack, both, t, packing),
                "lattice": lambda: remove_lattice(planes),
            },
            8,
        )
        rows[name_of(threads)]["search for dim regions"] -= rows[name_of(threads)]["normalisation"]
    torch.set_num_threads(cores)
    return {
        "flops_per_pixel": flops.get_total_flops() / SIDE**2,
        "bytes_per_pixel": transferred.total / SIDE**2,
        "parameters": pipe.unet.num_parameters(),
        "side": SIDE,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "seconds": rows,
    }


def plain_unet(channels=(32, 64, 128, 256)):
    """A U-Net of plain 3 × 3 convolutions and ReLU like that of CARE (Weigert et al. 2018), of similar depth."""

    def block(into, out):
        layers = [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers)

    class PlainUNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(block(*pair) for pair in zip((1, *channels), channels, strict=False))
            ups = list(zip(channels[1:], channels, strict=False))[::-1]
            self.up = nn.ModuleList(block(low + high, high) for low, high in ups)
            self.last = nn.Conv2d(channels[0], 1, 1)

        def forward(self, image):
            skips, hidden = [], image
            for number, level in enumerate(self.down):
                hidden = level(hidden if number == 0 else nn.functional.max_pool2d(hidden, 2))
                skips.append(hidden)
            for level, skip in zip(self.up, skips[-2::-1], strict=True):
                hidden = level(torch.cat([nn.functional.interpolate(hidden, scale_factor=2), skip], dim=1))
            return self.last(hidden)

    return PlainUNet()


def measure_peers():
    """Seconds per megapixel of our presets and of other methods, with one thread and with all."""
    pipe = load_pipe()
    few, *_, many = fields_by_calls(pipe)
    care = plain_unet().to(pipe.unet.dtype, memory_format=torch.channels_last)
    image = torch.from_numpy(few)[None, None].to(pipe.unet.dtype)
    balanced, steps, members = with_preset(pipe, Preset.balanced)
    cores = torch.get_num_threads()
    rows = {}
    with torch.inference_mode():
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            seconds = fastest(
                {
                    "`fast`": lambda: pipe(few, num_inference_steps=1),
                    "`fast` with dim regions": lambda: pipe(many, num_inference_steps=1),
                    "Richardson–Lucy, 20 iterations": lambda: baselines.richardson_lucy(few),
                    "white top-hat": lambda: baselines.white_tophat(few),
                    "difference of Gaussians": lambda: baselines.difference_of_gaussians(few),
                    "Dark sectioning": lambda: baselines.dark_sectioning(few),
                    "forward pass of a plain U-Net as in CARE": lambda: care(image),
                },
                3,
            )
            slow = {
                "`balanced`": lambda: balanced(few, num_inference_steps=steps, ensemble_size=members),
                "rolling ball": lambda: baselines.rolling_ball(few),
            }
            for name, measure in slow.items():  # long enough to be timed once
                started = time.perf_counter()
                measure()
                seconds[name] = time.perf_counter() - started
            rows[name_of(threads)] = {name: each * MEGAPIXEL / SIDE**2 for name, each in seconds.items()}
    torch.set_num_threads(cores)
    return {
        "network_calls": {"`fast`": calls_of(pipe, few), "`fast` with dim regions": calls_of(pipe, many)},
        "seconds_per_megapixel": rows,
    }


def time_fast(repeats):
    """Print the median seconds of `fast` on one field. Runs in a process of its own."""
    pipe, hazy = load_pipe(), field()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        pipe(hazy, num_inference_steps=1, restore_dim=False)
        seconds.append(time.perf_counter() - started)
    print(float(np.median(seconds[1:])))


def measure_busy():
    """
    `fast` beside other single-threaded processes that compute. Its fair part of the cores is threads / (threads +
    others) of all of them, or the cores that are left if those are more; `ratio` compares the time with that part.
    """
    cores = torch.get_num_threads()
    rows = {}
    for others in (0, 1, 2, 4):
        with ExitStack() as stack:
            for _ in range(others):
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(busy.wait)
                stack.callback(busy.kill)
            command = [sys.executable, __file__, "--time_fast", "8"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        share = min(1.0, max((cores - others) / cores, 1 / (1 + others / cores)))
        rows[others] = {"seconds": float(output.split()[-1]), "fraction_of_cores": share}
    for row in rows.values():
        row["ratio"] = row["seconds"] * row["fraction_of_cores"] / rows[0]["seconds"]
    return {"cores": cores, "others": rows}


def measure_stack():
    """A stack in a file against the computation of the same planes without files, and a stack with blank planes."""
    pipe = load_pipe()
    hazy = fields_by_calls(pipe)[0].clip(0, 65535).astype(np.uint16)
    micrograph = Micrograph(np.empty((1, SIDE, SIDE), np.uint16), "ZYX", (0.1, 0.1))
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for name, blanks in (("planes", 0), ("blank planes", PLANES)):
            source = Path(folder, f"{blanks}.ome.tif")
            with OmeTiffWriter(source, micrograph, (PLANES, SIDE, SIDE), np.uint16) as writer:
                for plane in range(PLANES):
                    writer.write((plane,), np.full_like(hazy, 100) if plane < blanks else np.roll(hazy, plane, axis=1))
            dehazer = FileDehazer(pipe, 1, 1, assessed=False)
            started = time.perf_counter()
            dehazer(source, Outputs(Path(folder, "out.ome.tif")))
            seconds[name] = time.perf_counter() - started

    def dehaze(plane):
        return pipe(np.roll(hazy, plane, axis=1), num_inference_steps=1)

    started = time.perf_counter()
    for _ in map_on_cores(dehaze, range(PLANES), torch.get_num_threads()):
        pass
    seconds["computation alone"] = time.perf_counter() - started
    states, t = network_input(pipe), torch.zeros(1)

    def forward(_):
        return [pipe.unet(states, t) for _ in range(calls_of(pipe, hazy))]

    started = time.perf_counter()
    with torch.inference_mode():
        for _ in map_on_cores(forward, range(PLANES // 4), torch.get_num_threads()):
            pass
    seconds["bare forward passes"] = 4 * (time.perf_counter() - started)
    return {"planes": PLANES, "side": SIDE, "network_calls": calls_of(pipe, hazy), "seconds": seconds}


def measure_engines():
    """The forward pass of torch and of OpenVINO, with the same threads and precision, and how much they differ."""
    import openvino

    class Forward(nn.Module):
        def __init__(self, unet):
            super().__init__()
            self.unet = unet

        def forward(self, states, t):
            return self.unet(states, t, return_dict=False)[0]

    exact = HazeMatchingPipeline.from_default().unet
    pipe = load_pipe()
    states, t = network_input(pipe), torch.zeros(1)
    values = states.float().contiguous()
    rows = {}
    with torch.inference_mode():
        expected = exact(values, t).sample
        example = (values[..., :64, :64].contiguous(), t)
        started = time.perf_counter()
        model = openvino.convert_model(Forward(exact), example_input=example)
        model.reshape({model.inputs[0]: openvino.PartialShape(list(values.shape)), model.inputs[1]: [1]})
        conversion = time.perf_counter() - started
        cores = torch.get_num_threads()
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
            options["INFERENCE_PRECISION_HINT"] = "bf16" if pipe.unet.dtype == torch.bfloat16 else "f32"
            request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
            infer = partial(request.infer, [values.numpy(), t.numpy()])
            rows[name_of(threads)] = fastest({"torch": lambda: pipe.unet(states, t), "OpenVINO": infer}, 8)
            result = torch.from_numpy(next(iter(infer().values())))
        torch.set_num_threads(cores)
        errors = {"torch": pipe.unet(states, t).sample.float() - expected, "OpenVINO": result - expected}
    return {
        "version": openvino.__version__,
        "seconds_to_convert": conversion,
        "seconds": rows,
        "relative_errors": {name: float(each.std() / expected.std()) for name, each in errors.items()},
    }


MEASUREMENTS = {
    "floor": measure_floor,
    "peers": measure_peers,
    "busy": measure_busy,
    "stack": measure_stack,
    "engines": measure_engines,
}


def main():
    parser = argparse.ArgumentParser(description="Measure the speed of the command line.")
    parser.add_argument("measurements", nargs="*", choices=[*MEASUREMENTS, []], help="Those to make; all but engines.")
    parser.add_argument("--time_fast", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_fast:
        return time_fast(args.time_fast)
    path = HERE / "speed.json"
    for name in args.measurements or [each for each in MEASUREMENTS if each != "engines"]:
        result = MEASUREMENTS[name]()
        print(name, json.dumps(result, indent=1, ensure_ascii=False), flush=True)
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {"checkpoint": weights_hash(HazeMatchingPipeline.from_default().unet.state_dict()), **result}
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
