"""
Examples in README.md and docs/ must run, and their tables must be rendered from the measurements.

The commands and the Python blocks of a page run in their order, in a folder with the small images that they name. Some
of the images are smaller, and some numbers of steps lower, than what the page says: see `SMALLER`.
"""

import os
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from format_files import write_plate
from hub_double import cards_are_checked_here, hub_double
from PIL import Image
from torchcfm_unet import reference_unet
from typer.main import get_command
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.cli import app
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.io.ome_zarr import OmeZarrWriter
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_pair


PAGES = [ROOT / "README.md", ROOT / "training" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are not run here, by how they start: why, and what is checked instead.
NOT_RUN = {
    "pip install": "changes the environment of the tests and needs a package index; its extras must exist",
    "make": "installs everything or takes hours; its target must exist",
    "haze-pipeline export-bioimageio": "takes long; test_bioimageio_export.py runs it",
    "IMAGES=../shared/data bash training/default_checkpoint.sh": "takes hours; its syntax must be right",
    "haze-pipeline dehaze https://": "needs a server; test_ome_zarr_collections.py has one",
    "haze-pipeline dehaze s3://": "needs a bucket",
    "#!/bin/bash": "needs a cluster; its syntax must be right",
}
# Of `accelerate launch`, which may need GPUs, what it launches runs here, in one process.
# test_train_haze_matching.py launches two.

# Options that are added to a command to make it small, by its name and a word that it has ("" for any).
TRAINING = "--max_train_steps 1 --train_batch_size 2 --lr_warmup_steps 0"
SMALLER = {
    ("simulate", "--from-stack"): "--num-images 2",
    ("simulate", "--pinholes"): "--num-images 2 --size 64",
    ("simulate", "--from-images"): "--num-images 2 --size 64",
    ("simulate", "--seed"): "--num-images 2 --size 32",
    ("dataset", "--test-share"): "--seed 2",  # with which each split gets one of the four specimens
    ("evaluate", "--dataset"): "--preset fast --baseline none",  # for the others see test_cli_evaluate.py
    ("dehaze", "quality"): "--ensemble-size 2 --num-inference-steps 2",
    ("dehaze", "--workers"): "--workers 1",  # for processes see test_runs.py
    ("train_haze_matching.py", ""): f"{TRAINING} --simulation_size 64 --patches_per_field 2 --report_to none",
    ("train_regression.py", ""): TRAINING,
    ("train_regression.py", "esrgan"): "--resolution 32 --discriminator_features 8",
    ("train_hierarchical_vae.py", ""): TRAINING,
    ("train_latent_restoration.py", ""): f"{TRAINING} --max_train_steps 2 --degradation_steps 1",
    ("train_latent_restoration.py", "--init_from"): "--degradation_steps 0",
    ("train_eid.py", ""): f"{TRAINING} --resolution 32",
    ("train_eid.py", "--unpaired_clear"): "--max_train_steps 2 --operator_steps 1 --discriminator_features 4",
    ("train_eid.py", "learned"): '--operator_config {"num_features":4,"num_blocks":1}',
    ("fit_bespoke_solver.py", ""): "--num_images 1 --resolution 32 --max_evaluations 1",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Environment of programs for which a double on this machine is the Hub."""
    with hub_double() as double:
        yield {
            "HF_ENDPOINT": double.endpoint,
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "token",
        }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with everything that the pages name and don't make."""
    folder = tmp_path_factory.mktemp("inputs")

    def counts(*shape):
        return np.random.default_rng(0).poisson(100, shape).astype(np.uint16)

    def write(name, data, axes):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_ome_tiff(folder / name, Micrograph(data, axes, (0.1, 0.1)))

    # 1. The repository, with a part of its example.
    for name in ("training", "haze_pipeline"):
        (folder / name).symlink_to(ROOT / name)
    example = "spaces/haze-matching/examples/filaments.ome.tif"
    write(example, read_micrograph(ROOT / example).data[:64, :64], "YX")

    # 2. Images to dehaze.
    for name in ("cells.tif", "fish.tif", "filaments.tif", "hazy_images/0.tif"):
        write(name, counts(32, 32), "YX")
    write("movie.tif", counts(2, 32, 32), "TYX")
    for name in ("day1/one.tif", "day1/night/two.tif"):
        write(name, counts(7, 1, 16, 16), "ZCYX")
    planes = counts(2, 32, 32)
    zarr = OmeZarrWriter(folder / "embryo.ome.zarr", Micrograph(planes, "ZYX"), planes.shape, planes.dtype)
    with zarr as writer:
        for index, plane in enumerate(planes):
            writer.write((index,), plane)

    write_plate(folder / "plate.zarr", [counts(1, 1, 1, 32, 32) for _ in range(3)])

    (folder / "photographs").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    for name in ("photographs/0.png", "hazy.png"):
        Image.fromarray(colours).save(folder / name)

    # 3. Pairs, haze-free images and confocal stacks.
    for source in ("pairs", "validation", "runs/pairs", "runs/validation", "runs/test"):
        for index in range(4 if source == "pairs" else 2):
            pair = simulate_pair(64, pair_generator(0, index))
            for kind, image in (("hazy", pair.hazy), ("clear", pair.clear)):
                write(f"{source}/{kind}/{index}.tif", image.numpy().astype(np.uint16), "YX")
    for source in ("zebrafish", "neuron"):
        for split in ("train_crop", "val_crop"):
            write(f"{source}/{split}/0.tif", counts(2, 128, 128), "CYX")
    write("clean_images/0.tif", simulate_pair(96, pair_generator(0, 0)).clear.numpy().astype(np.uint16), "YX")
    write("stacks/0.tif", counts(4, 64, 64), "ZYX")

    # 4. Checkpoints: the result of a training, and a file of the official code.
    for name in ("runs/first", "runs/first/best"):
        HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()).save_pretrained(folder / name)
    HazeRegressionPipeline(tiny_unet()).save_pretrained(folder / "runs/regression")
    torch.save(reference_unet(128).state_dict(), folder / "best_model.pth")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="the pages show commands of a POSIX shell, with its paths")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=cards_are_checked_here if page.name == "training.md" else ()) for page in PAGES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_what_a_page_shows_runs(page, inputs, hub, tmp_path):
    text = page.read_text()
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    blocks = fence.findall(text) + [
        ("sh", line) for line in re.findall(r"`(haze-pipeline .* -o .*?)`", fence.sub("", text))
    ]
    if not blocks:
        return
    folder = tmp_path / "folder"
    shutil.copytree(inputs, folder, symlinks=True, copy_function=os.link)
    for language, block in blocks:
        assert language in ("sh", "python"), block
        if language == "python":
            run(["python", "-c", block], folder, hub)
        elif block.startswith("#!"):
            run_or_check(block, folder, hub)
        else:
            for line in block.replace("\\\n", " ").splitlines():
                run_or_check(line, folder, hub)


