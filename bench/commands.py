"""Commands of a user, run by the benchmarks."""

import os
import resource
import subprocess


def run(*arguments, **environment: str) -> float:
    """Run a command with further variables of the environment, and return its processor time in minutes."""
    print("$", *arguments, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(argument) for argument in arguments], check=True, env={**os.environ, **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def run_on_one_thread(*arguments) -> float:
    """The same with one thread."""
    return run(*arguments, OMP_NUM_THREADS="1")
