"""The networks of the paper's baselines, alone, in `HazeRegressionPipeline`, and in their training script."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, tiny_unet, write_pairs
from diffusers import UNet2DModel
from scipy.ndimage import gaussian_filter
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.models.mprnet import MPRNet, join, split
from haze_pipeline.models.rcan import RCAN
from haze_pipeline.models.restormer import Restormer
from haze_pipeline.models.rrdb import RRDBNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


NARROW = {
    RCAN: {"num_features": 16, "num_groups": 1, "num_blocks": 2, "reduction": 4},
    MPRNet: {"num_features": 8, "added_features": 4, "last_features": 8, "num_last_blocks": 1},
    MIMOUNet: {"num_features": 8, "num_blocks": 1},
    RRDBNet: {"num_features": 16, "num_blocks": 1, "growth": 8},
    Restormer: {"num_features": 8, "num_blocks": (1, 1), "num_heads": (1, 2), "num_refinement_blocks": 1},
}
STEPS = {RCAN: 250, MPRNet: 100, MIMOUNet: 250, RRDBNet: 800, Restormer: 120}
UNITS = {"normalization": "fixed", "input_mean": 0.0, "input_std": 1.0, "training_patch_size": 32}


def narrow(network_class, seed=0):
    if network_class is Restormer:
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    torch.manual_seed(seed)
    return network_class(**NARROW[network_class]).eval()


def make_pair(seed, size):
    """Hazy and clear image `[size, size]`. The haze is the clear image, blurred."""
    clear = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 1.5, mode="wrap")
    clear = clear / clear.std()
    haze = 2 * gaussian_filter(clear, 3, mode="wrap")
    return (0.5 * clear + haze).astype(np.float32), clear.astype(np.float32)


def psnr(clear, prediction):
    return 10 * np.log10(np.ptp(clear) ** 2 / np.square(clear - prediction).mean())


@pytest.fixture(scope="module", params=NARROW, ids=lambda network_class: network_class.__name__)
def trained(request):
    """A narrow network that was trained on four pairs of 32 × 32 pixels, and these pairs `[4, 1, 32, 32]`."""
    network = narrow(request.param).train()
    hazy, clear = torch.from_numpy(np.stack([make_pair(seed, 32) for seed in range(4)], axis=1))[:, :, None]
    steps = STEPS[request.param]
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        outputs = network(hazy)
        loss = sum(F.mse_loss(output, F.interpolate(clear, size=output.shape[-2:])) for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval(), hazy, clear


def test_a_network_learns_four_pairs_and_the_pipeline_uses_its_last_output(trained):
    network, hazy, clear = trained
    prediction = HazeRegressionPipeline(network, **UNITS)(hazy[:, 0].numpy()).prediction  # [4,32,32]
    assert psnr(clear[:, 0].numpy(), prediction) > 40
    with torch.no_grad():
        np.testing.assert_allclose(prediction, network(hazy)[-1][:, 0].numpy(), atol=1e-5)


def test_tiles_give_nearly_the_result_of_the_whole_field(trained):
    if isinstance(trained[0], Restormer):
        pytest.skip("Restormer normalises by the statistics of the tile.")
    pipe = HazeRegressionPipeline(trained[0], **UNITS)
    hazy, clear = make_pair(9, 128)
    whole, tiled = (pipe(hazy, **tiles).prediction for tiles in ({}, {"tile_size": 64, "tile_overlap": 16}))
    assert not np.array_equal(whole, tiled)
    tolerance = 1.0 if isinstance(trained[0], MPRNet) else 0.2  # dB; MPRNet works on the quarters of every tile
    assert psnr(clear, tiled) == pytest.approx(psnr(clear, whole), abs=tolerance)


@pytest.mark.parametrize(
    ("network_class", "millions"),
    [
        (RCAN, 15.3),  # one channel and no enlargement; with three channels and ×4, the paper has 15.6
        (MPRNet, 20.1),  # Zamir et al. 2021, deblurring
        (MIMOUNet, 6.8),  # Cho et al. 2021, table 1
        (RRDBNet, 16.7),  # Wang et al. 2018, with three channels and ×4
        (Restormer, 26.1),  # Zamir et al. 2022
    ],
)
def test_the_defaults_have_the_size_of_the_paper(network_class, millions):
    if network_class is Restormer:
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    with torch.device("meta"):
        network = network_class()
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(millions * 1e6, rel=0.01)


def test_rrdbnet_has_all_layers_of_its_paper_but_the_enlargement():
    def weights(inputs, outputs):
        return 9 * inputs * outputs + outputs  # a convolution of 3 × 3 pixels with a bias

    dense_block = sum(weights(64 + 32 * i, 32) for i in range(4)) + weights(64 + 32 * 4, 64)
    # The convolutions after the blocks are that of the trunk, two of the enlargement, and one at full resolution.
    paper = weights(3, 64) + 23 * 3 * dense_block + 4 * weights(64, 64) + weights(64, 3)
    assert paper == 16_697_987
    one_channel = paper - weights(3, 64) + weights(1, 64) - weights(64, 3) + weights(64, 1)
    with torch.device("meta"):
        assert RRDBNet().num_parameters() == one_channel - 2 * weights(64, 64)


@pytest.mark.parametrize("network_class", NARROW)
def test_images_of_any_size_are_restored_and_a_stored_pipeline_gives_the_same_bits(network_class, tmp_path):
    pipe = HazeRegressionPipeline(narrow(network_class))
    pipe.save_pretrained(tmp_path)
    # Commands load in the second way, which does not need accelerate.
    for arguments in ({}, {"low_cpu_mem_usage": False}):
        loaded = HazeRegressionPipeline.from_pretrained(tmp_path, **arguments)
        assert type(loaded.unet) is network_class and not list(tmp_path.rglob("*.py"))
        for name, weights in loaded.unet.state_dict().items():
            assert torch.equal(weights, pipe.unet.state_dict()[name])
    for size in ((1, 1), (37, 53), (2, 19, 8)):
        image = np.random.default_rng(0).normal(100, 10, size)
        prediction = pipe(image).prediction
        assert prediction.shape == size and np.isfinite(prediction).all()
        np.testing.assert_array_equal(loaded(image).prediction, prediction)


@pytest.mark.parametrize("network_class", [RCAN, Restormer])
def test_a_new_process_loads_a_stored_network(network_class, tmp_path):
    HazeRegressionPipeline(narrow(network_class)).save_pretrained(tmp_path)
    code = (
        "from haze_pipeline.loading import PIPELINES, load_pipeline; import sys; "
        "assert 'haze_pipeline.models.rcan' not in sys.modules and 'monai' not in sys.modules; "
        "print(type(load_pipeline(sys.argv[1], PIPELINES).unet).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.stdout.strip() == network_class.__name__, result.stderr[-2000:]


def test_fields_are_tiled_unless_layers_average_over_them():
    for network_class, is_tiled in ((RCAN, False), (MPRNet, False), (MIMOUNet, True), (RRDBNet, True)):
        pipe = HazeRegressionPipeline(narrow(network_class))
        assert pipe.prepare_sampler((600, 700), None, None, None).is_tiled == is_tiled
        assert pipe.prepare_sampler((600, 700), 64, 16, None).is_tiled


def test_the_quarters_of_an_image_are_joined_as_they_were():
    image = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    quarters = split(image, 2, 2)
    assert torch.equal(quarters[1], image[0, :, :4, 4:]) and torch.equal(join(quarters, 2, 2), image)


def test_networks_that_do_not_suit_a_pipeline_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 input channels .* got 1 and 1"):
        HazeMatchingPipeline(narrow(RCAN), FlowMatchODEScheduler())
    with pytest.raises(ValueError, match=r"`pixel_packing` 2, got 1 and 1"):
        HazeRegressionPipeline(narrow(RCAN), pixel_packing=2)
    with pytest.raises(ValueError, match="multiple of 8"):
        HazeRegressionPipeline(narrow(MPRNet))(np.ones((16, 16)), tile_size=12)


def test_without_monai_restormer_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match=r"haze-pipeline\[baselines\]"):
        Restormer()


def test_a_stored_regression_names_only_networks_of_this_package_and_runs_no_code(tmp_path):
    HazeRegressionPipeline(narrow(RCAN)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["haze_pipeline.models.rcan", "RCAN"]
    (tmp_path / "unet" / "haze_pipeline.models.rcan.py").write_text("raise RuntimeError('ran')")
    with pytest.raises(ValueError, match="code"):
        HazeRegressionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "unet": ["shutil", "rmtree"]}))
    with pytest.raises(ValueError, match="only classes of diffusers and of this package"):
        HazeRegressionPipeline.from_pretrained(tmp_path)
    HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler()).save_pretrained(tmp_path / "flow")
    with pytest.raises(ValueError, match="contains a HazeMatchingPipeline, not a HazeRegressionPipeline"):
        HazeRegressionPipeline.from_pretrained(tmp_path / "flow")


def test_a_packed_unet_is_trained(tmp_path):
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs", 2, (48, 48))
    UNet2DModel.from_config({**tiny_unet().config, "in_channels": 8, "out_channels": 4}).save_config(tmp_path / "net")
    arguments = [
        ROOT / "training" / "train_regression.py", "--train_data_dir", pairs, "--output_dir", tmp_path / "output",
        "--pixel_packing", 2, "--train_batch_size", 2, "--max_train_steps", 1, "--resolution", 32,
    ]  # fmt: skip
    result = run_script(*arguments, "--architecture", "rcan")
    assert result.returncode == 2 and "--pixel_packing is for the U-Net" in result.stderr
    result = run_script(*arguments, "--model_config_name_or_path", tmp_path / "net")
    assert result.returncode == 0, result.stderr[-3000:]
    trained = HazeRegressionPipeline.from_pretrained(tmp_path / "output")
    assert trained.config.pixel_packing == 2
    assert trained(np.ones((20, 20))).prediction.shape == (20, 20)


def test_the_training_script_trains_every_output_of_a_network(tmp_path):
    (tmp_path / "pairs").mkdir()
    pairs = write_pairs(tmp_path / "pairs", 2, (48, 48))
    narrow(MIMOUNet).save_config(tmp_path / "network")
    arguments = [
        ROOT / "training" / "train_regression.py", "--train_data_dir", pairs, "--validation_data_dir", pairs,
        "--output_dir", tmp_path / "output", "--architecture", "mimo-unet", "--model_config_name_or_path",
        tmp_path / "network", "--train_batch_size", 2, "--max_train_steps", 2, "--lr_warmup_steps", 0,
    ]  # fmt: skip
    result = run_script(*arguments, "--resolution", 18)
    assert result.returncode == 1 and "--resolution must be a multiple of 4" in result.stderr
    result = run_script(*arguments, "--resolution", 32)
    assert result.returncode == 0, result.stderr[-3000:]
    trained = HazeRegressionPipeline.from_pretrained(tmp_path / "output").unet
    assert trained.config.num_blocks == 1
    torch.manual_seed(0)  # the script's seed
    MIMOUNet()  # the script makes the default network before that of the configuration
    initial = MIMOUNet.from_config(trained.config)
    for now, before in zip(trained.conv_out, initial.conv_out, strict=True):
        assert 0 < (now.weight - before.weight).abs().max() < 5e-3
