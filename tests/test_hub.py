"""Pipelines on the Hub, through a double of it, by both loaders: ours, and that of diffusers where ours is not installed."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet
from environments import make_environment, run_python
from hub_double import hub_double

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.hub import fetch_pipeline


EXAMPLE = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"

# Every pipeline makes an image of the same noise. Errors are printed, not raised.
LOADERS = """
import json
import logging
from pathlib import Path

import numpy as np
import torch

def make_image(pipe):
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).poisson(100, (40, 48)).astype(np.float32)
    latents = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(0))
    out = pipe(image, num_inference_steps=3, ensemble_size=2, latents=latents, output_uncertainty=True)
    return np.stack([out.prediction, out.uncertainty]).tolist()

def attempt(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

import diffusers
diffusers.utils.logging.set_verbosity_error()
name, folder = sys.argv[1:3]
"""

OURS = LOADERS + """
from haze_pipeline import HazeMatchingPipeline
load = HazeMatchingPipeline.from_pretrained
found = {
    "hub": attempt(lambda: make_image(load(name))),
    "folder": attempt(lambda: make_image(load(folder))),
    "local_files_only": attempt(lambda: make_image(load(name, local_files_only=True))),
    "fp16": attempt(lambda: make_image(load(name, variant="fp16"))),
    "first": attempt(lambda: load(name, revision=sys.argv[3]).config.target_std),
    "no such variant": attempt(lambda: load(name, variant="int8")),
    "no such repository": attempt(lambda: load("lab/nothing")),
    "no such revision": attempt(lambda: load(name, revision="0" * 40)),
    "another cache": attempt(lambda: load(name, cache_dir=Path(sys.argv[4])).config.target_std),
    "class": attempt(lambda: load(name).__class__.__module__),
    "remote code": sorted(module for module in sys.modules if module.startswith("diffusers_modules")),
    "fetched": sorted(path.name for path in Path(sys.argv[5]).rglob("snapshots/*/**/*") if path.is_file()),
}
print(json.dumps(found))
"""

THEIRS = LOADERS + """
from importlib.util import find_spec
from diffusers import DiffusionPipeline
def load(name, **kwargs):
    return DiffusionPipeline.from_pretrained(name, trust_remote_code=True, **kwargs)
found = {
    "is there": find_spec("haze_pipeline") is not None,
    "without consent": attempt(lambda: DiffusionPipeline.from_pretrained(folder)),
    "hub": attempt(lambda: make_image(load(name))),
    "folder": attempt(lambda: make_image(load(folder))),
    "again": attempt(lambda: (load(name).save_pretrained(sys.argv[3]), make_image(load(sys.argv[3])))[1]),
    "pushing": attempt(lambda: load(folder).push_to_hub("lab/other")),
    "class": attempt(lambda: load(name).__class__.__module__),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environments")
    return {name: make_environment(folder / name, name == "ours") for name in ("ours", "theirs")}


@pytest.fixture(scope="module")
def pipe():
    return HazeMatchingPipeline(
        tiny_unet(),
        FlowMatchODEScheduler(solver="midpoint"),
        target_std=1.3,
        uncertainty_scale=2.0,
        domain={"mean": [0.0], "precision": [[1.0]], "limit": 2.0},
    )


@pytest.fixture(scope="module")
def expected(pipe):
    namespace = {}
    code = LOADERS[: LOADERS.index("import diffusers")]
    exec(code, namespace)
    return np.array(namespace["make_image"](pipe))


def settings(hub, home):
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test"}


PUSH = "from haze_pipeline.cli import main; sys.argv[0] = 'haze-pipeline'; main()"


def test_both_loaders_make_the_same_image(pipe, expected, environments, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    with hub_double() as hub:
        home = settings(hub, tmp_path / "home")
        # Two commits, of which the older one is another pipeline.
        old = HazeMatchingPipeline(tiny_unet(1), FlowMatchODEScheduler(), target_std=0.7)
        old.save_pretrained(tmp_path / "old")
        (tmp_path / "old" / "unet" / "left.py").write_text("")
        run_python(environments["ours"], PUSH, "push", tmp_path / "old", "lab/microscope", "--private", **home)
        arguments = ("push", tmp_path / "first", "lab/microscope", "--example", EXAMPLE, "--license", "apache-2.0")
        result = run_python(environments["ours"], PUSH, *arguments, **home)
        assert result.stdout.strip().endswith(hub.repos["lab/microscope"][-1][0])
        assert len(hub.repos["lab/microscope"]) == 3 and hub.private == {"lab/microscope"}
        revision = hub.repos["lab/microscope"][1][0]

        cache = tmp_path / "home" / "hub"
        arguments = ("lab/microscope", tmp_path / "first", revision, tmp_path / "cache", cache)
        ours = json.loads(run_python(environments["ours"], OURS, *arguments, **home).stdout)
        arguments = ("lab/microscope", tmp_path / "first", tmp_path / "again")
        theirs = json.loads(run_python(environments["theirs"], THEIRS, *arguments, **settings(hub, tmp_path / "other")).stdout)

        # What is cached serves without a single call.
        asked = len(hub.requests)
        offline = {**home, "HF_HUB_OFFLINE": "1"}
        arguments = ("lab/microscope", tmp_path / "first", revision, tmp_path / "cache", cache)
        ours_offline = json.loads(run_python(environments["ours"], OURS, *arguments, **offline).stdout)
        assert len(hub.requests) == asked
        # A private repository needs the token.
        del home["HF_TOKEN"]
        code = "from haze_pipeline import HazeMatchingPipeline as P\nP.from_pretrained('lab/microscope', token=sys.argv[1])"
        home["HF_HOME"] = str(tmp_path / "stranger")
        run_python(environments["ours"], code, "hf_test", **home)
        shutil.rmtree(tmp_path / "stranger")
        refused = run_python(environments["ours"], code.replace("token=sys.argv[1]", "token=False"), check=False, **home)
        assert "RepositoryNotFoundError" in refused.stderr

    for found in (ours["hub"], ours["folder"], ours["local_files_only"], ours_offline["hub"], ours_offline["folder"],
                  theirs["hub"], theirs["folder"], theirs["again"]):  # fmt: skip
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-6, atol=1e-6 * expected.max())
    assert 0 < np.abs(np.array(ours["fp16"]) - expected).max() < 0.05 * expected.max()
    assert ours["first"] == 0.7 and ours["another cache"] == 1.3
    assert "'int8', but fp16, the full ones" in ours["no such variant"]
    assert "RepositoryNotFoundError" in ours["no such repository"]
    assert "RevisionNotFoundError" in ours["no such revision"]
    assert ours["class"] == "haze_pipeline.pipeline_haze_matching" and ours["remote code"] == []
    assert {"model_index.json", "diffusion_pytorch_model.safetensors"} <= set(ours["fetched"])
    assert all(name.endswith((".json", ".safetensors")) for name in ours["fetched"])
    assert theirs["is there"] is False and theirs["class"] == "diffusers_modules.local.pipeline_haze_matching"
    assert "trust_remote_code" in theirs["without consent"]
    assert "pip install" in theirs["pushing"]


def test_what_is_pushed_lets_others_judge_it(pipe, environments, tmp_path):
    from huggingface_hub import ModelCard

    pipe.save_pretrained(tmp_path / "first")
    with hub_double() as hub:
        home = settings(hub, tmp_path / "home")
        code = (
            "from haze_pipeline import HazeMatchingPipeline as P\nfrom diffusers import UNet2DModel\n"
            "pipe = P.from_pretrained(sys.argv[1])\n"
            "print(pipe.push_to_hub('lab/microscope', examples=[sys.argv[2]], license_id='mit', commit_message='Hello'))\n"
            "pipe.push_to_hub('lab/microscope')"
        )
        run_python(environments["ours"], code, tmp_path / "first", EXAMPLE, **home)
        created, first, second = (set(files) for _, files in hub.repos["lab/microscope"])
        files = hub.repos["lab/microscope"][1][1]
    assert first - created == {
        "LICENSE", "README.md", "calibration.py", "domain.py", "field_sampling.py", "hardware.py", "hub.py", "image_processing.py",
        "model_index.json", "pipeline.py", "pipeline_haze_matching.py", "pipeline_output.py", "scheduling_flow_match_ode.py",
        "shared_group_norm.py", "tiling.py", "trust.py", "examples/filaments.ome.tif", "examples/filaments.png",
        "scheduler/scheduler_config.json", "scheduler/scheduling_flow_match_ode.py", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip
    assert first - second == {"examples/filaments.ome.tif", "examples/filaments.png"}
    assert files["examples/filaments.ome.tif"] == EXAMPLE.read_bytes()
    assert files["tiling.py"] == (ROOT / "haze_pipeline" / "tiling.py").read_bytes()
    assert b"Apache License" in files["LICENSE"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and "](examples/filaments.png)" in card.text
    assert 'from_pretrained("lab/microscope")' in card.text
    assert not any(str(tmp_path).encode() in content for content in files.values())


TAMPER = LOADERS + """
from haze_pipeline import HazeMatchingPipeline
print(json.dumps([attempt(lambda: make_image(HazeMatchingPipeline.from_pretrained(each))) for each in sys.argv[1:]]))
"""


def test_altered_files_and_pickles_are_refused(pipe, environments, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    weights, scheduler = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"
    with hub_double() as hub:
        home = settings(hub, tmp_path / "home")
        run_python(environments["ours"], PUSH, "push", tmp_path / "first", "lab/microscope", **home)
        true = hub.files("lab/microscope")[weights]
        # One weight is another number: the file can be read as ever.
        false = true[:-4] + np.float32(3).tobytes()
        assert len(false) == len(true) and false != true
        hub.altered[weights] = false
        in_transit = json.loads(run_python(environments["ours"], TAMPER, "lab/microscope", "", **home).stdout)[0]
        hub.altered = {scheduler: hub.files("lab/microscope")[scheduler].replace(b"midpoint", b"heun    ")}
        shutil.rmtree(tmp_path / "home")
        configuration = json.loads(run_python(environments["ours"], TAMPER, "lab/microscope", "", **home).stdout)[0]
        hub.altered = {}
        shutil.rmtree(tmp_path / "home")
        good = json.loads(run_python(environments["ours"], TAMPER, "lab/microscope", "", **home).stdout)[0]
        cached = next((tmp_path / "home").rglob(f"snapshots/*/{weights}")).resolve()
        cached.write_bytes(false)
        offline = {**home, "HF_HUB_OFFLINE": "1"}
        in_cache = json.loads(run_python(environments["ours"], TAMPER, "lab/microscope", "", **offline).stdout)[0]

        # A pickle, somewhere; before any weights are fetched.
        files = {**hub.files("lab/microscope"), "old/model.pt": b"cos\nsystem\n(S'true'\ntR."}
        hub.repos["lab/pickle"] = []
        hub.commit("lab/pickle", files)
        asked = len(hub.requests)
        pickle = json.loads(run_python(environments["ours"], TAMPER, "lab/pickle", "", **home).stdout)[0]
        assert not any("safetensors" in request for request in hub.requests[asked:])
    assert isinstance(good, list)
    for error, file in ((in_transit, weights), (configuration, scheduler), (in_cache, weights)):
        assert error.startswith(f"ValueError: {file} of lab/microscope is not what its repository says")
    assert pickle.startswith("ValueError: lab/pickle holds the pickle model.pt")


def test_folders_with_pickles_other_code_or_torn_weights_are_refused(pipe, tmp_path):
    def load(change):
        folder = tmp_path / change.__name__
        pipe.save_pretrained(folder)
        change(folder)
        HazeMatchingPipeline.from_pretrained(folder, low_cpu_mem_usage=False)

    def pickle(folder):
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")

    with pytest.raises(ValueError, match="pickle diffusion_pytorch_model.bin"):
        load(pickle)

    def training_state(folder):  # of a training's optimiser, which nobody loads with the pipeline
        (folder / "checkpoint-5").mkdir()
        (folder / "checkpoint-5" / "optimizer.bin").write_bytes(b"")

    load(training_state)

    def code(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "unet" / "evil.py").write_text("raise SystemExit('it ran')")
        (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "UNet2DModel"]}))

    with pytest.raises(ValueError, match="unet of .* is a UNet2DModel of evil"):
        load(code)

    def stored_code(folder):  # is neither run nor missed
        for path in folder.rglob("*.py"):
            path.write_text("raise SystemExit('it ran')")

    load(stored_code)

    def torn(folder):
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(Exception, match="invalid|corrupt|safetensors"):
        load(torn)
    with pytest.raises(ValueError, match="only safetensors"):
        pipe.save_pretrained(tmp_path / "bin", safe_serialization=False)


def test_half_precision_folders_load_without_being_told(pipe, tmp_path):
    import copy

    half = HazeMatchingPipeline(copy.deepcopy(pipe.unet).half(), pipe.scheduler)
    half.save_pretrained(tmp_path, variant="fp16")
    assert HazeMatchingPipeline.from_pretrained(tmp_path).unet.dtype == torch.float32
    assert fetch_pipeline(tmp_path) == str(tmp_path)


MODELS = """
from haze_pipeline import cli
codes = []
for model in sys.argv[1:]:
    for command in (["info", model], ["dehaze", EXAMPLE, "-o", "out.ome.tif", "--model", model],
                    ["calibrate", PAIRS, "-o", "calibrated", "--model", model]):
        sys.argv = ["haze-pipeline", *command]
        print("---", *command[:1], file=sys.stderr)
        try:
            cli.main()
        except SystemExit as exit_:
            codes.append(exit_.code)
print(codes)
"""
