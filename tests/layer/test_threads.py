# SPDX-License-Identifier: BSD-3-Clause
"""Threads, processes, and more of them than there are cores."""

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import use_threads
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lstm_fused import FusedLSTM, explain

# Shapes whose plans use threads in all their ways: groups of rows, teams of units, directions.
SHAPES = {
    "row_groups": (20, 32, 40, 96, False),
    "team": (60, 1, 64, 192, False),
    "directions": (40, 2, 32, 128, True),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
Shape = tuple[int, int, int, int, bool]


def make(shape: Shape, seed: int = 0) -> tuple[FusedLSTM, Tensor]:
    steps, rows, features, hidden, bidirectional = shape
    torch.manual_seed(seed)
    module = FusedLSTM(features, hidden, bidirectional=bidirectional)
    return module, torch.randn(steps, rows, features)


def compute(module: FusedLSTM, x: Tensor) -> list[Tensor]:
    """Outputs, states, and the gradients whose bits do not depend on the number of threads."""
    x = x.detach().requires_grad_()
    y, (h_n, c_n) = module(x)
    leaves = [x, module.weight_ih_l0, module.weight_hh_l0]
    grads = torch.autograd.grad(y.square().sum() + c_n.sum(), leaves)
    return [y.detach(), h_n.detach(), c_n.detach(), *grads]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    for mine, bits in zip(results, expected, strict=True):
        assert_bitwise_equal(mine, bits)


@shapes
def test_set_num_threads_is_honoured(shape: Shape) -> None:
    module, x = make(shape)
    with use_threads(1):
        assert "1 row group(s) x team of 1" in explain(module, x).splitlines()[1]
    with use_threads(2):
        text = explain(module, x).splitlines()[1]
        one = "1 row group(s) x team of 1" in text
        assert one == shape[4], text  # two directions keep two threads busy by themselves


@shapes
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_many_python_threads(shape: Shape, threads: int) -> None:
    cases = [make(shape, seed) for seed in range(6)]
    expected = [compute(*case) for case in cases]
    with use_threads(threads), ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for results, bits in zip(pool.map(lambda c: compute(*c), cases), expected, strict=True):
                assert_same(results, bits)


@shapes
@pytest.mark.parametrize("threads", [3, 8])
def test_more_threads_than_cores(shape: Shape, threads: int) -> None:
    module, x = make(shape)
    expected = compute(module, x)
    stop = threading.Event()

    def keep_busy() -> None:
        a = torch.randn(64, 64)
        while not stop.is_set():
            a = torch.tanh(a @ a)  # releases the GIL

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    try:
        with use_threads(threads):
            for _ in range(2):
                assert_same(compute(module, x), expected)
    finally:
        stop.set()
        for thread in busy:
            thread.join()


def wait_for(pid: int, seconds: float) -> int:
    """The exit status of a child; it is killed, and the test fails, when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    pytest.fail(f"the forked child hangs: it did not end within {seconds} seconds")


def run_in_fork(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    return wait_for(pid, 60)


@shapes
def test_forked_child_computes(shape: Shape) -> None:
    """After the parent has used torch's pool, whose threads do not survive the fork."""
    module, x = make(shape)
    with use_threads(2):
        torch.relu(torch.randn(1_000_000))
        expected = compute(module, x)

        def child() -> None:
            assert_same(compute(module, x), expected)
            module(x)[0].sum().backward()  # the weights' gradients too

        assert run_in_fork(child) == 0
        assert_same(compute(module, x), expected)  # and the parent goes on


class Encoded(Dataset[Tensor]):
    """Encodes its samples by an LSTM, in the worker."""

    def __init__(self, module: FusedLSTM, x: Tensor) -> None:
        self.module, self.x = module, x

    def __len__(self) -> int:
        return self.x.shape[1]

    def __getitem__(self, row: int) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.module(self.x[:, row])[0]
        return y


def test_data_loader_workers() -> None:
    module, x = make((12, 6, 16, 48, False))
    with torch.no_grad():
        expected = torch.stack([module(x[:, row])[0] for row in range(6)])
    loader = DataLoader(Encoded(module, x), batch_size=3, num_workers=2, timeout=60)
    assert_bitwise_equal(torch.cat(list(loader)), expected)


def compute_pickled(data: bytes) -> bytes:
    module, x = pickle.loads(data)
    return pickle.dumps([t.numpy() for t in compute(module, x)])


def test_spawned_process() -> None:
    module, x = make((6, 3, 8, 20, True))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        data = pool.apply_async(compute_pickled, (pickle.dumps((module, x)),)).get(timeout=120)
    with use_threads(1):
        expected = compute(module, x)
    assert_same([torch.from_numpy(a) for a in pickle.loads(data)], expected)
