import numpy as np
import pytest
import torch

from haze_pipeline import HazeImageProcessor
from haze_pipeline.utils import arrays
from haze_pipeline.utils.background import subtract_background


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64"])
def test_every_real_dtype_keeps_its_values(dtype):
    image = np.arange(200, dtype=dtype).reshape(2, 10, 10)
    planes = HazeImageProcessor().preprocess(image)
    assert planes.shape == (2, 1, 10, 10) and planes.dtype == torch.float32
    np.testing.assert_array_equal(planes.numpy().ravel(), np.arange(200))


def test_tensors_and_foreign_byte_order_are_taken():
    image = np.arange(100, dtype=">u2").reshape(10, 10)
    processor = HazeImageProcessor()
    expected = processor.preprocess(image.astype(np.float32))
    torch.testing.assert_close(processor.preprocess(image), expected)
    torch.testing.assert_close(processor.preprocess(torch.from_numpy(image.astype(np.int32))), expected)
    torch.testing.assert_close(processor.preprocess(expected[0, 0].bfloat16()), expected, atol=0.5, rtol=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinite"),
        (np.array([[1e39, 0.0]]), "float32"),
        (4_000_000_000 + np.arange(64, dtype=np.uint32).reshape(8, 8), "offset"),
        (np.zeros((0, 5)), "empty"),
        (np.zeros((5, 0)), "empty"),
        (np.zeros(5), "two dimensions"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
        (np.array([["a", "b"]]), "dtype"),
        ("cells.tif", "str"),
    ],
)
def test_what_is_not_an_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        HazeImageProcessor().preprocess(image)


def test_image_normalization_follows_the_unit_of_the_image():
    """Another gain and offset of the camera must not change the network input, and must scale the prediction."""
    processor = HazeImageProcessor("image", target_mean=0.4, target_std=1.3)
    planes = processor.preprocess(np.random.default_rng(0).gamma(2, 50, (1, 64, 64)))
    one = processor.compute_normalization(planes)
    other = processor.compute_normalization(7 * planes + 1000)
    hazy = (planes - one.input_mean) / one.input_std
    torch.testing.assert_close((7 * planes + 1000 - other.input_mean) / other.input_std, hazy, atol=1e-3, rtol=0)
    torch.testing.assert_close(other.target_std, 7 * one.target_std, rtol=1e-4, atol=0)
    torch.testing.assert_close(other.target_mean, 7 * one.target_mean, rtol=1e-4, atol=0)
    assert hazy.mean().abs() < 1e-5
    torch.testing.assert_close(one.input_std, one.target_std)  # input and target have the same unit


def test_smooth_haze_hardly_changes_the_scale_of_the_target():
    rng = np.random.default_rng(0)
    sharp = np.zeros((128, 128))
    sharp[rng.integers(0, 128, 200), rng.integers(0, 128, 200)] = 3000
    y, x = np.mgrid[:128, :128]
    haze = 300 * np.exp(-((y - 60) ** 2 + (x - 70) ** 2) / 2 / 50**2)
    processor = HazeImageProcessor()
    alone, hazed = (processor.compute_normalization(processor.preprocess(i)).target_std for i in (sharp, sharp + haze))
    assert abs(hazed / alone - 1) < 0.05


def test_fixed_normalization_uses_the_training_statistics():
    processor = HazeImageProcessor("fixed", input_mean=10, input_std=2, target_mean=5, target_std=3)
    statistics = processor.compute_normalization(torch.zeros(4, 1, 8, 8))
    values = statistics.input_mean, statistics.input_std, statistics.target_mean, statistics.target_std
    assert [v.flatten().tolist() for v in values] == [[10.0] * 4, [2.0] * 4, [5.0] * 4, [3.0] * 4]


def test_statistics_of_a_stack_are_those_of_all_its_pixels():
    processor = HazeImageProcessor()
    planes = processor.preprocess(
        np.random.default_rng(0).gamma(2, 50, (3, 64, 48)) * np.array([1, 2, 5])[:, None, None]
    )
    mean, band_pass = processor.pool(processor.measure(planes))[0].tolist()
    assert mean == pytest.approx(planes.mean().item())
    assert band_pass == pytest.approx(processor.measure(planes)[:, 1].square().mean().sqrt().item())


