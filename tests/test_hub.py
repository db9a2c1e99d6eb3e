"""
Pipelines on an in-memory stand-in for the Hub. They are loaded by this package, and by diffusers alone in an
environment without this package.
"""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_unet, write_pairs
from environments import make_environment, run_python
from hub_double import hub_double

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.utils.hub import fetch_pipeline


EXAMPLE = ROOT / "spaces" / "haze-matching" / "examples" / "filaments.ome.tif"

# Every pipeline makes an image from the same noise. Errors are printed, not raised.
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

OURS = (
    LOADERS
    + """
from haze_pipeline import HazeMatchingPipeline
load = HazeMatchingPipeline.from_pretrained
revision, cache, token = sys.argv[3:]
found = {
    "hub": attempt(lambda: make_image(load(name, token=token))),
    "folder": attempt(lambda: make_image(load(folder))),
    "local_files_only": attempt(lambda: make_image(load(name, local_files_only=True))),
    "fp16": attempt(lambda: make_image(load(name, token=token, variant="fp16"))),
    "first": attempt(lambda: load(name, token=token, revision=revision).config.target_std),
    "no such variant": attempt(lambda: load(name, token=token, variant="int8")),
    "no such repository": attempt(lambda: load("lab/nothing")),
    "no such revision": attempt(lambda: load(name, token=token, revision="0" * 40)),
    "no token": attempt(lambda: load(name, token=False, cache_dir=Path(cache)).config.target_std),
    "another cache": attempt(lambda: load(name, token=token, cache_dir=Path(cache)).config.target_std),
    "class": attempt(lambda: load(name, token=token).__class__.__module__),
    "remote code": sorted(module for module in sys.modules if module.startswith("diffusers_modules")),
}
print(json.dumps(found))
"""
)

THEIRS = (
    LOADERS
    + """
from importlib.util import find_spec
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
def load(name, **kwargs):
    return DiffusionPipeline.from_pretrained(name, trust_remote_code=True, **kwargs)
found = {
    "is there": find_spec("haze_pipeline") is not None,
    "without consent": attempt(lambda: DiffusionPipeline.from_pretrained(folder)),
    "folder": attempt(lambda: make_image(load(folder))),
    "hub": attempt(lambda: make_image(load(name))),
    "snapshot": attempt(lambda: make_image(load(snapshot_download(name)))),
    "fp16": attempt(lambda: make_image(load(name, variant="fp16"))),
    "saved again": attempt(lambda: load(folder).save_pretrained(sys.argv[3])),
    "class": attempt(lambda: load(folder).__class__.__module__),
}
print(json.dumps(found))
"""
)


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
        domain={"mean": [0.0] * 17, "precision": np.eye(17).tolist(), "limit": 2.0},
    )


def make_image(pipe):
    namespace = {}
    exec(LOADERS[: LOADERS.index("import diffusers")], namespace)
    return namespace["make_image"](pipe)


@pytest.fixture(scope="module")
def expected(pipe):
    return np.array(make_image(pipe))


def settings(hub, home):
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}


PUSH = """
from haze_pipeline.cli import main
for line in sys.argv[1:]:
    sys.argv = ["haze-pipeline", "push", *line.split()]
    try:
        main()
    except SystemExit as exit_:
        assert not exit_.code, exit_.code
"""


