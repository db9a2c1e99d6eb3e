"""Makes Python start worker processes as on Windows and macOS, if this folder is on PYTHONPATH."""

import multiprocessing


multiprocessing.set_start_method("spawn")
