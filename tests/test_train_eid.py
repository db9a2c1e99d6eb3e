"""Training without pairs: `train_eid.py`, and what it stores."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet, write_pairs
from diffusers import UNet2DModel
from PIL import Image
from warm_python import run_script

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.data.hub_datasets import build_dataset, pair_row
from haze_pipeline.data.unpaired import (
    Plane,
    UnpairedPatches,
    fit_unpaired_processor,
    load_dataset_planes,
    load_planes,
    normalize_clear,
    normalize_hazy,
)
from haze_pipeline.io.micrograph_files import Micrograph, write_ome_tiff
from haze_pipeline.loading import PIPELINES, load_pipeline
from haze_pipeline.models.atmospheric_haze import AtmosphericHaze
from haze_pipeline.models.haze_operator import OpticalHaze
from haze_pipeline.models.residual_unet import ResidualUNet
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline


SMALL_HAZE = json.dumps({"kernel_size": 32, "background_width": 16})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pairs, and the configuration of a narrow network in `network`."""
    folder = tmp_path_factory.mktemp("eid")
    write_pairs(folder, 3, (48, 40))
    ResidualUNet(num_features=4, num_scales=3).save_config(folder / "network")
    return folder


def train(folder, output, *arguments, steps=4):
    """Run the script on the hazy images of `folder`, without their partners, for a narrow residual U-Net."""
    network = ("--architecture", "residual-unet", "--model_config_name_or_path", folder / "network")
    if {"--init_from", "--architecture"} & set(arguments):
        network = ()
    return run_script(
        ROOT / "training" / "train_eid.py", "--train_data_dir", folder / "hazy", "--output_dir", output,
        "--resolution", 32, "--train_batch_size", 2, "--max_train_steps", steps, "--lr_warmup_steps", 0,
        *network, *arguments,
    )  # fmt: skip


def logged(result):
    """The records of the validations of a training."""
    return [json.loads(line[line.index("{") :]) for line in result.stderr.splitlines() if '{"step"' in line]


def test_a_network_is_trained_without_pairs_and_validated_with_some(folder, tmp_path):
    result = train(folder, tmp_path, "--operator_config", SMALL_HAZE, "--validation_data_dir", folder)
    assert result.returncode == 0, result.stderr[-3000:]
    (record,) = logged(result)
    names = {"step", "seconds", "consistency", "equivariance", "consistency_error", "equivariance_error"}
    assert set(record) == {*names, "validation_psnr"} and all(np.isfinite(value) for value in record.values())
    for each in (tmp_path, tmp_path / "best"):
        pipe = load_pipeline(str(each), PIPELINES)
        assert type(pipe) is HazeRegressionPipeline and type(pipe.unet) is ResidualUNet
        assert pipe.config.training_patch_size == 32 and pipe.config.training_pixel_size == {"min": 0.1, "max": 0.1}
    assert pipe.unet.conv_out.weight.abs().max() > 0  # it started from 0
    training = json.loads((tmp_path / "training.json").read_text())
    assert training["log"] == [record] and training["hazy_images"] == 3 and training["base_model"] is None
    card = (tmp_path / "README.md").read_text()
    assert "restores hazy micrographs" in card and "3 hazy images;" in card and "validation PSNR, dB" in card
    operator = OpticalHaze.from_pretrained(tmp_path / "haze_operator")
    assert operator.config.kernel_size == 32
    # Without clear images, nothing can be learned about the haze.
    assert torch.equal(operator.raw_weights, OpticalHaze().raw_weights)


def test_the_unet_of_the_other_methods_is_trained_on_packed_pixels_after_a_guess(folder, tmp_path):
    packed = {**tiny_unet().config, "in_channels": 8, "out_channels": 4}
    UNet2DModel.from_config(packed).save_config(tmp_path / "network")
    arguments = ("--architecture", "unet", "--operator_config", SMALL_HAZE, "--unpaired_clear", folder / "clear",
                 "--operator_steps", 1, "--guess_steps", 1)  # fmt: skip
    network = ("--model_config_name_or_path", tmp_path / "network")
    for name, weight in (("first", 1), ("second", 0)):
        result = train(folder, tmp_path / name, *arguments, *network, "--recovery_weight", weight, steps=3)
        assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_pipeline(str(tmp_path / name), PIPELINES) for name in ("first", "second"))
    assert first.takes_state and first.config.pixel_packing == 2
    assert first(np.random.default_rng(0).gamma(2, 50, (40, 44))).prediction.shape == (40, 44)
    weights = [pipe.unet.conv_in.weight for pipe in (first, second)]
    assert not torch.equal(*weights)  # clear images were recovered by the first one alone
    result = train(folder, tmp_path / "third", *arguments, *network, "--pixel_packing", 1, steps=3)
    assert result.returncode == 1 and "must have 2 input channels" in result.stderr
    network = ("--model_config_name_or_path", folder / "network")
    result = train(folder, tmp_path / "third", *arguments, *network, steps=3)
    assert result.returncode == 1 and "is of a ResidualUNet, but --architecture unet is a UNet2DModel" in result.stderr


