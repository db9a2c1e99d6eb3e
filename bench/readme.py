"""
Render the tables of README.md and docs/ from what the scripts in this folder measured.

    python bench/readme.py

Each table lies between `<!-- NAME -->` and `<!-- /NAME -->`. `python bench/readme.py --check` fails if a table is out
of date.
"""

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path

from checkpoint import weights_hash
from safetensors.torch import load_file


HERE = Path(__file__).parent
OURS, TUNED = "haze-pipeline `fast`", "best classical, tuned on the image"


def table(header, rows):
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


@cache
def checkpoint_in_the_package():
    (weights,) = (HERE.parent / "haze_pipeline" / "default_checkpoint" / "unet").glob("*.safetensors")
    return weights_hash(load_file(weights))


def note_if_earlier(results):
    """A line that says so if the measurement was not made with today's checkpoint."""
    if results["checkpoint"] == checkpoint_in_the_package():
        return []
    return ["", "Measured with the checkpoint that the package then had."]


def real_pairs():
    measurement = json.loads((HERE / "real_pairs.json").read_text())
    results = measurement["pairs"]
    methods = list(next(iter(results.values()))["target"])
    rows = [
        [name, *(f"{values['target'][m]:.1f} / {values['target_at_widefield_resolution'][m]:.1f}" for m in methods)]
        for name, values in results.items()
    ]
    by_width = results["microtubules_b"]["by_background_width"]
    widths = ", ".join(f"{value:.1f} dB with {width} px" for width, value in by_width.items())
    return [
        *table(["pair", *methods], rows),
        "",
        f"`--background-width` on microtubules_b, at widefield resolution: {widths}.",
        *note_if_earlier(measurement),
    ]


def real_specimens():
    results = json.loads((HERE / "real_specimens.json").read_text())
    rows = []
    for group, methods in results["gain"].items():
        for method in methods:
            if method in ("input", "num_images") or (group != "all" and method not in (OURS, TUNED)):
                continue
            values = methods[method]
            rows.append(
                [group, str(methods["num_images"]), method, f"{values['mean']:+.1f}", f"{values['median']:+.1f}",
                 f"{100 * values['below_input']:.0f} %", f"{values['worst']:+.1f}"]
            )  # fmt: skip
    harmless = 1 - results["gain"]["without haze"][OURS]["more_than_half_a_dB_below"]
    return [
        *table(["pairs", "n", "method", "mean gain, dB", "median", "below input", "worst"], rows),
        "",
        f"{results['num_images']} pairs of {len(results['specimens'])} files, {results['input']:.1f} dB before "
        f"dehazing. Of the images without "
        f"haze, {100 * harmless:.0f} % end within 0.5 dB of their input or better.",
        *note_if_earlier(results),
    ]


def summary():
    results = json.loads((HERE / "real_specimens.json").read_text())
    ours, tuned = (results["gain"]["all"][name] for name in (OURS, TUNED))
    return [
        f"On {results['num_images']} pairs of {len(results['specimens'])} real specimens that no training saw, behind "
        f"computed haze, `fast` gains "
        f"{ours['mean']:.1f} dB on average and {ours['median']:.1f} dB in the median over the input (range-invariant "
        f"PSNR); "
        f"{100 * ours['below_input']:.0f} % of the images end below their input, the worst by {-ours['worst']:.1f} "
        f"dB. The best of "
        f"seven classical methods, tuned on the answer, gains {tuned['mean']:.1f} dB.",
        *note_if_earlier(results),
    ]


