"""Windows and macOS: what they lack, and worker processes that are not forked."""

import ast
import itertools
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT

from haze_pipeline.data.training_data import load_training_data
from haze_pipeline.data.unpaired import UnpairedPatches
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff


SOURCES = [
    path for folder in ("haze_pipeline", "training", "spaces") for path in sorted((ROOT / folder).rglob("*.py"))
]

# What Windows lacks: modules, functions of `os`, signals, arguments of processes, and files.
MODULES = r"fcntl|grp|posix|pty|pwd|resource|syslog|termios|tty"
FUNCTIONS = r"os\.(fork\w*|wait\w*|kill\w*|nice|sched_\w+|set[ug]id|set[ps]\w+id|get[eu]*[ug]id|getpg\w+|uname|mkfifo)"
SIGNALS = r"signal\.(SIG(ALRM|CHLD|CONT|HUP|KILL|PIPE|QUIT|STOP|TSTP|USR[12])|alarm|setitimer|pause)"
ARGUMENTS = r"preexec_fn|start_new_session|process_group|pass_fds"
FILES = r"/(dev|etc|proc|sys|tmp|var)/.*"
# Ways to start a process that differ between systems.
START_METHODS = r"multiprocessing\.\w+|get_context|set_start_method|multiprocessing_context"

# The uses that there are, and why each is right.
ALLOWED = {
    ("haze_pipeline/utils/processes.py", "os.sched_getaffinity"): "only where `os` has it",
    ("haze_pipeline/utils/processes.py", "/sys/fs/cgroup/cpu.max"): "a missing file is expected",
}


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""


def uses(code: str) -> list[str]:
    """What the code uses of the above."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if re.fullmatch(MODULES, alias.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if re.fullmatch(rf"({MODULES})\..*|{FUNCTIONS}|{SIGNALS}", name)]
        elif isinstance(node, ast.Attribute) and re.fullmatch(f"{FUNCTIONS}|{SIGNALS}|{START_METHODS}", dotted(node)):
            found.append(dotted(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(FILES, node.value):
            found.append(node.value)
        elif isinstance(node, ast.Call):
            found += [each.arg for each in node.keywords if re.fullmatch(ARGUMENTS, each.arg or "")]
            found += [each.arg for each in node.keywords if re.fullmatch(START_METHODS, each.arg or "")]
            if re.fullmatch(START_METHODS, dotted(node.func)):
                found.append(dotted(node.func))
    return found


def test_the_search_finds_what_windows_lacks():
    assert uses("import resource\nfrom fcntl import flock\nos.killpg(1, signal.SIGKILL)") == [
        "resource", "fcntl.flock", "os.killpg", "signal.SIGKILL",
    ]  # fmt: skip
    assert sorted(uses("get_context('fork'); Popen(start_new_session=True); open('/proc/self/maps')")) == [
        "/proc/self/maps", "get_context", "start_new_session",
    ]  # fmt: skip
    assert uses("signal.SIGTERM; os.getpid(); os.cpu_count(); os.sep; '/data/'") == []


def test_every_use_of_what_windows_lacks_has_a_reason():
    counts = Counter(
        (path.relative_to(ROOT).as_posix(), use) for path in SOURCES for use in uses(path.read_text(encoding="utf-8"))
    )
    assert counts == dict.fromkeys(ALLOWED, 1)


def test_tests_and_benchmarks_can_be_imported_everywhere():
    """What Windows lacks is used inside of functions only, of tests that are skipped there."""
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                found = uses(ast.unparse(node))
                assert not [use for use in found if re.fullmatch(rf"({MODULES}).*|{FUNCTIONS}|{SIGNALS}", use)], path


def test_text_files_have_an_encoding():
    """Otherwise Windows writes and reads them in the code page of the country."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                mode = next((each.value for each in node.args if isinstance(each, ast.Constant)), "")
                is_text = node.func.attr in ("read_text", "write_text") or (
                    node.func.attr == "open" and mode in ("r", "w", "a", "x")
                )
                # A distribution reads its files as UTF-8 and takes no encoding.
                is_text &= not ast.unparse(node.func).startswith("distribution(")
                assert not is_text or any(each.arg == "encoding" for each in node.keywords), (path, node.lineno)