@pytest.mark.parametrize("kind", ["optical", "learned"])
def test_a_resumed_training_gives_the_same_bits(kind, folder, tmp_path):
    config = json.loads(SMALL_HAZE) if kind == "optical" else {"num_features": 4, "num_blocks": 1}
    arguments = (
        "--haze_operator", kind, "--operator_config", json.dumps(config), "--unpaired_clear", folder / "clear",
        "--operator_steps", 2, "--adversarial_weight", 0.1, "--discriminator_features", 4, "--checkpointing_steps", 1,
        "--checkpoints_total_limit", 9,
    )  # fmt: skip
    result = train(folder, tmp_path / "whole", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    for step in (1, 3):  # while the operator is trained, and after
        output = tmp_path / f"from {step}"
        output.mkdir()
        (tmp_path / "whole" / f"checkpoint-{step}").rename(output / f"checkpoint-{step}")
        result = train(folder, output, *arguments, "--resume_from_checkpoint", "latest")
        assert result.returncode == 0, result.stderr[-3000:]
        for part in ("unet", "haze_operator"):
            whole, resumed = (
                each / part / "diffusion_pytorch_model.safetensors" for each in (tmp_path / "whole", output)
            )
            assert whole.read_bytes() == resumed.read_bytes()
    if kind == "optical":
        operator = OpticalHaze.from_pretrained(tmp_path / "whole" / "haze_operator")
        assert not torch.equal(operator.raw_weights, OpticalHaze().raw_weights)


def test_the_atmosphere_is_learned_in_units_that_hazy_and_clear_images_share(folder, tmp_path):
    arguments = ("--haze_operator", "atmospheric", "--transform", "flip")
    result = train(folder, tmp_path / "first", *arguments, "--validation_data_dir", folder / "hazy", steps=1)
    assert result.returncode == 0, result.stderr[-3000:]
    (record,) = logged(result)
    assert "validation_psnr" not in record and 0 <= record["doubtful"] <= 1
    config = load_pipeline(str(tmp_path / "first"), PIPELINES).config
    assert (config.normalization, config.input_mean, config.input_std) == (
        "fixed", config.target_mean, config.target_std
    )  # fmt: skip
    airlight = AtmosphericHaze.from_pretrained(tmp_path / "first" / "haze_operator").learned_airlight.item()
    assert airlight * config.input_std + config.input_mean > 100  # counts
    # A training that continues takes the operator from the first one.
    result = train(folder, tmp_path / "second", *arguments, "--init_from", tmp_path / "first", steps=1)
    assert result.returncode == 0, result.stderr[-3000:]
    result = train(folder, tmp_path / "third", "--init_from", tmp_path / "first", steps=1)
    assert result.returncode == 1 and "contains its operator, of the class AtmosphericHaze" in result.stderr


def test_a_flow_that_gives_its_mean_in_one_call_is_adapted(folder, tmp_path):
    flow = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), target_mean=1.5, target_std=2.0)
    flow.save_pretrained(tmp_path / "flow")
    arguments = ("--init_from", tmp_path / "flow", "--operator_config", SMALL_HAZE)
    result = train(folder, tmp_path / "adapted", *arguments, steps=1)
    assert result.returncode == 1 and "does not restore an image with one call" in result.stderr
    flow.register_to_config(zero_state_mean=True)
    flow.save_pretrained(tmp_path / "flow")
    result = train(folder, tmp_path / "adapted", *arguments, steps=1)
    assert result.returncode == 0, result.stderr[-3000:]
    adapted = HazeRegressionPipeline.from_pretrained(tmp_path / "adapted")
    assert adapted.config.target_mean == 1.5 and adapted.takes_state
    assert OpticalHaze.from_pretrained(tmp_path / "adapted" / "haze_operator").config.dark_level == -0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--haze_operator", "learned"), "learned needs clear images: add --unpaired_clear"),
        (("--adversarial_weight", 1), "need clear images: add --unpaired_clear"),
        (("--operator_steps", 2), "need clear images: add --unpaired_clear"),
        (("--unpaired_clear", "clear", "--operator_steps", 4), "--operator_steps must be less than"),
        (("--guess_steps", 5), "--guess_steps must be 0 to 4, the number of steps of the network, got 5"),
        (("--recovery_weight", -1), "must be finite and not negative"),
        (("--pixel_packing", 2), "--pixel_packing must be 1 or more pixels and is for the U-Net, got 2"),
        (("--init_from", "pipeline", "--pixel_packing", 2), "--init_from sets the network"),
        (("--equivariance_weight", -1), "must be finite and not negative"),
        (("--operator_config", "{airy_radius: 2}"), "--operator_config is not JSON"),
        (("--operator_config", '{"radius": 2}'), "--operator_config does not fit OpticalHaze"),
        (("--resolution", 30), "--resolution must be a multiple of 4 for this network, got 30"),
        (("--resolution", 64), r"image of shape \(48, 40\) is smaller than the patches of 64 pixels"),
        (("--train_data_dir", "nowhere"), "nowhere holds no TIFFs"),
        (("--train_batch_size", 0), "--train_batch_size must be positive"),
        (("--dataset_name", "lab/hazy"), "Pass one of --train_data_dir and --dataset_name"),
        (("--photographs",), "--photographs needs --haze_operator atmospheric or learned"),
        (("--photographs", "--haze_operator", "atmospheric"), "must have three colours of 8 bits"),
        (("--normalization", "image", "--haze_operator", "atmospheric"), "--normalization image is for micrographs"),
        (("--init_from", "pipeline", "--normalization", "image"), "--init_from sets the normalisation"),
        (("--discriminator_features", 0), "--discriminator_features must be positive"),
    ],
)
def test_an_impossible_training_ends_with_one_sentence(arguments, message, folder, tmp_path):
    result = train(folder, tmp_path, *arguments)
    assert result.returncode in (1, 2)
    assert re.search(message, result.stderr), result.stderr[-1000:]
    assert "Traceback" not in result.stderr