def structures():
    results = json.loads((HERE / "structures.json").read_text())
    nuclei, dim, detail = (results[key] for key in ("core over rim of nuclei", "dim discs", "fine detail"))
    mean = results["means without noise"]
    discs = ", ".join(
        f"{min(values):.2f} to {max(values):.2f} ({haze})"
        for haze, values in results["core over rim of discs"].items()
    )
    contrasts = ", ".join(f"{values['beside bright over alone']:.2f} ({name})" for name, values in dim.items())
    heights = ", ".join(f"{height:.2f} ({width})" for width, height in detail["height of spots"].items())
    return [
        *table(
            ["structure", "measured", "ideal"],
            [
                ["discs, core over rim", discs, "1"],
                [f"{nuclei['number']} real nuclei, core over rim against the clear image: median (10 to 90 % of them)",
                 "{:.2f} ({:.2f} to {:.2f})".format(*(nuclei["quantiles"][q] for q in ("0.5", "0.1", "0.9"))), "1"],
                ["contrast of a dim disc beside bright ones over its contrast alone", contrasts, "1"],
                ["height of spots (full width)", heights, "1"],
                ["amplitude of the highest octave of undersampled images",
                f"{detail['amplitude of the highest octave, undersampled images']:.2f}", "1"],
                ["power of a 2 × 2 checkerboard over its surroundings", f"{detail['checkerboard']:.2f}", "≤ 1"],
                ["difference of four identical frames, of two seeds",
                f"{mean['identical frames']:.1g}, {mean['seeds']:.1g}", "0"],
            ],
        ),
        *note_if_earlier(results),
    ]  # fmt: skip


def simulated_pairs():
    results = json.loads((HERE / "simulated_pairs.json").read_text())
    methods = list(results["mean"])
    thirds = results["thirds_by_input"]
    groups = [(f"only {kind}", values) for kind, values in results["mean_by_specimen"].items()]
    for name, values in zip(("worst", "middle", "best"), thirds, strict=True):
        groups.append((f"{name} third of the inputs", values))
    rows = [
        [name, str(values["num_images"]), *(f"{values[method]:.1f}" for method in methods)] for name, values in groups
    ]
    cells = [f"{results['mean'][m]:.1f} ± {results['standard_deviation'][m]:.1f}" for m in methods]
    rows.append(["all, mixtures included", str(results["num_images"]), *cells])
    return [
        *table(["simulated, held out", "n", *methods], rows),
        "",
        f"{results['images_below_input']} of the {results['num_images']} images end below their input, the worst by "
        f"{-results['smallest_gain']:.1f} dB: {', '.join(str(third['below_input']) for third in thirds)} of the "
        f"worst, middle and best "
        "third of the inputs.",
        *note_if_earlier(results),
    ]


