"""The lattice that networks on packed pixels leave in their results, and its removal."""

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DModel
from scipy import ndimage

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.sampling.pixel_packing import remove_lattice, remove_lattice_in_bands


def lattice(shape, columns=0.5, rows=0.2, checkerboard=-0.1):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (columns * (-1.0) ** x + rows * (-1.0) ** y + checkerboard * (-1.0) ** (x + y)).astype(np.float32)


def clean(plane):
    return remove_lattice(torch.from_numpy(plane)[None, None])[0, 0].numpy()


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (64, 65), (7, 4), (513, 300)])
def test_a_uniform_lattice_vanishes(shape):
    plane = clean(3 + lattice(shape))
    np.testing.assert_allclose(plane, 3, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50)])
def test_planes_too_small_for_a_measurement_stay(shape):
    np.testing.assert_array_equal(clean(lattice(shape)), lattice(shape))


def test_gradients_stay_up_to_the_border():
    rows, columns = np.mgrid[:64, :65]
    ramp = (10 * columns + 3 * rows).astype(np.float32)
    np.testing.assert_allclose(clean(ramp), ramp, atol=1e-3)
    cell = (800 * np.exp(-((rows - 30) ** 2 + columns**2) / (2 * 8**2))).astype(np.float32)  # cut by the border
    assert np.abs(clean(cell) - cell).max() < 0.005 * 800


def test_structures_of_a_microscope_stay():
    rng = np.random.default_rng(0)
    spots = (rng.random((128, 160)) > 0.99).astype(np.float32)
    structures = 1000 * ndimage.gaussian_filter(spots, 1.0) + np.linspace(0, 500, 160, dtype=np.float32)
    plane = clean(structures + lattice(structures.shape, columns=5))
    assert np.abs(plane - structures).max() < 0.01 * np.ptp(structures)
    assert np.abs(plane - structures).mean() < 0.3  # of a lattice of about 5


def test_results_of_networks_on_packed_pixels_have_no_lattice():
    """A network whose last bias differs between the pixels of a square, as an extreme case."""
    unet = UNet2DModel.from_config({**tiny_unet().config, "in_channels": 8, "out_channels": 4}).eval()
    with torch.no_grad():
        unet.conv_out.bias += torch.tensor([0.5, -0.5, 0.3, -0.3])
    pipe = HazeMatchingPipeline(unet, FlowMatchODEScheduler(), pixel_packing=2)
    pipe.set_progress_bar_config(disable=True)
    hazy = np.stack([1000 + 100 * np.random.default_rng(seed).random((48, 64)) for seed in (0, 1)])
    out = pipe(hazy, 2, 2, generator=torch.Generator().manual_seed(0), output_samples=True)
    planes = np.concatenate([out.prediction, out.samples.reshape(-1, 48, 64)])
    for pattern in (lattice((48, 64), 1, 0, 0), lattice((48, 64), 0, 1, 0), lattice((48, 64), 0, 0, 1)):
        assert (np.abs((planes * pattern).mean(axis=(1, 2))) < 0.03 * planes.std()).all()


def test_bands_do_not_change_the_result():
    plane = torch.randn(1, 1, 2100, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(remove_lattice_in_bands(plane), remove_lattice(plane), rtol=1e-5, atol=1e-6)