def test_both_loaders_make_the_same_image(pipe, expected, environments, tmp_path):
    folder = tmp_path / "first"
    pipe.save_pretrained(folder)
    with hub_double() as hub:
        # Two commits. The older one contains another pipeline.
        HazeMatchingPipeline(tiny_unet(1), FlowMatchODEScheduler(), target_std=0.7).save_pretrained(tmp_path / "old")
        lines = [f"{tmp_path / 'old'} lab/microscope --private", f"{folder} lab/microscope --license mit"]
        result = run_python(
            environments["ours"], PUSH, *lines, **settings(hub, tmp_path / "pusher"), HF_TOKEN="hf_test"
        )
        first, second = (commit for commit, _ in hub.repos["lab/microscope"][1:])
        assert [line.split("/")[-1] for line in result.stdout.split()] == [first, second]
        assert hub.private == {"lab/microscope"}

        def load(environment, code, *arguments, **variables):
            home = settings(hub, tmp_path / environment) | variables
            return json.loads(
                run_python(environments[environment], code, "lab/microscope", folder, *arguments, **home).stdout
            )

        ours = load("ours", OURS, first, tmp_path / "cache", "hf_test")
        fetched = [path.name for path in (tmp_path / "ours").rglob("snapshots/*/**/*") if path.is_file()]
        theirs = load("theirs", THEIRS, tmp_path / "again", HF_TOKEN="hf_test")
        # Cached files load without a single request.
        asked = len(hub.requests)
        ours_offline = load("ours", OURS, first, tmp_path / "cache", "hf_test", HF_HUB_OFFLINE="1")
        theirs_offline = load("theirs", THEIRS, tmp_path / "twice", HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked

    # A folder saved by the stored code contains no code, so loading it needs this package.
    assert theirs["saved again"] is None and not list((tmp_path / "again").rglob("*.py"))
    saved_again = make_image(HazeMatchingPipeline.from_pretrained(tmp_path / "again"))
    for found in (
        *(ours[name] for name in ("hub", "folder", "local_files_only")),
        *(ours_offline[name] for name in ("hub", "folder")),
        *(theirs[name] for name in ("hub", "folder", "snapshot")),
        *(theirs_offline[name] for name in ("snapshot", "folder")),
        saved_again,
    ):
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-6, atol=1e-6 * expected.max())
    assert 0 < np.abs(np.array(ours["fp16"]) - expected).max() < 0.05 * expected.max()
    np.testing.assert_array_equal(theirs["fp16"], ours["fp16"])
    assert ours["first"] == ours_offline["first"] == 0.7 and ours["another cache"] == 1.3
    assert "'int8': name one of its variants (fp16, full precision)" in ours["no such variant"]
    assert "RepositoryNotFoundError" in ours["no such repository"] and "RepositoryNotFoundError" in ours["no token"]
    assert "RevisionNotFoundError" in ours["no such revision"]
    # This package neither downloads nor runs code. diffusers runs the stored code, and only with consent.
    assert ours["class"] == "haze_pipeline.pipeline_haze_matching" and ours["remote code"] == []
    assert {"model_index.json", "diffusion_pytorch_model.safetensors"} <= set(fetched)
    assert all(name.endswith((".json", ".safetensors")) for name in fetched)
    assert theirs["is there"] is False and theirs["class"] == "diffusers_modules.local.pipeline_haze_matching"
    assert "trust_remote_code" in theirs["without consent"]
    # diffusers requests the commit of remote code even if it is cached, so offline users must name the folder.
    assert "OfflineModeIsEnabled" in theirs_offline["hub"]