def sampling():
    results = json.loads((HERE / "sampling.json").read_text())
    rows = results["cost"]["rows"]
    cost = []
    for name, row in rows.items():
        against = "one sample" if name.endswith("one sample") else "mean of 50 samples"
        ratio = rows[f"reference, {against}"]["seconds"] / row["seconds"]
        cost.append([name, str(row["calls"]), f"{row['seconds']:,.1f}", f"{ratio:,.0f}"])
    means, seams, tiling, distance = (results[name] for name in ("means", "seams", "tiling", "distance"))
    ranges = {
        name: [function(field[name] for field in distance["fields"]) for function in (min, max)]
        for name in ("reference", "ours")
    }
    differences = [field["fast"] - field["reference"] for field in means["fields"]]
    closer = sum(field["ours"] <= field["reference"] for field in distance["fields"])
    return [
        *table(["", "network calls", "seconds per megapixel", "times cheaper"], cost),
        "",
        f"One 1024 × 1024 field, {results['cost']['threads']} threads, ours in {results['cost']['dtype']}, the "
        f"reference in float32; "
        "`quality` from the time of one of its members. Network calls are sweeps over all tiles, of which the "
        "reference's are "
        "four deep.",
        "",
        *table(
            ["", "reference", "haze-pipeline"],
            [
                [
                    f"posterior mean, range-invariant PSNR in dB ({means['num_fields']} fields, input "
                    f"{means['input']:.1f})",
                    f"{means['reference']:.2f}",
                    f"{means['fast']:.2f} (`fast`)",
                ],
                [
                    "sample, RMS distance to the converged one of the same noise",
                    f"{distance['reference']:.3f}",
                    f"{distance['ours']:.3f} (`balanced`)",
                ],
                [
                    "sample, jump across tile borders / elsewhere",
                    f"{seams['reference']['mean']:.2f}",
                    f"{seams['ours']['mean']:.2f}",
                ],
            ],
        ),
        "",
        f"Distances of samples on {distance['num_fields']} other fields, root mean square over all of them. Field by "
        f"field, the "
        "reference's lie between {:.3f} and {:.3f} and ours between {:.3f} and {:.3f}; ".format(
            *ranges["reference"], *ranges["ours"]
        )
        + f"ours is the smaller one on {closer} of them.",
        "",
        f"Means are scored on {means['parts_per_field']} parts of every 1024 × 1024 field, together; by field, `fast` "
        f"differs "
        f"from the reference by {min(differences):+.2f} to {max(differences):+.2f} dB. Without tiles, a sample jumps "
        f"{seams['untiled']['mean']:.2f} times as much at the lines of our tile borders as elsewhere. On "
        f"{tiling['num_fields']} whole fields `fast` "
        f"scores {tiling['psnr']['tiled']:.2f} dB in tiles and {tiling['psnr']['untiled']:.2f} dB without; tiles cost "
        f"no field "
        f"more than {max(0, tiling['largest_loss']):.2f} dB.",
        "",
        "Peak memory of the process: "
        + ", ".join(f"{gigabytes:.2f} GB for {name}" for name, gigabytes in results["memory"].items())
        + ".",
        *note_if_earlier(results),
    ]


def solvers():
    results = json.loads((HERE / "solvers.json").read_text())
    rows = [
        [row["solver"], str(row["calls"]), str(row["shift"]), f"{row['rms_error']:.3f}"]
        for row in sorted(results["rows"], key=lambda row: row["rms_error"])
    ]
    return [
        *table(["solver", "network calls", "shift of the grid", "RMS error"], rows),
        "",
        f"{results['num_images']} held-out simulated images of {results['size']} × {results['size']} pixels; the "
        f"samples "
        f"themselves have a deviation of {results['spread']:.2f}.",
        *note_if_earlier(results),
    ]


def calibration():
    measured = json.loads((HERE / "calibration.json").read_text())
    keys = ("RMS error / RMS deviation", "ENCE", "mean squared z")
    rows, notes = [], []
    for kind, results in measured["sets"].items():
        rows += [
            [f"{kind}, {name}", *(f"{values[key]:.2f}" for key in keys),
             *(f"{100 * values[f'coverage at {level}%']:.0f} %" for level in (50, 90, 95))]
            for name, values in results["scores"].items()
        ]  # fmt: skip
        intervals = ", ".join(
            f"{100 * fraction['mean']:.1f} ± {100 * fraction['standard_error']:.1f} % for {level}"
            for level, fraction in results["interval_coverage"].items()
        )
        low, high = results["ENCE_interval"]
        large = results["large_ensemble"]
        notes += [
            "",
            f"{kind[0].upper()}{kind[1:]}: {results['num_images']} held-out "
            f"pairs, {measured['num_samples']} samples "
            f"of "
            f"{measured['num_inference_steps']} steps. Resampling gives a calibrated ENCE of {low:.2f} to {high:.2f}. "
            f"`out.interval` covered "
            f"(with standard error) {intervals}. With {large['num_samples']} samples, on the first "
            f"{large['num_images']} pairs, RMS error / "
            f"RMS deviation is {large['raw']:.2f} raw and {large['calibrated']:.2f} calibrated.",
        ]
    header = ["", *keys, "within 50 %", "90 %", "95 % of a normal law"]
    return [*table(header, rows), *notes, *note_if_earlier(measured)]


