"""A running Space and a browser for its tests, and what the pipeline itself gives."""

import math
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from haze_pipeline.loading import Device, DType, load_pipeline, place_pipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.simulation.optics import Optics
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_series


pytest.importorskip("gradio_client", reason="needs the extra `e2e`")

from gradio_client import Client


class Space:
    """A running Space, its folder of temporary files, and its log."""

    def __init__(self, url: str, process: subprocess.Popen, folder: Path):
        self.url, self.process, self.folder = url, process, folder

    @property
    def files(self) -> list[Path]:
        """All files that it keeps of its visitors. `.ses` is a file of onnxruntime, where that is installed."""
        return [path for path in (self.folder / "tmp").rglob("*") if path.is_file() and path.name != ".ses"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def client(self) -> Client:
        return Client(
            self.url, verbose=False, download_files=str(self.folder / "downloads"), httpx_kwargs={"timeout": 60}
        )


@contextmanager
def started(folder: Path, **environment):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (folder / "tmp").mkdir()
    environment |= {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, ROOT / "spaces" / "haze-matching" / "app.py"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 180
            while "Running on" not in (folder / "log").read_text():
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield Space(f"http://127.0.0.1:{port}", process, folder)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    with started(tmp_path_factory.mktemp("space")) as running:
        yield running
        # No visitor caused an unexpected error of ours. Gradio itself logs refused paths.
        assert f'File "{ROOT / "spaces"}' not in running.log, running.log


@pytest.fixture(scope="module")
def pipe():
    pipe = place_pipeline(load_pipeline(None), Device.auto, DType.auto)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def micrograph(*leading: int, size: int = 96, seed: int = 0) -> np.ndarray:
    """16-bit planes of filaments under haze, `[*leading, size, size]`."""
    optics = Optics(1.2, 0.52, 0.488, 1.33, 0.1)
    count = math.prod(leading)
    planes = [simulate_series(size, pair_generator(seed, index), optics)[0].hazy for index in range(count)]
    return np.stack([plane.numpy() for plane in planes]).astype(np.uint16).reshape(*leading, size, size)


def dehazed(pipe, image: np.ndarray, preset: Preset, members: int | None = None, seed: int = 0, strength: float = 1):
    """The result of the pipeline itself."""
    prepared, steps, members = with_preset(pipe, preset, ensemble_size=members)
    generator = torch.Generator().manual_seed(seed)
    return prepared(image, steps, members, generator=generator, output_uncertainty=steps > 1, strength=strength)


@pytest.fixture
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `e2e`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
