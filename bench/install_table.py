"""The table of the extras, from what `bench/install.py` measured."""

import json
from pathlib import Path

from markdown_table import table


NEEDED_FOR = {
    "zarr": "OME-Zarr files",
    "napari": "the [plugin](napari.md) of napari",
    "train": "training, datasets, several processes (`--workers`, `accelerate launch`)",
    "eval": "`haze-pipeline evaluate`, and the plot of `haze-pipeline calibrate`",
    "perceptual": "`--perceptual` and `--dinov2` of `haze-pipeline evaluate`",
    "baselines": "Restormer and `--adversarial_weight` in `training/train_regression.py`",
    "hub": "`haze-pipeline push`",
    "bioimageio": "`haze-pipeline export-bioimageio`",
    "space": "the page in the browser",
}


def install() -> list[str]:
    results = json.loads(Path(__file__).with_name("install.json").read_text(encoding="utf-8"))
    rows = [[f"`{name}`", purpose, f"{results['extras'][name]['MB']:.0f} MB"] for name, purpose in NEEDED_FOR.items()]
    packages = results["packages"]
    found = sorted({name for each in (*packages, *results["extras"].values()) for name in each["toolkits"]})
    toolkits = f"GUI toolkits among them: {', '.join(found)}." if found else "None of them brings a GUI toolkit."
    times = ", ".join(f"{each['seconds']:.0f} s with Python {each['python']}" for each in packages)
    return [
        *table(["extra", "needed for", "adds"], rows),
        "",
        f"The package without extras adds {packages[0]['MB']:.0f} MB to torch {packages[0]['torch']} and installs in "
        f"{times}, downloads included ({results['machine']}, while {results['load']} processes ran on average). Each "
        f"extra was added to the package alone. {toolkits}",
    ]