def trust():
    results = json.loads((HERE / "trust.json").read_text())
    rows = [
        [name, str(values["num_images"]), f"{100 * values['warned']:.0f} %",
         f"{results['area_under_curve'][name]:.3f}" if name in results["area_under_curve"] else "",
         f"{values['median']['out_of_domain']:.2f}", f"{values['median']['invented']:.2f}"]
        for name, values in results["sets"].items()
    ]  # fmt: skip
    rows.append(["all unknown ones", "", "", f"{results['area_under_curve']['all of them']:.3f}", "", ""])
    header = ["images", "n", "warned of", "area under curve", "distance from training", "made of noise"]
    return [*table(header, rows), *note_if_earlier(results)]


def file_runs():
    results = json.loads((HERE / "file_runs.json").read_text())
    kills, processes, large, flicker = (results[name] for name in ("kills", "processes", "zarr", "flicker"))
    same = {True: "the same files as one that was not killed, and nothing else", False: "NOT the same files"}
    return [
        f"Measured (`bench/file_runs.py`): after {kills['kills']} kills at random moments of runs of two processes "
        f"over {kills['files']} "
        f"results, the runs that followed ended with {same[kills['identical_and_nothing_left']]}. One, two and three "
        f"processes "
        f"{'gave' if processes['identical'] else 'did NOT give'} identical pixels; two processes of one thread each "
        f"do "
        f"{processes['throughput_of_two']:.2f} times the work of one on {processes['cores']} virtual cores, where two "
        f"commands that "
        f"know nothing of each other do {processes['throughput_of_two_unrelated']:.2f} times as much. An OME-Zarr of "
        f"{large['size_GiB']:.0f} GiB (planes of 1024 × 1024) has its first plane after "
        f"{large['seconds_to_first_result']:.0f} s, and "
        f"takes {large['peak_GiB']:.1f} GiB of memory. Samples of a movie in which only the camera's noise changes "
        f"flicker by "
        f"{100 * flicker['own noise']:.0f} % of their contrast, and by {100 * flicker['shared noise']:.0f} % with "
        f"`--share-noise T` "
        f"(the movie itself: {100 * flicker['input']:.0f} %).",
    ]


def loader():
    results = json.loads((HERE / "loader.json").read_text())
    meanwhile = results["simulated meanwhile"]
    return [
        f"Measured on {results['threads']} CPU cores with batches of {results['batch']} patches of "
        f"{results['resolution']} px and "
        f"{results['patches_per_field']} patches a field: {100 * meanwhile['share_waiting']:.1f} % of a step are "
        f"spent waiting for "
        f"data, and steps take {100 * results['slower']:.0f} % longer than on fields that lie ready. Before the first "
        f"step, "
        f"{meanwhile['seconds_waiting_at_start']:.0f} s go into the first fields."
    ]


def training():
    results = json.loads((HERE / "training.json").read_text())
    rates = results["images_per_second"]
    return [
        f"Measured with batches of {results['batch']} patches of {results['resolution']} px on {results['threads']} "
        f"CPU threads "
        f"(mixed precision: {results['mixed_precision']}): {rates['script']:.0f} patches a second, "
        f"{100 * results['ratio']:.0f} % of a bare loop of forward, backward and optimiser (`bench/training.py`)."
    ]


def costs():
    results = json.loads((HERE / "training.json").read_text())
    pixels_per_second = results["images_per_second"]["script"] * results["resolution"] ** 2
    sources = ("training/train_haze_matching.py", "training/data_arguments.py")
    flags = "".join((HERE.parent / source).read_text() for source in sources)
    defaults = dict(re.findall(r'"--(max_train_steps|train_batch_size|resolution)", type=int, default=(\d+)', flags))
    rows = []
    for recipe in (DOCS / "training.md").read_text().split("\n## ")[1:]:
        title, text = recipe.split("\n", 1)
        command = re.search(r"^accelerate launch training/train_haze_matching\.py(.*\\\n)*.*", text, re.MULTILINE)
        if command is None or title == "The checkpoint in the package":  # which took many stages
            continue
        numbers = defaults | dict(re.findall(r"--(\w+) (\d+)\b", command[0]))
        steps, batch, side = (int(numbers[name]) for name in ("max_train_steps", "train_batch_size", "resolution"))
        minutes = steps * batch * side**2 / pixels_per_second / 60
        cost = f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"
        rows.append([title, f"{steps:,}", f"{batch} of {side} px", cost])
    return [
        "At that rate, counted by pixels, one process on such a CPU takes for the first command of each recipe "
        "(validation left out):",
        "",
        *table(["recipe", "steps", "patches a step", "time"], rows),
    ]


