"""
Measure how the default checkpoint reproduces certain structures: solid bodies, dim structures beside bright ones, and
the finest detail.

    python bench/structures.py [--images_dir ../shared/data] [--model runs/...]

- *Hollow nuclei*: ratio of core to rim intensity in the result, relative to the same ratio in the clear image; for
  synthetic discs, and for nuclei of specimens not used for training.
- *Dim structures*: contrast of a dim disc beside bright ones, relative to its contrast alone and to its true contrast.
- *Fine detail*: power in the highest octave of undersampled images, relative to the clear images; brightness of spots
  1 to 2 pixels wide; and power at the frequencies of a 2 × 2 checkerboard, relative to neighbouring frequencies.
- *Saturated structures*: ratio of core to rim intensity of discs whose hazy image is cut off at the top.
- *Flicker*: standard deviation of the total of frames that differ in their photon noise only, relative to its mean.
- *Means without noise*: largest difference between four identical frames and between two seeds; number of network
  calls.

Writes `bench/structures.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint import weights_hash
from real_specimens import make_pairs, read_split
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label

from haze_pipeline.evaluation.baselines import widefield_psf
from haze_pipeline.loading import load_pipeline
from haze_pipeline.presets import Preset, choose_members
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair, smooth_light


HERE = Path(__file__).parent
SEED = 5
SIDE = 256
NUCLEI = ("nucle", "dna", "gowt1")  # in the names of files of nuclei
OFFSET, NOISE = 100.0, 2.0  # counts of the camera


def expose(light, rng):
    """A camera image of light in photons, a count each."""
    return (OFFSET + rng.poisson(np.maximum(light, 0)) + rng.normal(0, NOISE, light.shape)).astype(np.float32)


def disc(radius, y=SIDE / 2, x=SIDE / 2):
    """A disc of brightness 1 with an edge one pixel wide."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.clip(radius - np.hypot(rows - y, columns - x) + 0.5, 0, 1)


def blurred(light):
    return ndimage.convolve(light, widefield_psf(2.0), mode="reflect")


def core_to_rim(image, mask):
    """Mean intensity of the inner half of a body over that of the ring from a tenth to a third of its depth."""
    depth = ndimage.distance_transform_edt(mask)
    depth /= depth.max()
    return image[depth > 0.6].mean() / image[(depth > 0.1) & (depth < 0.35)].mean()


def hollow_discs(predict, rng):
    """Of discs of several sizes behind haze of several strengths."""
    ratios = {}
    for haze in (0.0, 0.5, 2.0):
        for index, radius in enumerate((10, 20, 35, 55, 80)):
            clear = 400 * disc(radius)
            broad = smooth_light(SIDE, pair_generator(SEED, index)).numpy()
            hazy = expose(blurred(clear) + 20 + haze * 400 * broad * blurred(disc(1.5 * radius)), rng)
            result = predict(hazy)
            mask = disc(radius) > 0.5
            ratios.setdefault(f"haze {haze:g}", []).append(float(core_to_rim(result, mask)))
    return ratios


def hollow_nuclei(predict, files):
    """Of the nuclei of held-out specimens, against their clear images."""
    files = [(row, channels) for row, channels in files if any(name in row["file"] for name in NUCLEI)]
    ratios = []
    for _, pair in make_pairs(files, 6 * len(files)):
        clear, result = pair.clear.numpy(), predict(pair.hazy.numpy())
        smooth = ndimage.gaussian_filter(clear, 2)
        bodies = label(ndimage.binary_fill_holes(smooth > threshold_otsu(smooth)))
        for number, box in enumerate(ndimage.find_objects(bodies), 1):
            mask = np.pad(bodies[box] == number, 1)
            if mask.sum() < 400 or min(mask.shape) < 20:
                continue
            part_clear, part_result = (np.pad(image[box], 1) for image in (clear, result))
            ratios.append(float(core_to_rim(part_result, mask) / core_to_rim(part_clear, mask)))
    return ratios


def dim_beside_bright(predict, rng):
    """Contrast of a disc 12 px in radius, alone and 60 px from two bright ones of 4,000 counts."""
    results = {}
    for divisor in (4, 16, 64):
        dim = 4000 / divisor * disc(12, SIDE / 2, 90)
        bright = 4000 * (disc(12, SIDE / 2, 150) + disc(20, 60, 180))
        inner, ring = disc(9, SIDE / 2, 90) > 0.5, (disc(22, SIDE / 2, 90) > 0.5) & (disc(17, SIDE / 2, 90) < 0.5)
        contrasts = []
        for light in (dim, dim + bright):
            result = predict(expose(blurred(light) + 50, rng))
            contrasts.append(float(result[inner].mean() - result[ring].mean()))
        results[f"1/{divisor}"] = {
            "beside bright over alone": contrasts[1] / contrasts[0],
            "beside bright over true": contrasts[1] / (4000 / divisor),
        }
    return results


