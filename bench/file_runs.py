"""
Measure the processing of many files: kills and restarts, numbers of processes, an OME-Zarr larger than memory, and the
flicker of movies.

    python bench/file_runs.py [kills processes zarr flicker]

All measurements use the command line and the default checkpoint. Writes `bench/file_runs.json`.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import zarr

from haze_pipeline.data.patches import simulated_series
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.io.ome_zarr import OmeZarrWriter


HERE = Path(__file__).parent
PATIENCE = 600  # s
COMMAND = [sys.executable, "-m", "haze_pipeline", "dehaze"]


def start(*arguments, processes: int = 1, threads: int = 1, **options) -> subprocess.Popen:
    """The command in so many processes of one thread each, by torchrun as `--workers` does."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    )
    command = [COMMAND[0], *launcher, *COMMAND[1:], *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )


def finish(*arguments, **options) -> float:
    """Run the command to its end; seconds."""
    started = time.perf_counter()
    code = start(*arguments, **options).wait(PATIENCE)
    if code:
        raise RuntimeError(f"haze-pipeline dehaze {arguments} ended with {code}.")
    return time.perf_counter() - started


def write_inputs(folder: Path, number: int, side: int):
    """Simulated micrographs, a third of them stacks."""
    folder.mkdir()
    pairs = simulated_series(5, side, 0)
    for index in range(number):
        hazy = np.asarray(next(pairs).hazy).astype(np.uint16)
        stack = np.stack([hazy, hazy[::-1]]) if index % 3 == 0 else hazy
        write_ome_tiff(
            folder / f"{index:03d}.ome.tif", Micrograph(stack, "ZYX" if stack.ndim == 3 else "YX", (0.1, 0.1))
        )


def digests(folder: Path) -> dict[str, str]:
    """Of the pixels of every result in a folder."""
    return {
        path.name: hashlib.sha256(read_micrograph(path).data.tobytes()).hexdigest()
        for path in sorted(folder.glob("*.tif"))
    }


def measure_kills(work: Path, number: int = 30) -> dict:
    """Kill a run of two processes at random moments of its work, and start it again each time until it ends."""
    inputs, killed = work / "inputs", work / "killed"
    write_inputs(inputs, 12, 128)
    options = (inputs, "--skip-existing", "--uncertainty", "--preset", "balanced", "--ensemble-size", 2)
    finish(*options, "-o", work / "whole")
    whole = digests(work / "whole")
    rng = np.random.default_rng(0)
    kills = rounds = with_leftovers = 0
    identical = True
    while kills < number:
        process = start(*options, "-o", killed, processes=2)
        before = set(killed.glob("*.tif"))
        # Work begins with the first file that a process opens for writing.
        while process.poll() is None and not (list(killed.glob(".haze-*")) or set(killed.glob("*.tif")) - before):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        with_leftovers += bool(list(killed.glob(".haze-*")))
        if process.returncode == 0 or kills == number:
            finish(*options, "-o", killed, processes=2)
            identical &= digests(killed) == whole and not list(killed.glob(".haze-*"))
            rounds += 1
            shutil.rmtree(killed)
    return {
        "kills": kills,
        "runs_finished": rounds,
        "kills_that_left_partial_files": with_leftovers,
        "files": len(whole),
        "identical_and_nothing_left": identical,
    }


def measure_processes(work: Path) -> dict:
    """
    The same folder by one, two and three processes of one thread each; and its halves by two commands that know
    nothing of each other, which is what the cores of the machine have to give.
    """
    inputs = work / "inputs"
    write_inputs(inputs, 18, 384)
    halves = [work / "half0", work / "half1"]
    for number, path in enumerate(sorted(inputs.iterdir())):
        halves[number % 2].mkdir(exist_ok=True)
        os.link(path, halves[number % 2] / path.name)
    started = time.perf_counter()
    for process in [start(half, "-o", work / f"out_{half.name}") for half in halves]:
        process.wait(PATIENCE)
    unrelated = time.perf_counter() - started
    seconds, found = {}, []
    for number in (1, 2, 3):
        output = work / f"out{number}"
        seconds[number] = finish(inputs, "-o", output, processes=number)
        found.append(digests(output))
    return {
        "cores": psutil.cpu_count(),
        "files": len(found[0]),
        "seconds": seconds,
        "throughput_of_two": seconds[1] / seconds[2],
        "throughput_of_two_unrelated": seconds[1] / unrelated,
        "identical": found[0] == found[1] == found[2],
    }