def run_or_check(command, folder, hub):
    """Run a command of a shell, or check of it what can be checked if it is one of `NOT_RUN`."""
    words = shlex.split(command, comments=True)
    if not any(command.startswith(start) for start in NOT_RUN):
        run(words, folder, hub)
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "pip":
        extras = re.findall(r"\w+", words[-1])
        assert set(extras) <= set(distribution("haze-pipeline").metadata.get_all("Provides-Extra"))
    elif words[0] != "haze-pipeline":
        script = command if command.startswith("#!") else (ROOT / words[-1]).read_text()
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def run(words, folder, hub):
    """Run a command in a process of its own, which has torch and diffusers already, and without its launcher."""
    if words[0] == "accelerate":
        assert all((folder / word).is_file() for word in words if word.endswith(".yaml"))
        start = next(index for index, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words = ["haze-pipeline", *words[start + 2 :]] if words[start] == "-m" else ["python", *words[start:]]
    if words[:2] == ["python", "-c"]:
        script, arguments = folder / "block.py", []
        script.write_text(words[2])
    elif words[0] == "python":
        script, *arguments = ROOT / words[1], *words[2:]
    else:
        assert words[0] == "haze-pipeline", words
        script, arguments = Path(sys.executable).with_name("haze-pipeline"), words[1:]
    for (name, word), options in SMALLER.items():
        if name in (script.name, arguments[0] if arguments else "") and word in ("", *arguments):
            arguments += options.split()
    done = run_script(script, *arguments, folder=folder, environment=hub)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


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


def test_every_option_that_a_page_names_exists():
    parameters = [parameter for command in get_command(app).commands.values() for parameter in command.params]
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    scripts = [*ROOT.glob("training/*.py"), *ROOT.glob("bench/*.py")]
    options |= {option for script in scripts for option in re.findall(r'"(--\w+)"', script.read_text())}
    of_accelerate = {"--config_file", "--cpu", "--num_processes", "--machine_rank", "--main_process_ip"}
    of_diffusers, of_hub = {"--trust-remote-code", "--output-key"}, {"--exclude"}
    slurm_script = re.compile(r"^#!/bin/bash.*?```", re.DOTALL | re.MULTILINE)
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--\w[\w-]*", slurm_script.sub("", page.read_text())))
        assert named - options <= {"--help", "--logdir", *of_accelerate, *of_diffusers, *of_hub}, page


def test_every_module_and_file_that_a_page_names_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    for name in {*re.findall(r"`(haze_pipeline(?:\.\w+)+)", text), *re.findall(r"^::: (\S+)", text, re.MULTILINE)}:
        assert pydoc.locate(name) is not None, name
    folders = "bench|docs|haze_pipeline|model_cards|spaces|tests|training"
    for name in set(re.findall(rf"`((?:{folders})/[^`\s]*)`", text)):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_every_configuration_of_accelerate_is_explained():
    configurations = {path.stem for path in (ROOT / "training" / "accelerate_configs").iterdir()}
    processes = (ROOT / "docs" / "training.md").read_text().split("## Several processes")[1]
    assert configurations == set(re.findall(r"^\| `(\w+)` \|", processes, re.MULTILINE))
