# SPDX-License-Identifier: BSD-3-Clause
"""What the machine reaches at this moment: the yardsticks that rows are held against."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

# Side of the square product: large enough for the full rate, and small enough for dozens of calls
# in the time given, of which the best counts: one that other programs did not disturb.
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
# Working sets for the bandwidth: from below one core's L1 to beyond L2.
GEMV_BYTES = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20]


def measure(device: str, threads: int, dtype: str) -> dict[str, Any]:
    """Rates with this many threads.

    Returns:
        gemm_flops: of torch's matrix product: float32 on the CPU, whatever the row's dtype; in the
            row's dtype on a GPU.
        gemv_bandwidth: [[bytes, bytes per second], ...] of reading a float32 matrix of that size
            again and again in torch's matrix-vector product, plain or transposed, whichever is
            faster; the CPU only.
    """
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    where = "cpu" if device == "cpu" else "cuda"
    found: dict[str, Any] = {"gemm_flops": _gemm(where, dtype)}
    found["gemv_bandwidth"] = _gemv() if where == "cpu" else []
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


def _gemv() -> list[list[float]]:
    # A call's own cost, taken off: what is left is reading.
    empty = [_best(reader, 0.01) for reader in _readers(16, 16)]
    found = []
    for size in GEMV_BYTES:
        columns = 1 << round(math.log2(size / 16) / 2)  # The shape of W_hh: four times as high.
        taken = [_best(reader, 0.03) for reader in _readers(size // 4 // columns, columns)]
        # NOTE: at most three quarters of a call count as its own cost: a difference of two noisy
        # numbers must not come out as nothing.
        reading = min(max(t - e, t / 4) for t, e in zip(taken, empty, strict=True))
        found.append([size, size / reading])
    return found


def _readers(rows: int, columns: int) -> list[Callable[[], Any]]:
    matrix, vector, out = torch.randn(rows, columns), torch.randn(columns), torch.empty(rows)
    return [
        lambda: torch.mv(matrix, vector, out=out),
        lambda: torch.mv(matrix.t(), out, out=vector),
    ]


def _best(run: Callable[[], Any], seconds: float) -> float:
    run()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
