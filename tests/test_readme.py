"""What the README shows must run, and its tables must be what the scripts measured."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}:{number}")
    for path in (ROOT / "README.md", ROOT / "training" / "README.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {})


def test_tables_are_rendered_from_the_measurements():
    result = subprocess.run([sys.executable, ROOT / "bench" / "readme.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_and_flag_in_the_documents_exists():
    text = (ROOT / "README.md").read_text() + (ROOT / "training" / "README.md").read_text()
    for command in set(re.findall(r"haze-pipeline ([a-z][\w-]*)", text)):
        arguments = [sys.executable, "-m", "haze_pipeline", command, "--help"]
        help_ = subprocess.run(arguments, capture_output=True, text=True, env={"COLUMNS": "200", "PATH": ""}, cwd=ROOT)
        assert help_.returncode == 0, command
        for line in re.findall(rf"haze-pipeline {command} [^#\n`]*", text):
            for flag in re.findall(r"--[\w-]+", line):
                assert flag in help_.stdout, f"{command} {flag}"
    shared = (ROOT / "haze_pipeline" / "data" / "training_data.py").read_text()
    for name in ("train_haze_matching", "train_regression"):
        script = (ROOT / "training" / f"{name}.py").read_text() + shared
        for line in re.findall(rf"{name}\.py .*(?:\\\n.*)*", text):
            for flag in re.findall(r"--\w+", line):
                assert f'"{flag}"' in script, flag
    configurations = {path.stem for path in (ROOT / "training" / "accelerate_configs").iterdir()}
    assert configurations == set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
