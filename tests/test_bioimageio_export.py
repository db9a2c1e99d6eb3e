"""Packages for bioimage.io: they give the same posterior means as the pipeline and pass the tests of bioimage.io."""

import ast
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bioimageio.spec.utils import read_yaml
from conftest import ROOT, tiny_unet
from diffusers import UNet2DModel
from imageio.v3 import imread
from PIL import Image

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.models.unet_haze_matching import add_gain, build_unet
from haze_pipeline.sampling.initial_noise import draw_noise
from haze_pipeline.sharing.bioimageio_export import NOISE_SIZE, draw_cover, network_arguments, posterior_mean_module
from haze_pipeline.sharing.bioimageio_readme import training_dataset, write_readme
from haze_pipeline.sharing.evaluation_results import DISTORTION
from haze_pipeline.sharing.onnx_weights import obstacle_to_onnx, write_onnx
from haze_pipeline.sharing.posterior_mean import UNet
from haze_pipeline.utils.provenance import weights_digest


FIXED = {"normalization": "fixed", "input_mean": 110.0, "input_std": 12.0, "target_mean": 50.0, "target_std": 30.0}


def with_gain(patch_size: int, pixel_packing: int) -> UNet2DModel:
    """A network whose gain is not zero."""
    unet = build_unet(patch_size, pixel_packing)
    add_gain(unet)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return unet


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_unet(128),
        lambda: build_unet(64),
        lambda: with_gain(128, 2),
        lambda: UNet2DModel.from_config({**tiny_unet().config, "layers_per_block": 2, "attention_head_dim": 4}),
    ],
)
def test_the_network_of_torch_alone_is_the_network_of_diffusers(make):
    torch.manual_seed(0)
    unet = make().eval()
    network = UNet(**network_arguments(unet)).eval()
    network.load_state_dict(unet.state_dict())
    inputs = torch.randn(2, unet.config.in_channels, 32, 48)
    with torch.no_grad():
        expected = unet(inputs, torch.zeros(2), return_dict=False)[0]
        found, compiled = network(inputs), torch.jit.script(network)(inputs)
    assert (found - expected).abs().max() < 1e-5
    torch.testing.assert_close(compiled, found, rtol=0, atol=1e-6)


def test_networks_with_other_layers_are_refused():
    others = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D")
    for changed, message in (
        ({"resnet_time_scale_shift": "scale_shift"}, "`resnet_time_scale_shift` is 'scale_shift'"),
        ({"down_block_types": others}, "a ResnetDownsampleBlock2D"),
    ):
        with pytest.raises(ValueError, match=message):
            # Without its private entries, which name values to replace by the defaults.
            config = {name: value for name, value in tiny_unet().config.items() if name[0] != "_"}
            network_arguments(UNet2DModel.from_config(config | changed))


