"""
Time the README's two commands in a fresh clone: `make demo`, first with the installation and then again, and `make
test`.

    python bench/fresh_clone.py

The clone contains the last commit, not uncommitted changes. Writes `bench/fresh_clone.json`.
"""

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path


HERE = Path(__file__).parent


def main():
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "main")
        subprocess.run(["git", "clone", "--quiet", HERE.parent, clone], check=True)
        environment = {**os.environ, "HAZE_TEST_DATA": str(HERE.parent.parent / "shared" / "data")}
        for step in ("make demo", "make demo again", "make test"):
            started = time.perf_counter()
            subprocess.run(step.split()[:2], cwd=clone, check=True, env=environment)
            seconds[step] = round(time.perf_counter() - started, 1)
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, no GPU"
    load = round(os.getloadavg()[2], 1)  # of the last 15 minutes: about 2 if there was nothing else
    results = {"machine": machine, "seconds": seconds, "load": load}
    (HERE / "fresh_clone.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
