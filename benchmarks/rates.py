# SPDX-License-Identifier: BSD-3-Clause
"""What the machine reaches at this moment: the yardsticks that rows are held against."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from typing import Any

import torch

# Side of the square product: large enough for the full rate, and small enough for dozens of calls
# in the time given, of which the best counts: one that other programs did not disturb.
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
# An inference of FusedLSTM that is next to nothing but its input GEMM: steps, rows for each thread,
# features and units. The activations of 16 units take some 2 % of the time that 264 thousand
# operations of matrix products do; 96 rows share each block of the packed weights, which the L2
# cache holds.
KERNEL_SHAPE = (8, 96, 2048, 16)
# Bytes that one core reads, from within its L1 cache to beyond its L2 cache.
READ_BYTES = [32 << 10, 128 << 10, 512 << 10, 2 << 20, 8 << 20]


def measure(device: str, threads: int, dtype: str) -> dict[str, Any]:
    """Rates with this many threads.

    Returns:
        gemm_flops: of torch's matrix product: float32 on the CPU, whatever the row's dtype; in the
            row's dtype on a GPU.
        kernel_flops: of FusedLSTM's micro-kernel in the row's dtype; the CPU only, None elsewhere
            and where lstm_fused has no compiled kernels.
        read_bandwidth: [[bytes, bytes per second], ...]: what the threads together read again and
            again, and how fast, each from its own core's share; the CPU only.
    """
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    where = "cpu" if device == "cpu" else "cuda"
    found: dict[str, Any] = {"gemm_flops": _gemm(where, dtype)}
    found["kernel_flops"] = _kernel(threads, dtype) if where == "cpu" else None
    found["read_bandwidth"] = _reading(threads) if where == "cpu" else []
    return found


def _gemm(device: str, dtype: str) -> float:
    from benchmarks.peers.torch_kit import DTYPES

    side = GEMM_SIDE[device]
    kind = torch.float32 if device == "cpu" else DTYPES[dtype]
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    out = torch.empty_like(a)
    if device == "cpu":
        return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), 0.5)
    from benchmarks.clock import CudaClock

    clock = CudaClock(torch, cold=False)
    return 2 * side**3 / clock.warm_up(lambda: torch.mm(a, b, out=out), 0.5)


def _kernel(threads: int, dtype: str) -> float | None:
    """By KERNEL_SHAPE, since nothing in Python calls the micro-kernel alone.

    One thread is measured too: where other programs hold a core, two reach less than one, which is
    nobody's peak.
    """
    try:
        import lstm_fused
    except ImportError:
        return None
    if not lstm_fused.build_info()["kernels"]:
        return None
    try:
        return max(_inference(count, dtype) for count in {1, threads})
    finally:
        torch.set_num_threads(threads)


def _inference(threads: int, dtype: str) -> float:
    from benchmarks.peers.torch_kit import DTYPES

    torch.set_num_threads(threads)
    steps, rows, features, units = KERNEL_SHAPE
    rows *= threads

    def numbers(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape)).to(DTYPES[dtype])

    x, state = numbers(steps, rows, features), numbers(1, rows, units)
    weights = [numbers(4 * units, features), numbers(4 * units, units)]
    weights += [numbers(4 * units), numbers(4 * units)]
    op = torch.ops.lstm_fused.lstm_forward.default

    def run() -> None:
        op(x, state, state, weights, None, None, None, False, False)

    flops = 2 * steps * rows * 4 * units * (features + units)
    return flops / _best(run, 0.4)


def _reading(threads: int) -> list[list[float]]:
    """By the C library's memchr, which looks for a byte that is not there: nothing but loads.

    One core is measured, and the others are taken to be as fast. Where they share a cache they are
    not quite, so that the floor made of this is low rather than high.
    """
    search = ctypes.CDLL(None).memchr
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    search.restype = ctypes.c_void_p

    def seconds(size: int) -> float:
        buffer = torch.full((size,), 2, dtype=torch.uint8)
        address = buffer.data_ptr()
        return _best(lambda: search(address, 1, size), 0.02)

    call = seconds(64)
    found = []
    for size in READ_BYTES:
        taken = seconds(size)
        # NOTE: at most half of it counts as the call's own cost: the difference of two noisy
        # numbers must not come out as nothing.
        found.append([size * threads, size * threads / max(taken - call, taken / 2)])
    return found


def _best(run: Callable[[], Any], seconds: float) -> float:
    run()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