def test_a_pushed_repository_contains_code_card_examples_and_licence(pipe, environments, tmp_path):
    from huggingface_hub import ModelCard

    pipe.save_pretrained(tmp_path / "first")
    with hub_double() as hub:
        home = settings(hub, tmp_path / "home") | {"HF_TOKEN": "hf_test"}
        code = (
            "from haze_pipeline import HazeMatchingPipeline as P\n"
            "from haze_pipeline.sharing.publishing import push_pipeline as push\n"
            "pipe = P.from_pretrained(sys.argv[1])\n"
            "print(push(pipe, 'lab/microscope', examples=[sys.argv[2]], license_id='mit', commit_message='Hello'))\n"
            "push(pipe, 'lab/microscope')"
        )
        run_python(environments["ours"], code, tmp_path / "first", EXAMPLE, **home)
        created, first, second = (set(files) for _, files in hub.repos["lab/microscope"])
        files = hub.repos["lab/microscope"][1][1]
    assert first - created == {
        "LICENSE", "README.md", "model_index.json", "pipeline_haze_matching.py",
        "modular_config.json", "modular_model_index.json", "modular_haze_matching.py", "scheduling_flow_match_ode.py",
        "examples/filaments.ome.tif", "examples/filaments.png",
        "scheduler/scheduler_config.json", "scheduler/scheduling_flow_match_ode.py", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip
    assert first - second == {"examples/filaments.ome.tif", "examples/filaments.png"}
    assert files["examples/filaments.ome.tif"] == EXAMPLE.read_bytes()
    assert b"Apache License" in files["LICENSE"]
    assert b'"pretrained_model_name_or_path": "lab/microscope"' in files["modular_model_index.json"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and "](examples/filaments.png)" in card.text
    assert 'from_pretrained("lab/microscope")' in card.text
    assert not any(str(tmp_path).encode() in content for content in files.values())


TAMPER = (
    LOADERS
    + """
from haze_pipeline import HazeMatchingPipeline
load = HazeMatchingPipeline.from_pretrained
found = {each: attempt(lambda: make_image(load(each))) for each in sys.argv[3:]}
snapshot = next(Path(sys.argv[2]).rglob("models--lab--true/snapshots/*"))
file = (snapshot / "unet" / "diffusion_pytorch_model.safetensors").resolve()
file.write_bytes(file.read_bytes()[:-4] + np.float32(3).tobytes())
found["cache"] = attempt(lambda: make_image(load("lab/true", local_files_only=True)))
print(json.dumps(found))
"""
)


def test_altered_files_and_pickles_are_refused(pipe, environments, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    weights, scheduler = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"
    paths = (path for path in (tmp_path / "first").rglob("*") if path.is_file())
    files = {path.relative_to(tmp_path / "first").as_posix(): path.read_bytes() for path in paths}
    with hub_double() as hub:
        hub.lfs_paths = {weights}
        for name in ("true", "weights", "scheduler", "pickle"):
            hub.repos[f"lab/{name}"] = []
            hub.commit(f"lab/{name}", files)
        # One changed weight, and another solver. Both files can still be read.
        hub.altered["lab/weights", weights] = files[weights][:-4] + np.float32(3).tobytes()
        hub.altered["lab/scheduler", scheduler] = files[scheduler].replace(b'"midpoint"', b'"heun"    ')
        assert all(content != files[path] for (_, path), content in hub.altered.items())
        hub.commit("lab/pickle", {**files, "old/model.pt": b"cos\nsystem\n(S'true'\ntR."})
        home = settings(hub, tmp_path / "home")
        result = run_python(environments["ours"], TAMPER, "", tmp_path / "home", *hub.repos, **home)
        assert not any("lab/pickle" in request and "safetensors" in request for request in hub.requests)
    found = json.loads(result.stdout)
    assert isinstance(found["lab/true"], list)
    for name, file in (("lab/weights", weights), ("lab/scheduler", scheduler), ("cache", weights)):
        repository = "lab/true" if name == "cache" else name
        assert found[name].startswith(f"ValueError: {file} of {repository} does not match the checksum of its")
    assert found["lab/pickle"].startswith("ValueError: lab/pickle contains the pickle model.pt")


def test_folders_with_pickles_other_code_or_truncated_weights_are_refused(pipe, tmp_path):
    def load(change):
        folder = tmp_path / change.__name__
        pipe.save_pretrained(folder)
        change(folder)
        HazeMatchingPipeline.from_pretrained(folder, low_cpu_mem_usage=False)

    def pickle(folder):
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")

    with pytest.raises(ValueError, match=r"pickle diffusion_pytorch_model\.bin"):
        load(pickle)

    def training_state(folder):  # the state of a training's optimiser is not loaded with the pipeline
        (folder / "checkpoint-5").mkdir()
        (folder / "checkpoint-5" / "optimizer.bin").write_bytes(b"")

    load(training_state)

    def code(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "unet" / "evil.py").write_text("raise SystemExit('it ran')")
        (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "UNet2DModel"]}))

    with pytest.raises(ValueError, match=r"unet of .* is a UNet2DModel of evil"):
        load(code)

    def stored_code(folder):  # stored code is not run, and not needed
        for path in folder.rglob("*.py"):
            path.write_text("raise SystemExit('it ran')")

    load(stored_code)

    def torn(folder):
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(Exception, match=r"(?i)invalid|corrupt|safetensors"):
        load(torn)
    with pytest.raises(ValueError, match="only safetensors"):
        pipe.save_pretrained(tmp_path / "bin", safe_serialization=False)


