"""Examples in README.md and docs/ must run, and their tables must be rendered from the measurements."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}:{number}")
    for path in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_can_be_read_in_a_minute_or_two():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200 and len(text.splitlines()) <= 130


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "HazeMatchingPipeline" in (tmp_path / "site" / "api" / "index.html").read_text()


def test_tables_are_rendered_from_the_measurements():
    result = subprocess.run([sys.executable, ROOT / "bench" / "readme.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_and_flag_in_the_documents_exists():
    text = "\n".join(page.read_text() for page in PAGES)
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
    processes = (ROOT / "docs" / "training.md").read_text().split("## Several processes")[1]
    assert configurations == set(re.findall(r"^\| `(\w+)` \|", processes, re.MULTILINE))
