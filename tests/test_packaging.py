"""The wheel, its requirements, and the recipes that install and test it elsewhere."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from lowest_versions import lowest_versions, requirements

from haze_pipeline.version import __version__


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]


def test_the_lowest_versions_are_those_of_the_project():
    command = [sys.executable, ROOT / "tests" / "lowest_versions.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("named", "message"), [(["numpy"], "no lower bound"), (["zarr>=3", "zarr>=3.1"], "two lower bounds")]
)
def test_every_requirement_has_one_lower_bound(named, message):
    with pytest.raises(ValueError, match=message):
        lowest_versions(named)
    assert lowest_versions(["numpy>=1.26", "torchmetrics[image]>=1.8", "numpy>=1.26,<3"]) == {
        "numpy": "1.26", "torchmetrics": "1.8",
    }  # fmt: skip


def test_the_versions_of_ci_are_allowed():
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    lowest = lowest_versions(requirements())
    for name, version in pinned:
        if name in lowest:
            assert [int(part) for part in re.findall(r"\d+", version)] >= [
                int(part) for part in re.findall(r"\d+", lowest[name])
            ], name


def test_the_recipe_of_conda_forge_has_the_requirements_of_the_package():
    recipe = yaml.safe_load((ROOT / "conda-recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    names = {"torch": "pytorch"}  # of conda-forge
    wanted = [
        re.sub(r"^[\w-]+", lambda found: names.get(found[0], found[0]), each) for each in PROJECT["dependencies"]
    ]
    run = [each.replace(" ", "") for each in recipe["requirements"]["run"]]
    assert run == ["python>=${{python_min}}", *wanted]
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    assert (recipe["context"]["name"], recipe["context"]["version"]) == (PROJECT["name"], __version__)
    assert recipe["about"]["license"] == PROJECT["license"] and recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["build"]["noarch"] == "python"
    scripts = [f"{name} = {function}" for name, function in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts


def test_the_workflow_tests_every_system_and_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu-latest", "windows-latest", "macos-latest"] and matrix["python"] == PYTHONS
    steps = {step.get("name", step.get("uses")): step for step in job["steps"]}
    assert steps["actions/setup-python@v5"]["with"]["cache"] == "pip" and steps["Test"]["run"] == "make test"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"^test:.*\n\t\$\(BIN\)/(.*)\n", makefile, re.MULTILINE)[1]
    assert steps["Test on Windows"]["run"] == f".venv/Scripts/{command}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_every_target_of_the_workflow_exists():
    named = re.findall(r"make ([\w-]+)", (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    subprocess.run(["make", "--dry-run", *named], cwd=ROOT, check=True, capture_output=True)


def test_the_wheel_installs_in_two_minutes_and_brings_no_gui_toolkit():
    measured = json.loads((ROOT / "bench" / "install.json").read_text(encoding="utf-8"))
    for package in measured["packages"]:
        assert package["seconds"] <= 120 and package["toolkits"] == [], package
    developers = {"test", "test-napari", "e2e", "docs"}
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert measured["extras"].keys() == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert measured["extras"].keys() == PROJECT["optional-dependencies"].keys() - developers