def test_photographs_are_trained_with_the_haze_of_the_atmosphere(folder, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3)).astype(np.uint8)
    (tmp_path / "photographs").mkdir()
    for number, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / "photographs" / f"{number}.png")
    ResidualUNet(num_features=4, num_scales=3, num_channels=3).save_config(tmp_path / "network")
    arguments = ("--photographs", "--train_data_dir", tmp_path / "photographs")
    atmospheric = ("--haze_operator", "atmospheric")
    result = train(folder, tmp_path / "first", *arguments, *atmospheric, steps=1)
    assert result.returncode == 1 and "has 1 channel(s), but the images have 3" in result.stderr
    network = ("--model_config_name_or_path", tmp_path / "network")
    result = train(folder, tmp_path / "first", *arguments, *atmospheric, *network, steps=1)
    assert result.returncode == 0, result.stderr[-3000:]
    pipe = load_pipeline(str(tmp_path / "first"), PIPELINES)
    image = np.moveaxis(values[0], -1, 0)
    assert pipe.num_channels == 3 and pipe(image).prediction.shape == (3, 40, 48)
    assert AtmosphericHaze.from_pretrained(tmp_path / "first" / "haze_operator").learned_airlight.shape == (3, 1, 1)
    assert "hazy photographs in colour" in (tmp_path / "first" / "README.md").read_text()
    result = train(folder, tmp_path / "second", "--init_from", tmp_path / "first", *atmospheric, steps=1)
    assert result.returncode == 1 and "restores images of 3 channel(s), but these have 1" in result.stderr


def test_hazy_images_are_read_from_datasets(tmp_path):
    pytest.importorskip("datasets")
    hazy = np.random.default_rng(0).poisson(100, (2, 16, 20)).astype(np.uint16)
    for name in ("dataset", "clear"):
        (tmp_path / name).mkdir()
    rows = [pair_row(hazy[index], hazy[index], "one", f"image {index}", pixel_size_um=0.2) for index in range(2)]
    dataset = build_dataset(rows, tmp_path / "rows.arrow")
    dataset.to_parquet(tmp_path / "dataset" / "train-00000-of-00001.parquet")
    planes = list(load_dataset_planes(str(tmp_path / "dataset")))
    assert [plane.source for plane in planes] == ["image 0", "image 1"] and planes[0].pixel_size_um == 0.2
    np.testing.assert_array_equal(np.stack([plane.image for plane in planes]), hazy)
    dataset.remove_columns("hazy").to_parquet(tmp_path / "clear" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="must have a column `hazy` or `image`, but has only clear"):
        list(load_dataset_planes(str(tmp_path / "clear")))


