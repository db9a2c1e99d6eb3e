"""Virtual environments with and without this package. They share all other packages with the running environment."""

import os
import subprocess
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from conftest import ROOT


# Library folders of the running environment.
LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


def make_environment(folder: Path, with_package: bool) -> Path:
    """
    Create a virtual environment that links to all packages of the running one, and return its Python.

    Two packages are left out: transformers, which diffusers does not need but would take seconds to import, and
    haze_pipeline. If `with_package`, haze_pipeline is added from this checkout; otherwise it cannot be imported.
    """
    venv.create(folder, with_pip=False)
    base = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", base))
    own = {Path(file).parts[0] for file in distribution("haze-pipeline").files}
    for library in LIBRARIES:
        for entry in library.iterdir():
            if (
                entry.name not in own
                and not entry.name.startswith("transformers")
                and not (site_packages / entry.name).exists()
            ):
                (site_packages / entry.name).symlink_to(entry)
    if with_package:
        information = next(Path(name) for name in own if name.endswith(".dist-info"))
        (site_packages / information).symlink_to(distribution("haze-pipeline").locate_file(information))
        (site_packages / "haze_pipeline.pth").write_text(f"{ROOT}\n")
    return Path(sysconfig.get_path("scripts", "venv", base), "python")


def run_python(python: Path | str, code: str, *arguments, check: bool = True, **environment):
    """Run code in another process, which can connect only to this machine."""
    guard = """
import sys

def _only_this_machine(event, arguments):
    if event == "socket.connect" and arguments[1][0] not in ("127.0.0.1", "::1"):
        raise OSError(f"the test forbids a connection to {arguments[1]}")

sys.addaudithook(_only_this_machine)
"""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    result = subprocess.run(
        [python, "-c", guard + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**inherited, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        cwd=Path(python).parent,
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result
