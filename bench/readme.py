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
from eid_table import eid, eid_photographs, eid_real
from install_table import install
from markdown_table import table
from safetensors.torch import load_file


HERE = Path(__file__).parent
OURS, TUNED = "haze-pipeline `fast`", "best classical, tuned on the image"


@cache
def checkpoint_in_the_package():
    (weights,) = (HERE.parent / "haze_pipeline" / "default_checkpoint" / "unet").glob("*.safetensors")
    return weights_hash(load_file(weights))


def note_if_earlier(results):
    """A note for measurements of an earlier checkpoint than the one in the package."""
    if results["checkpoint"] == checkpoint_in_the_package():
        return []
    return ["", "These numbers were measured with an earlier checkpoint."]


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
        f"Pair microtubules_b at widefield resolution with other values of `--background-width`: {widths}.",
        *note_if_earlier(measurement),
    ]


def speed():
    results = json.loads((HERE / "speed.json").read_text())
    floor, peers, busy, stack, engines = (results[name] for name in ("floor", "peers", "busy", "stack", "engines"))
    per_pixel, threads = peers["seconds_per_megapixel"], list(peers["seconds_per_megapixel"])
    methods = sorted(per_pixel[threads[0]], key=per_pixel[threads[0]].get)
    rows = [[name, *(f"{per_pixel[each][name]:.2f}" for each in threads)] for name in methods]
    stages = [
        [name, *(f"{floor['seconds'][each][name]:.3f}" for each in threads)] for name in floor["seconds"][threads[0]]
    ]
    calls, seconds, side = peers["network_calls"], stack["seconds"], stack["side"]
    days = 1e12 / (2 * side**2) * seconds["planes"] / stack["planes"] / 86400
    others = [f"{row['ratio']:.2f} beside {number}" for number, row in busy["others"].items() if number != "0"]
    compared = [
        f"{row['OpenVINO']:.2f} s with {name} against {row['torch']:.2f} s of torch"
        for name, row in engines["seconds"].items()
    ]
    return [
        *table(["seconds per megapixel", *threads], rows),
        "",
        f"Fields of {side} × {side} px. `fast` took {calls['`fast`']} network call, and "
        f"{calls['`fast` with dim regions']} in the field with dim regions, which are restored again.",
        "",
        *table(["stage of a plane, seconds", *threads], stages),
        "",
        f"The network performs {floor['flops_per_pixel'] / 1000:.0f} thousand floating-point operations per pixel and "
        f"moves {floor['bytes_per_pixel'] / 1000:.1f} kB.",
        "",
        f"*Stacks*: {stack['planes']} planes of {side} × {side} px in a TIFF took {seconds['planes']:.0f} s, the "
        f"computation alone {seconds['computation alone']:.0f} s, the bare forward passes "
        f"{seconds['bare forward passes']:.0f} s, and as many blank planes {seconds['blank planes']:.0f} s. At this "
        f"rate, {busy['cores']} cores need {days:.0f} days for 1 TB of 16-bit images. Processes on further machines "
        "divide this time.",
        "",
        "*Busy machines*: Beside other processes that compute, `fast` takes this many times what its fair fraction of "
        f"the {busy['cores']} cores explains: {', '.join(others)}.",
        "",
        f"*OpenVINO* {engines['version'].split('-')[0]} was tried as another engine. A forward pass took "
        f"{', '.join(compared)}. This does not reach the factor of 1.5 that would justify a dependency.",
        *note_if_earlier(floor),
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
        f"The {results['num_images']} pairs come from {len(results['specimens'])} files. Their mean PSNR before "
        f"dehazing is {results['input']:.1f} dB. Of the images without haze, {100 * harmless:.0f} % lose at most 0.5 "
        "dB.",
        *note_if_earlier(results),
    ]


def summary():
    results = json.loads((HERE / "real_specimens.json").read_text())
    ours, tuned = (results["gain"]["all"][name] for name in (OURS, TUNED))
    return [
        f"The preset `fast` was tested on {results['num_images']} pairs of {len(results['specimens'])} real specimens "
        f"that no training saw; their haze was computed. It gains {ours['mean']:.1f} dB on average and "
        f"{ours['median']:.1f} dB in the median over the input (range-invariant PSNR). "
        f"{100 * ours['below_input']:.0f} % of the images end below their input, the worst by {-ours['worst']:.1f} "
        f"dB. Seven classical methods gain {tuned['mean']:.1f} dB if the best method and setting are chosen for every "
        "image with the help of the clear image.",
        *note_if_earlier(results),
    ]


