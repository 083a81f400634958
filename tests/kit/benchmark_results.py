# SPDX-License-Identifier: BSD-3-Clause
"""Made-up results of the benchmark runner."""

import numpy as np

from benchmarks.case import Case
from benchmarks.records import SCHEMA, Results
from benchmarks.rows import make_row


def make_results(
    factor: float = 1.0, *, noise: float = 0.03, drift: float = 1.0, seed: int = 0, rounds: int = 7
) -> Results:
    """Made-up results of nn.LSTM and FusedLSTM on some cases, the latter `factor` as slow."""
    draw = np.random.default_rng(seed)
    rows = []
    for units in (16, 32, 64, 128, 256, 512):
        case = Case(100, 1, units, units)
        both = {}
        for peer, seconds in (("nn", 2e-3), ("fused", 1e-3 * factor)):
            scale = seconds * drift * np.exp(noise * draw.standard_normal((rounds, 1)))
            calls = scale * np.exp(noise * np.abs(draw.standard_normal((rounds, 9))))
            both[peer] = calls.tolist()
        for peer in ("fused", "nn"):
            verdict = {"suite": "inference", "threads": 2, "device": "cpu", "status": "ok"}
            rates = {"gemm_flops": 1e11, "kernel_flops": 2e11}
            rates["read_bandwidth"] = [[65536, 5e10], [4 << 20, 2e10]]
            rows.append(make_row(case, peer, verdict, both[peer], both["nn"], rates, [0.5, 1, 1]))
    machine = {"cpu": "a <CPU>", "cores": 2, "packages": {"torch": "2"}, "commit": "abc"}
    run = {"kind": "run", "schema": SCHEMA, "time": "2026-01-01", "threads": 2, "rounds": rounds}
    return Results({**run, "machine": machine}, rows, [])
