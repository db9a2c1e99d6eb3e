import gc
import itertools
import json
import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from PIL import Image
from torchcfm_unet import reference_unet

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.image_processing import Normalization
from haze_pipeline.models.unet_haze_matching import add_gain
from haze_pipeline.sampling import tiled_sampler
from haze_pipeline.sampling.pixel_packing import remove_lattice
from haze_pipeline.sampling.uncertainty import local_intensity, predicted_std
from haze_pipeline.sharing.conversion import unet_from_torchcfm
from haze_pipeline.utils import arrays


@pytest.fixture
def pipe():
    pipeline = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), target_mean=0.4, target_std=1.3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def image():
    return np.random.default_rng(0).gamma(2, 100, (3, 40, 32)).astype(np.uint16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Agreement with the reference of the method.


@pytest.mark.parametrize("shape", [(128, 128), (256, 320)])
def test_19_steps_equal_a_plain_loop_of_the_reference(shape):
    """The torchcfm network in the loop of the paper and its conversion in our pipeline agree, from the same noise."""
    reference = reference_unet(128)
    hazy = np.random.default_rng(1).normal(300, 40, shape).astype(np.float32)
    noise = torch.randn(1, 1, *shape, generator=seeded())

    condition = torch.from_numpy((hazy - 290) / 50)[None, None]
    x = noise
    times = torch.linspace(0, 1, 20)
    with torch.no_grad():
        for now, following in itertools.pairwise(times):
            velocity = reference(now.expand(1), torch.cat([x, condition], dim=1))
            x = x + (following - now) * velocity
    expected = (x * 30 + 100)[0, 0].numpy()

    pipeline = HazeMatchingPipeline(
        unet_from_torchcfm(reference.state_dict()),
        FlowMatchODEScheduler(),
        normalization="fixed",
        input_mean=290,
        input_std=50,
        target_mean=100,
        target_std=30,
    )
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(hazy, num_inference_steps=19, latents=noise[0, 0], tile_size=320)  # in one tile
    # 1e-4 in network units, in which the solution has a standard deviation of about 1.
    assert np.abs(out.prediction - expected).max() / 30 < 1e-4
    assert expected.std() / 30 > 0.3


def test_the_stock_scheduler_gives_the_same_image(pipe, image):
    ours = pipe(image, num_inference_steps=5, generator=seeded()).prediction
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    np.testing.assert_allclose(pipe(image, num_inference_steps=5, generator=seeded()).prediction, ours, rtol=1e-4)


def test_one_step_is_noise_plus_velocity_at_time_zero(pipe, image):
    noise = torch.randn(3, 40, 32, generator=seeded())
    planes = pipe.image_processor.preprocess(image)
    statistics = pipe.image_processor.compute_normalization(planes)
    hazy = (planes - statistics.input_mean) / statistics.input_std
    with torch.no_grad():
        velocity = pipe.unet(torch.cat([noise[:, None], hazy], dim=1), torch.tensor(0.0)).sample
    expected = (noise[:, None] + velocity) * statistics.target_std + statistics.target_mean
    out = pipe(image, num_inference_steps=1, latents=noise, output_type="pt")
    torch.testing.assert_close(out.prediction, expected[:, 0], rtol=1e-4, atol=1e-3)


# The result depends on image and noise, and on nothing else.


def test_the_result_is_a_function_of_image_and_noise_alone(pipe, image):
    noise = np.random.default_rng(3).standard_normal((2, *image.shape)).astype(np.float32)
    torch.manual_seed(1)
    one = pipe(image, num_inference_steps=3, ensemble_size=2, latents=noise).prediction
    torch.manual_seed(2)
    torch.randn(5)
    two = pipe(image, num_inference_steps=3, ensemble_size=2, latents=torch.from_numpy(noise)).prediction
    np.testing.assert_array_equal(one, two)
    assert np.abs(pipe(image, num_inference_steps=3, ensemble_size=2, latents=noise + 1).prediction - one).max() > 1


@pytest.mark.parametrize("tiles", [{}, {"tile_size": 32, "tile_overlap": 8}], ids=["untiled", "tiled"])
def test_members_see_the_image_with_alternating_mirroring(pipe, image, tiles):
    noise = torch.randn(5, *image.shape, generator=seeded()).numpy()
    samples = pipe(image, num_inference_steps=2, ensemble_size=5, latents=noise, output_samples=True, **tiles).samples
    for sample, start, axes in zip(samples, noise, [(), (-1,), (-2,), (-2, -1), ()], strict=True):
        seen, start = np.flip(image, axes).copy(), np.flip(start, axes).copy()
        alone = pipe(seen, num_inference_steps=2, latents=start, **tiles).prediction
        np.testing.assert_allclose(sample, np.flip(alone, axes), rtol=1e-4, atol=1e-2)


def test_without_mirroring_members_are_a_function_of_their_noise(pipe, image):
    pipe.register_to_config(mirror_members=False)
    noise = torch.randn(4, *image.shape, generator=seeded())
    arguments = {"num_inference_steps": 2, "ensemble_size": 4, "output_samples": True}
    samples = pipe(image, latents=noise, **arguments).samples
    np.testing.assert_allclose(
        pipe(image, latents=noise.flip(0), **arguments).samples, samples[::-1], rtol=1e-4, atol=1e-2
    )


def test_samples_depend_on_the_seed_but_not_on_the_batch_size(pipe, image):
    def run(batch_size, seed=0):
        return pipe(
            image,
            num_inference_steps=3,
            ensemble_size=3,
            batch_size=batch_size,
            generator=seeded(seed),
            output_samples=True,
        ).samples

    expected = run(1)
    for batch_size in (2, 4, 9):
        np.testing.assert_allclose(run(batch_size), expected, rtol=1e-4, atol=1e-2)
    assert np.abs(run(1, seed=1) - expected).max() > 1


def test_seeded_noise_equals_the_same_noise_given_as_latents(pipe, image):
    """Which all planes share."""
    generator = seeded()
    noise = torch.stack([torch.randn(1, 40, 32, generator=generator) for _ in range(2)]).expand(2, 3, 40, 32)
    given = pipe(image, num_inference_steps=2, ensemble_size=2, latents=noise).prediction
    drawn = pipe(image, num_inference_steps=2, ensemble_size=2, generator=seeded()).prediction
    np.testing.assert_allclose(given, drawn, rtol=1e-5)


def test_one_step_uses_antithetic_pairs_of_noises(pipe, image):
    noise = torch.randn(3, 40, 32, generator=seeded())
    pair = pipe(image, num_inference_steps=1, ensemble_size=2, latents=torch.stack([noise, -noise])).prediction
    drawn = pipe(image, num_inference_steps=1, ensemble_size=2, generator=[seeded()] * 3).prediction
    np.testing.assert_allclose(drawn, pair, rtol=1e-4, atol=1e-2)
    two_steps = pipe(image, num_inference_steps=2, ensemble_size=2, generator=seeded(), output_samples=True).samples
    assert np.corrcoef(two_steps[0].ravel(), two_steps[1].ravel())[0, 1] > -0.5


def test_one_generator_per_plane_makes_planes_independent_of_their_stack(pipe, image):
    stack = pipe(image, num_inference_steps=2, generator=[seeded(i) for i in range(3)]).prediction
    alone = pipe(image[2], num_inference_steps=2, generator=seeded(2)).prediction
    np.testing.assert_allclose(stack[2], alone, rtol=1e-4, atol=1e-2)


class LocalNetwork(UNet2DModel):
    """A network without normalisation or attention. Its result on a tile differs from the whole field only at cuts."""

    def forward(self, sample, timestep, return_dict=True):
        hazy, state = sample[:, 1:], sample[:, :1]
        smooth = torch.nn.functional.avg_pool2d(hazy, 3, stride=1, padding=1, count_include_pad=False)
        return (smooth - state * (1 + timestep),)


def test_a_stack_may_share_its_statistics(pipe, image):
    """With shared statistics, the result of a plane is the same alone as in its stack."""
    processor = pipe.image_processor
    shared = processor.normalization_from(processor.pool(processor.measure(processor.preprocess(image))))
    out = pipe(image, num_inference_steps=2, generator=seeded(), normalization=shared)
    several = pipe(image, 2, 2, generator=seeded(), normalization=shared, output_uncertainty=True)
    assert several.uncertainty.shape == image.shape
    for number in range(len(image)):
        alone = pipe(image[number], num_inference_steps=2, generator=seeded(), normalization=shared)
        np.testing.assert_allclose(alone.prediction, out.prediction[number], rtol=1e-3, atol=1e-2)
    each = processor.compute_normalization(processor.preprocess(image))
    default = pipe(image, num_inference_steps=2, generator=seeded())
    same = pipe(image, num_inference_steps=2, generator=seeded(), normalization=each)
    np.testing.assert_array_equal(same.prediction, default.prediction)
    assert np.abs(out.prediction - default.prediction).max() > 1


def test_tiles_share_one_noise_field_and_leave_no_seam():
    unet = LocalNetwork(**{k: v for k, v in tiny_unet().config.items() if not k.startswith("_")})
    pipe = HazeMatchingPipeline(unet, FlowMatchODEScheduler())
    pipe.set_progress_bar_config(disable=True)
    hazy = np.random.default_rng(0).gamma(2, 100, (100, 90)).astype(np.float32)
    whole = pipe(hazy, num_inference_steps=4, generator=seeded()).prediction
    spread = whole.std()
    for tile_size, tile_overlap in ((32, 8), (48, 24), (64, None)):
        tiled = pipe(
            hazy, num_inference_steps=4, generator=seeded(), tile_size=tile_size, tile_overlap=tile_overlap
        ).prediction
        # A cut changes the local average only in one pixel at the edge of a tile, where the weight is smallest.
        assert np.abs(tiled - whole).max() < 0.05 * spread
        assert np.abs(tiled - whole).mean() < 0.001 * spread


def test_tiles_share_their_statistics_so_that_their_size_hardly_matters():
    pipe = HazeMatchingPipeline.from_default()
    pipe.set_progress_bar_config(disable=True)
    y, x = np.mgrid[:256, :256]
    # One half is bright, one half nearly empty, so separate statistics would scale the tiles very differently.
    hazy = 100 + 2000 * (x > 128) * (np.sin(x / 4) * np.sin(y / 5)) ** 8
    hazy = np.random.default_rng(0).poisson(hazy).astype(np.uint16)
    results = [
        pipe(hazy, num_inference_steps=4, generator=seeded(), tile_size=tile_size).prediction
        for tile_size in (128, 192)
    ]
    assert (results[0] - results[1]).std() < 0.03 * results[0].std()


def test_blocks_of_a_large_field_agree_with_the_whole(monkeypatch, pipe):
    hazy = np.random.default_rng(0).gamma(2, 100, (200, 150)).astype(np.float32)
    arguments = {"num_inference_steps": 3, "tile_size": 64, "tile_overlap": 32}
    whole = pipe(hazy, generator=seeded(), **arguments).prediction
    seen = []
    monkeypatch.setattr(tiled_sampler, "BLOCK_SIZE", 128)
    blocks = pipe(
        hazy, generator=seeded(), callback_on_step_end=lambda p, step, t, k: seen.append(step), **arguments
    ).prediction
    assert seen == list(range(pipe.num_timesteps)) and pipe.num_timesteps == 3 * 4
    assert (blocks - whole).std() < 0.05 * whole.std()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files in /proc")
def test_arrays_in_files_give_the_same_result(monkeypatch, pipe, image, tmp_path):
    arguments = {"num_inference_steps": 2, "ensemble_size": 3, "output_uncertainty": True, "output_samples": True}
    expected = pipe(image, generator=seeded(), batch_size=1, **arguments)
    monkeypatch.setattr(arrays.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=0))
    monkeypatch.setattr(arrays.tempfile, "tempdir", str(tmp_path))
    result = pipe(image, generator=seeded(), batch_size=1, **arguments)
    assert sum(str(tmp_path) in line for line in open("/proc/self/maps")) == 3  # one of each output
    np.testing.assert_allclose(result.prediction, expected.prediction, rtol=1e-5)
    np.testing.assert_allclose(result.uncertainty, expected.uncertainty, rtol=1e-4)
    np.testing.assert_allclose(result.samples, expected.samples, rtol=1e-4, atol=1e-3)


