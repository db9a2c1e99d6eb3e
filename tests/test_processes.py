"""Processes that share a run."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from haze_pipeline.utils.processes import Processes, available_cores


def test_a_process_without_a_launcher_is_the_only_one():
    processes = Processes()
    assert (processes.index, processes.number, processes.is_main) == (0, 1, True)
    assert processes.gather("a") == ["a"] and processes.broadcast("a") == "a"
    with pytest.raises(KeyError), processes.together():
        raise KeyError


def test_a_process_bound_to_one_core_may_use_one():
    assert 1 <= available_cores() <= os.cpu_count()
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from haze_pipeline.utils.processes import available_cores; print(available_cores())"
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


def test_launched_processes_share_values_and_failures(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import json, sys
        from pathlib import Path
        from haze_pipeline.utils.processes import join_processes

        processes = join_processes(use_cpu=True)
        found = {"gathered": processes.gather(processes.index * 2),
            "broadcast": processes.broadcast(f"of {processes.index}")}
        try:
            with processes.together():
                if processes.index == 1:
                    raise ValueError("the second cannot")
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        Path(sys.argv[1], f"{processes.index}.json").write_text(json.dumps(found))
        """)
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launched = subprocess.run([*launcher, script, tmp_path], capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    assert [each["gathered"] for each in found] == [[0, 2]] * 2
    assert [each["broadcast"] for each in found] == ["of 0"] * 2
    assert [each["error"] for each in found] == ["RuntimeError: the second cannot", "ValueError: the second cannot"]
