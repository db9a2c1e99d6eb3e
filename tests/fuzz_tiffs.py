"""
Read damaged and hostile TIFFs. Seeded mutations make them from small valid files. Each must be read, or refused with
an error of one sentence.

    python tests/fuzz_tiffs.py --number 5000

A file fails if reading it raises anything but `MicrographError`, takes more than 10 s or ends the process. The script
prints how many files were read and refused, the longest time, and the peak memory of the readers. It exits with 1 if a
file failed or the memory exceeded 2 GiB. To repeat a file that failed, pass its number: `--first NUMBER --number 1`.
The script does not run on Windows, which lacks alarms.
"""

import argparse
import io
import json
import multiprocessing
import re
import signal
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import tifffile
from format_files import FORMATS

from haze_pipeline.io.micrograph_files import Micrograph, MicrographError, read_micrograph, write_ome_tiff


MAX_SECONDS = 10
MAX_BYTES = 2 * 2**30


class Hang(BaseException):
    """Reading took too long. It is not an `Exception`, so that no reader mistakes it for a damaged file."""


def make_seeds() -> list[bytes]:
    """Small valid files of every layout that can be read."""
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 4000, (2, 3, 24, 32), dtype=np.uint16)
    ome = {"axes": "TZYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["DNA"]}}
    variants = [
        (stack[0, 0], {}),
        (stack[0], {"byteorder": ">"}),
        (stack[0], {"compression": "zlib"}),
        (stack[0], {"compression": "lzw", "predictor": True}),
        (stack[0, 0], {"compression": "zstd", "tile": (16, 16)}),
        (stack[0, 0].astype(np.uint8), {"compression": "jpeg"}),
        (stack[0], {"bigtiff": True, "compression": "packbits"}),
        (stack.astype(np.float32), {"imagej": True, "metadata": {"axes": "TZYX", "unit": "um", "spacing": 0.3}}),
        (stack, {"ome": True, "metadata": ome}),
        (stack, {"ome": True, "metadata": ome, "compression": "zlib", "tile": (16, 16)}),
        (stack[0], {"metadata": {"axes": "ZYX"}}),
        (stack[0], {"volumetric": True, "tile": (2, 16, 16), "compression": "zlib"}),
    ]
    seeds = []
    for data, options in variants:
        buffer = io.BytesIO()
        byteorder, bigtiff = options.pop("byteorder", "<"), options.pop("bigtiff", False)
        kinds = {kind: options.pop(kind) for kind in ("imagej", "ome") if kind in options}
        with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff, **kinds) as writer:
            writer.write(data, photometric="minisblack", **options)
        seeds.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ours.ome.tif")
        write_ome_tiff(path, Micrograph(stack, "TZYX", (0.1, 0.1), channel_names=["DNA"]), {"seed": 1})
        seeds.append(path.read_bytes())
        for form in FORMATS:
            if form.file.endswith("zarr"):
                continue
            form.write(Path(folder, form.file), form.data())
            seeds.append(Path(folder, form.file).read_bytes())
    return seeds


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A valid file with one to eight random changes."""
    data = bytearray(data)
    tags = [
        match.start()
        for match in re.finditer(rb"[\x00-\x01][\x00-\xff]\x00[\x01-\x10]|[\x00-\xff][\x00-\x01][\x01-\x10]\x00", data)
    ]
    for _ in range(rng.integers(1, 9)):
        size = len(data)
        if size < 8:
            break
        kind = rng.integers(9)
        if kind == 0:  # any byte
            data[rng.integers(size)] = rng.integers(256)
        elif kind == 1:  # a byte of the header
            data[rng.integers(min(size, 64))] = rng.integers(256)
        elif kind == 2 and tags:  # a byte of what looks like a tag
            position = tags[rng.integers(len(tags))] + int(rng.integers(20))
            data[min(position, size - 1)] = rng.choice([0, 1, 2, 127, 128, 254, 255])
        elif kind == 3:  # an extreme number
            number = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            position = int(rng.integers(size - 4))
            data[position : position + 4] = struct.pack("<I", number)
        elif kind == 4:  # an offset that points into the file, possibly to its beginning
            position = int(rng.integers(size - 4))
            data[position : position + 4] = struct.pack(rng.choice(["<I", ">I"]), int(rng.integers(size)))
        elif kind == 5:  # a truncated file
            del data[int(rng.integers(size)) :]
        elif kind == 6:  # a part repeated or removed
            start, length = int(rng.integers(size)), int(rng.integers(1, 200))
            data[start : start + length] = data[start : start + length] * int(rng.integers(0, 3))
        elif kind == 7:  # digits of the description
            digits = [match.start() for match in re.finditer(rb"\d", data)]
            for position in rng.choice(digits, min(4, len(digits))) if digits else ():
                data[position : position + 1] = (
                    str(rng.choice([0, 9, 99999, 4294967296])).encode() if rng.random() < 0.5 else b"9"
                )
        else:  # bytes that are not valid text
            text = [match.start() for match in re.finditer(rb"[A-Za-z]{4}", data)]
            if text:
                data[text[rng.integers(len(text))]] = rng.integers(128, 256)
    return bytes(data)


def make_file(number: int, seeds: list[bytes]) -> bytes:
    """The damaged file with the given number."""
    rng = np.random.default_rng([0, number])
    return mutate(seeds[rng.integers(len(seeds))], rng)


def read_files(first: int, last: int, folder: str, results) -> None:
    """Read files in a separate process. Send the number, the outcome and the reading time of each file."""

    def give_up(*_):
        raise Hang

    import resource

    import ome_types  # noqa: F401, so that the first file that needs it is not charged for it

    signal.signal(signal.SIGALRM, give_up)
    warnings.simplefilter("ignore")
    seeds = make_seeds()
    path = Path(folder, f"{first}.tif")
    for number in range(first, last):
        path.write_bytes(make_file(number, seeds))
        results.send((number, "started", 0.0, 0))
        started = time.perf_counter()
        signal.alarm(MAX_SECONDS)
        try:
            read_micrograph(path)
            end = "read"
        except MicrographError:
            end = "refused"
        except BaseException as error:
            end = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        results.send((number, end, time.perf_counter() - started, peak))
    results.send(None)


def fuzz(number: int, first: int = 0) -> dict:
    """Read `number` damaged files and summarise the outcomes."""
    summary = {
        "files": number,
        "read": 0,
        "refused": 0,
        "failed": {},
        "slowest": None,
        "longest_s": 0.0,
        "peak_MiB": 0.0,
    }
    context = multiprocessing.get_context("forkserver")  # a spawned process counts its parent's peak memory as its own
    next_file, last = first, first + number
    with tempfile.TemporaryDirectory() as folder:
        while next_file < last:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=read_files, args=(next_file, last, folder, sender))
            process.start()
            sender.close()
            current = next_file
            try:
                while (message := receiver.recv()) is not None:
                    current, end, seconds, peak = message
                    next_file = current + 1
                    if end == "started":
                        continue
                    if seconds > summary["longest_s"]:
                        summary["slowest"], summary["longest_s"] = current, round(seconds, 3)
                    summary["peak_MiB"] = max(summary["peak_MiB"], round(peak / 2**20, 1))
                    if end in summary:
                        summary[end] += 1
                    else:
                        summary["failed"][current] = end
                next_file = last
            except EOFError:  # the process has died
                process.join()
                summary["failed"][current] = f"ended the process with {process.exitcode}"
            process.join()
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read damaged TIFFs.")
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    summary = fuzz(args.number, args.first)
    print(json.dumps(summary, indent=2))
    sys.exit(bool(summary["failed"]) or summary["peak_MiB"] * 2**20 > MAX_BYTES)