def run_alone(script):
    """Run a script in its own process. Returns its standard output and standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    prelude = """
import resource
import numpy as np, torch
from conftest import tiny_unet
from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler())
pipe.set_progress_bar_config(disable=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_memory_does_not_grow_with_the_ensemble(pipe):
    """The test counts the tensors alive at every step; `bench/sampling.py` measures the memory of the process."""
    image = np.random.default_rng(0).poisson(100, (64, 64)).astype(np.uint16)

    def most_bytes(members: int, **kwargs) -> int:
        most = 0

        def count(pipe, step, timestep, tensors):
            nonlocal most
            alive = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
            most = max(most, sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values()))
            return {}

        arguments = {"num_inference_steps": 2, "batch_size": 1, "output_uncertainty": True, **kwargs}
        pipe(image, ensemble_size=members, callback_on_step_end=count, **arguments)
        return most

    assert most_bytes(32) == most_bytes(4)
    assert most_bytes(32, output_samples=True) - most_bytes(4, output_samples=True) == 28 * 64 * 64 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_tiles_become_smaller_when_memory_runs_out():
    """A real memory limit of the system is too low for the whole field at once."""
    script = """
hazy = np.random.default_rng(0).poisson(100, (1024, 1024)).astype(np.uint16)
def run(tile_size):
    generator = torch.Generator().manual_seed(0)
    return pipe(hazy, num_inference_steps=1, generator=generator, tile_size=tile_size).prediction
expected = run(256)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# The whole field at once needs more memory than this. Smaller tiles need less, including the caches of oneDNN and of
# the allocator.
resource.setrlimit(resource.RLIMIT_AS, (size + 128 * 2**20, resource.RLIM_INFINITY))
result = run(1024)
print((result - expected).std() / expected.std())
"""
    output, errors = run_alone(script)
    assert "Out of memory: continuing with 1 tile(s) at once, of at most" in errors
    assert float(output) < 0.1