def saturated_discs(predict, rng):
    """Of discs whose hazy image is cut off at 60 % of its greatest excess."""
    ratios = []
    for radius in (10, 20, 35, 55):
        hazy = expose(blurred(400 * disc(radius)) + 20, rng)
        limit = OFFSET + 20 + 0.6 * 400
        ratios.append(float(core_to_rim(predict(np.minimum(hazy, limit)), disc(radius) > 0.5)))
    return ratios


def flicker(predict, rng):
    """Of ten frames of every one of five simulated scenes, as fields of 256 px."""
    found = []
    for index in range(5):
        scene = simulate_pair(SIDE, pair_generator(SEED, index)).hazy.numpy()
        totals = [predict(rng.poisson(np.maximum(scene, 0)).astype(np.float32)).sum() for _ in range(10)]
        found.append(float(np.std(totals) / np.mean(totals)))
    return found


def radial_power(image):
    """Power at every frequency of an image whose edges a Hann window takes away, and the frequencies."""
    window = np.outer(*[np.hanning(length) for length in image.shape])
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    return power, frequency


def fine_detail(predict, files, rng):
    ratios, checkerboard = [], []
    for _, pair in make_pairs(files, 60):
        optics = pair.parameters
        sampling = optics["pixel_size"] / (optics["emission_wavelength"] / (4 * optics["numerical_aperture"]))
        clear, result = pair.clear.numpy(), predict(pair.hazy.numpy())
        power, frequency = radial_power(result)
        # Rows, columns and a checkerboard of 2 px, against the frequencies beside them.
        last = SIDE // 2
        at = power[last, 0] + power[0, last] + power[last, last]
        beside = slice(last - 12, last - 3)
        around = power[beside, 0].mean() + power[0, beside].mean() + power[beside, beside].mean()
        checkerboard.append(float(at / around))
        if sampling > 2 and optics["haze_ratio"] < 1:
            high = (frequency > 0.25) & (frequency < 0.5)
            expected, _ = radial_power(clear)
            ratios.append(float(np.sqrt(power[high].sum() / expected[high].sum())))
    spots = np.zeros((SIDE, SIDE))
    spots[16::24, 16::24] = 1
    heights = {}
    for width in (1.0, 2.0):
        clear = ndimage.gaussian_filter(spots, width / 2.355)
        clear *= 500 / clear.max()
        result = predict(expose(clear + 20, rng))
        peaks = result[16::24, 16::24] - np.median(result)
        heights[f"{width:g} px"] = float(np.median(peaks) / 500)
    return {
        "amplitude of the highest octave, undersampled images": float(np.median(ratios)),
        "number of undersampled images": len(ratios),
        "height of spots": heights,
        "checkerboard": float(np.median(checkerboard)),
    }


def means_without_noise(pipe, rng):
    members, calls = choose_members(pipe, Preset.fast), []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    frame = expose(400 * blurred(disc(30)) + 50, rng)

    def predict(image, seed):
        generator = torch.Generator().manual_seed(seed)
        return pipe(image, num_inference_steps=1, ensemble_size=members, generator=generator).prediction

    first, second = predict(frame, 0), predict(frame, 1)
    number = len(calls) / 2
    frames = predict(np.stack([frame] * 4), 0)
    handle.remove()
    scale = np.abs(first).max()
    return {
        "network calls": number,
        "seeds": float(np.abs(first - second).max() / scale),
        "identical frames": float(np.abs(frames - frames[:1]).max() / scale),
    }


def main():
    parser = argparse.ArgumentParser(description="Measure what the default checkpoint does to single structures.")
    parser.add_argument("--images_dir", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--model", help="Pipeline folder; the default checkpoint if omitted.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    members = choose_members(pipe, Preset.fast)

    def predict(image):
        generator = torch.Generator().manual_seed(0)
        return pipe(image, num_inference_steps=1, ensemble_size=members, generator=generator).prediction

    files = read_split(args.images_dir, "test")
    nuclei = np.array(hollow_nuclei(predict, files))
    results = {
        "checkpoint": weights_hash(pipe.unet.state_dict()),
        "core over rim of discs": hollow_discs(predict, np.random.default_rng(0)),
        "core over rim of nuclei": {
            "number": len(nuclei),
            "quantiles": {f"{q}": float(np.quantile(nuclei, q)) for q in (0.1, 0.25, 0.5, 0.75, 0.9)},
            "within_10_percent": float((np.abs(nuclei - 1) <= 0.1).mean()),
        },
        "dim discs": dim_beside_bright(predict, np.random.default_rng(1)),
        "fine detail": fine_detail(predict, files, np.random.default_rng(2)),
        "core over rim of saturated discs": saturated_discs(predict, np.random.default_rng(4)),
        "flicker": flicker(predict, np.random.default_rng(5)),
        "means without noise": means_without_noise(pipe, np.random.default_rng(3)),
    }
    print(json.dumps(results, indent=1))
    if args.model is None:
        (HERE / "structures.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