def measure_zarr(work: Path, run_for: float = 60) -> dict:
    """
    An OME-Zarr of 20 GiB, whose planes are links to the same few chunks: time to the first result, and peak memory.
    """
    planes, side = 10240, 1024
    path, output = work / "large.ome.zarr", work / "out.ome.zarr"
    shape = (planes, side, side)
    OmeZarrWriter(path, Micrograph(None, "TYX", (0.1, 0.1), time_interval=1.0), shape, np.uint16).close()
    array = zarr.open_array(path / "0", mode="r+")
    field = np.asarray(next(simulated_series(5, 512, 0)).hazy).astype(np.uint16)
    array[0] = np.tile(field, (2, 2))
    first = path / "0" / "c" / "0"
    for plane in range(1, planes):
        for chunk in first.rglob("*"):
            link = first.with_name(str(plane)) / chunk.relative_to(first)
            if chunk.is_file():
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(chunk, link)
    started = time.perf_counter()
    process = start(path, "-o", output, threads=os.cpu_count())
    watched, first_result, peak = psutil.Process(process.pid), None, 0
    while process.poll() is None and (first_result is None or time.perf_counter() - started < first_result + run_for):
        peak = max(peak, watched.memory_info().rss)
        if first_result is None and any(path.is_file() for path in work.glob(".haze-*/0/c/**/*")):
            first_result = time.perf_counter() - started
        time.sleep(0.05)
    written = len(list(next(work.glob(".haze-*")).glob("0/c/*")))
    process.terminate()
    code = process.wait()
    return {
        "size_GiB": planes * side**2 * 2 / 2**30,
        "seconds_to_first_result": first_result,
        "planes_written": written,
        "peak_GiB": peak / 2**30,
        "exit_code_when_terminated": code,
        "left_behind": len(list(work.glob(".haze-*"))),
    }


def measure_flicker(work: Path) -> dict:
    """
    Samples of a movie in which only the noise of the camera changes: deviation over time, relative to that of the mean
    image over space, with a noise for every frame and with one for all; and of the input.
    """
    scene = np.asarray(next(simulated_series(6, 256, 0)).hazy, np.float64)
    rng = np.random.default_rng(0)
    movie = rng.poisson(np.stack([np.maximum(scene, 0)] * 8)).astype(np.uint16)
    write_ome_tiff(work / "movie.ome.tif", Micrograph(movie, "TYX", (0.1, 0.1)))

    def flicker(frames: np.ndarray) -> float:
        frames = frames.astype(np.float64)
        return float(np.sqrt(frames.var(axis=0, ddof=1).mean()) / frames.mean(axis=0).std())

    result = {"input": flicker(movie)}
    for name, shared in (("own noise", ""), ("shared noise", "T")):
        finish(
            work / "movie.ome.tif", "-o", work / "out.ome.tif", "--preset", "balanced", "--ensemble-size", 1,
            "--output-dtype", "float32", "--share-noise", shared, threads=os.cpu_count(),
        )  # fmt: skip
        result[name] = flicker(read_micrograph(work / "out.ome.tif").data)
    return result


MEASUREMENTS = {
    "kills": measure_kills,
    "processes": measure_processes,
    "zarr": measure_zarr,
    "flicker": measure_flicker,
}


def main():
    parser = argparse.ArgumentParser(description="Measure runs over files.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(MEASUREMENTS))
    path = HERE / "file_runs.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for part in parser.parse_args().parts or MEASUREMENTS:
        with tempfile.TemporaryDirectory() as work:
            results[part] = MEASUREMENTS[part](Path(work))
        print(part, json.dumps(results[part], indent=2), flush=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