# Shapes and types.


@pytest.mark.parametrize(
    "shape", [(48, 36), (2, 24, 24), (2, 1, 2, 20, 24), (1, 1), (17, 19), (1, 500), (2, 1, 33), (500, 500)]
)
def test_the_prediction_has_the_shape_of_the_image(pipe, shape):
    image = np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)
    out = pipe(image, num_inference_steps=2, ensemble_size=2, output_uncertainty=True, output_samples=True)
    assert out.prediction.shape == out.uncertainty.shape == shape
    assert out.samples.shape == (2, *shape)
    assert out.prediction.dtype == out.uncertainty.dtype == out.samples.dtype == np.float32
    assert np.isfinite(out.prediction).all() and (out.uncertainty >= 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_the_dtype_of_the_image_does_not_matter(pipe, dtype):
    image = np.random.default_rng(0).integers(0, 255, (20, 20))
    expected = pipe(image.astype(np.float32), num_inference_steps=2, generator=seeded()).prediction
    result = pipe(image.astype(dtype), num_inference_steps=2, generator=seeded()).prediction
    np.testing.assert_array_equal(result, expected)


def test_a_list_of_images_of_different_sizes(pipe):
    images = [np.random.rand(20, 24), np.random.rand(2, 17, 9)]
    generator = seeded()
    out = pipe(images, num_inference_steps=2, ensemble_size=2, generator=generator, output_uncertainty=True)
    assert [p.shape for p in out.prediction] == [p.shape for p in out.uncertainty] == [i.shape for i in images]
    assert out.samples is None
    as_tuple = pipe(images, num_inference_steps=1, return_dict=False)
    assert len(as_tuple) == 3 and len(as_tuple[0]) == 2 and as_tuple[1:] == (None, None)
    alone = pipe(images[0], num_inference_steps=2, ensemble_size=2, generator=seeded()).prediction
    np.testing.assert_array_equal(out.prediction[0], alone)


def test_a_plane_without_contrast_has_no_in_focus_signal(pipe):
    stack = np.stack([np.full((20, 20), 500), np.random.default_rng(0).integers(0, 900, (20, 20))]).astype(np.uint16)
    out = pipe(stack, num_inference_steps=2, ensemble_size=2, output_uncertainty=True)
    assert (out.prediction[0] == 0).all() and (out.uncertainty[0] == 0).all()
    assert np.isfinite(out.prediction[1]).all() and out.prediction[1].std() > 0


def test_tuple_and_dict_agree(pipe, image):
    arguments = {"num_inference_steps": 2, "ensemble_size": 2, "output_uncertainty": True, "output_samples": True}
    out = pipe(image, generator=seeded(), **arguments)
    prediction, uncertainty, samples = pipe(image, generator=seeded(), return_dict=False, **arguments)
    np.testing.assert_array_equal(out.prediction, prediction)
    np.testing.assert_array_equal(out.uncertainty, uncertainty)
    np.testing.assert_array_equal(out.samples, samples)
    assert pipe(image, num_inference_steps=1, return_dict=False)[1:] == (None, None)


def test_tensors_come_back_as_tensors(pipe, image):
    out = pipe(torch.from_numpy(image.astype(np.float32)), num_inference_steps=1, generator=seeded(), output_type="pt")
    arrays = pipe(image, num_inference_steps=1, generator=seeded())
    np.testing.assert_array_equal(out.prediction.numpy(), arrays.prediction)


# The ensemble.


def test_intervals_are_as_wide_as_the_calibration_says(pipe, image, tmp_path):
    arguments = {"num_inference_steps": 2, "ensemble_size": 2, "generator": seeded()}
    with pytest.raises(ValueError, match="output_uncertainty=True"):
        pipe(image, **arguments).interval()
    with pytest.raises(ValueError, match="not calibrated"):
        pipe(image, **arguments, output_uncertainty=True).interval()
    fitted_for = {"ensemble_size": 2, "num_inference_steps": 2}
    pipe.register_to_config(interval_factors={"0.1": 2.0, "0.5": 0.7}, calibrated_for=fitted_for)
    pipe.save_pretrained(tmp_path)
    pipe = HazeMatchingPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    out = pipe([image, image[0]], **arguments, output_uncertainty=True)
    lower, upper = out.interval(1 - 0.9)
    for low, high, mean, deviation in zip(lower, upper, out.prediction, out.uncertainty, strict=True):
        np.testing.assert_allclose((low, high), (mean - 2 * deviation, mean + 2 * deviation))
    narrow = pipe(image, **arguments, output_uncertainty=True, output_type="pt")
    low, high = narrow.interval(alpha=0.5)
    torch.testing.assert_close(high - low, 1.4 * narrow.uncertainty, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match=r"for \[0.1, 0.5\] only"):
        narrow.interval(0.2)
    for other in ({"ensemble_size": 3}, {"num_inference_steps": 3}, {"ensembling_kwargs": {"reduction": "median"}}):
        with pytest.raises(ValueError, match="not calibrated"):
            pipe(image, **{**arguments, **other}, output_uncertainty=True).interval(0.1)


def test_prediction_and_uncertainty_summarise_the_samples(pipe, image):
    pipe.register_to_config(uncertainty_scale=1.5, uncertainty_offset=0.1)
    arguments = {"num_inference_steps": 2, "ensemble_size": 4, "output_uncertainty": True, "output_samples": True}
    out = pipe(image, generator=seeded(), **arguments)
    np.testing.assert_allclose(out.prediction, out.samples.mean(axis=0), rtol=1e-4, atol=1e-2)
    statistics = pipe.image_processor.compute_normalization(pipe.image_processor.preprocess(image))
    offset = 0.1 * statistics.target_std[:, 0].numpy()
    spread = out.samples.std(axis=0, ddof=1)
    np.testing.assert_allclose(out.uncertainty, np.hypot(1.5 * spread + offset, spread / 2), rtol=1e-3, atol=1e-2)
    median = pipe(image, generator=seeded(), ensembling_kwargs={"reduction": "median"}, **arguments)
    np.testing.assert_allclose(median.prediction, np.median(out.samples, axis=0), rtol=1e-4, atol=1e-2)


def test_the_uncertainty_curve_uses_the_intensity_of_every_plane(pipe, image):
    curve = {"light_weight": 0.4, "predictor": [0.1, 1.0, 10.0], "deviation": [0.2, 0.5, 6.0]}
    pipe.register_to_config(uncertainty_curve=curve)
    planes = np.stack([image[0], 30 * image[0] + 500.0, np.full_like(image[0], 7)])
    arguments = {"num_inference_steps": 2, "ensemble_size": 4, "output_uncertainty": True, "output_samples": True}
    out = pipe(planes, generator=seeded(), **arguments)
    units = pipe.image_processor.compute_normalization(pipe.image_processor.preprocess(planes)).target_std.ravel()
    assert (out.uncertainty[2] == 0).all()
    for index, unit in enumerate(units[:2]):
        spread = torch.from_numpy(out.samples[:, index].std(axis=0, ddof=1)) / unit
        intensity = local_intensity(torch.from_numpy(planes[index].astype(np.float32)), unit.item())
        expected = predicted_std(spread, 4, curve=curve, intensity=intensity) * unit
        np.testing.assert_allclose(out.uncertainty[index], expected, rtol=2e-3)


# Saving and loading.


def test_saving_and_loading_gives_bitwise_identical_results(pipe, image, tmp_path):
    expected = pipe(image, num_inference_steps=3, ensemble_size=2, generator=seeded()).prediction
    pipe.save_pretrained(tmp_path)
    loaded = HazeMatchingPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, FlowMatchODEScheduler)
    assert loaded.config.target_std == 1.3
    result = loaded(image, num_inference_steps=3, ensemble_size=2, generator=seeded()).prediction
    np.testing.assert_array_equal(result, expected)
    assert not list(tmp_path.rglob("*.bin"))


