"""Photographs in colour: training without pairs, and restoration in one call."""

import numpy as np
import pytest
import torch
from PIL import Image

from haze_pipeline.data.unpaired import (
    Plane,
    fit_unpaired_processor,
    load_photographs,
    normalize_clear,
    normalize_hazy,
)
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


def photographs(*shape):
    return np.random.default_rng(0).gamma(2, 40, shape).round().astype(np.float32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = ResidualUNet(num_features=4, num_scales=3, num_channels=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.3)
    return network.eval()


def units(mean, std):
    return {"normalization": "fixed", "input_mean": mean, "input_std": std, "target_mean": mean, "target_std": std}


def test_colour_images_of_any_size_are_restored_singly_and_in_stacks(network):
    pipe = HazeRegressionPipeline(network, **units(80.0, 50.0))
    stack = photographs(2, 2, 3, 37, 50)
    prediction = pipe(stack).prediction
    assert prediction.shape == stack.shape and prediction.dtype == np.float32
    np.testing.assert_allclose(pipe(stack[1, 0]).prediction, prediction[1, 0], atol=1e-3)
    with torch.no_grad():
        expected = network(torch.from_numpy((stack[0, 0, :, :36, :48] - 80) / 50)[None])[-1][0] * 50 + 80
    np.testing.assert_allclose(pipe(stack[0, 0, :, :36, :48]).prediction, expected, atol=1e-3)
    half = pipe(stack, strength=0.5).prediction  # hazy and restored images have one unit
    np.testing.assert_allclose(half, 0.5 * (stack + prediction), atol=1e-3)


def test_tiles_of_colour_images_agree_with_the_whole_image_away_from_edges(network):
    pipe = HazeRegressionPipeline(network, **units(80.0, 50.0))
    image = photographs(3, 96, 128)
    whole, tiled = (pipe(image, tile_size=size, tile_overlap=64).prediction for size in (128, 96))
    inside = (slice(None), slice(28, -28), slice(60, -60))  # 28 px inside all tiles, as far as the network sees
    assert np.abs(whole - image)[inside].max() > 1
    np.testing.assert_allclose(tiled[inside], whole[inside], atol=0.02)


def test_gain_and_offset_of_the_units_are_those_of_the_result(network):
    images = photographs(4, 3, 40, 40)
    gain, offset = 4, 256  # exact in float32
    results = []
    for scaled in (images, gain * images + offset):
        processor = fit_unpaired_processor("fixed", [Plane(image, "") for image in scaled])
        pipe = HazeRegressionPipeline(network, **units(processor.input_mean, processor.input_std))
        results.append(pipe(scaled).prediction)
    np.testing.assert_allclose(results[1], gain * results[0] + offset, rtol=1e-5, atol=1e-3)
    exact = [
        HazeRegressionPipeline(network, **units(mean, std))(image).prediction
        for mean, std, image in ((64.0, 32.0, images), (512.0, 128.0, gain * images + offset))
    ]
    np.testing.assert_allclose(exact[1], gain * exact[0] + offset, rtol=3e-7)  # one rounding of float32


def test_a_stored_network_of_colours_gives_the_same_bits(network, tmp_path):
    pipe = HazeRegressionPipeline(network, **units(80.0, 50.0))
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path), PIPELINES)
    image = photographs(3, 24, 24)
    np.testing.assert_array_equal(loaded(image).prediction, pipe(image).prediction)


def test_images_without_the_channels_of_the_network_are_refused(network):
    pipe = HazeRegressionPipeline(network, **units(80.0, 50.0))
    for shape in ((24, 24), (1, 24, 24), (3, 2, 24, 24)):
        with pytest.raises(ValueError, match=r"`image` must have the shape \[\.\.\., 3, H, W\]"):
            pipe(photographs(*shape))
    with pytest.raises(ValueError, match='`normalization` must be "fixed" for a network of colour images'):
        HazeRegressionPipeline(network)
    with pytest.raises(ValueError, match="`strength` must lie between 0 and 1"):
        pipe(photographs(3, 24, 24), strength=2)


def test_photographs_are_read_with_their_colours(tmp_path):
    image = photographs(3, 20, 24).clip(0, 255).astype(np.uint8)
    (tmp_path / "day").mkdir()
    Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / "day" / "one.png")
    (plane,) = load_photographs(tmp_path)
    assert plane.source == "day/one.png"
    np.testing.assert_array_equal(plane.image, image)
    processor = fit_unpaired_processor("fixed", [plane])
    hazy = normalize_hazy(plane, processor)
    assert hazy.shape == (3, 20, 24) and abs(hazy.mean()) < 1e-5
    assert torch.equal(normalize_clear(plane, processor), hazy)
    Image.fromarray(image[0]).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png must have three colours of 8 bits, but its mode is L"):
        list(load_photographs(tmp_path))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg could not be read"):
        list(load_photographs(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no photographs"):
        list(load_photographs(tmp_path / "empty"))