def structures():
    results = json.loads((HERE / "structures.json").read_text())
    nuclei, dim, detail = (results[key] for key in ("core over rim of nuclei", "dim discs", "fine detail"))
    mean, saturated = results["means without noise"], results["core over rim of saturated discs"]
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
                ["discs cut off at the top, core over rim",
                 f"{min(saturated):.2f} to {max(saturated):.2f}", "1"],
                ["contrast of a dim disc beside bright discs over its contrast alone (brightness ratio)",
                 contrasts, "1"],
                ["height of spots over their true height (full width)", heights, "1"],
                ["amplitude of the highest octave of undersampled images",
                f"{detail['amplitude of the highest octave, undersampled images']:.2f}", "1"],
                ["power of a 2 × 2 checkerboard over its surroundings", f"{detail['checkerboard']:.2f}", "≤ 1"],
                ["difference between four identical frames, between two seeds",
                f"{mean['identical frames']:.1g}, {mean['seeds']:.1g}", "0"],
                ["standard deviation of the totals of frames that differ in photon noise only, in five scenes",
                 ", ".join(f"{100 * each:.1f} %" for each in results["flicker"]), "0"],
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
        f"Of the {results['num_images']} images, {results['images_below_input']} end below their input, the worst by "
        f"{-results['smallest_gain']:.1f} dB. By the quality of their input, "
        f"{', '.join(str(third['below_input']) for third in thirds)} of them are in the worst, middle and best third.",
        *note_if_earlier(results),
    ]


def sampling():
    results = json.loads((HERE / "sampling.json").read_text())
    rows = results["cost"]["rows"]
    cost = []
    for name, row in rows.items():
        against = "one sample" if name.endswith("one sample") else "mean of 50 samples"
        ratios = [
            f"{rows[f'{reference}, {against}']['seconds'] / row['seconds']:,.0f}"
            for reference in ("reference", "reference with its own network")
        ]
        cost.append([name, str(row["calls"]), f"{row['seconds']:,.1f}", *ratios])
    means, seams, tiling, distance = (results[name] for name in ("means", "seams", "tiling", "distance"))
    ranges = {
        name: [function(field[name] for field in distance["fields"]) for function in (min, max)]
        for name in ("reference", "ours")
    }
    differences = [field["fast"] - field["reference"] for field in means["fields"]]
    closer = sum(field["ours"] <= field["reference"] for field in distance["fields"])
    return [
        *table(
            [
                "",
                "network calls",
                "seconds per megapixel",
                "times cheaper with the same network",
                "than with the reference's own",
            ],
            cost,
        ),
        "",
        f"One field of 1024 × 1024 pixels, {results['cost']['threads']} threads. Ours ran in "
        f"{results['cost']['dtype']}, the reference in float32. The time of `quality` follows from the time of one of "
        "its samples. A network call is one pass over all tiles of the field. The tiles of the reference cover every "
        "pixel four times. Copies for dim regions, which the reference does not have, were left out. "
        "The reference's own network does not pack pixels.",
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
                    "sample, RMS distance to the converged sample of the same noise",
                    f"{distance['reference']:.3f}",
                    f"{distance['ours']:.3f} (`balanced`)",
                ],
                [
                    "sample, jump across tile borders over jump elsewhere",
                    f"{seams['reference']['mean']:.2f}",
                    f"{seams['ours']['mean']:.2f}",
                ],
            ],
        ),
        "",
        f"Distances of samples were measured on {distance['num_fields']} other fields; the table has their root mean "
        "square. In single fields, they lie between {:.3f} and {:.3f} for the reference and between {:.3f} and {:.3f} "
        "for haze-pipeline. ".format(*ranges["reference"], *ranges["ours"])
        + f"The distance of haze-pipeline is the smaller one in {closer} of them.",
        "",
        f"Means are scored on {means['parts_per_field']} parts of every field of 1024 × 1024 pixels. In single "
        f"fields, `fast` differs from the reference by {min(differences):+.2f} to {max(differences):+.2f} dB. "
        f"Computed without tiles, a sample jumps {seams['untiled']['mean']:.2f} times as much at the positions of our "
        f"tile borders as elsewhere. On {tiling['num_fields']} whole fields, `fast` scores "
        f"{tiling['psnr']['tiled']:.2f} dB with tiles and {tiling['psnr']['untiled']:.2f} dB without. In no field do "
        f"tiles cost more than {max(0, tiling['largest_loss']):.2f} dB.",
        "",
        "Peak memory of the process, by size of the field and of the ensemble: "
        + ", ".join(f"{gigabytes:.2f} GB for {name}" for name, gigabytes in results["memory"].items())
        + ".",
        *note_if_earlier(results),
    ]


