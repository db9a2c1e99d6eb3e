"""Commands of a user, run by the benchmarks."""

import os
import subprocess


def run(*arguments, **environment: str) -> float:
    """
    Run a command with further variables of the environment, and return its processor time in minutes. Windows does not
    measure it and gives 0.
    """
    print("$", *arguments, flush=True)
    before = os.times()
    subprocess.run([str(argument) for argument in arguments], check=True, env={**os.environ, **environment})
    after = os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return (user + system) / 60


def run_on_one_thread(*arguments) -> float:
    """The same with one thread."""
    return run(*arguments, OMP_NUM_THREADS="1")