def test_planes_are_read_from_stacks_and_channels_are_refused(tmp_path):
    stack = np.random.default_rng(0).poisson(100, (3, 16, 20)).astype(np.uint16)
    (tmp_path / "day").mkdir()
    write_ome_tiff(tmp_path / "day" / "stack.tif", Micrograph(stack, "ZYX", (0.2, 0.2)))
    planes = list(load_planes(tmp_path))
    assert [plane.source for plane in planes] == [f"day/stack.tif, plane {index}" for index in range(3)]
    assert planes[1].pixel_size_um == 0.2
    np.testing.assert_array_equal(np.stack([plane.image for plane in planes]), stack)
    write_ome_tiff(tmp_path / "colours.tif", Micrograph(stack, "CYX"))
    with pytest.raises(ValueError, match=r"colours.tif holds several channels"):
        list(load_planes(tmp_path))


def test_units_do_not_depend_on_gain_and_offset():
    rng = np.random.default_rng(0)
    planes = [Plane(rng.gamma(2, 50, (40, 40)).astype(np.float32), str(index)) for index in range(3)]
    processor = fit_unpaired_processor("image", planes)
    hazy = torch.stack([normalize_hazy(plane, processor) for plane in planes])
    assert hazy.square().mean().item() == pytest.approx(1, abs=1e-3)
    changed = Plane(4 * planes[0].image + 300, "changed")
    torch.testing.assert_close(normalize_hazy(changed, processor), hazy[0], atol=1e-3, rtol=0)
    clear = normalize_clear(planes[0], processor)
    torch.testing.assert_close(normalize_clear(changed, processor), clear, atol=1e-3, rtol=0)
    assert clear.quantile(0.01).item() == pytest.approx(processor.target_dark_level, abs=1e-3)
    torch.testing.assert_close(clear - clear.mean(), hazy[0] - hazy[0].mean(), atol=1e-3, rtol=0)  # one unit
    fixed = fit_unpaired_processor("fixed", planes)
    assert torch.equal(normalize_clear(planes[0], fixed), normalize_hazy(planes[0], fixed))
    for normalization in ("image", "fixed"):
        with pytest.raises(ValueError, match=r"contrast|not constant"):
            fit_unpaired_processor(normalization, [Plane(np.ones((40, 40)), "blank")])
    assert normalize_hazy(Plane(np.ones((40, 40)), "blank"), processor) is None
    assert normalize_clear(Plane(np.ones((40, 40)), "blank"), processor) is None
    with pytest.raises(ValueError, match=r"broken: `image` must be finite"):
        normalize_hazy(Plane(np.full((40, 40), np.nan), "broken"), processor)


def test_examples_depend_on_their_index_alone():
    fields = [torch.arange(40 * 40.0).reshape(1, 40, 40) + 10_000 * index for index in range(3)]
    patches = UnpairedPatches(fields, fields[:1], resolution=16, seed=3, length=10)
    again = UnpairedPatches(fields, fields[:1], resolution=16, seed=3, length=20)
    assert len(patches) == 10
    examples = [patches[index] for index in range(10)]
    for index in (7, 2):
        for name in ("hazy", "clear"):
            assert torch.equal(again[index][name], examples[index][name])
            assert examples[index][name].shape == (1, 16, 16)
    assert len({example["hazy"].max().item() for example in examples}) == 10
    assert max(example["clear"].max() for example in examples) < 10_000
    assert set(UnpairedPatches(fields, [], 16, 0, 1)[0]) == {"hazy"}
    with pytest.raises(ValueError, match="No hazy training image has any contrast"):
        UnpairedPatches([], fields, 16, 0, 1)


def test_a_gain_of_the_input_is_one_of_the_result_and_an_offset_is_background():
    torch.manual_seed(0)
    network = ResidualUNet(num_features=4, num_scales=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.3)
    pipe = HazeRegressionPipeline(network.eval(), target_mean=0.0, target_std=2.0)
    image = np.random.default_rng(0).gamma(2, 100, (2, 40, 56)).round().astype(np.float32)
    prediction = pipe(image).prediction
    np.testing.assert_array_equal(pipe(4 * image).prediction, 4 * prediction)  # powers of two are exact in float32
    np.testing.assert_allclose(pipe(2.9 * image).prediction, 2.9 * prediction, atol=0.01)
    np.testing.assert_allclose(pipe(image + 512).prediction, prediction, atol=0.01)