@pytest.mark.parametrize(
    "config",
    [
        {"target_mean": 0.4, "target_std": 1.3},
        {**FIXED, "mirror_members": False},
        {"target_std": 1.3, "noise_corner_frequency": 0.2},
    ],
)
def test_the_module_gives_the_results_of_the_pipeline_for_images_of_any_size(config):
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), **config)
    pipe.set_progress_bar_config(disable=True)
    module = posterior_mean_module(pipe, seed=3)
    generator = torch.Generator().manual_seed(3)
    corner_frequency = config.get("noise_corner_frequency", 0.0)
    size = (NOISE_SIZE, NOISE_SIZE)
    first, second = (draw_noise(size, corner_frequency, generator, NOISE_SIZE)[0] for _ in range(2))
    rng = np.random.default_rng(0)
    for size in ((64, 64), (33, 50), (9, 200), (1, 1)):
        images = rng.gamma(2, 60, (2, *size)).astype(np.float32)
        noise = torch.stack([each[: size[0], : size[1]] for each in (first, -first, second, -second)])
        latents = noise[:, None].repeat(1, 2, 1, 1)
        expected = pipe(images, num_inference_steps=1, ensemble_size=4, latents=latents).prediction
        with torch.no_grad():
            found = module(torch.from_numpy(images)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    # The noise repeats across a larger image, and TorchScript gives the same results.
    image = 100 * torch.rand(1, 1, 8, NOISE_SIZE + 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(module)(image), module(image))


@pytest.mark.parametrize("out_channels", [4, 8])
def test_a_module_of_packed_pixels_needs_no_noise(out_channels):
    config = {**tiny_unet().config, "in_channels": 8, "out_channels": out_channels}
    unet = UNet2DModel.from_config(config).eval()
    pipe = HazeMatchingPipeline(unet, FlowMatchODEScheduler(), pixel_packing=2, zero_state_mean=True)
    pipe.set_progress_bar_config(disable=True)
    module = posterior_mean_module(pipe)
    images = np.random.default_rng(0).gamma(2, 60, (2, 33, 50)).astype(np.float32)
    expected = pipe(images, num_inference_steps=1).prediction
    with torch.no_grad():
        found = module(torch.from_numpy(images)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def packed_pipeline() -> HazeMatchingPipeline:
    """A pipeline like the checkpoint in the package: packed pixels, a gain, and no noise."""
    unet = with_gain(64, 2).eval()
    return HazeMatchingPipeline(unet, FlowMatchODEScheduler(), pixel_packing=2, zero_state_mean=True)


def test_onnx_runtime_gives_the_results_of_torch_for_stacks_of_any_size(tmp_path):
    torch.manual_seed(0)
    module = posterior_mean_module(packed_pipeline())
    write_onnx(module, tmp_path / "weights.onnx")
    onnx.checker.check_model(tmp_path / "weights.onnx", full_check=True)
    assert str(ROOT).encode() not in (tmp_path / "weights.onnx").read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "weights.onnx", providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for size in ((2, 88, 104), (1, 64, 64), (3, 33, 50), (1, 8, NOISE_SIZE + 9), (1, 4, 7)):
        images = generator.gamma(2, 60, (size[0], 1, *size[1:])).astype(np.float32)
        images[0, 0, 0, 0] = 60_000  # the standard deviation must not lose digits to the brightest pixel
        with torch.no_grad():
            expected = module(torch.from_numpy(images)).numpy()
        (found,) = session.run(None, {"hazy": images})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_package_passes_the_tests_of_bioimage_io(tmp_path, run):
    model, package = tmp_path / "model", tmp_path / "new" / "package.zip"
    packed_pipeline().save_pretrained(model)
    # The tests of bioimage.io know this user without asking GitHub.
    options = [
        "--name",
        "A tiny network",
        "--maintainer",
        "githubuser2",
        "--git-repo",
        "https://example.org/lab/model",
    ]
    example = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"
    code, out, error = run(
        "export-bioimageio",
        model,
        "-o",
        package,
        "--license",
        "mit",
        "--example",
        example,
        "--version",
        "1.2.0",
        *options,
    )
    assert code == 0, error
    assert out.splitlines()[-1] == str(package) and "Before you upload" not in error

    # 1. Repeat the tests with the command of bioimage.io, in a process that cannot import this package.
    block = (
        "import sys; sys.modules['haze_pipeline'] = sys.modules['diffusers'] = None; "
        "from bioimageio.core.__main__ import main; main()"
    )
    arguments = ["test", package, "--summary", tmp_path / "summary.json"]
    result = subprocess.run([sys.executable, "-c", block, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "passed"
    reproduced = [detail["name"] for detail in summary["details"] if "Reproduce test outputs" in detail["name"]]
    forms = {"pytorch_state_dict", "torchscript", "onnx"}
    assert {form for form in forms if form in " ".join(reproduced)} == forms

    # 2. The description.
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    text = next(content for name, content in files.items() if name.endswith(".yaml")).decode()
    assert str(tmp_path) not in text
    description = read_yaml(text)
    assert description["name"] == "A tiny network" and description["license"] == "MIT"
    assert description["version"] == "1.2.0" and description["git_repo"] == "https://example.org/lab/model"
    assert [each["github_user"] for each in description["maintainers"]] == ["githubuser2"]
    for tensor in (*description["inputs"], *description["outputs"]):
        assert [axis["unit"] for axis in tensor["axes"][2:]] == ["micrometer"] * 2
        assert [axis["scale"] for axis in tensor["axes"][2:]] == pytest.approx(read_micrograph(example).pixel_size)
        sample = imread(io.BytesIO(files[tensor["sample_tensor"]["source"]]), extension=".tif")
        np.testing.assert_array_equal(sample, np.load(io.BytesIO(files[tensor["test_tensor"]["source"]]))[0, 0])
    weights = description["weights"]
    assert weights.keys() == forms
    assert weights["torchscript"]["parent"] == weights["onnx"]["parent"] == "pytorch_state_dict"
    (opset,) = onnx.load_from_string(files[weights["onnx"]["source"]]).opset_import
    assert weights["onnx"]["opset_version"] == opset.version

    # 3. The code needs torch alone, and the weights keep no gradients.
    code = ast.parse(files[weights["pytorch_state_dict"]["architecture"]["source"]])
    imported = [node for node in ast.walk(code) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {name.split(".")[0] for node in imported for name in _imported(node)} == {"torch"}
    scripted = torch.jit.load(io.BytesIO(files[weights["torchscript"]["source"]]))
    assert not any(parameter.requires_grad for parameter in scripted.parameters())

    # 4. What people see.
    cover = Image.open(io.BytesIO(files["cover.png"]))
    assert cover.width == 2 * cover.height and len(files["cover.png"]) < 500_000
    readme = files["README.md"].decode()
    for heading in ("Description", "Intended Use", "Validation", "Citation"):
        assert f"\n## {heading}\n" in readme


def test_a_package_without_onnx_says_so(tmp_path, run, model, monkeypatch):
    package = tmp_path / "package.zip"
    code, _, error = run("export-bioimageio", model, "-o", package, "--license", "mit")
    assert code == 0 and "no weights in ONNX, since this checkpoint starts from noise" in error
    with zipfile.ZipFile(package) as archive:
        assert read_yaml(archive.read("rdf.yaml").decode())["weights"].keys() == {"pytorch_state_dict", "torchscript"}
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert obstacle_to_onnx(starts_from_noise=False) == "which need onnxscript: pip install onnxscript"


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]


def test_a_cover_shows_the_centres_and_is_small_enough():
    rng = np.random.default_rng(0)
    for size in ((700, 900), (20, 30), (1, 1)):
        cover = draw_cover(*rng.random((2, *size)).astype(np.float32))
        assert cover.width == 2 * cover.height >= 2 * 225
        file = io.BytesIO()
        cover.save(file, "png")
        assert file.tell() < 500_000
    hazy = np.zeros((4, 8), np.float32)
    hazy[:, 2:6] = np.arange(16).reshape(4, 4)
    shown = np.asarray(draw_cover(hazy, -hazy))[::112, ::112].astype(int)
    assert (np.diff(shown[:, :4].ravel()) > 0).all() and (np.diff(shown[:, 4:].ravel()) < 0).all()


def test_the_readme_states_training_and_scores():
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), training_pixel_size={"min": 0.05, "max": 0.2})
    methods = {"haze-pipeline fast": 30.126, "input": 24.5}
    facts = {
        "training": {"data": "Pairs of the lab.", "dataset_name": "lab/cells"},
        "evaluation": {
            "models": [{"name": "own", "revision": weights_digest(pipe), "methods": ["haze-pipeline fast"]}],
            "summary": {name: {DISTORTION: {"mean": mean, "deviation": 2.0}} for name, mean in methods.items()},
            "set_scores": {name: {} for name in methods},
            "num_images": 7,
            "dataset": "lab/cells",
            "split": "test",
        },
    }
    text = write_readme(pipe, "A network", facts)
    assert "Pairs of the lab. (https://huggingface.co/datasets/lab/cells)" in text
    assert "0.05 to 0.2 µm" in text and "over 7 images, lab/cells, split test" in text
    assert "| haze-pipeline fast | 30.13 ± 2.00 |\n| input | 24.50 ± 2.00 |" in text
    assert "No evaluation" in write_readme(pipe, "A network", {})
    facts["evaluation"]["models"][0]["revision"] = "0"
    with pytest.raises(ValueError, match="other weights"):
        write_readme(pipe, "A network", facts)


def test_public_training_data_are_named():
    assert training_dataset({}) is None
    assert training_dataset({"training": {"dataset_name": None}}) is None
    of_lab = training_dataset({"training": {"dataset_name": "lab/my.cells"}})
    assert str(of_lab.source) == "https://huggingface.co/datasets/lab/my.cells"
    of_paper = training_dataset({"conversion": {"subset": "zebrafish", "channel": 0, "published": True}})
    assert str(of_paper.source).endswith("zebrafish.zip")


def test_bad_requests_end_in_one_sentence(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing answers there, so that GitHub is out of reach
    example = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"
    for arguments, sentence in (
        ([model, "-o", tmp_path / "package.zip"], "--license"),
        ([model, "-o", tmp_path / "package.tar"], ".zip"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mine"], "spdx.org"),
        ([tmp_path, "-o", tmp_path / "package.zip", "--license", "mit"], "model_index.json"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--example", tmp_path / "no.tif"], "no.tif"),
        ([model, "-o", example, "--license", "mit"], ".zip"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--name", "a/b"], "5 to 128 letters"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--version", "new"], "such as 1.0.0"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--git-repo", "lab/model"], "https://"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--pixel-size", "0"], "must be positive"),
        ([model, "-o", tmp_path / "package.zip", "--license", "mit", "--maintainer", "lab"], "maintainer lab"),
    ):
        code, out, error = run("export-bioimageio", *arguments)
        assert (code, out, error.count("\n")) == (1, "", 1) and sentence in error
    assert not list(tmp_path.iterdir())
