import pytest
import torch
from conftest import tiny_unet

from haze_pipeline.sampling.shared_group_norm import FixGroupNorms, MeasureGroupNorms


@pytest.fixture
def unet():
    return tiny_unet().eval()


def predict(unet, sample):
    with torch.no_grad():
        return unet(sample, torch.tensor(0.3)).sample


def test_the_statistics_of_one_image_are_those_of_group_norm(unet):
    image = 3 + 2 * torch.randn(1, 2, 32, 24)
    expected = predict(unet, image)
    with MeasureGroupNorms() as norms:
        torch.testing.assert_close(predict(unet, image), expected, rtol=1e-4, atol=1e-4)
    with FixGroupNorms(norms.statistics):
        torch.testing.assert_close(predict(unet, image), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_is_normalised_together(unet):
    dark, bright = torch.randn(1, 2, 32, 32), 10 + 5 * torch.randn(1, 2, 32, 32)
    with MeasureGroupNorms() as norms:
        together = predict(unet, torch.cat([dark, bright]))
    with FixGroupNorms(norms.statistics):
        torch.testing.assert_close(predict(unet, dark), together[:1], rtol=1e-4, atol=1e-4)
    assert (predict(unet, dark) - together[:1]).abs().max() > 0.1 * together.std()


def test_the_network_is_restored_even_after_an_error(unet):
    image = torch.randn(1, 2, 16, 16)
    expected = predict(unet, image)
    with pytest.raises(ValueError, match="stop"), MeasureGroupNorms():
        predict(unet, image + 1)
        raise ValueError("stop")
    torch.testing.assert_close(predict(unet, image), expected, rtol=0, atol=0)
    assert not any("forward" in vars(module) for module in unet.modules())