def gpu():
    results = json.loads((HERE / "gpu.json").read_text())
    presets = {}
    for name, row in results["presets"].items():
        preset, image = name.split(", ")
        presets.setdefault(image, {})[preset] = row
    names = list(next(iter(presets.values())))
    rows = [[image, *(f"{row[name]['seconds']:,.2f} s" for name in names)] for image, row in presets.items()]
    memory = max(row["peak_memory_gb"] for row in results["presets"].values())
    differences = ", ".join(f"{value:.3f} ({name})" for name, value in results["equality with the CPU"].items())
    return [
        *table([results["gpu"], *(f"`{name}`" for name in names)], rows),
        "",
        f"torch {results['torch']}, bfloat16, all members of the preset, at most {memory:.1f} GB of GPU memory. The "
        "time of a stack or a long ensemble is an upper limit: it follows from that of the first members. In float32, "
        f"GPU and CPU differ by at most {differences} standard deviations of the result.",
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
        f"Measured on {results['num_images']} held-out simulated images of {results['size']} × {results['size']} "
        f"pixels. The standard deviation of the samples themselves is {results['spread']:.2f}.",
        *note_if_earlier(results),
    ]


def calibration():
    measured = json.loads((HERE / "calibration.json").read_text())
    # By score, the heading of its column.
    names = {
        "RMS error / RMS deviation": "RMS error / RMS of the predicted standard deviation",
        "ENCE": "ENCE",
        "mean squared z": "mean squared z-score",
    }
    rows, notes = [], []
    for kind, results in measured["sets"].items():
        rows += [
            [f"{kind}, {name}", *(f"{values[key]:.2f}" for key in names),
             *(f"{100 * values[f'coverage at {level}%']:.0f} %" for level in (50, 90, 95))]
            for name, values in results["scores"].items()
        ]  # fmt: skip
        intervals = ", ".join(
            f"{100 * fraction['mean']:.1f} ± {100 * fraction['standard_error']:.1f} % for {level.replace('%', ' %')}"
            for level, fraction in results["interval_coverage"].items()
        )
        low, high = results["ENCE_interval"]
        large = results["large_ensemble"]
        notes += [
            "",
            f"*{kind[0].upper()}{kind[1:]}*: {results['num_images']} held-out pairs, {measured['num_samples']} "
            f"samples of {measured['num_inference_steps']} steps. Resampling of the pairs gives a calibrated ENCE "
            f"between {low:.2f} and {high:.2f}. `out.interval` contains the true value in this fraction of the pixels "
            f"(± standard error): {intervals}. With {large['num_samples']} samples, measured on the first "
            f"{large['num_images']} pairs, the ratio of the first column is {large['raw']:.2f} raw and "
            f"{large['calibrated']:.2f} calibrated.",
        ]
    header = ["", *names.values(), "within 50 %", "within 90 %", "within 95 %"]
    return [*table(header, rows), *notes, *note_if_earlier(measured)]


