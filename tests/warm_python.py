"""
Run scripts one after the other, each in its own process that has already imported torch, diffusers and accelerate.

These imports take several times as long as a training of a few steps. A server makes only these imports and forks for
every script. This does not test the launcher; for `accelerate launch`, see test_train_haze_matching.py.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


# One thread per process, because the order of sums depends on the number of threads. No GPUs. Variables of accelerate
# are removed, because the configuration, not the environment, must keep it on the CPU.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def run_script(
    script: Path, *arguments, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """
    Run a script to its end, like `python script *arguments`.

    Args:
        script (`Path`): The script.
        arguments: Its arguments.
        folder (`Path`, *optional*): The working directory.
        environment (`dict[str, str]`, *optional*): Variables in addition to `ENVIRONMENT`.
    """
    command = [str(part) for part in (script, *arguments)]
    if not hasattr(os, "fork"):  # Windows
        variables = ENVIRONMENT | (environment or {})
        return subprocess.run([sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True)
    server = _server(tuple(sorted((environment or {}).items())))
    with tempfile.TemporaryDirectory() as outputs:
        outputs = [Path(outputs, name) for name in ("stdout", "stderr")]
        server.stdin.write(json.dumps([command, str(folder or Path.cwd()), *map(str, outputs)]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, *(output.read_text() for output in outputs))


@cache
def _server(environment: tuple[tuple[str, str], ...]) -> subprocess.Popen:
    """The server process. It ends when its standard input closes at the end of the tests."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], env=ENVIRONMENT | dict(environment), text=True, **pipes)


def serve():
    """Fork for every line of standard input, and answer with the exit code."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers.pipelines.pipeline_utils  # noqa: F401
    import ome_types.model  # noqa: F401
    import tensorboard  # noqa: F401

    gc.freeze()  # or every process would copy what is imported when it collects garbage at its end
    for line in sys.stdin:
        command, folder, *outputs = json.loads(line)
        child = os.fork()
        if child == 0:
            for descriptor, output in enumerate(outputs, start=1):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
            os.chdir(folder)
            sys.argv = command
            sys.path[0] = str(Path(command[0]).parent)  # as `python script` does
            runpy.run_path(command[0], run_name="__main__")
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
