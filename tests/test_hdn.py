"""Pipeline and training of HDN, a hierarchical VAE. For the network, see test_autoencoder_hierarchical.py."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, tiny_unet, write_pairs
from test_regression_networks import make_pair, psnr
from test_train_haze_matching import kill
from warm_python import ENVIRONMENT, run_script

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.data.pairs import Pair, load_pairs
from haze_pipeline.data.patches import FieldsInMemory, TrainingExamples, fit_image_processor
from haze_pipeline.image_processing import Normalization
from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.models.autoencoder_hierarchical import (
    AutoencoderHierarchical,
    evidence_lower_bound,
    log_likelihood,
)
from haze_pipeline.pipeline_haze_regression import HazeRegressionPipeline
from haze_pipeline.pipeline_hdn import HDNPipeline
from haze_pipeline.reliability.calibration import calibrate, measure_errors
from haze_pipeline.sampling.uncertainty import predicted_std


UNITS = {"normalization": "fixed", "input_mean": 0.0, "input_std": 1.0, "training_patch_size": 32}


def narrow(seed=0, **config):
    torch.manual_seed(seed)
    config = {"num_latent_groups": 3, "latent_channels": 4, "num_features": 8, "num_blocks": 1, **config}
    return AutoencoderHierarchical(**config).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    """HDN trained on four pairs of 32 × 32 pixels, and these pairs `[4, 32, 32]`."""
    network = narrow(num_latent_groups=2, latent_channels=8, num_features=16).train()
    hazy, clear = torch.from_numpy(np.stack([make_pair(seed, 32) for seed in range(4)], axis=1))[:, :, None]
    weights = [weight for name, weight in network.named_parameters() if name != "log_variance"]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": [network.log_variance]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.04], total_steps=200, pct_start=0.1)
    for step in range(200):
        output = network(torch.cat([network.draw_noise(4, (32, 32), seeded(step)), hazy], dim=1))
        reconstruction = log_likelihood(clear, output.prediction, output.log_variance)
        loss = -evidence_lower_bound(reconstruction, output.kl, free_bits=1.0).mean() / 32**2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return HDNPipeline(network.eval(), mirror_members=False, **UNITS), hazy[:, 0].numpy(), clear[:, 0].numpy()


def test_hdn_learns_four_pairs_and_its_mean_is_better_than_its_samples(trained):
    pipe, hazy, clear = trained
    out = pipe(hazy, ensemble_size=8, generator=seeded(), output_samples=True)
    assert psnr(clear, out.prediction) > psnr(clear, hazy) + 10
    assert psnr(clear, out.prediction) > max(psnr(clear, sample) for sample in out.samples) + 1
    np.testing.assert_allclose(out.prediction, out.samples.mean(axis=0), atol=1e-5)
    assert out.samples.shape == (8, *hazy.shape) and (out.samples.std(axis=0) > 1e-3).all()


def test_a_sample_is_what_the_network_decodes_from_its_noise(trained):
    pipe, hazy, _ = trained
    noise = pipe.unet.draw_noise(1, (32, 32), seeded())
    with torch.no_grad():
        expected = pipe.unet.decode(pipe.unet.encode(torch.from_numpy(hazy[:1, None]), noise).latents)[0, 0]
    np.testing.assert_allclose(pipe(hazy[0], generator=seeded()).prediction, expected.numpy(), atol=1e-5)


def test_tiles_give_nearly_the_result_of_the_whole_field(trained):
    """Coarse latents see beyond the overlap, so that the difference is compared with the spread and the score."""
    pipe = trained[0]
    hazy, clear = make_pair(9, 128)
    whole, tiled = (
        pipe(hazy, 2, generator=seeded(), output_samples=True, **tiles).samples
        for tiles in ({}, {"tile_size": 64, "tile_overlap": 16})
    )
    spread = np.sqrt(np.square(whole[0] - whole[1]).mean() / 2)
    assert 0 < np.sqrt(np.square(whole - tiled).mean()) < 0.2 * spread
    assert psnr(clear, tiled.mean(axis=0)) == pytest.approx(psnr(clear, whole.mean(axis=0)), abs=0.1)


def test_the_generator_decides_the_samples_and_batches_do_not(trained):
    pipe, hazy, _ = trained
    first, again, other = (
        pipe(hazy[0], 3, generator=seeded(seed), output_samples=True, batch_size=batch_size).samples
        for seed, batch_size in ((0, None), (0, 2), (1, None))
    )
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert np.abs(first - other).mean() > 1e-3 and np.abs(first[0] - first[1]).mean() > 1e-3


def test_equal_planes_have_equal_results(trained):
    pipe, hazy, _ = trained
    stack = pipe(hazy[[0, 1, 0]], 2, generator=seeded()).prediction
    np.testing.assert_allclose(stack[0], stack[2], atol=1e-5)
    own = [pipe(plane, 2, generator=seeded()).prediction for plane in hazy[:2]]
    np.testing.assert_allclose(stack[:2], np.stack(own), atol=1e-5)
    each = pipe(hazy[[0, 0]], generator=[seeded(0), seeded(1)]).prediction
    assert np.abs(each[0] - each[1]).mean() > 1e-3


def test_members_are_mirrored_in_turn(trained):
    pipe, hazy, _ = trained
    mirroring = HDNPipeline(**{**pipe.components, "mirror_members": True})
    plain, mirrored = (each(hazy[0], 2, generator=seeded(), output_samples=True).samples for each in (pipe, mirroring))
    np.testing.assert_array_equal(mirrored[0], plain[0])
    assert np.abs(mirrored[1] - plain[1]).max() > 1e-3


def test_the_uncertainty_is_calibrated_as_that_of_the_flow(trained):
    pipe, hazy, clear = trained
    out = pipe(hazy, 4, generator=seeded(), output_uncertainty=True, output_samples=True)
    spread = torch.from_numpy(out.samples.std(axis=0, ddof=1))
    np.testing.assert_allclose(out.uncertainty, predicted_std(spread, 4).numpy(), rtol=1e-3, atol=1e-5)
    assert out.interval_factors is None

    pairs = [Pair(hazy[number], clear[number], str(number), "a pair") for number in range(4)]
    specimens = measure_errors(pipe, pairs, None, 4)
    calibration = calibrate(specimens, 4, None)
    assert calibration["calibrated_for"] == {"ensemble_size": 4}
    calibrated = HDNPipeline(**{**pipe.components, **calibration})
    out = calibrated(hazy, 4, generator=seeded(), output_uncertainty=True)
    assert np.sqrt(np.square(out.uncertainty).mean()) == pytest.approx(
        np.sqrt(np.square(out.prediction - clear).mean()), rel=0.3
    )
    assert out.interval(0.5)[0].shape == hazy.shape
    assert calibrated(hazy, 2, generator=seeded(), output_uncertainty=True).interval_factors is None


def test_images_of_any_size_with_missing_pixels_are_restored_and_a_stored_pipeline_gives_the_same_bits(tmp_path):
    pipe = HDNPipeline(narrow(reconstruction_std=0.2))
    pipe.save_pretrained(tmp_path)
    loaded = HDNPipeline.from_pretrained(tmp_path)
    assert loaded.unet.config.reconstruction_std == 0.2 and not list(tmp_path.rglob("*.py"))
    for size in ((1, 1), (37, 53), (2, 19, 8)):
        image = np.random.default_rng(0).normal(100, 10, size)
        image[..., 0, 0] = np.nan if size != (1, 1) else 100
        prediction = pipe(image, generator=seeded()).prediction
        assert prediction.shape == size and (np.isfinite(prediction) == np.isfinite(image)).all()
        np.testing.assert_array_equal(loaded(image, generator=seeded()).prediction, prediction)
    np.testing.assert_allclose(pipe(image, strength=0.0).prediction, image, rtol=1e-5)
    several = pipe([np.ones((8, 8)), np.eye(9)], generator=seeded())
    assert [each.shape for each in several.prediction] == [(8, 8), (9, 9)] and not several.prediction[0].any()


def test_a_vae_of_clear_images_reconstructs_them_in_their_unit():
    pipe = HDNPipeline(narrow(), target_mean=0.4, target_std=1.2, reconstructs_input=True)
    maps = Normalization(*(torch.full((1, 1, 1, 1), value) for value in (100.0, 20.0, 50.0, 10.0)))
    image = np.random.default_rng(0).normal(60, 10, (16, 16)).astype(np.float32)
    network_units = torch.from_numpy((image - 50) / 10)[None, None]
    noise = pipe.unet.draw_noise(1, (16, 16), seeded())
    with torch.no_grad():
        expected = pipe.unet.decode(pipe.unet.encode(network_units, noise).latents)[0, 0] * 10 + 50
    found = pipe(image, normalization=maps, generator=seeded()).prediction
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert np.isfinite(pipe(np.stack([image, np.ones_like(image)])).prediction).all()


def test_wrong_arguments_are_refused(tmp_path):
    pipe, image = HDNPipeline(narrow()), np.eye(16)
    for arguments, message in (
        ({"ensemble_size": 0}, "`ensemble_size` must be positive, got 0"),
        ({"output_uncertainty": True}, "needs `ensemble_size` of 2 or more"),
        ({"strength": 1.5}, "`strength` must lie between 0 and 1"),
        ({"generator": 3}, "`generator` must be a torch.Generator"),
        ({"generator": [seeded(), seeded()]}, "one entry per plane, 1, got 2"),
        ({"tile_size": 12}, "positive multiple of 8"),
        ({"batch_size": 0}, "`batch_size` must be positive"),
        ({"output_type": "pil"}, "`output_type` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(image, **arguments)
    with pytest.raises(ValueError, match="`unet` must be an AutoencoderHierarchical, got UNet2DModel"):
        HDNPipeline(tiny_unet())
    pipe.save_pretrained(tmp_path)
    for other in (HazeMatchingPipeline, HazeRegressionPipeline):
        with pytest.raises(ValueError, match="contains a HDNPipeline"):
            other.from_pretrained(tmp_path)


def test_files_are_dehazed_and_calibrated_by_the_commands(trained, run, tmp_path):
    network, hazy, clear = trained[0].unet, *trained[1:]
    HDNPipeline(network).save_pretrained(tmp_path / "hdn")
    for kind, images in (("hazy", hazy), ("clear", clear)):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        for number, image in enumerate(images):
            tifffile.imwrite(tmp_path / "pairs" / kind / f"{number}.tif", image)
    calibrate = ("calibrate", tmp_path / "pairs", "--model", tmp_path / "hdn", "-o", tmp_path / "calibrated")
    code, printed, error = run(*calibrate, "--ensemble-size", 3)
    assert code == 0 and "4 specimens, 3 members\n" in printed, error
    assert HDNPipeline.from_pretrained(tmp_path / "calibrated").config.calibrated_for == {"ensemble_size": 3}
    code, _, error = run(*calibrate[:-1], tmp_path / "no", "--gain-pairs", tmp_path / "pairs")
    assert code == 1 and "--gain-pairs needs a HazeMatchingPipeline" in error

    command = ("dehaze", tmp_path / "pairs" / "hazy" / "0.tif", "--model", tmp_path / "calibrated", "--preset",
        "balanced", "--ensemble-size", 3, "--normalization", "plane", "--seed", 7)  # fmt: skip
    code, _, error = run(*command, "--uncertainty", "--samples", "-o", tmp_path / "clear.tif")
    assert code == 0, error
    pipe = place_pipeline(HDNPipeline.from_pretrained(tmp_path / "calibrated"), Device.auto, DType.auto)
    out = pipe(hazy[0], 3, generator=seeded(7), output_uncertainty=True, output_samples=True)
    for name, expected in (("", out.prediction), ("_uncertainty", out.uncertainty), ("_sample002", out.samples[2])):
        [path] = tmp_path.glob(f"clear{name}.tif")
        np.testing.assert_allclose(tifffile.imread(path), expected, rtol=1e-5, err_msg=name)
    code, _, error = run(*command, "--num-inference-steps", 4, "-o", tmp_path / "no.tif")
    assert code == 1 and "A HDNPipeline does not take the steps of a solver" in error


# The training script.


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("pairs"), 3, (48, 48))
    narrow().save_config(folder / "network")
    return folder


def arguments(pairs, output, *extra):
    common = (
        "--train_data_dir", pairs, "--model_config_name_or_path", pairs / "network", "--output_dir", output,
        "--resolution", 32, "--lr_warmup_steps", 1,
    )  # fmt: skip
    return [str(part) for part in (ROOT / "training" / "train_hierarchical_vae.py", *common, *extra)]


def train(pairs, output, *extra):
    result = run_script(*arguments(pairs, output, *extra))
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return HDNPipeline.from_pretrained(folder).unet.state_dict()


def logged(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_a_killed_training_resumes_to_the_same_weights_and_log(pairs, tmp_path):
    steps = (
        "--train_batch_size", 2, "--max_train_steps", 12, "--checkpointing_steps", 3, "--validation_steps", 6,
        "--validation_data_dir", pairs,
    )  # fmt: skip
    train(pairs, tmp_path / "whole", *steps)
    killed = tmp_path / "killed"
    assert kill([sys.executable, *arguments(pairs, killed, *steps)], (killed / "checkpoint-6").exists)
    assert not (killed / "model_index.json").exists()
    result = train(pairs, killed, *steps, "--resume_from_checkpoint", "latest")
    assert "resumed from" in result.stderr
    expected, found = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows, resumed = logged(tmp_path / "whole"), logged(killed)
    assert [row["step"] for row in rows] == [6, 12] and [row["step"] for row in resumed] == [6, 12]
    assert [row["validation_psnr"] for row in rows] == [row["validation_psnr"] for row in resumed]
    assert all(len(row["kl_per_pixel"]) == 3 and min(row["kl_per_pixel"]) > 0 for row in rows)
    assert HDNPipeline.from_pretrained(killed / "best").config.training_patch_size == 32
    card = (killed / "README.md").read_text()
    assert 'HDNPipeline.from_pretrained("killed")' in card and "Prakash" in card and "| 12 |" in card
    assert str(tmp_path) not in card + (killed / "training.json").read_text()


def test_the_loss_is_the_bound_of_the_examples(pairs, tmp_path):
    """The logged loss and divergence of the first step follow from the initial weights and the examples."""
    free_bits = 30.0
    result = train(
        pairs, tmp_path, "--train_batch_size", 2, "--max_train_steps", 1, "--free_bits", free_bits, "--seed", 5
    )
    loaded = list(load_pairs(pairs, "train"))
    processor = fit_image_processor("image", loaded)
    network = narrow(seed=5)
    examples = TrainingExamples(
        FieldsInMemory(loaded, processor, 32), 32, posterior_mean_share=1.0, t_sampling="grid", seed=5, length=2,
        noise_channels=network.noise_channels,
    )  # fmt: skip
    batch = [examples[0], examples[1]]
    hazy, clear, noise = (torch.stack([example[name] for example in batch]) for name in ("hazy", "clear", "noise"))
    with torch.no_grad():
        output = network(torch.cat([noise, hazy], dim=1))
        bound = evidence_lower_bound(
            log_likelihood(clear, output.prediction, output.log_variance), output.kl, free_bits
        )
    row = logged(tmp_path)[0]
    assert row["loss"] == pytest.approx(-bound.mean().item() / 32**2, rel=1e-5)
    assert row["kl_per_pixel"] == pytest.approx((output.kl.mean(dim=0) / 32**2).tolist(), rel=1e-4)
    assert row["standard_deviation"] == pytest.approx(1, abs=0.02)
    # Untrained groups of few latents have less than 30 nats.
    collapsed = [str(group) for group, nats in enumerate(output.kl.mean(dim=0), start=1) if nats < free_bits]
    assert collapsed and f"group(s) {', '.join(collapsed)} (1 is the finest) had a KL below" in result.stderr


def test_two_processes_equal_one_with_the_same_global_batch(pairs, tmp_path):
    steps = ("--max_train_steps", 5, "--validation_steps", 1)
    train(pairs, tmp_path / "one", "--train_batch_size", 4, *steps)
    config = ROOT / "training" / "accelerate_configs" / "cpu_2_processes.yaml"
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "29535"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments(pairs, tmp_path / "two", "--train_batch_size", 2, *steps)],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 process(es)" in result.stderr
    expected = weights(tmp_path / "one")
    assert all(torch.allclose(expected[name], value, atol=1e-4) for name, value in weights(tmp_path / "two").items())
    for one, two in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert two["kl_per_pixel"] == pytest.approx(one["kl_per_pixel"], abs=1e-4)


def test_a_vae_of_clear_images_is_trained_on_these_alone(pairs, tmp_path):
    for kind in ("hazy", "clear"):  # the same clear images, with other hazy ones
        (tmp_path / "other" / kind).mkdir(parents=True)
    shutil.copytree(pairs / "network", tmp_path / "other" / "network")
    for path in (pairs / "clear").iterdir():
        shutil.copy(path, tmp_path / "other" / "clear")
        tifffile.imwrite(tmp_path / "other" / "hazy" / path.name, np.ones((48, 48), np.float32))
    steps = ("--target", "input", "--train_batch_size", 2, "--max_train_steps", 2, "--mixed_precision", "bf16")
    for name, folder in (("first", pairs), ("second", tmp_path / "other")):
        train(folder, tmp_path / name, *steps, "--validation_data_dir", pairs)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)
    pipe = HDNPipeline.from_pretrained(tmp_path / "first")
    assert pipe.config.reconstructs_input
    assert logged(tmp_path / "first")[0]["validation_psnr"] > 0


def test_impossible_trainings_are_explained(pairs, tmp_path):
    for extra, code, message in (
        (("--resolution", 36), 1, "--resolution must be a multiple of 8 for this network, got 36"),
        (("--free_bits", -1), 2, "--free_bits must not be negative"),
        (("--target", "hazy"), 2, "invalid choice"),
    ):
        result = run_script(*arguments(pairs, tmp_path / "no", "--max_train_steps", 1, *extra))
        assert result.returncode == code and message in result.stderr and "Traceback" not in result.stderr, extra