def trust():
    results = json.loads((HERE / "trust.json").read_text())
    rows = [
        [name, str(values["num_images"]), f"{100 * values['warned']:.0f} %",
         f"{results['area_under_curve'][name]:.3f}" if name in results["area_under_curve"] else "",
         f"{values['median']['out_of_domain']:.2f}", f"{values['median']['invented']:.2f}"]
        for name, values in results["sets"].items()
    ]  # fmt: skip
    rows.append(["all unknown images", "", "", f"{results['area_under_curve']['all of them']:.3f}", "", ""])
    header = [
        "images", "n", "with a warning", "area under the ROC curve", "distance from training images",
        "structure predicted from noise",
    ]  # fmt: skip
    prediction = [
        "",
        "The prediction of the gain was tested on pairs that neither the training nor its fit used:",
        "",
        *table(
            ["pairs", "n", "warned of harm: of those that lose more than 2 dB", "of those that gain more than 1 dB",
             "area under the ROC curve"],
            [
                [name, str(values["num_images"]),
                 *(f"{100 * values[group]['warned of harm']:.0f} % of {values[group]['num_images']}"
                   for group in ("lose more than 2 dB", "gain more than 1 dB")),
                 f"{values['area_under_curve']['lose more than 2 dB']:.2f}"]
                for name in ("real specimens", "simulated images")
                for values in (results[name],)
            ],
        ),
        "",
        "![ROC curves of the predicted gain](images/trust.png)",
        "",
        "With `--protect`, the strength rises from 0 to 1 as the predicted gain rises from −1 to 3 dB. On the same "
        "pairs:",
        "",
        *table(
            ["pairs", "", "mean gain, dB", "median", "below input", "lose more than 2 dB", "worst"],
            [
                [name, mode, f"{values['mean']:+.1f}", f"{values['median']:+.1f}",
                 f"{100 * values['fraction below input']:.0f} %",
                 f"{100 * values['fraction that loses more than 2 dB']:.0f} %", f"{values['worst']:+.1f}"]
                for name in ("real specimens", "simulated images")
                for mode, values in results[name]["gains"].items()
            ],
        ),
    ]  # fmt: skip
    return [*table(header, rows), *prediction, *note_if_earlier(results)]


def file_runs():
    results = json.loads((HERE / "file_runs.json").read_text())
    kills, processes, large, flicker = (results[name] for name in ("kills", "processes", "zarr", "flicker"))
    same = {True: "the same files as an undisturbed run, and no others", False: "NOT the same files"}
    return [
        "Measured with `bench/file_runs.py`:",
        "",
        f"- *Interruptions.* Runs of two processes over {kills['files']} results were killed {kills['kills']} times "
        f"at random moments. The runs that followed left {same[kills['identical_and_nothing_left']]}.",
        f"- *Processes.* One, two and three processes {'gave' if processes['identical'] else 'did NOT give'} "
        f"identical pixels. On {processes['cores']} virtual cores, two processes of one thread each do "
        f"{processes['throughput_of_two']:.2f} times the work of one. Two independent commands do "
        f"{processes['throughput_of_two_unrelated']:.2f} times the work of one.",
        f"- *Memory.* An OME-Zarr of {large['size_GiB']:.0f} GiB (planes of 1024 × 1024 pixels) has its first result "
        f"after {large['seconds_to_first_result']:.0f} s and takes {large['peak_GiB']:.1f} GiB of memory.",
        f"- *Flicker.* In a movie, only the camera noise changed. The temporal standard deviation of its samples is "
        f"{100 * flicker['own noise']:.0f} % of the spatial one, and {100 * flicker['shared noise']:.0f} % with "
        f"`--share-noise T`. In the movie itself it is {100 * flicker['input']:.0f} %.",
    ]


def loader():
    results = json.loads((HERE / "loader.json").read_text())
    meanwhile = results["simulated meanwhile"]
    return [
        f"Measured on {results['threads']} CPU cores with batches of {results['batch']} patches of "
        f"{results['resolution']} px and {results['patches_per_field']} patches a field: a step waits for data during "
        f"{100 * meanwhile['share_waiting']:.1f} % of its time. A step takes {100 * results['slower']:.0f} % longer "
        "than with fields that were simulated before. The first fields take "
        f"{meanwhile['seconds_waiting_at_start']:.0f} s before the first step."
    ]


def training():
    results = json.loads((HERE / "training.json").read_text())
    rates = results["images_per_second"]
    return [
        f"Measured with batches of {results['batch']} patches of {results['resolution']} px on {results['threads']} "
        f"CPU threads (mixed precision: {results['mixed_precision']}): {rates['script']:.0f} patches a second. This "
        f"is {100 * results['ratio']:.0f} % of the rate of a bare loop of forward pass, backward pass and optimiser "
        f"(`bench/training.py`)."
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
        "At this rate of pixels, one process on such a CPU needs the following time for the first training command of "
        "each recipe, without validation:",
        "",
        *table(["recipe", "steps", "patches a step", "time"], rows),
    ]


