"""Adversarial training: its losses, and `train_regression.py --adversarial_weight`."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, tiny_unet, write_pairs
from scipy.ndimage import gaussian_filter
from warm_python import ENVIRONMENT, run_script

from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.models.mimo_unet import MIMOUNet
from haze_pipeline.models.rrdb import RRDBNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


pytest.importorskip("monai")
sys.path.insert(0, str(ROOT / "training"))
import adversarial


SCRIPT = ROOT / "training" / "train_regression.py"


def train(*arguments, check=True):
    result = run_script(SCRIPT, "--resolution", 32, "--lr_warmup_steps", 0, "--discriminator_features", 8, *arguments)
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return HazeRegressionPipeline.from_pretrained(folder).unet.state_dict()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 2, (40, 40))


@pytest.fixture
def adversary():
    torch.manual_seed(0)
    yield adversarial.Adversary(
        Accelerator(cpu=True), 8, 1e-3, lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    )
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_losses_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 3, 1, 2, 2))

    def probability(scores, others):
        return 1 / (1 + np.exp(others.mean() - scores))

    scores = [torch.from_numpy(each) for each in (real, fake)]
    discriminator = -np.log(probability(real, fake)).mean() - np.log(1 - probability(fake, real)).mean()
    generator = -np.log(1 - probability(real, fake)).mean() - np.log(probability(fake, real)).mean()
    assert adversarial.relativistic_loss(*scores).item() == pytest.approx(discriminator)
    assert adversarial.relativistic_loss(*scores[::-1]).item() == pytest.approx(generator)

    images = rng.normal(size=(2, 3, 1, 8, 8))
    amplitudes = np.abs(np.fft.rfft2(images)) / 8
    errors = [np.abs(each[0] - each[1]).mean() for each in (images, amplitudes)]
    expected = adversarial.PIXEL_WEIGHT * errors[0] + adversarial.SPECTRUM_WEIGHT * errors[1]
    assert adversarial.content_loss(*map(torch.from_numpy, images)).item() == pytest.approx(expected)


def test_the_least_squares_loss_asks_for_ones_and_zeros():
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    assert adversarial.least_squares_loss(real, fake) == 0.5 * (1 / 2 + 9 / 2)
    assert adversarial.least_squares_loss(torch.ones(4), torch.zeros(4)) == 0


def test_generator_and_discriminator_train_only_themselves(adversary):
    clear, prediction = torch.randn(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    prediction.requires_grad_(True)
    before = [weight.clone() for weight in adversary.discriminator.parameters()]
    adversary.generator_loss(prediction, clear).backward()
    assert prediction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in adversary.discriminator.parameters())
    gradient = prediction.grad.clone()
    losses = [adversary.step(prediction, clear) for _ in range(30)]
    assert losses[-1] < losses[0] == pytest.approx(2 * np.log(2), abs=0.01)  # at first, it guesses
    assert torch.equal(prediction.grad, gradient)
    assert all(
        not torch.equal(old, new) for old, new in zip(before, adversary.discriminator.parameters(), strict=True)
    )


def textured_images(seed, number):
    """Smooth images with noise, and the same images `[N, 64, 64]` with a texture that the first ones do not show."""
    rng = np.random.default_rng(seed)
    smooth, fine, coarse = (
        gaussian_filter(rng.normal(size=(number, 64, 64)), (0, sigma, sigma), mode="wrap") for sigma in (4, 0.7, 1.5)
    )
    texture = 0.3 * (fine - coarse) / (fine - coarse).std()
    smooth = smooth / smooth.std()
    hazy = smooth + rng.normal(size=smooth.shape) * 0.3
    return (1000 + 100 * each.astype(np.float32) for each in (hazy, smooth + texture))


def fine_power(images):
    """Logarithm of the mean power at 0.1 to 0.4 cycles per pixel."""
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    is_fine = (frequency > 0.1) & (frequency < 0.4)
    return np.log(np.square(np.abs(np.fft.fft2(images)))[:, is_fine].mean())


def test_adversarial_training_adds_texture_that_the_squared_error_omits(tmp_path):
    RRDBNet(num_features=8, num_blocks=1, growth=8).save_config(tmp_path / "network")
    for kind, images in zip(("hazy", "clear"), textured_images(0, 24), strict=True):
        (tmp_path / kind).mkdir()
        for index, image in enumerate(images):
            write_ome_tiff(tmp_path / kind / f"{index:02}.tif", Micrograph(image, "YX", (0.1, 0.1)))
    arguments = [
        "--train_data_dir", tmp_path, "--architecture", "esrgan", "--train_batch_size", 4, "--ema_decay", 0.8,
        "--max_train_steps", 80,
    ]  # fmt: skip
    train(
        *arguments, "--output_dir", tmp_path / "first", "--model_config_name_or_path", tmp_path / "network",
        "--normalization", "fixed", "--learning_rate", "3e-3",
    )  # fmt: skip
    train(
        *arguments, "--output_dir", tmp_path / "second", "--init_from", tmp_path / "first",
        "--learning_rate", "2e-3", "--adversarial_weight", 0.005,
    )  # fmt: skip
    first, second = (HazeRegressionPipeline.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert second.config.normalization == "fixed" and second.config.input_std == first.config.input_std
    hazy, clear = textured_images(1, 8)
    missing = [fine_power(clear) - fine_power(pipe(hazy).prediction) for pipe in (first, second)]
    assert missing[0] > 1.5 and abs(missing[1]) < 0.5 * missing[0]


def test_a_resumed_adversarial_training_gives_the_same_weights(pairs, tmp_path):
    tiny_unet().save_config(tmp_path / "network")
    arguments = [
        "--train_data_dir", pairs, "--validation_data_dir", pairs, "--model_config_name_or_path",
        tmp_path / "network", "--train_batch_size", 2, "--max_train_steps", 4, "--checkpointing_steps", 2,
        "--learning_rate", "1e-3",
    ]  # fmt: skip
    weight = ["--adversarial_weight", 0.005]
    result = train(*arguments, *weight, "--output_dir", tmp_path / "whole")
    assert '"discriminator_loss": 1.3' in result.stderr
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", checkpoint)
    resume = ["--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "latest"]
    result = train(*arguments, *resume, check=False)
    assert result.returncode == 1 and "with adversarial weight 0.005, not 0.0" in result.stderr
    train(*arguments, *weight, *resume)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    train(*arguments, "--output_dir", tmp_path / "without")
    without = weights(tmp_path / "without")
    assert not all(torch.equal(whole[name], without[name]) for name in whole)


def test_two_processes_train_a_network_and_its_discriminator(pairs, tmp_path):
    MIMOUNet(num_features=8, num_blocks=1).save_config(tmp_path / "network")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file",
        ROOT / "training" / "accelerate_configs" / "cpu_2_processes.yaml", "--main_process_port", 29537, SCRIPT,
        "--train_data_dir", pairs, "--output_dir", tmp_path / "run", "--architecture", "mimo-unet",
        "--model_config_name_or_path", tmp_path / "network", "--resolution", 32, "--train_batch_size", 1,
        "--max_train_steps", 3, "--adversarial_weight", 0.005, "--discriminator_features", 8,
    ]  # fmt: skip
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())
    assert (tmp_path / "run" / "checkpoint-3" / "optimizer_1.bin").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adversarial_weight", "-1"], "--adversarial_weight must be finite and not negative, got -1.0"),
        (["--adversarial_weight", "1", "--resolution", "16"], "needs patches of at least 24 pixels"),
        (["--discriminator_features", "0"], "--discriminator_features must be positive, got 0"),
        (["--init_from", "PIPELINE", "--normalization", "fixed"], "remove --normalization"),
        (["--init_from", "PIPELINE", "--model_config_name_or_path", "x"], "remove --model_config_name_or_path"),
        (["--init_from", "PIPELINE"], "holds a RRDBNet, but --architecture unet is a UNet2DModel"),
        (["--init_from", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_impossible_trainings_are_explained(pairs, tmp_path, arguments, message):
    HazeRegressionPipeline(RRDBNet(num_features=8, num_blocks=1, growth=8)).save_pretrained(tmp_path / "pipeline")
    arguments = [tmp_path / "pipeline" if part == "PIPELINE" else part for part in arguments]
    result = train("--train_data_dir", pairs, "--output_dir", tmp_path / "run", *arguments, check=False)
    assert result.returncode in (1, 2) and message in result.stderr and "Traceback" not in result.stderr


def test_without_monai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match=r"haze-pipeline\[baselines\]"):
        adversarial.Adversary(Accelerator(cpu=True), 8, 1e-3, None)