def test_the_config_explains_the_checkpoint(pipe, tmp_path):
    pipe.register_to_config(training_patch_size=64, training_pixel_size={"min": 0.03, "max": 0.6})
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["normalization"] == "image" and index["training_pixel_size"] == {"min": 0.03, "max": 0.6}
    assert index["default_num_inference_steps"] == 19


def test_the_default_checkpoint_loads_offline_from_the_package(monkeypatch):
    import socket

    def refuse(*_):
        raise OSError("the test forbids network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pipe = HazeMatchingPipeline.from_default()
    assert pipe.unet.dtype == torch.float32
    assert sum(p.numel() for p in pipe.unet.parameters()) == 3706692


def test_half_precision_stays_close(pipe, image):
    expected = pipe(image, num_inference_steps=3, generator=seeded()).prediction
    for dtype in (torch.bfloat16, torch.float16):
        out = pipe.to(dtype)(image, num_inference_steps=3, generator=seeded())
        assert np.abs(out.prediction - expected).mean() < 0.05 * expected.std()
        assert out.prediction.dtype == np.float32


# Callbacks.


def test_the_callback_sees_every_step_and_may_replace_the_state(pipe, image):
    seen = []

    def record(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
        return {}

    pipe(image, num_inference_steps=3, ensemble_size=2, batch_size=4, callback_on_step_end=record)
    assert [step for step, _, _ in seen] == list(range(6))  # 3 steps for 4 and for the remaining 2 of 6 members
    assert seen[0][1] == 1000 and seen[0][2] == (4, 1, 40, 32) and seen[-1][2] == (2, 1, 40, 32)
    assert pipe.num_timesteps == 6

    zeros = pipe(
        image,
        num_inference_steps=3,
        callback_on_step_end=lambda p, s, t, k: {"latents": torch.zeros_like(k["latents"])},
    ).prediction
    statistics = pipe.image_processor.compute_normalization(pipe.image_processor.preprocess(image))
    np.testing.assert_allclose(zeros, statistics.target_mean[:, 0].expand(3, 40, 32).numpy(), rtol=1e-5)


def test_an_interrupted_call_returns_no_half_finished_image(pipe, image):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return {}

    with pytest.raises(RuntimeError, match="Interrupted after 1 solver steps"):
        pipe(image, num_inference_steps=3, callback_on_step_end=stop)
    assert pipe(image, num_inference_steps=1).prediction.shape == image.shape  # the next call is not interrupted


# Arguments out of range.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"ensemble_size": 0}, "ensemble_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"tile_size": 30}, "multiple of 8"),
        ({"tile_size": 0}, "multiple of 8"),
        ({"tile_overlap": 8}, "needs `tile_size`"),
        ({"tile_size": 32, "tile_overlap": 32}, "tile_overlap"),
        ({"output_type": "pil"}, "output_type"),
        ({"ensembling_kwargs": {"reduction": "max"}}, "reduction"),
        ({"ensembling_kwargs": {"reductoin": "median"}}, "reductoin"),
        ({"latents": np.full((3, 40, 32), np.nan)}, "finite"),
        ({"latents": [[0.0]]}, "list"),
        ({"output_uncertainty": True}, "ensemble_size"),
        ({"output_uncertainty": True, "ensemble_size": 4, "num_inference_steps": 1}, "posterior mean"),
        ({"latents": np.zeros((2, 40, 32))}, "shape"),
        ({"latents": np.zeros((3, 40, 32)), "ensemble_size": 2}, "shape"),
        ({"latents": np.zeros((3, 40, 32)), "generator": torch.Generator()}, "exclude each other"),
        ({"generator": [torch.Generator()]}, "one entry per plane"),
        ({"normalization": Normalization(*torch.ones(4, 2, 1, 1, 1))}, "one map for all planes"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
        ({"generator": 5}, "must be a torch.Generator on the CPU or a list of them"),
        ({"strength": 1.5}, "`strength` must lie between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_named(pipe, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(image, **arguments)


@pytest.mark.parametrize("bad", [np.full((8, 8), np.inf), np.zeros((0, 8)), np.zeros(8), "cells.tif", []])
def test_bad_images_raise_one_clear_error(pipe, bad):
    with pytest.raises(ValueError, match="image"):
        pipe(bad)


# Pixels without a measurement, outliers, blank planes, and the dial.


def test_missing_pixels_stay_missing(pipe, image):
    """A border of NaN is left out of the statistics, and is NaN in every result."""
    framed = np.full((60, 52), np.nan, np.float32)
    framed[:40, :32] = image[0]
    out = pipe(framed, 2, 2, generator=seeded(), output_uncertainty=True, output_samples=True)
    for result in (out.prediction, out.uncertainty, *out.samples):
        np.testing.assert_array_equal(np.isnan(result), np.isnan(framed))
    processor = pipe.image_processor
    measured = processor.measure(processor.preprocess(framed, allow_masked=True))
    torch.testing.assert_close(measured, processor.measure(processor.preprocess(image[0])), rtol=0.05, atol=0)
    assert np.isnan(pipe(np.full((16, 16), np.nan)).prediction).all()


@pytest.mark.parametrize("normalization", ["plane", "stack"])
def test_hot_pixels_change_nothing_elsewhere(pipe, normalization):
    clean = np.random.default_rng(1).normal(100, 10, (64, 64)).astype(np.float32)
    hot = clean.copy()
    hot[30, 30] = 65535
    processor = pipe.image_processor

    def dehaze(plane):
        planes = processor.preprocess(plane)
        processor.replace_hot_pixels(planes)
        shared = processor.normalization_from(processor.measure(planes)) if normalization == "stack" else None
        return pipe(plane, num_inference_steps=1, generator=seeded(), normalization=shared)

    expected, found = dehaze(clean), dehaze(hot)
    assert (expected.hot_pixels, found.hot_pixels) == (0, 1)
    assert np.abs(found.prediction - expected.prediction).max() < 0.02 * np.ptp(expected.prediction)


def test_planes_without_contrast_give_0_without_the_network(pipe, image):
    stack = np.stack([image[0], np.full_like(image[0], 100), image[0]])
    processor = pipe.image_processor
    shared = processor.normalization_from(processor.pool(processor.measure(processor.preprocess(stack))))
    calls = []
    pipe.unet.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    for arguments in ({"normalization": shared}, {}):
        out = pipe(stack, 2, 2, generator=seeded(), output_uncertainty=True, **arguments)
        assert not out.prediction[1].any() and not out.uncertainty[1].any()
        np.testing.assert_allclose(out.prediction[2], out.prediction[0], rtol=1e-4, atol=1e-2)
    assert sum(calls) == 2 * 2 * 2 * 2  # calls, steps, planes, members


def test_strength_blends_linearly_in_counts(pipe, image):
    arguments = {"num_inference_steps": 2, "ensemble_size": 2, "output_uncertainty": True, "output_samples": True}

    def run(strength):
        return pipe(image, **arguments, generator=seeded(), strength=strength)

    none, some, full = run(0), run(0.25), run(1)
    np.testing.assert_allclose(none.prediction, image, rtol=1e-4, atol=1e-2)
    assert not none.uncertainty.any()
    np.testing.assert_allclose(some.prediction, 0.75 * image + 0.25 * full.prediction, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(some.samples, 0.75 * image + 0.25 * full.samples, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(some.uncertainty, 0.25 * full.uncertainty, rtol=1e-4)
    pipe.register_to_config(normalization="fixed")
    with pytest.raises(ValueError, match="not in the counts"):
        run(0.5)


def test_whatever_numpy_can_read_is_an_image(pipe, image):
    class Lazy:
        def __array__(self, dtype=None, copy=None):
            return image[0] if dtype is None else image[0].astype(dtype)

    expected = pipe(image[0], num_inference_steps=1, generator=seeded()).prediction
    for taken in (Lazy(), Image.fromarray(image[0]), torch.from_numpy(image[0])):
        np.testing.assert_array_equal(pipe(taken, num_inference_steps=1, generator=seeded()).prediction, expected)
    with pytest.raises(ValueError, match="one channel"):
        pipe(Image.new("RGB", (32, 32)))


def test_a_network_of_other_channels_is_refused():
    unet = tiny_unet()
    other = UNet2DModel(**{**{k: v for k, v in unet.config.items() if not k.startswith("_")}, "in_channels": 3})
    with pytest.raises(ValueError, match="2 input channels"):
        HazeMatchingPipeline(other, FlowMatchODEScheduler())


# Packed pixels, and posterior means without noise.


@pytest.fixture
def packed():
    """A pipeline that packs 2 × 2 pixels into the channels of one pixel."""
    config = {**tiny_unet().config, "in_channels": 8, "out_channels": 4}
    torch.manual_seed(0)
    pipeline = HazeMatchingPipeline(
        UNet2DModel.from_config(config).eval(), FlowMatchODEScheduler(), pixel_packing=2, zero_state_mean=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_packed_pixels_are_unpacked_to_their_positions(packed):
    """Channel 2 i + j of a packed image is the pixel (i, j) of every 2 × 2 pixels."""
    plane = np.random.default_rng(0).gamma(2, 100, (48, 32)).astype(np.float32)
    normalization = packed.image_processor.compute_normalization(packed.image_processor.preprocess(plane))
    hazy = (torch.from_numpy(plane) - normalization.input_mean) / normalization.input_std  # [1,1,H,W]
    corners = [hazy[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    states = torch.cat([torch.zeros(1, 4, 24, 16), *corners], dim=1)
    with torch.no_grad():
        packed_clear = packed.unet(states, torch.zeros(1), return_dict=False)[0]
    clear = torch.zeros(48, 32)
    for channel, (i, j) in enumerate(itertools.product((0, 1), (0, 1))):
        clear[i::2, j::2] = packed_clear[0, channel]
    clear = remove_lattice(clear[None, None])[0, 0]
    out = packed(plane, num_inference_steps=1)
    np.testing.assert_allclose(
        out.prediction,
        (clear * normalization.target_std[0, 0] + normalization.target_mean[0, 0]).numpy(),
        rtol=1e-4,
        atol=1e-3,
    )


def test_a_network_may_predict_a_gain_of_the_hazy_image(packed, image):
    """The initial gain of `add_gain` is 0 and changes nothing. A gain of 1 adds the hazy image in its own units."""
    plane = image[0]
    plain = packed(plane, num_inference_steps=1).prediction
    add_gain(packed.unet)
    assert packed.unet.config.out_channels == 8
    pipe = HazeMatchingPipeline(**packed.components)
    np.testing.assert_array_equal(pipe(plane, num_inference_steps=1).prediction, plain)
    with torch.no_grad():
        pipe.unet.conv_out.bias[4:] = 1
    added = pipe(plane, num_inference_steps=1).prediction - plain
    expected = remove_lattice(torch.from_numpy(plane - plane.mean()).float()[None, None])[0, 0]
    np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-3 * plane.std())


def test_a_mean_without_noise_takes_one_call_and_does_not_depend_on_the_seed(packed, image):
    calls = []
    packed.unet.register_forward_hook(lambda *_: calls.append(1))
    first = packed(image, num_inference_steps=1, generator=seeded(0)).prediction
    assert len(calls) == 1  # three small planes in one batch
    np.testing.assert_array_equal(packed(image, num_inference_steps=1, generator=seeded(1)).prediction, first)
    # Identical frames give identical results.
    frames = packed(np.stack([image[0]] * 4), num_inference_steps=1).prediction
    np.testing.assert_allclose(frames, np.stack([frames[0]] * 4), rtol=1e-5)


def test_packed_pipelines_can_be_stored_and_tiled(packed, tmp_path):
    image = np.random.default_rng(0).gamma(2, 100, (120, 90)).astype(np.float32)
    packed.save_pretrained(tmp_path / "packed")
    loaded = HazeMatchingPipeline.from_pretrained(tmp_path / "packed", low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet_scale_factor == 16
    arguments = {"num_inference_steps": 3, "generator": None, "latents": torch.randn(120, 90, generator=seeded())}
    expected = packed(image, **arguments).prediction
    np.testing.assert_array_equal(loaded(image, **arguments).prediction, expected)
    tiled = packed(image, **arguments, tile_size=64, tile_overlap=32).prediction
    again = packed(image, **arguments, tile_size=96, tile_overlap=32).prediction
    assert np.abs(tiled - again).max() < 0.3 * expected.std()


def test_channels_that_do_not_fit_the_packing_are_refused():
    for packing, message in ((2, "8 input channels"), (0, "`pixel_packing` must be 1 or more")):
        with pytest.raises(ValueError, match=message):
            HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), pixel_packing=packing)


# Several threads.


@pytest.mark.parametrize("tile_size", [None, 32])
def test_threads_that_share_a_pipeline_get_the_same_results_as_alone(pipe, tile_size):
    images = [np.random.default_rng(seed).gamma(2, 100, (56, 48)).astype(np.float32) for seed in range(4)]

    def dehaze(number):
        image = images[number % len(images)]
        return pipe(
            image, num_inference_steps=3, tile_size=tile_size, generator=seeded(number % len(images))
        ).prediction

    expected = [dehaze(number) for number in range(len(images))]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(dehaze, range(40))):
            np.testing.assert_allclose(found, expected[number % len(images)], rtol=1e-5, atol=1e-4)


# Exchange of schedulers and components, as with other pipelines of diffusers.


def test_a_scheduler_that_is_not_for_flow_matching_is_refused_by_name(pipe, image):
    pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="got EulerDiscreteScheduler"):
        pipe(image, num_inference_steps=2)


def test_a_pipeline_made_from_the_components_of_another_gives_the_same_results(pipe, image):
    pipe.register_to_config(noise_corner_frequency=0.2, uncertainty_scale=2.0)
    arguments = {"num_inference_steps": 2, "ensemble_size": 2, "output_uncertainty": True}
    twin = HazeMatchingPipeline(**pipe.components)
    twin.set_progress_bar_config(disable=True)
    ours, theirs = (each(image, generator=seeded(), **arguments) for each in (pipe, twin))
    np.testing.assert_array_equal(ours.prediction, theirs.prediction)
    np.testing.assert_array_equal(ours.uncertainty, theirs.uncertainty)
