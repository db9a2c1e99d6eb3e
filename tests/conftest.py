"""Fixtures and small components that the tests share."""

import os
import sys
from pathlib import Path


# Otherwise the last bits of MKL's results depend on the alignment of memory on some processors.
os.environ["MKL_CBWR"] = "AUTO"

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline, cli
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff


ROOT = Path(__file__).parent.parent

# If tests run in several processes, each uses one core. Processes that all use all cores slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real micrographs that the project may use but not distribute."""
    folder = Path(os.environ.get("HAZE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real micrographs are not at {folder}; set HAZE_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a small pipeline with random weights and a card."""
    folder = tmp_path_factory.mktemp("model")
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()).save_pretrained(folder)
    (folder / "README.md").write_text("A card.")
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    """Folder of a small DINOv2 with random weights and 12 features."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def write_pairs(folder, number, shape):
    """Write pairs of random images, in counts, to the new folders `hazy` and `clear`."""
    rng = np.random.default_rng(0)
    for kind in ("hazy", "clear"):
        (folder / kind).mkdir()
    for index in range(number):
        clear = rng.gamma(2, 100, shape).astype(np.float32)
        hazy = rng.poisson(clear + 50).astype(np.uint16)
        write_ome_tiff(folder / "clear" / f"{index:02}.tif", Micrograph(clear, "YX", (0.1, 0.1)))
        write_ome_tiff(folder / "hazy" / f"{index:02}.tif", Micrograph(hazy, "YX", (0.1, 0.1)))
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `haze-pipeline …` through its entry point. Returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["haze-pipeline", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def tiny_unet(seed: int = 0) -> UNet2DModel:
    """A network of the same architecture as the real one, with four levels of 8 to 16 channels."""
    torch.manual_seed(seed)
    return UNet2DModel(
        in_channels=2,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=4,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    ).eval()
