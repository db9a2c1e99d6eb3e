import sys
import threading
import time

import numpy as np
import pytest
import torch

from haze_pipeline.utils import arrays, devices


def test_free_memory_decreases_by_an_allocation():
    falls = []
    for _ in range(10):  # other processes may free memory at the same time, but not in every repetition
        before = devices.free_memory(torch.device("cpu"))
        block = np.ones(2**30, np.uint8)
        falls.append(before - devices.free_memory(torch.device("cpu")))
        assert block[0] == 1
        del block
    assert max(falls) > 2**29


def test_bfloat16_is_used_only_if_the_cpu_supports_it_natively():
    if not hasattr(torch.cpu, "get_capabilities"):
        assert devices.fastest_dtype(torch.device("cpu")) == torch.float32
        pytest.skip("this torch does not know what the CPU supports")
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    assert devices.fastest_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert devices.fastest_dtype(torch.device("mps")) == torch.float32


def test_out_of_memory_errors_are_distinguished_from_others():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert devices.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not devices.is_out_of_memory(caught.value)
    # Messages of oneDNN, which cannot be provoked reliably.
    assert devices.is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not devices.is_out_of_memory(RuntimeError("could not create a primitive descriptor for the convolution"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files in /proc")
def test_large_arrays_are_stored_in_temporary_files_that_are_deleted(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays.tempfile, "tempdir", str(tmp_path))
    small = arrays.allocate(4, 5)
    assert small.shape == (4, 5) and not small.any()
    floats = devices.free_memory(torch.device("cpu")) // 4 // 2  # half of the free memory; the file is sparse
    large = arrays.allocate(floats)
    mapped = [line for line in open("/proc/self/maps") if str(tmp_path) in line]
    assert len(mapped) == 1 and not any(tmp_path.iterdir())
    large[-1] = 3
    assert large[-1] == 3 and large[0] == 0


def test_jobs_run_in_parallel_return_in_order_and_restore_the_number_of_threads():
    threads, running = torch.get_num_threads(), threading.Barrier(2, timeout=20)

    def job(number):
        running.wait()  # passes only if two jobs run at the same time
        assert torch.get_num_threads() == max(1, threads // 2) and not torch.is_grad_enabled()
        return number

    with torch.no_grad():
        assert list(devices.map_on_cores(job, range(6), workers=2)) == list(range(6))
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_errors_of_jobs_are_raised_and_the_remaining_jobs_are_dropped():
    done = []

    def job(number):
        time.sleep(0.01)
        if number == 0:
            raise ValueError("first")
        done.append(number)

    with pytest.raises(ValueError, match="first"):
        list(devices.map_on_cores(job, range(1000), workers=2))
    assert len(done) < 100


def test_jobs_in_the_background_run_ahead_of_the_caller_and_stop_early():
    started, stopped = [], threading.Event()

    def job(number):
        started.append(number)
        return number

    results = devices.map_on_cores(job, range(1000), workers=1, in_background=True, stopped=stopped)
    assert next(results) == 0
    while len(started) < 3:  # while the caller handles the first result
        time.sleep(0.001)
    assert not stopped.is_set()
    results.close()
    assert stopped.is_set() and len(started) < 10