def regression():
    results = json.loads((HERE / "regression.json").read_text())
    psnr, advantage = results["psnr"], results["regression_advantage"]
    ahead = "regression" if advantage > 0 else "the flow"
    return [
        f"Measured after {results['max_train_steps']} steps from random weights, {results['batch']} patches of "
        f"{results['resolution']} px a step, mixed precision {results['mixed_precision']}, on {results['num_images']} "
        f"held-out simulated images: the hazy images score {psnr['input']:.2f} dB, regression "
        f"{psnr['regression']:.2f} dB and the flow {psnr['flow']:.2f} dB. {ahead[0].upper()}{ahead[1:]} is ahead by "
        f"{abs(advantage):.2f} dB; the standard error over the images is {results['standard_error']:.2f} dB, and each "
        f"was trained once. The trainings took {results['seconds']['regression']:.0f} s (regression) and "
        f"{results['seconds']['flow']:.0f} s (flow) (`bench/regression.py`).",
    ]


def stack_pairs():
    results = json.loads((HERE / "stack_pairs.json").read_text())
    psnr = results["psnr"]
    return [
        "Measured on a confocal stack of pollen (`bench/stack_pairs.py`). The training took "
        f"{results['max_train_steps']} steps on pairs of planes 0 to 19. The test used {results['num_images']} pairs "
        f"of planes 22 to 31. The range-invariant PSNR is {psnr['input']:.1f} dB for the hazy images, "
        f"{psnr['own']:.1f} dB with the network of the stack, and {psnr['default']:.1f} dB with an earlier checkpoint "
        f"of the package. The smallest gain of the network of the stack is {results['smallest_gain']:.1f} dB.",
    ]


def fresh_clone():
    results = json.loads((HERE / "fresh_clone.json").read_text())
    first, again, test = results["seconds"].values()
    return [
        f"In a fresh clone, `make demo` takes {first:.0f} s the first time and {again:.0f} s after that; `make test` "
        f"takes {test:.0f} s ({results['machine']}). {results['load']} processes ran on average, unrelated work "
        "included."
    ]


def formats():
    results = json.loads((HERE / "formats.json").read_text())
    groups = {
        "sizes": {"P": "pixel", "Z": "z", "T": "time"},
        "channel names": {"N": "yes"},
        "position": {"S": "yes"},
        "colours": {"C": "yes"},
        "more": {"D": "display range", "E": "exposure", "W": "wavelengths", "O": "objective", "X": "text"},
    }
    rows = []
    for name, result in results.items():
        row = [name, "exact" if result["pixels"] else "NOT exact"]
        for words in groups.values():
            cells = [
                word if letter in result["kept"] else f"{word}: {'lost' if letter in result['read'] else 'NOT read'}"
                for letter, word in words.items()
                if letter in result["stated"]
            ]
            row.append(", ".join(cells) or "–")
        rows.append(row)
    return table(["file", "pixels", *groups], rows)


DOCS = HERE.parent / "docs"


def methods():
    results = json.loads((HERE / "methods.json").read_text())
    psnr, spectrum = "range-invariant PSNR (dB)", "spectrum distance (dB)"
    rows = []
    for name, summary in results["summary"].items():
        difference = results["differences"].get(name)
        against = "–" if difference is None else "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference[psnr])
        parameters = results["parameters"][name]
        rows.append(
            [
                name,
                results["kinds"][name],
                "{mean:.2f} ± {deviation:.2f}".format(**summary[psnr]),
                against,
                f"{summary['MicroMS3IM']['mean']:.3f}",
                f"{summary['FSIM']['mean']:.3f}",
                f"{summary[spectrum]['mean']:.2f}",
                "–" if parameters is None else f"{parameters / 1e6:.2f}",
                f"{results['seconds_per_megapixel'][name]:.2f}",
            ]
        )
    rows.sort(key=lambda row: -float(row[2].split()[0]))
    steps = ", ".join(f"{name} {each['steps']:,}" for name, each in results["trainings"].items())
    return [
        *table(
            [
                "method",
                "kind",
                "PSNR, dB",
                f"difference from {results['reference']}, dB",
                "MicroMS3IM",
                "FSIM",
                "spectrum distance, dB",
                "million parameters",
                "seconds per megapixel",
            ],
            rows,
        ),
        "",
        f"{results['num_images']} held-out images of {results['size']} × {results['size']} pixels; range-invariant "
        "PSNR, mean ± standard deviation over the images; differences on the same images with their 95 % confidence "
        f"intervals. Each network was trained on {results['num_pairs']:,} pairs for {results['minutes']:g} minutes of "
        f"one core, patches of {results['resolution']} px. This makes these numbers of steps: {steps}. Classical "
        "methods have the best setting for every image, and their time is that of all settings together. All times "
        "are those of one thread.",
    ]


