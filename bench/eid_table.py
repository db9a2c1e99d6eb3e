"""Tables of `bench/eid.json` for `docs/unpaired.md`, which `bench/readme.py` renders."""

import json
from pathlib import Path

from markdown_table import table


RESULTS = Path(__file__).with_name("eid.json")
NOT_MEASURED = ["Not measured yet: run `python bench/eid.py`."]


def eid():
    """Trainings and classical methods on simulated pairs."""
    if not RESULTS.is_file():
        return NOT_MEASURED
    results = json.loads(RESULTS.read_text())
    simulated = results["simulated"]
    rows = []
    for name, values in sorted(simulated["methods"].items(), key=lambda item: -item[1]["psnr"]):
        errors = [
            f"{values[key]:.3f}" if key in values else "–" for key in ("consistency_error", "equivariance_error")
        ]
        gain = f"{values['gain']:+.2f} ± {values['standard_error']:.2f}"
        rows.append([name, f"{values['psnr']:.2f}", gain, f"{values['ssim']:.3f}", f"{values['niqe']:.2f}", *errors])
    header = ["method", "PSNR, dB", "gain, dB", "SSIM", "NIQE", "error of consistency", "error of equivariance"]
    return [
        *table(header, rows),
        "",
        f"Each network was trained once, for {results['minutes']:g} minutes on one core, on {results['num_pairs']} "
        f"images, and scored on {simulated['num_images']} held-out pairs. An operator that learns from clear images "
        "takes half as long in addition. The PSNR is range-invariant; ± is the "
        "standard error over the images. Classical methods have their default settings. NIQE was fitted on clear "
        f"images of the same simulation; the clear images of the test score {simulated['niqe_of_clear']:.2f}.",
    ]


def eid_photographs():
    """EID and the dark-channel prior on photographs."""
    if not RESULTS.is_file():
        return NOT_MEASURED
    results = json.loads(RESULTS.read_text())
    photographs = results["photographs"]
    rows = [[name, f"{each['psnr']:.2f}", f"{each['ssim']:.3f}"] for name, each in photographs["methods"].items()]
    return [
        *table(["method", "PSNR, dB", "SSIM"], rows),
        "",
        f"Means over {photographs['num_images']} photographs of scikit-image with simulated haze. EID was trained on "
        f"them for {4 * results['minutes']:g} minutes on one core.",
    ]


def eid_real():
    """The checkpoint in the package before and after its adaptation to real images."""
    if not RESULTS.is_file():
        return NOT_MEASURED
    rows = []
    for name, references in json.loads(RESULTS.read_text())["real"].items():
        target, blurred = references["target"], references["target_at_widefield_resolution"]
        rows.append([name, *(f"{target[method]:.1f} / {blurred[method]:.1f}" for method in target)])
    return [
        *table(["image", "input", "checkpoint in the package", "adapted to this image"], rows),
        "",
        "Range-invariant PSNR in dB against the two references of `bench/real_pairs.py`. Each adaptation saw one hazy "
        "image alone. The image of C. elegans has little haze.",
    ]
