"""The command `haze-pipeline dehaze-photographs`."""

import numpy as np
import pytest
import torch
from PIL import Image

from haze_pipeline.data.unpaired import read_photograph
from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior
from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


@pytest.fixture
def photographs(tmp_path):
    """Two photographs of 40 × 50 pixels."""
    for number, name in enumerate(("street", "field")):
        image = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    return [tmp_path / "street.png", tmp_path / "field.png"]


def test_a_photograph_is_dehazed_by_the_dark_channel_prior(run, photographs, tmp_path):
    code, out, error = run("dehaze-photographs", photographs[0], "-o", tmp_path / "new" / "clear.png")
    assert code == 0 and out.split() == [str(tmp_path / "new" / "clear.png")], error
    linear = dark_channel_prior((read_photograph(photographs[0]) / 255) ** 2.2).prediction
    result = read_photograph(tmp_path / "new" / "clear.png")
    np.testing.assert_allclose(result, 255 * linear.clip(0, 1) ** (1 / 2.2), atol=0.51)


def test_photographs_are_dehazed_by_a_network_into_a_folder(run, photographs, tmp_path):
    torch.manual_seed(0)
    network = ResidualUNet(num_features=4, num_scales=3, num_channels=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    pipe = HazeRegressionPipeline(network.eval(), "fixed", 120.0, 50.0, 120.0, 50.0)
    pipe.save_pretrained(tmp_path / "network")
    code, out, error = run(
        "dehaze-photographs", *photographs, "-o", tmp_path / "clear", "--model", tmp_path / "network"
    )
    assert code == 0 and len(out.split()) == 2, error
    expected = place_pipeline(pipe, Device.auto, DType.auto)(read_photograph(photographs[1])).prediction
    np.testing.assert_allclose(read_photograph(tmp_path / "clear" / "field.png"), expected.clip(0, 255), atol=0.51)


def test_wrong_requests_end_with_one_sentence(run, photographs, tmp_path):
    Image.new("L", (40, 40)).save(tmp_path / "grey.png")
    HazeRegressionPipeline(ResidualUNet(4, 3)).save_pretrained(tmp_path / "micrographs")
    for arguments, message in (
        ((tmp_path / "nowhere.png", "-o", tmp_path / "clear.png"), "nowhere.png does not exist"),
        ((tmp_path / "grey.png", "-o", tmp_path / "clear.png"), "must have three colours of 8 bits"),
        ((*photographs, "-o", tmp_path / "clear.png"), "gives several photographs one name"),
        ((photographs[0], "-o", photographs[0]), "would replace the photograph"),
        ((photographs[0], "-o", tmp_path), "would replace the photograph"),
        ((photographs[0], "-o", "clear.png", "--model", tmp_path / "micrographs"), "restores micrographs"),
    ):
        code, _, error = run("dehaze-photographs", *arguments)
        assert code == 1 and message in error and error.count("\n") == 1
    assert not (tmp_path / "clear.png").exists()
