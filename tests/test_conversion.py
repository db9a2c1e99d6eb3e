import hashlib
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torchcfm_unet import reference_unet

from haze_pipeline.sharing.conversion import (
    SUBSETS,
    convert_hazematching_checkpoint,
    load_hazematching_checkpoint,
    unet_from_torchcfm,
)


@pytest.fixture(scope="module")
def weights():
    return reference_unet(128).state_dict()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pth"
    torch.save(weights, path)
    return path


def assert_one_sentence(error):
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text


@pytest.mark.parametrize(("patch_size", "num_parameters"), [(128, 3_704_097), (64, 3_594_625)])
def test_same_function_as_torchcfm(patch_size, num_parameters):
    reference = reference_unet(patch_size)
    unet = unet_from_torchcfm(reference.state_dict())
    assert unet.config.sample_size == patch_size
    assert not unet.training
    assert sum(p.numel() for p in unet.parameters()) == num_parameters
    assert sum(p.numel() for p in reference.parameters()) == num_parameters

    generator = torch.Generator().manual_seed(1)
    times = torch.tensor([0.0, 1 / 19, 0.5, 1.0])
    with torch.no_grad():
        patches = torch.randn(4, 2, 128, 128, generator=generator)
        theirs, ours = reference(times, patches), unet(patches, times, return_dict=False)[0]  # [4,1,128,128]
        assert theirs.std() > 0.1
        assert (theirs - ours).abs().max() < 2e-5  # an epsilon of 1e-6 in the norms gives 4e-5

        field = torch.randn(1, 2, 256, 320, generator=generator)
        for t in times[[0, 2]]:
            theirs, ours = reference(t, field), unet(field, t, return_dict=False)[0]  # [1,1,256,320]
            assert (theirs - ours).abs().max() < 2e-5

        # Results at different times differ by far more than the tolerance, so the test also covers the time embedding.
        outputs = unet(patches[:1].expand(4, -1, -1, -1), times, return_dict=False)[0]
        assert (outputs[1:] - outputs[:-1]).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def test_half_precision_weights_become_float32(weights):
    unet = unet_from_torchcfm({name: tensor.bfloat16() for name, tensor in weights.items()})
    assert unet.dtype == torch.float32


def test_missing_weights_are_named(weights):
    broken = {name: tensor for name, tensor in weights.items() if name != "middle_block.1.qkv.bias"}
    with pytest.raises(ValueError, match=r"1 tensor\(s\) missing \(such as `middle_block.1.qkv.bias`\)") as error:
        unet_from_torchcfm(broken)
    assert_one_sentence(error)


def test_unexpected_weights_are_named(weights):
    with pytest.raises(ValueError, match=r"1 tensor\(s\) unexpected \(such as `label_emb.weight`\)") as error:
        unet_from_torchcfm({**weights, "label_emb.weight": torch.zeros(10, 128)})
    assert_one_sentence(error)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"in_channels": 3}, r"`input_blocks.0.0.weight` has the shape \[32, 3, 3, 3\], expected \[32, 2, 3, 3\]"),
        ({"out_channels": 2}, r"`out.2.weight` has the shape \[2, 32, 3, 3\], expected \[1, 32, 3, 3\]"),
        ({"model_channels": 64}, r"128-pixel network .* has the shape \[256, 64\], expected \[128, 32\]"),
        ({"num_res_blocks": 2}, r"tensor\(s\) missing .* tensor\(s\) unexpected"),
        ({"attention_resolutions": (16,)}, r"tensor\(s\) missing .* tensor\(s\) unexpected"),
        ({"channel_mult": (1, 1, 2, 2, 4, 4)}, r"128-pixel network .* tensor\(s\) unexpected"),  # 256-px patches
        ({"channel_mult": (1, 2, 2)}, r"64-pixel network .* tensor\(s\) missing"),
        ({"use_scale_shift_norm": True}, r"emb_layers.1.weight` has the shape"),
    ],
)
def test_differences_of_another_architecture_are_named(overrides, match):
    with pytest.raises(ValueError, match=match) as error:
        unet_from_torchcfm(reference_unet(128, **overrides).state_dict())
    assert_one_sentence(error)


@pytest.mark.parametrize("state_dict", [{}, {"weight": torch.zeros(1)}])
def test_weights_of_something_else(state_dict):
    with pytest.raises(ValueError, match=r"tensor\(s\) missing") as error:
        unet_from_torchcfm(state_dict)
    assert_one_sentence(error)


def test_diverged_training_is_an_error(weights):
    broken = {**weights, "out.2.bias": torch.tensor([math.nan])}
    with pytest.raises(ValueError, match=r"`out.2.bias` contains NaN or infinite values") as error:
        unet_from_torchcfm(broken)
    assert_one_sentence(error)


def test_load_gives_the_saved_tensors(checkpoint, weights):
    loaded = load_hazematching_checkpoint(checkpoint)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_load_strips_the_prefix_of_data_parallel(tmp_path):
    model = torch.nn.DataParallel(torch.nn.Linear(2, 3))
    torch.save(model.state_dict(), tmp_path / "parallel.pth")
    assert load_hazematching_checkpoint(tmp_path / "parallel.pth").keys() == {"weight", "bias"}