def test_half_precision_folders_load_without_naming_the_variant(pipe, tmp_path):
    import copy

    half = HazeMatchingPipeline(copy.deepcopy(pipe.unet).half(), pipe.scheduler)
    half.save_pretrained(tmp_path, variant="fp16")
    assert HazeMatchingPipeline.from_pretrained(tmp_path).unet.dtype == torch.float32
    assert fetch_pipeline(tmp_path) == str(tmp_path)


COMMANDS = """
import contextlib
import io
import json
from haze_pipeline import cli
found = []
for line in sys.argv[1:]:
    sys.argv = ["haze-pipeline", *line.split()]
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
    found.append([code, out.getvalue(), error.getvalue()])
print(json.dumps(found))
"""


def test_commands_accept_repositories_and_explain_errors(pipe, environments, tmp_path):
    folder = tmp_path / "first"
    pipe.save_pretrained(folder)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    write_pairs(pairs, 3, (48, 48))
    ensemble = "--num-inference-steps 2 --ensemble-size 2"
    (tmp_path / "there").mkdir()
    with hub_double() as hub:
        hub.repos = {"lab/microscope": [], "lab/text": []}
        revision = hub.commit("lab/microscope", files)
        hub.commit("lab/microscope", {**files, "model_index.json": files["model_index.json"].replace(b"1.3", b"1.4")})
        hub.commit("lab/text", {"README.md": b"Nothing here."})
        lines = [
            "info lab/microscope --json",
            f"info lab/microscope@{revision} --json",
            f"dehaze {EXAMPLE} -o {tmp_path}/clear.ome.tif --model lab/microscope --num-inference-steps 1 "
            f"--ensemble-size 1 --json",
            f"evaluate --dataset {pairs} -o {tmp_path}/report --model lab/microscope --preset fast --baseline none",
            f"calibrate {pairs} -o {tmp_path}/calibrated --model lab/microscope {ensemble}",
            f"info {tmp_path}/calibrated --json",
            "info lab/nothing",
            "info lab/microscope@v9",
            "info lab/text",
            f"info {tmp_path}/there/nothing",
            "info nothing",
            f"push {tmp_path}/there lab/other",
            f"push {folder} not/a/name",
            f"push {folder} lab/other --evaluation {tmp_path}/there",
            f"push {folder} lab/other --example {tmp_path}/no.tif",
        ]
        home = settings(hub, tmp_path / "home")
        found = json.loads(run_python(environments["ours"], COMMANDS, *lines, **home).stdout.splitlines()[-1])
        assert set(hub.repos) == {"lab/microscope", "lab/text"}  # a refused push creates no repository
        asked = len(hub.requests)
        offline = {**home, "HF_HUB_OFFLINE": "1"}
        lines = ["info lab/microscope --json", "info lab/other"]
        result = run_python(environments["ours"], COMMANDS, *lines, **offline)
        assert len(hub.requests) == asked
    found += json.loads(result.stdout.splitlines()[-1])
    latest, older, dehazed, evaluated, calibrated, again, *refused, kept, unknown = found
    for code, _, error in (latest, older, dehazed, evaluated, calibrated, again, kept):
        assert code == 0, error
    assert json.loads(latest[1])["target_std"] == 1.4 == json.loads(again[1])["target_std"]
    assert json.loads(older[1])["target_std"] == 1.3
    assert json.loads(dehazed[1])["model"] == "lab/microscope"
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["models"][0]["name"] == "lab/microscope"
    assert json.loads(again[1])["calibrated_for"] == {"ensemble_size": 2, "num_inference_steps": 2}
    assert kept == latest
    sentences = (
        "neither a folder nor a repository",
        "no revision v9",
        "model_index.json",
        "does not exist",
        "does not exist",
        "no model_index.json",
        "not/a/name",
        "no evaluation.json",
        "no.tif",
        "cannot be reached",
    )
    for (code, out, error), sentence in zip([*refused, unknown], sentences, strict=True):
        assert code == 1 and out == "" and error.count("\n") == 1 and sentence in error, error
