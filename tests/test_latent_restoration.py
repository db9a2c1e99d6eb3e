"""Restoration in the latents of a hierarchical VAE: networks, pipeline, and training script."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from test_hdn import kill
from warm_python import ENVIRONMENT, run_script

from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.models.autoencoder_hierarchical import AutoencoderHierarchical
from haze_pipeline.models.latent_restoration import LatentRestoration, to_grid, to_groups
from haze_pipeline.pipeline_hdn import HDNPipeline
from haze_pipeline.pipeline_latent_restoration import VARIANTS, LatentRestorationPipeline


AUTOENCODER = {"num_latent_groups": 2, "latent_channels": 4, "num_features": 8, "num_blocks": 1}
UNITS = {"normalization": "fixed", "input_mean": 0.0, "input_std": 1.0}
FRACTIONS = [0.2, 0.5, 1.0]


def narrow(seed=0, **config):
    """A network with random weights, whose maps all change the latents."""
    torch.manual_seed(seed)
    config = {"num_levels": 3, "block_out_channels": (8, 8), "degradation_features": 8, **config}
    network = LatentRestoration(AUTOENCODER, **config)
    for name, weight in network.named_parameters():
        if "degradation" in name or "conv_out" in name:
            torch.nn.init.normal_(weight, std=0.2)
    network.latent_mean.normal_()
    network.latent_std.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def pipe():
    pipeline = LatentRestorationPipeline(narrow(), haze_fractions=FRACTIONS, **UNITS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def hazy():
    return np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)


def test_latents_go_to_one_grid_and_back():
    groups = [torch.randn(2, 3, 8, 12), torch.randn(2, 3, 4, 6)]
    grid = to_grid(groups)
    assert grid.shape == (2, 6, 8, 12)
    for group, same in zip(groups, to_groups(grid, 2), strict=True):
        torch.testing.assert_close(same, group)
    torch.testing.assert_close(grid[:, 3:, ::2, ::2], groups[1])


def test_the_network_decodes_what_it_encodes_as_its_autoencoder():
    network, image = narrow(), torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        latents = network.encode(image)
        expected = network.autoencoder.decode(network.autoencoder.encode(image).latents)
        torch.testing.assert_close(network.decode(latents), expected, rtol=1e-4, atol=1e-4)
        for result in (network.restore(latents, 2), network.degrade(latents, 2), network.clear(latents, 3)):
            assert result.shape == latents.shape and (result - latents).abs().mean() > 1e-3
            # Pixels of one coarse latent stay equal.
            torch.testing.assert_close(to_grid(to_groups(result, 2)), result)
        degraded, cleared, cycled_clear, cycled_hazier = network(latents, 2, clear=2 * latents)
        torch.testing.assert_close(degraded, network.degrade(2 * latents, 2))
        torch.testing.assert_close(cycled_clear, network.clear(network.degrade(2 * latents, 2), 2))
        torch.testing.assert_close(cycled_hazier, network.degrade(cleared, 2))
        assert not torch.equal(network.degrade(latents, 2), network.degrade(latents, 3))
        torch.testing.assert_close(network(latents, torch.tensor([1, 2]))[0][1], network.restore(latents, 2)[1])
    assert not any(weight.requires_grad for weight in network.autoencoder.parameters())


def test_an_untrained_network_changes_nothing():
    network, latents = LatentRestoration(AUTOENCODER, num_levels=3, block_out_channels=(8, 8)), torch.randn(1, 8, 8, 8)
    latents = to_grid(to_groups(latents, 2))
    with torch.no_grad():
        for result in (network.restore(latents, 3), network.degrade(latents, 3), network.clear(latents, 3)):
            torch.testing.assert_close(result, latents)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_a_plain_loop_of_its_definition(pipe, hazy, variant):
    network, alpha = pipe.unet, 0.3
    x = torch.from_numpy(hazy)[:, None]
    trajectory, clear = [], None
    with torch.no_grad():
        z = network.encode(x)
        for t in (3, 2, 1):
            new = network.restore(z, t)
            is_averaged = variant in ("clean_combination", "reprojection") and t < 3
            clear = alpha * new + (1 - alpha) * clear if is_averaged else new
            trajectory.append(network.decode(clear)[:, 0].numpy())
            if variant == "one_step":
                break
            if t == 1:
                continue
            if variant == "refinement":
                z = network.degrade(network.encode(network.decode(clear)), t)
                again = network.restore(z, t - 1)
                z = network.degrade(network.encode(network.decode(again)), t)
            elif variant == "reprojection":
                mixed = (1 - FRACTIONS[t - 2]) * network.decode(clear) + FRACTIONS[t - 2] * x
                z = network.encode(mixed - mixed.mean(dim=(2, 3), keepdim=True))
            else:
                degraded = network.degrade(clear, t)
                z = alpha * degraded + (1 - alpha) * z if variant == "latent_combination" else degraded
    out = pipe(hazy, variant, alpha=alpha, num_refinements=2, output_trajectory=True, restore_dim=False)
    np.testing.assert_allclose(out.trajectory, trajectory, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(out.prediction, out.trajectory[-1])
    alone = pipe(hazy, variant, alpha=alpha, num_refinements=2, restore_dim=False)
    np.testing.assert_array_equal(alone.prediction, out.prediction)
    assert alone.trajectory is None


def test_tiles_batches_and_lists_give_the_result_of_the_whole_field():
    # Without its last convolution, the U-Net returns nothing, so that its statistics of tiles do not matter.
    network = narrow()
    torch.nn.init.zeros_(network.restoration.conv_out.weight)
    pipe = LatentRestorationPipeline(network, haze_fractions=FRACTIONS, **UNITS)
    image = np.random.default_rng(1).normal(size=(2, 90, 122)).astype(np.float32)
    whole = pipe(image, "direct", restore_dim=False).prediction
    tiled = pipe(image, "direct", tile_size=64, tile_overlap=40, batch_size=1, restore_dim=False).prediction
    assert np.sqrt(np.mean((whole - tiled) ** 2)) < 0.1 * whole.std()
    listed = pipe([image[0], image[1, :50]], "direct", output_trajectory=True, restore_dim=False)
    np.testing.assert_allclose(listed.prediction[0], whole[0], rtol=1e-3, atol=1e-3)
    assert listed.prediction[1].shape == (50, 122) and listed.trajectory[0].shape == (3, 90, 122)


def test_a_callback_sees_every_level_and_may_change_the_latents_or_stop(pipe, hazy):
    seen = []

    def watch(pipeline, step, t, tensors):
        seen.append((step, int(t), tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else None

    changed = pipe(hazy[0], "direct", callback_on_step_end=watch).prediction
    assert seen == [(0, 3, (1, 8, 16, 16)), (1, 2, (1, 8, 16, 16)), (2, 1, (1, 8, 16, 16))]
    assert pipe.num_timesteps == 3
    other = pipe(hazy[1], "direct", callback_on_step_end=lambda *a: {"latents": torch.zeros_like(a[3]["latents"])})
    np.testing.assert_allclose(changed, other.prediction, atol=1e-4)  # both end with R(0, 1)

    def stop(pipeline, step, t, tensors):
        pipeline._interrupt = True

    with pytest.raises(RuntimeError, match="Interrupted after 1 solver steps"):
        pipe(hazy, "reprojection", callback_on_step_end=stop)


def test_a_stored_pipeline_gives_the_same_bits_in_a_new_process_and_keeps_counts(tmp_path):
    pipe = LatentRestorationPipeline(narrow(), haze_fractions=FRACTIONS, target_mean=0.3, target_std=1.5)
    pipe.save_pretrained(tmp_path / "stored")
    image = np.random.default_rng(0).gamma(2, 50, (37, 53)).astype(np.float32)
    image[3, 4] = np.nan
    expected = pipe(image).prediction
    assert expected.shape == image.shape and (np.isnan(expected) == np.isnan(image)).all()
    np.save(tmp_path / "image.npy", image)
    program = (
        "import sys, numpy as np; from haze_pipeline.loading import PIPELINES, load_pipeline; "
        "pipe = load_pipeline(sys.argv[1], PIPELINES); np.save(sys.argv[3], pipe(np.load(sys.argv[2])).prediction)"
    )
    paths = [str(tmp_path / name) for name in ("stored", "image.npy", "result.npy")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, env=ENVIRONMENT)
    np.testing.assert_array_equal(np.load(paths[2]), expected)
    np.testing.assert_allclose(pipe(image, strength=0.0).prediction, image, rtol=1e-3)
    # Gain and offset of the camera carry through.
    np.testing.assert_allclose(pipe(3 * image).prediction, 3 * expected, rtol=1e-3, atol=0.1)
    assert np.ptp(pipe(np.full((16, 16), 5.0)).prediction) == 0


def test_files_are_dehazed_by_the_command(run, tmp_path):
    pipe = LatentRestorationPipeline(narrow(), haze_fractions=FRACTIONS)
    pipe.save_pretrained(tmp_path / "latent")
    stack = np.random.default_rng(0).gamma(2, 50, (2, 40, 48)).astype(np.float32)
    write_ome_tiff(tmp_path / "stack.ome.tif", Micrograph(stack, "ZYX", (0.1, 0.1), z_step=0.3))
    command = ("dehaze", tmp_path / "stack.ome.tif", "--model", tmp_path / "latent", "--normalization", "plane")
    assert run(*command, "-o", tmp_path / "clear.ome.tif")[0] == 0
    placed = place_pipeline(pipe, Device.auto, DType.auto)
    expected = np.stack([placed(plane).prediction for plane in stack])  # one by one, as the command does
    np.testing.assert_array_equal(read_micrograph(tmp_path / "clear.ome.tif").data, expected)
    code, _, error = run(*command, "-o", tmp_path / "no.ome.tif", "--preset", "balanced")
    assert code == 1 and "LatentRestorationPipeline gives one estimate and no samples" in error


def test_wrong_arguments_are_refused(pipe, hazy):
    for arguments, message in (
        ({"variant": "fast"}, "`variant` must be one_step, .* or reprojection, got 'fast'"),
        ({"alpha": 1.5}, "`alpha` must lie between 0 and 1, got 1.5"),
        ({"num_refinements": 0}, "`num_refinements` must be positive, got 0"),
        ({"tile_size": 13}, "must be a positive multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(hazy, **arguments)
    with pytest.raises(ValueError, match="one entry for each of 3 levels, got 2"):
        LatentRestorationPipeline(narrow(), haze_fractions=[0.5, 1.0])
    with pytest.raises(ValueError, match="`unet` must be a LatentRestoration, got UNet2DModel"):
        LatentRestorationPipeline(tiny_unet(), haze_fractions=[1.0])
    with pytest.raises(ValueError, match="`num_levels` must be positive"):
        narrow(num_levels=0)


# The training scripts.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Pinhole series of two specimens, and a VAE that was trained on them."""
    folder = tmp_path_factory.mktemp("trainings")
    command = ("simulate", folder / "series", "--num-images", 2, "--size", 48, "--pinholes", "1,2,open")
    subprocess.run([sys.executable, "-m", "haze_pipeline", *map(str, command)], check=True, env=ENVIRONMENT)
    AutoencoderHierarchical(**AUTOENCODER).save_config(folder / "network")
    result = run_script(
        ROOT / "training" / "train_hierarchical_vae.py", "--train_data_dir", folder / "series", "--target", "input",
        "--pinhole_series", "--model_config_name_or_path", folder / "network", "--output_dir", folder / "vae",
        "--resolution", 32, "--train_batch_size", 2, "--max_train_steps", 3, "--lr_warmup_steps", 1,
        "--validation_data_dir", folder / "series", "--kl_weight", 0.1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def arguments(trained, output, *extra):
    common = (
        "--train_data_dir", trained / "series", "--autoencoder", trained / "vae", "--output_dir", output,
        "--resolution", 32, "--lr_warmup_steps", 1, "--block_out_channels", 8, 8, "--degradation_features", 8,
    )  # fmt: skip
    return [str(part) for part in (ROOT / "training" / "train_latent_restoration.py", *common, *extra)]


def train(trained, output, *extra):
    result = run_script(*arguments(trained, output, *extra))
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return LatentRestorationPipeline.from_pretrained(folder).unet.state_dict()


def logged(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_a_killed_training_resumes_to_the_same_weights_and_log(trained, tmp_path):
    steps = (
        "--train_batch_size", 2, "--max_train_steps", 12, "--degradation_steps", 5, "--checkpointing_steps", 3,
        "--validation_steps", 6, "--validation_data_dir", trained / "series", "--learning_rate", 1e-2,
    )  # fmt: skip
    train(trained, tmp_path / "whole", *steps)
    killed = tmp_path / "killed"
    assert kill([sys.executable, *arguments(trained, killed, *steps)], (killed / "checkpoint-9").exists)
    assert not (killed / "model_index.json").exists()
    assert "resumed from" in train(trained, killed, *steps, "--resume_from_checkpoint", "latest").stderr
    expected, found = weights(tmp_path / "whole"), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows, resumed = logged(tmp_path / "whole"), logged(killed)
    assert [row["step"] for row in rows] == [row["step"] for row in resumed] == [6, 7, 12]
    assert "validation_psnr_one_step" in rows[0] and "validation_psnr_direct" in rows[2]
    assert rows[2]["adversarial"] > 0 and rows[2]["validation_psnr_direct"] == resumed[2]["validation_psnr_direct"]

    # Both parts learned. The autoencoder stayed as it was.
    autoencoder = HDNPipeline.from_pretrained(trained / "vae").unet.state_dict()
    assert all(torch.equal(expected[f"autoencoder.{name}"], value) for name, value in autoencoder.items())
    for part in ("restoration.conv_out", "degradation.degrading.0.layers.4", "degradation.clearing.0.layers.4"):
        assert expected[f"{part}.weight"].abs().max() > 1e-4, part
    card = (killed / "README.md").read_text()
    assert 'LatentRestorationPipeline.from_pretrained("killed")' in card and "the pairs of the folder `series`" in card
    assert "| 12 |" in card and str(tmp_path) not in card
    pipe = LatentRestorationPipeline.from_pretrained(tmp_path / "whole")
    assert len(pipe.config.haze_fractions) == 3 and pipe.config.haze_fractions[-1] == 1


def test_the_restoration_is_trained_further_on_its_own_states(trained, tmp_path):
    short = ("--max_train_steps", 3, "--degradation_steps", 1, "--train_batch_size", 2)
    train(trained, tmp_path / "first", *short)
    data = ("--train_data_dir", trained / "series", "--resolution", 32, "--train_batch_size", 2)
    flags = ("--max_train_steps", 4, "--degradation_steps", 0, "--lr_warmup_steps", 1, "--learning_rate", 1e-2)
    results = {}
    for fraction in (0, 1):
        result = run_script(
            ROOT / "training" / "train_latent_restoration.py", *data, *flags, "--init_from", tmp_path / "first",
            "--output_dir", tmp_path / f"own_{fraction}", "--own_states", fraction,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        results[fraction] = weights(tmp_path / f"own_{fraction}")
    first = weights(tmp_path / "first")
    for name, value in first.items():
        assert name.startswith("restoration.") or torch.equal(results[1][name], value), name
    trained_further = [found["restoration.conv_out.weight"] for found in (first, *results.values())]
    assert not any(torch.equal(*two) for two in itertools.combinations(trained_further, 2))


def test_two_processes_equal_one_with_the_same_global_batch(trained, tmp_path):
    steps = ("--max_train_steps", 6, "--degradation_steps", 3, "--validation_steps", 1)
    train(trained, tmp_path / "one", "--train_batch_size", 4, *steps)
    config = ROOT / "training" / "accelerate_configs" / "cpu_2_processes.yaml"
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "29536"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments(trained, tmp_path / "two", "--train_batch_size", 2, *steps)],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    expected = weights(tmp_path / "one")
    assert all(torch.allclose(expected[name], value, atol=1e-4) for name, value in weights(tmp_path / "two").items())
    for one, two in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert {**two, "seconds": 0} == pytest.approx({**one, "seconds": 0}, abs=1e-3)


def test_impossible_trainings_are_explained(trained, tmp_path):
    for extra, code, message in (
        (("--degradation_steps", 10), 2, "--degradation_steps must lie between 1 and --max_train_steps - 1"),
        (("--cycle_weight", -1), 2, "--cycle_weight must be finite and not negative"),
        (("--init_from", "x"), 2, "Pass one of --autoencoder and --init_from"),
        (("--own_states", 2), 2, "--own_states must lie between 0 and 1"),
        (("--normalization", "image"), 2, "--autoencoder sets the normalisation"),
        (("--resolution", 34), 1, "--resolution must be a multiple of 4 for this network, got 34"),
    ):
        short = ("--max_train_steps", 2, "--degradation_steps", 1)
        result = run_script(*arguments(trained, tmp_path / "no", *short, *extra))
        assert result.returncode == code and message in result.stderr and "Traceback" not in result.stderr, extra
