"""
Check a package of `haze-pipeline export-bioimageio` in the runtime with which bioimage.io ranks models, in an
environment of its own without haze-pipeline and diffusers.

    python bench/bioimageio_runtime.py microscope.zip

pip makes the environment, which takes several GB, in a temporary folder. To keep it for the next time, name a folder
with `--environment`. Prints one JSON object: the versions, and for each form of the weights the largest difference
from the stored result and the verdict of the tests of bioimage.io. The exit code is 1 if a test fails.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


# This bioimageio.core fails with later versions of pydantic.
RUNTIME = ["torch==2.5.1", "numpy==1.26.4", "onnxruntime==1.20.1", "bioimageio.core==0.10.4", "pydantic==2.12.5"]

# Runs in the environment. It loads every form of the weights with torch or ONNX Runtime alone, then runs the tests of
# bioimage.io.
CHECK = """
import json, sys, tempfile, zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from bioimageio.core import load_model_description, test_description

VERSIONS = ("torch", "numpy", "onnxruntime", "bioimageio.core", "bioimageio.spec")

package = sys.argv[1]
folder = Path(tempfile.mkdtemp())
zipfile.ZipFile(package).extractall(folder)
description = load_model_description(package)
architecture = description.weights.pytorch_state_dict.architecture
sys.path.insert(0, str(folder))
from posterior_mean import PosteriorMean

module = PosteriorMean(**architecture.kwargs).eval()
module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
scripted = torch.jit.load(folder / "weights_torchscript.pt")
forms = {
    "pytorch_state_dict": lambda image: module(torch.from_numpy(image)).numpy(),
    "torchscript": lambda image: scripted(torch.from_numpy(image)).numpy(),
}
if description.weights.onnx is not None:
    session = onnxruntime.InferenceSession(folder / "weights.onnx", providers=["CPUExecutionProvider"])
    forms["onnx"] = lambda image: session.run(None, {"hazy": image})[0]
hazy, stored = (np.load(folder / f"test_{kind}.npy") for kind in ("input", "output"))
report = {name: version(name) for name in VERSIONS}
report["format"] = description.format_version
report["largest value"] = float(stored.max())
for form, function in forms.items():
    with torch.no_grad():
        clear = function(hazy)
    summary = test_description(package, weight_format=form)
    report[form] = {"largest difference": float(np.abs(clear - stored).max()), "tests": summary.status}
    if summary.status != "passed":
        print(summary.format(), file=sys.stderr)
report["gradients"] = sum(p.requires_grad for p in scripted.parameters())
assert "haze_pipeline" not in sys.modules and "diffusers" not in sys.modules
print(json.dumps(report, indent=2))
sys.exit(any(report[form]["tests"] != "passed" for form in forms))
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="A .zip of haze-pipeline export-bioimageio.")
    parser.add_argument("--environment", type=Path, help="Virtual environment to use, or to create and keep.")
    return parser.parse_args()


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        environment = args.environment or Path(temporary, "environment")
        python = environment.absolute() / "bin" / "python"
        if not python.exists():
            venv.create(environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *RUNTIME], check=True)
        result = subprocess.run([python, "-c", CHECK, args.package.absolute()], cwd=temporary)
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