def test_hot_pixels_do_not_count_when_statistics_are_clipped():
    processor = HazeImageProcessor()
    planes = processor.preprocess(np.random.default_rng(0).gamma(2, 50, (1, 64, 64)))
    hot = planes.clone()
    hot[0, 0, 5, 5] = 1e5
    clean, disturbed = (processor.measure(each, clipped=True) for each in (planes, hot))
    torch.testing.assert_close(disturbed, clean, rtol=0.02, atol=0)
    assert processor.measure(hot)[0, 1] > 5 * processor.measure(planes)[0, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"normalization": "percentile"},
        {"normalization": "fixed"},
        {"target_std": 0.0},
        {"normalization": "fixed", "input_mean": 0.0, "input_std": -1.0},
    ],
)
def test_impossible_statistics_are_refused(arguments):
    with pytest.raises(ValueError):
        HazeImageProcessor(**arguments)


def test_pictures_map_the_stated_limits_to_black_and_white():
    picture = np.asarray(HazeImageProcessor.visualize_intensity(np.array([[0.0, 50.0], [100.0, 200.0]]), 0, 100))
    assert picture.tolist() == [[0, 128], [255, 255]]
    fire = np.asarray(HazeImageProcessor.visualize_intensity(np.linspace(0, 1, 50)[None], 0, 1, "fire")).astype(int)
    assert (np.diff(fire.sum(axis=-1)[0]) > 0).all()
    with pytest.raises(ValueError, match="one plane"):
        HazeImageProcessor.visualize_intensity(np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="colormap"):
        HazeImageProcessor.visualize_intensity(np.zeros((4, 4)), colormap="jet")


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (512, 512), (3000, 40)])
def test_side_by_side_pictures_of_any_size(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    two = HazeImageProcessor.visualize_side_by_side(image, image, pixel_size=0.1)
    three = HazeImageProcessor.visualize_side_by_side(image, image, image)
    assert three.width > two.width and max(three.height, 1100) == 1100


def test_pictures_to_be_compared_have_the_same_contrast():
    rng = np.random.default_rng(0)
    hazy = rng.uniform(100, 1100, (300, 200))
    pictures, text = HazeImageProcessor().visualize_together({"input": hazy, "result": hazy / 2 - 50})
    assert [picture.size for picture in pictures] == [(400, 600), (400, 600)]  # magnified by an integer
    spans = [float(np.ptp(np.asarray(picture))) for picture in pictures]
    assert spans[0] == 255 and spans[1] == pytest.approx(255 / 2, abs=3)
    assert text == "Counts from black to white: input 105 to 1100; result 2.42 to 996."
    for processor, same in ((HazeImageProcessor(), False), (HazeImageProcessor("fixed", 0.0, 1.0), True)):
        pictures, _ = processor.visualize_together({"input": hazy, "result": hazy / 2 - 50}, same)
        np.testing.assert_array_equal(*map(np.asarray, pictures))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float16", ">f4"])
@pytest.mark.parametrize("width", [4, 9])
def test_the_background_is_wider_than_the_given_width(monkeypatch, dtype, width):
    rng = np.random.default_rng(0)
    haze = np.linspace(0, 900, 64)
    plane = (haze + rng.integers(0, 100, (50, 64))).astype(dtype)
    plane[20:23, 30:33] += np.dtype(dtype).type(1000)  # narrower than the background
    if dtype == "int16":
        plane -= 20_000
        plane[5, 5] = 30_000
    whole = subtract_background(plane, width)
    assert whole.dtype == np.float32 and whole.min() == 0
    assert whole[21, 31] > 900 and np.median(whole) < 150
    # Morphological opening by hand: subtract the maximum over a square of the minima over squares.
    windows = np.lib.stride_tricks.sliding_window_view
    before, after = width // 2, width - 1 - width // 2
    lowest = windows(np.pad(plane, ((before, after),) * 2, mode="symmetric"), (width, width)).min(axis=(2, 3))
    highest = windows(np.pad(lowest, ((after, before),) * 2, mode="symmetric"), (width, width)).max(axis=(2, 3))
    np.testing.assert_allclose(whole, plane.astype(np.float64) - highest, atol=1e-3)
    monkeypatch.setattr(arrays, "BAND_ROWS", 7)
    np.testing.assert_array_equal(subtract_background(plane, width), whole)
    masked = plane.astype(np.float32)
    masked[:3] = np.nan
    assert np.isnan(subtract_background(masked, width)[:3]).all()
    np.testing.assert_array_equal(subtract_background(masked, width)[3 + width :], whole[3 + width :])
    with pytest.raises(ValueError, match="one plane"):
        subtract_background(plane[None], width)
