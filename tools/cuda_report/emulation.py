# SPDX-License-Identifier: BSD-3-Clause
"""What the kernels ask of memory in a time step, counted by the emulated CUDA device of the tests.

A call of few steps and one of more steps differ by the steps alone, whatever a kernel does before
and after them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.device import FACTS_A100
from tools.cuda_on_cpu.ops.build import load_ops, ops_library
from tools.cuda_report.cubins import CACHE, demangle
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.plans import plan_of

NAME = "lstm_fused_cuda_report"
STEPS = (3, 5)
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}


@dataclass(frozen=True)
class Counts:
    """A kernel's counts in a step: totals of all blocks."""

    kernel: str
    shape: str
    blocks: int
    threads: int  # of a block
    instructions: dict[str, float]  # of PTX, counted for each thread, by class
    global_load: dict[str, float]
    global_store: dict[str, float]
    shared_load: dict[str, float]
    shared_store: dict[str, float]

    @property
    def conflicts(self) -> float:
        """Shared-memory wavefronts beyond those that the bytes need, over these."""
        ideal = self.shared_load["ideal_wavefronts"] + self.shared_store["ideal_wavefronts"]
        used = self.shared_load["wavefronts"] + self.shared_store["wavefronts"]
        return used / ideal - 1 if ideal else 0.0

    @property
    def sectors_per_request(self) -> float:
        requests = self.global_load["requests"] + self.global_store["requests"]
        sectors = self.global_load["sectors"] + self.global_store["sectors"]
        return sectors / requests if requests else 0.0

    @property
    def sector_use(self) -> float:
        """Bytes asked for, over the bytes of the sectors that were touched."""
        sectors = self.global_load["sectors"] + self.global_store["sectors"]
        found = self.global_load["bytes"] + self.global_store["bytes"]
        return found / (32 * sectors) if sectors else 0.0


@dataclass(frozen=True)
class EmulatedCase:
    """A training step of one layer, of D = 8 features in."""

    product: str
    N: int
    H: int
    variant: str = "auto"

    def __str__(self) -> str:
        return f"N={self.N} H={self.H}"


CASES = (
    *(EmulatedCase(product, 8, units) for product in ("bf16", "fp16") for units in (64, 128)),
    *(EmulatedCase(product, 8, units) for product in ("tf32", "fp32") for units in (48, 96)),
    *(EmulatedCase(product, 16, 256) for product in ("bf16", "fp16", "tf32", "fp32")),
    EmulatedCase("bf16", 16, 768),
    *(EmulatedCase(product, 16, 256, "stepwise") for product in ("bf16", "fp16", "fp32")),
)


class Emulation:
    """The CUDA ops on the emulated device, with the facts of an A100."""

    def __init__(self) -> None:
        if reason := missing():
            raise RuntimeError(reason)
        library = ops_library(NAME, 80, checked=True)
        self.device, loaded = load_ops([library], CACHE / "emulated")
        self.library = loaded[NAME]
        self.ops = getattr(torch.ops, NAME)
        self.device.set(**FACTS_A100, strict_memory=1, statistics=1, seed=0)

    def count(self, case: EmulatedCase) -> list[Counts]:
        """The counts of the kernels that run in every step."""
        few, many = (self._run(case, steps) for steps in STEPS)
        steps = STEPS[1] - STEPS[0]
        found = []
        for symbol, name in zip(many, demangle(many), strict=True):
            counts = _less(many[symbol], few.get(symbol, {}), steps)
            launches = counts["launches"]
            if counts["instructions"] and name.startswith(("persistent", "forward_s", "backward_")):
                blocks, threads = _launch_size(case, name)
                found.append(
                    Counts(
                        kernel=name,
                        shape=str(case),
                        blocks=blocks,
                        threads=threads,
                        instructions=counts["instructions"],
                        global_load=counts["global_load"],
                        global_store=counts["global_store"],
                        shared_load=counts["shared_load"],
                        shared_store=counts["shared_store"],
                    )
                )
                assert launches in (0, 1), f"{name}: {launches} launches a step"
        return found

    def _run(self, case: EmulatedCase, steps: int) -> dict[str, Any]:
        dtype = getattr(torch, DTYPES[case.product])
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Any:
            return (torch.randn(shape, generator=generator) / case.H**0.5).to(dtype)

        weights = [draw(4 * case.H, 8), draw(4 * case.H, case.H), draw(4 * case.H)]
        weights.append(draw(4 * case.H))
        x, h_0, c_0 = draw(steps, case.N, 8), draw(1, case.N, case.H), draw(1, case.N, case.H)
        with self._settings(case):
            self.device.clear_statistics()
            y, h_n, c_n, _, gates, cells = self.ops.lstm_forward(
                x, h_0, c_0, weights, None, None, None, True, False
            )
            self.ops.lstm_backward(
                *(torch.ones_like(y), torch.ones_like(h_n), torch.ones_like(c_n), None),
                *(x, h_0, c_0, weights, None, None, None, y, gates, cells, False, True, False),
            )
            return self.device.statistics

    @contextmanager
    def _settings(self, case: EmulatedCase) -> Iterator[None]:
        self.library.lstm_emulated_set_variant(case.variant.encode())
        self.library.lstm_emulated_blas_handle.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(self.library.lstm_emulated_blas_handle())
        tf32_math_mode = 3  # CUBLAS_TF32_TENSOR_OP_MATH
        self.library.cublasSetMathMode(handle, tf32_math_mode if case.product == "tf32" else 0)
        try:
            yield
        finally:
            self.library.cublasSetMathMode(handle, 0)
            self.library.lstm_emulated_set_variant(b"auto")


def _less(many: Any, few: Any, steps: int) -> Any:
    """(many - few) / steps of all numbers in a tree; what few lacks is 0, and zeros fall out of
    the instructions."""
    if not isinstance(many, dict):
        return (many - (few or 0)) / steps
    found = {key: _less(value, (few or {}).get(key), steps) for key, value in many.items()}
    if "instructions" in found:
        found["instructions"] = {k: v for k, v in found["instructions"].items() if v}
    return found


def _launch_size(case: EmulatedCase, name: str) -> tuple[int, int]:
    """Blocks and threads of a launch on an A100."""
    if name.startswith("persistent"):
        plan = plan_of(case.product, case.N, case.H, "backward" in name, DEVICES["A100"])
        assert plan is not None
        blocks = plan.groups * plan.group_blocks
        return blocks, plan.threads
    columns = case.H // 4  # of 16 bytes of accumulators
    rows = max(1, 128 // columns)
    return -(-case.N // rows), columns * rows