def latent_study():
    results = json.loads((HERE / "latent_study.json").read_text())
    psnr, drift, difference = (results[name] for name in ("psnr", "drift", "difference_from_unet"))
    realism = results["spectrum_distance"]

    def against(name):
        return "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference[name]) if name in difference else "–"

    rows = []
    for name, values in psnr.items():
        if name == "true levels":
            continue
        steps = values["mean"] if isinstance(values["mean"], list) else [values["mean"]]
        rows.append(
            [
                name,
                f"{steps[0]:.2f}" if len(steps) > 1 else "–",
                f"{steps[-1]:.2f}",
                against(name),
                f"{realism[name]['mean']:.2f}" if name in realism else "–",
                f"{drift[name][-1]:.2f}" if name in drift else "–",
            ]
        )
    calibrations = results["calibration_of_hdn"]
    before, after = (
        f"{calibrations[when]['RMS error / RMS deviation']:.2f} times the predicted standard deviation and "
        f"{calibrations[when]['coverage at 90%']:.0%} of the pixels in 90 % intervals"
        for when in ("before", "after")
    )
    costs = ", ".join(f"{name} {each['processor minutes']:.0f}" for name, each in results["trainings"].items())
    fractions = ", ".join(f"{each:.2f}" for each in results["haze_fractions"])
    return [
        *table(
            [
                "method",
                "PSNR after the first step, dB",
                "after the last step, dB",
                "difference from the U-Net, dB",
                "spectrum distance, dB",
                "drift at the last level",
            ],
            rows,
        ),
        "",
        f"{results['specimens']['test']} held-out specimens of {results['image']} × {results['image']} pixels, "
        f"{results['specimens']['train']} for training; pinholes of {results['pinholes']} Airy units, whose haze is "
        f"{fractions} of that of the open one. Range-invariant PSNR; differences with 95 % confidence intervals. "
        "The drift is the root mean squared distance of the state from the latents of the true image of its level, in "
        f"standard deviations of the latents; neighbouring true levels are {results['distance_of_levels'][-1]:.2f} "
        f"apart there. HDN is the mean of {results['members']} samples; a single one has "
        f"{realism['HDN, one sample']['mean']:.2f} dB spectrum distance. Processor minutes of the trainings: {costs}.",
        "",
        f"Errors of HDN before calibration: {before}; after, on specimens left out: {after}.",
    ]


PAGES = {
    HERE.parent / "README.md": (fresh_clone, summary),
    DOCS / "index.md": (install,),
    DOCS / "benchmarks.md": (real_specimens, structures, real_pairs, simulated_pairs, speed, gpu, sampling),
    DOCS / "uncertainty.md": (calibration, trust),
    DOCS / "science.md": (solvers,),
    DOCS / "folders.md": (file_runs,),
    DOCS / "methods.md": (methods,),
    DOCS / "latent-space-study.md": (latent_study,),
    DOCS / "formats.md": (formats,),
    DOCS / "unpaired.md": (eid, eid_photographs, eid_real),
    DOCS / "training.md": (training, costs, loader, stack_pairs, regression),
}


def main():
    parser = argparse.ArgumentParser(description="Render the tables of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if a table is stale.")
    args = parser.parse_args()
    for page, tables in PAGES.items():
        text = rendered = page.read_text()
        for render in tables:
            block = "\n".join(render())
            pattern = rf"(<!-- {render.__name__} -->\n).*?(<!-- /{render.__name__} -->)"
            rendered, count = re.subn(
                pattern, lambda m, block=block: m[1] + block + "\n" + m[2], rendered, flags=re.DOTALL
            )
            if count != 1:
                sys.exit(f"{page} must have one table {render.__name__}, found {count}.")
        if args.check and rendered != text:
            sys.exit(f"{page} has stale tables; run `python bench/readme.py`.")
        if not args.check:
            page.write_text(rendered)


if __name__ == "__main__":
    main()