def regression():
    results = json.loads((HERE / "regression.json").read_text())
    psnr, advantage = results["psnr"], results["regression_advantage"]
    ahead = "regression" if advantage > 0 else "the flow"
    return [
        f"Measured after {results['max_train_steps']} steps from nothing, {results['batch']} patches of "
        f"{results['resolution']} px a step, "
        f"mixed precision {results['mixed_precision']}: regression scores {psnr['regression']:.2f} dB on "
        f"{results['num_images']} held-out "
        f"simulated images ({psnr['input']:.2f} dB hazy) and the flow {psnr['flow']:.2f} dB; {ahead} is ahead by "
        f"{abs(advantage):.2f} dB "
        f"(standard error over the images {results['standard_error']:.2f} dB; one training each). They took "
        f"{results['seconds']['regression']:.0f} and {results['seconds']['flow']:.0f} s (`bench/regression.py`).",
    ]


def stack_pairs():
    results = json.loads((HERE / "stack_pairs.json").read_text())
    psnr = results["psnr"]
    return [
        f"Measured on a confocal stack of pollen ({results['max_train_steps']} steps on pairs of its planes 0 to 19, "
        f"tested on "
        f"{results['num_images']} pairs of planes 22 to 31): range-invariant PSNR {psnr['input']:.1f} dB hazy, "
        f"{psnr['own']:.1f} dB dehazed with the network of the stack, {psnr['default']:.1f} dB with the checkpoint "
        f"that the package then had; "
        f"the smallest gain of the first is {results['smallest_gain']:.1f} dB (`bench/stack_pairs.py`).",
    ]


def fresh_clone():
    results = json.loads((HERE / "fresh_clone.json").read_text())
    first, again, test = results["seconds"].values()
    return [
        f"In a fresh clone, `make demo` takes {first:.0f} s, once more {again:.0f} s, and then `make test` {test:.0f} "
        f"s "
        f"({results['machine']}; {results['load']} processes ran on average, other work included)."
    ]


DOCS = HERE.parent / "docs"
PAGES = {
    HERE.parent / "README.md": (fresh_clone, summary),
    DOCS / "benchmarks.md": (real_specimens, structures, real_pairs, simulated_pairs, sampling),
    DOCS / "uncertainty.md": (calibration, trust),
    DOCS / "science.md": (solvers,),
    DOCS / "folders.md": (file_runs,),
    DOCS / "training.md": (training, costs, loader, stack_pairs, regression),
}


def main():
    parser = argparse.ArgumentParser(description="Render the tables of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if a table is stale.")
    args = parser.parse_args()
    for page, tables in PAGES.items():
        text = rendered = page.read_text()
        for table in tables:
            block = "\n".join(table())
            pattern = rf"(<!-- {table.__name__} -->\n).*?(<!-- /{table.__name__} -->)"
            rendered, count = re.subn(
                pattern, lambda m, block=block: m[1] + block + "\n" + m[2], rendered, flags=re.DOTALL
            )
            if count != 1:
                sys.exit(f"{page} must have one table {table.__name__}, found {count}.")
        if args.check and rendered != text:
            sys.exit(f"{page} has stale tables; run `python bench/readme.py`.")
        if not args.check:
            page.write_text(rendered)


if __name__ == "__main__":
    main()