# Prints a fingerprint of the batches of two workers. Workers repeat the imports at the top only.
LOADERS = """
import multiprocessing, sys

if __name__ == "__main__":
    import torch
    from haze_pipeline.data.patches import TrainingExamples, fit_image_processor
    from haze_pipeline.data.training_data import load_training_data

    multiprocessing.set_start_method(sys.argv[1])
    data = load_training_data(simulate=True, simulation_size=32, resolution=16, patches_per_field=2, num_workers=2)
    processor = fit_image_processor("image", data.pairs)
    examples = TrainingExamples(
        data.normalize(processor), 16, posterior_mean_share=0.5, t_sampling="uniform", seed=0, length=64
    )
    loader = torch.utils.data.DataLoader(examples, batch_size=2, num_workers=2, generator=torch.Generator())
    print([round(float(batch["hazy"].double().sum() + batch["noise"].double().sum()), 3) for batch in loader])
"""


def test_spawned_workers_give_the_examples_of_forked_ones(tmp_path):
    script = tmp_path / "loaders.py"
    script.write_text(LOADERS, encoding="utf-8")
    printed = []
    for method in {"spawn", "fork"} & set(multiprocessing.get_all_start_methods()):
        done = subprocess.run(
            [sys.executable, script, method],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0].count(",") == 31 and len(set(printed)) == 1


def test_other_training_examples_can_be_sent_to_workers(monkeypatch):
    """Spawned workers get the data as pickles, which lambdas and inner functions cannot be."""
    monkeypatch.syspath_prepend(ROOT / "training")
    from train_hierarchical_vae import without_haze

    data = load_training_data(simulate=True, simulation_size=32, resolution=16)
    expected = next(itertools.islice(data.series(0), 3, None))  # pair 3, which step 2 reaches from 1
    series = pickle.loads(pickle.dumps(without_haze(data).series))
    pair = next(itertools.islice(series(1, 2), 1, None))
    np.testing.assert_array_equal(pair.hazy, expected.clear)
    np.testing.assert_array_equal(pair.clear, expected.clear)

    fields = [torch.randn(1, 32, 32)]
    patches = UnpairedPatches(fields, fields, 16, 0, 8)
    torch.testing.assert_close(pickle.loads(pickle.dumps(patches))[3], patches[3])


@pytest.fixture
def spawning(monkeypatch):
    """Processes of this test spawn theirs."""
    path = os.pathsep.join([str(ROOT / "tests" / "spawn"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = "import multiprocessing; print(multiprocessing.get_start_method())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "spawn"


def test_a_training_with_spawned_workers(spawning, tmp_path):
    options = "--simulate --simulation_size 32 --resolution 16 --patches_per_field 2 --dataloader_num_workers 2 "
    options += "--max_train_steps 2 --train_batch_size 2 --lr_warmup_steps 0 --report_to none"
    model = tmp_path / "config.json"
    network = {
        "in_channels": 2, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 8], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    model.write_text(json.dumps(network), encoding="utf-8")
    script = ROOT / "training" / "train_haze_matching.py"
    command = [sys.executable, script, *options.split(), "--output_dir", tmp_path / "run"]
    done = subprocess.run(
        [*command, "--model_config_name_or_path", model], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_several_processes_dehaze_where_processes_are_spawned(spawning, model, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        counts = np.random.default_rng(number).poisson(400, (24, 24)).astype(np.uint16)
        write_ome_tiff(tmp_path / "in" / f"{number}.tif", Micrograph(counts, "YX"))
    command = [sys.executable, "-m", "haze_pipeline", "dehaze", tmp_path / "in", "-o", tmp_path / "out"]
    done = subprocess.run([*command, "--model", model, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [read_micrograph(tmp_path / "out" / f"{number}.tif").data.shape for number in range(2)] == [(24, 24)] * 2
