"""The tab of the Space for photographs: over HTTP, and in a real Chromium. Run by `make test-e2e`."""

import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from space_server import browser, started  # noqa: F401

from haze_pipeline.evaluation.dark_channel_prior import dark_channel_prior
from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


pytestmark = pytest.mark.e2e

from gradio_client import handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


EXAMPLE = ROOT / "spaces" / "haze-matching" / "examples" / "photograph.png"


def read(path):
    return np.moveaxis(np.asarray(Image.open(path)), -1, 0)  # [3,H,W]


def test_haze_is_removed_from_photographs(browser, tmp_path):
    torch.manual_seed(0)
    network = ResidualUNet(num_features=4, num_scales=3, num_channels=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    pipe = HazeRegressionPipeline(network.eval(), "fixed", 120.0, 50.0, 120.0, 50.0)
    pipe.save_pretrained(tmp_path / "network")
    (tmp_path / "space").mkdir()
    with started(tmp_path / "space", HAZE_PHOTOGRAPH_MODEL=str(tmp_path / "network")) as space:
        _, download = space.client().predict(handle_file(EXAMPLE), "network", api_name="/remove_haze")
        expected = place_pipeline(pipe, Device.auto, DType.auto)(read(EXAMPLE)).prediction.clip(0, 255)
        np.testing.assert_allclose(read(download), expected, atol=0.51)

        pair, download = space.client().predict(handle_file(EXAMPLE), "dark-channel prior", api_name="/remove_haze")
        expected = dark_channel_prior((read(EXAMPLE) / 255) ** 2.2).prediction.clip(0, 1) ** (1 / 2.2)
        np.testing.assert_allclose(read(download), 255 * expected, atol=0.51)
        assert len(pair) == 2
        with pytest.raises(AppError, match="There is no photograph"):
            space.client().predict(None, "dark-channel prior", api_name="/remove_haze")

        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(space.url)
        page.get_by_role("tab", name="Photographs").click()
        page.locator("button.gallery-item:visible").first.click()  # the example
        page.get_by_label("dark-channel prior").check()
        page.get_by_role("button", name="Remove haze").click()
        page.get_by_text("photograph_clear").first.wait_for()
        page.screenshot(path=os.environ.get("HAZE_SCREENSHOTS", str(tmp_path)) + "/photographs.png", full_page=True)
        assert f'File "{ROOT / "spaces"}' not in space.log, space.log
