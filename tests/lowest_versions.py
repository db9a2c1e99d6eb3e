"""
Write `constraints-lowest.txt`: the lowest version of every dependency that `pyproject.toml` allows.

    python tests/lowest_versions.py

`make test-lowest` runs the tests with these versions. `python tests/lowest_versions.py --check` fails if the file is
out of date.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parent.parent
FILE = ROOT / "constraints-lowest.txt"
HEAD = "# The lowest versions that pyproject.toml allows, written by tests/lowest_versions.py.\n"


def requirements() -> list[str]:
    """The requirements of the package and of its extras, without those that name the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    named = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    return [requirement for requirement in named if not requirement.startswith("haze-pipeline[")]


def lowest_versions(named: list[str]) -> dict[str, str]:
    """
    The lower bound of every requirement, by its name.

    Raises:
        `ValueError`: If a requirement has no lower bound, or two that differ.
    """
    versions = {}
    for requirement in named:
        name = re.match(r"[\w.-]+", requirement)[0]
        bound = re.search(r"[>=]=\s*([\w.]+)", requirement)
        if bound is None:
            raise ValueError(f"{requirement} has no lower bound in pyproject.toml: add the lowest that works.")
        if versions.setdefault(name, bound[1]) != bound[1]:
            raise ValueError(f"{name} has two lower bounds in pyproject.toml, {versions[name]} and {bound[1]}.")
    return versions


def main():
    parser = argparse.ArgumentParser(description="Write constraints-lowest.txt.")
    parser.add_argument("--check", action="store_true", help="Change nothing; fail if the file is out of date.")
    args = parser.parse_args()
    text = HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(lowest_versions(requirements()).items()))
    if args.check and (not FILE.is_file() or FILE.read_text(encoding="utf-8") != text):
        sys.exit(f"{FILE} is out of date: run `python tests/lowest_versions.py`.")
    if not args.check:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
