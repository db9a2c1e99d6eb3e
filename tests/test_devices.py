import threading
import time

import numpy as np
import pytest
import torch

from haze_pipeline.utils import arrays, devices


def test_free_memory_follows_what_is_taken():
    falls = []
    for _ in range(10):  # other processes may give back as much meanwhile, but not always
        before = devices.free_memory(torch.device("cpu"))
        block = np.ones(2**30, np.uint8)
        falls.append(before - devices.free_memory(torch.device("cpu")))
        assert block[0] == 1
        del block
    assert max(falls) > 2**29


def test_bfloat16_is_taken_only_where_the_cpu_multiplies_it():
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    assert devices.fastest_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert devices.fastest_dtype(torch.device("mps")) == torch.float32


def test_real_out_of_memory_errors_are_told_from_others():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert devices.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not devices.is_out_of_memory(caught.value)
    # oneDNN's, which come only now and then.
    assert devices.is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not devices.is_out_of_memory(RuntimeError("could not create a primitive descriptor for the convolution"))


def test_large_arrays_live_in_files_that_leave_no_trace(monkeypatch, tmp_path):
    monkeypatch.setattr(arrays.tempfile, "tempdir", str(tmp_path))
    small = arrays.allocate(4, 5)
    assert small.shape == (4, 5) and not small.any()
    floats = devices.free_memory(torch.device("cpu")) // 4 // 2  # half of what is free; on disk it takes no room yet
    large = arrays.allocate(floats)
    mapped = [line for line in open("/proc/self/maps") if str(tmp_path) in line]
    assert len(mapped) == 1 and not any(tmp_path.iterdir())
    large[-1] = 3
    assert large[-1] == 3 and large[0] == 0


def test_jobs_run_at_once_in_order_and_leave_the_threads_as_they_were():
    threads, running = torch.get_num_threads(), threading.Barrier(2, timeout=20)

    def job(number):
        running.wait()  # passes only if two jobs run at once
        assert torch.get_num_threads() == max(1, threads // 2) and not torch.is_grad_enabled()
        return number

    with torch.no_grad():
        assert list(devices.map_on_cores(job, range(6), workers=2)) == list(range(6))
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_errors_of_jobs_are_raised_and_the_rest_is_dropped():
    done = []

    def job(number):
        time.sleep(0.01)
        if number == 0:
            raise ValueError("first")
        done.append(number)

    with pytest.raises(ValueError, match="first"):
        list(devices.map_on_cores(job, range(1000), workers=2))
    assert len(done) < 100