def test_load_missing_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint file") as error:
            load_hazematching_checkpoint(path)
        assert_one_sentence(error)


def test_load_files_that_are_not_checkpoints(tmp_path):
    torch.save(torch.nn.Linear(64, 64).state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    contents = {
        "text.pth": b"<html>404 Not Found</html>\n",
        "empty.pth": b"",
        "truncated.pth": whole[: len(whole) // 2],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}` is not a PyTorch checkpoint") as error:
            load_hazematching_checkpoint(tmp_path / name)
        assert_one_sentence(error)


class Unsafe:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_load_runs_no_code(tmp_path):
    torch.save({"weight": Unsafe(tmp_path / "ran")}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match=r"contains Python objects \(`(_io|builtins|io).open`\)") as error:
        load_hazematching_checkpoint(tmp_path / "unsafe.pth")
    assert_one_sentence(error)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"weight": Unsafe(tmp_path / "ran")}, protocol=2))
    with pytest.raises(ValueError, match="is not a PyTorch checkpoint") as error:
        load_hazematching_checkpoint(tmp_path / "pickle.pth")
    assert_one_sentence(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(3), "no named tensors"),
        ({}, "no named tensors"),
        ({"epoch": 3, "model": {"weight": torch.zeros(1)}}, "contains a `int` named `epoch`"),
    ],
)
def test_load_other_contents(tmp_path, content, match):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=match) as error:
        load_hazematching_checkpoint(tmp_path / "other.pth")
    assert_one_sentence(error)


def test_convert_warns_of_an_unpublished_file(checkpoint):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    with pytest.warns(UserWarning, match="not the published checkpoint") as caught:
        unet, config = convert_hazematching_checkpoint(checkpoint, "zebrafish", channel=2)
    assert len(caught) == 1
    assert digest[:12] in str(caught[0].message)
    assert "9e3bdfcdce89" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert unet.config.sample_size == 128
    assert config == {
        "input_mean": 162.67065,
        "input_std": 27.638577,
        "target_mean": 62.870373,
        "target_std": 32.791805,
        "training_patch_size": 128,
        "default_num_inference_steps": 19,
    }


def test_convert_recognises_published_files(checkpoint, monkeypatch):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    monkeypatch.setitem(SUBSETS, "organoids1", replace(SUBSETS["organoids1"], sha256=digest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_hazematching_checkpoint(checkpoint, "organoids1")
    with pytest.raises(ValueError, match="published checkpoint of the subset organoids1, not of zebrafish") as error:
        convert_hazematching_checkpoint(checkpoint, "zebrafish")
    assert_one_sentence(error)


def test_convert_refuses_the_network_of_another_subset(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"128-pixel network, but the subset neuron .* 64-pixel") as error:
        convert_hazematching_checkpoint(checkpoint, "neuron")
    assert_one_sentence(error)

    torch.save(reference_unet(64).state_dict(), tmp_path / "neuron.pth")
    with pytest.raises(ValueError, match=r"64-pixel network, but the subset microtubule .* 128-pixel"):
        convert_hazematching_checkpoint(tmp_path / "neuron.pth", "microtubule")
    with pytest.warns(UserWarning, match="not the published checkpoint"):
        unet, config = convert_hazematching_checkpoint(tmp_path / "neuron.pth", "neuron")
    assert unet.config.sample_size == config["training_patch_size"] == 64


@pytest.mark.parametrize(
    ("subset", "channel", "match"),
    [
        ("fish", 0, "zebrafish, organoids1, organoids2, microtubule, neuron, got 'fish'"),
        ("zebrafish", 3, "zebrafish must be one of 0, 1, 2, got 3"),
        ("zebrafish", -1, "got -1"),
        ("neuron", 1, "neuron must be one of 0, got 1"),
    ],
)
def test_convert_names_the_choices(subset, channel, match):
    with pytest.raises(ValueError, match=match) as error:
        convert_hazematching_checkpoint("unread.pth", subset, channel)
    assert_one_sentence(error)


def test_every_subset_is_complete():
    assert set(SUBSETS) == {"zebrafish", "organoids1", "organoids2", "microtubule", "neuron"}
    assert {name: len(known.channels) for name, known in SUBSETS.items() if len(known.channels) != 1} == {
        "zebrafish": 3
    }
    assert {name for name, known in SUBSETS.items() if known.patch_size != 128} == {"neuron"}
    assert len({known.sha256 for known in SUBSETS.values()}) == 5
    for known in SUBSETS.values():
        assert known.patch_size in (64, 128)
        assert len(bytes.fromhex(known.sha256)) == 32
        for statistics in known.channels:
            assert set(statistics) == {"input_mean", "input_std", "target_mean", "target_std"}
            assert all(math.isfinite(value) for value in statistics.values())
            assert statistics["input_std"] > 0 and statistics["target_std"] > 0
