"""
Build the wheel, install it in clean environments, and measure time and size: of the package on top of torch, and of
every extra on top of the package.

    python bench/install.py [--python python3.11 python3.12 python3.13] [--extras zarr napari]

Each environment gets torch first, in the version of `constraints.txt`. The time of the package includes its downloads.
The extras are measured with the first Python that is found. Needs a package index. Writes `bench/install.json`; with
`--extras`, the sizes of the others and the times of other Pythons stay in it.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path


HERE = Path(__file__).parent
ROOT = HERE.parent
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_DEVELOPERS = {"test", "test-napari", "e2e", "docs"}
# Distributions that bring a toolkit for windows, or bindings to one. opencv-python contains Qt.
TOOLKITS = re.compile(
    r"(pyqt|pyside|wxpython|pygobject|kivy|pygame|pyglet|customtkinter|ttkbootstrap|pysimplegui|opencv-(contrib-)?"
    r"python$)",
    re.IGNORECASE,
)


def run(*command) -> str:
    """Run a command and return its output."""
    print("$", *command, flush=True)
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def build_wheel(folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(environment: Path, *arguments) -> float:
    """Install something with pip and return the seconds that it took."""
    started = time.perf_counter()
    pip = (python_of(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", CONSTRAINTS, *arguments)
    return time.perf_counter() - started


def megabytes(environment: Path) -> float:
    return sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file()) / 1e6


def toolkits(environment: Path) -> list[str]:
    """Names of the installed distributions that bring a GUI toolkit."""
    listed = run(python_of(environment), "-m", "pip", "list", "--disable-pip-version-check", "--format", "json")
    return [entry["name"] for entry in json.loads(listed) if TOOLKITS.match(entry["name"])]


def measure_package(python: str, wheel: Path, environment: Path) -> dict:
    """Install torch and the wheel in a new environment, and run the command."""
    run(python, "-m", "venv", environment)
    install(environment, "torch")
    torch_only = megabytes(environment)
    seconds = install(environment, "--no-cache-dir", wheel)
    command = shutil.which("haze-pipeline", path=python_of(environment).parent)
    version = run(command, "--version").strip()
    facts = json.loads(run(command, "info", "--json"))
    assert facts["model"] == "default checkpoint", facts
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    python_version, torch_version = run(python_of(environment), "-c", code).split()
    return {
        "python": python_version,
        "torch": torch_version,
        "version": version,
        "seconds": round(seconds, 1),
        "MB": round(megabytes(environment) - torch_only, 1),
        "toolkits": toolkits(environment),
    }


def measure_extra(name: str, wheel: Path, environment: Path, folder: Path) -> dict:
    """Install the wheel with an extra in a copy of the environment of the package."""
    copy = folder / name
    shutil.copytree(environment, copy, symlinks=True, copy_function=os.link)
    install(copy, f"haze-pipeline[{name}] @ {wheel.as_uri()}")
    result = {"MB": round(megabytes(copy) - megabytes(environment), 1), "toolkits": toolkits(copy)}
    shutil.rmtree(copy)
    return result


def runs(python: str) -> bool:
    try:
        return subprocess.run([python, "--version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def main():
    parser = argparse.ArgumentParser(description="Install the wheel in clean environments, and measure time and size.")
    parser.add_argument("--python", nargs="+", default=["python3.11", "python3.12", "python3.13"])
    names = [name for name in PROJECT["optional-dependencies"] if name not in FOR_DEVELOPERS]
    parser.add_argument("--extras", nargs="*", choices=names, help="Measure only these extras.")
    args = parser.parse_args()
    found = [python for python in args.python if runs(python)]
    for python in args.python:
        if python not in found:
            print(f"{python} is not on this machine and is left out.", file=sys.stderr)
    if not found:
        sys.exit("None of the Pythons is on this machine: name one that is with --python.")
    packages, extras, output = [], {}, HERE / "install.json"
    if args.extras is not None and output.is_file():
        before = json.loads(output.read_text(encoding="utf-8"))
        packages, extras = before["packages"], before["extras"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        for python in found:
            environment = folder / "environment"
            package = measure_package(python, wheel, environment)
            packages = [*(each for each in packages if each["python"] != package["python"]), package]
            if python == found[0]:
                for extra in names if args.extras is None else args.extras:
                    extras[extra] = measure_extra(extra, wheel, environment, folder)
            shutil.rmtree(environment)
        results = {
            "machine": f"{os.cpu_count()} CPU cores, {platform.system()}, {platform.machine()}",
            "load": round(os.getloadavg()[2], 1) if hasattr(os, "getloadavg") else None,
            "wheel_MB": round(wheel.stat().st_size / 1e6, 1),
            "packages": sorted(packages, key=lambda each: [int(part) for part in each["python"].split(".")]),
            "extras": extras,
            "not_found": [python for python in args.python if python not in found],
        }
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
