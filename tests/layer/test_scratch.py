# SPDX-License-Identifier: BSD-3-Clause
"""`release_scratch`: memory that calls keep goes back to the system, and results stay."""

import os
import platform
import threading
import time
from pathlib import Path

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.process import run_python
from kit.settings import use_threads
from torch import Tensor

from lstm_fused import FusedLSTM, release_scratch
from lstm_fused._ops import native

pytestmark = pytest.mark.skipif(native.compiled is None, reason="needs the kernels")


def compute(module: FusedLSTM, x: Tensor) -> list[Tensor]:
    """y and the gradients of one call."""
    y, _ = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def make(seed: int) -> tuple[FusedLSTM, Tensor]:
    torch.manual_seed(seed)
    return FusedLSTM(40 + seed, 96), torch.randn(20, 32, 40 + seed)


def test_released_bytes_are_those_of_the_last_calls() -> None:
    module, x = make(0)
    with use_threads(2):
        compute(module, x)
        packed = 4 * 96 * (40 + 96) * 4  # both weights of the forward
        assert packed <= release_scratch() <= 2 * 2**25
        assert release_scratch() == 0
        expected = compute(module, x)
        release_scratch()
        for mine, bits in zip(compute(module, x), expected, strict=True):
            assert_bitwise_equal(mine, bits)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_resident_memory_falls() -> None:
    """In a process of its own, whose heap holds nothing else."""
    run_python(
        """
import torch
from lstm_fused import FusedLSTM, release_scratch

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

module = FusedLSTM(1024, 512)  # 12 MiB of packed weights
x = torch.randn(32, 8, 1024)
with torch.inference_mode():
    for _ in range(3):
        module(x)
    before = resident()
    released = release_scratch()
    assert released > 10 * 2**20, released
    assert before - resident() > 8 * 2**20, (before, resident(), released)
"""
    )


def test_calls_on_other_threads_are_not_disturbed() -> None:
    cases = [make(seed) for seed in range(3)]
    expected = [compute(*case) for case in cases]
    results: list[list[list[Tensor]]] = [[] for _ in cases]

    def work(index: int) -> None:
        for _ in range(10):
            results[index].append(compute(*cases[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    released = 0
    while any(thread.is_alive() for thread in threads):
        released += release_scratch()
        time.sleep(0.0005)
    for thread in threads:
        thread.join()
    assert released > 0
    for mine, wanted in zip(results, expected, strict=True):
        assert len(mine) == 10
        for result in mine:
            for got, bits in zip(result, wanted, strict=True):
                assert_bitwise_equal(got, bits)


def test_threads_that_have_ended_keep_nothing() -> None:
    module, x = make(0)

    def work() -> None:
        torch.set_num_threads(1)  # threads of a pool of its own would stay
        compute(module, x)

    with use_threads(1):
        release_scratch()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        # NOTE: join returns when Python is done with the thread, before the system ends it.
        end = time.monotonic() + 60
        while Path(f"/proc/self/task/{thread.native_id}").exists() and time.monotonic() < end:
            time.sleep(0.001)
        assert release_scratch() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_releases_what_its_parent_kept() -> None:
    run_python(
        """
import os, threading, torch
from lstm_fused import FusedLSTM, release_scratch

module, x = FusedLSTM(64, 96), torch.randn(20, 32, 64)
stop = threading.Event()

def work():
    module(x)
    stop.wait()

torch.set_num_threads(1)
thread = threading.Thread(target=work)
thread.start()
module(x)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert release_scratch() > 0 and release_scratch() == 0
        module(x)
        another = threading.Thread(target=module, args=(x,))
        another.start()
        another.join()
        code = 0 if release_scratch() > 0 else 2
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
thread.join()
"""
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other mallocs keep what they like")
def test_steps_of_a_loop_take_no_memory_anew() -> None:
    """Ten steps make 80 MB of weight gradients one after the other. With its threshold set by the
    user, malloc gives them back: that this is seen shows that the count can tell."""
    program = """
import resource
import torch
from lstm_fused import FusedLSTMCell

torch.set_num_threads(1)
cell = FusedLSTMCell(512, 512)
x = torch.randn(10, 1, 512)

def train():
    h = c = torch.zeros(1, 512)
    for step in x:
        h, c = cell(step, (h, c))
    return torch.autograd.grad(h.sum(), list(cell.parameters()))

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    train()
before = page_faults()
for _ in range(10):
    train()
print((page_faults() - before) // 10)
"""
    assert int(run_python(program)) < 1000
    assert int(run_python(program, MALLOC_TRIM_THRESHOLD_="131072")) > 3000
