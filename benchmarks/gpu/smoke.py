# SPDX-License-Identifier: BSD-3-Clause
"""A short list of calls that reaches every kernel variant, for compute-sanitizer, which is slow.

Prints a line for each: "ok", or "refused" where a kernel's launch was. Exits with 1 if one was,
and with 2 without a GPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SmokeCase:
    T: int
    N: int
    H: int
    dtype: str
    bidirectional: bool = False
    ragged: bool = False
    projection: int = 0
    tf32: bool = False
    cell: str = ""  # of what cell: one of CELLS
    stepwise: bool = False  # in place of the persistent kernels, where there are any


# Options of the cell: all that persistent kernels have, and norms, which they have not.
CELLS: dict[str, dict[str, Any]] = {
    "": {},
    "options": {
        **{"recurrent_dropout": 0.3, "zoneout": (0.2, 0.1), "peephole": True},
        **{"cell_clip": 0.75, "coupled_gates": True},
    },
    "norms": {"layer_norm": True, "peephole": True},
}

# Sizes that no tile divides among them, for those are where a kernel leaves its memory.
CASES = (
    # One block, of few units and of many; of those that fill it.
    SmokeCase(5, 3, 40, "float32"),
    SmokeCase(4, 9, 90, "float32", bidirectional=True, ragged=True),
    SmokeCase(4, 3, 41, "float32", tf32=True, ragged=True),
    SmokeCase(5, 9, 96, "float32", bidirectional=True, tf32=True),
    SmokeCase(4, 3, 50, "bfloat16"),
    SmokeCase(5, 9, 100, "bfloat16", bidirectional=True, ragged=True),
    SmokeCase(4, 9, 64, "bfloat16", ragged=True),
    SmokeCase(4, 9, 128, "bfloat16"),
    SmokeCase(4, 3, 50, "float16", bidirectional=True),
    SmokeCase(4, 3, 100, "float16"),
    SmokeCase(4, 9, 64, "float16"),
    SmokeCase(4, 9, 128, "float16", bidirectional=True),
    # Groups of one tile of rows, and of several.
    SmokeCase(4, 11, 250, "float16", ragged=True),
    SmokeCase(3, 290, 250, "float16", ragged=True),
    SmokeCase(4, 9, 640, "bfloat16"),
    SmokeCase(3, 200, 250, "bfloat16"),
    SmokeCase(4, 17, 200, "float32", tf32=True),
    SmokeCase(3, 150, 250, "float32", tf32=True, bidirectional=True, ragged=True),
    SmokeCase(4, 17, 250, "float32", bidirectional=True),
    SmokeCase(3, 200, 250, "float32", ragged=True),
    # Stepwise.
    SmokeCase(3, 5, 33, "float64", ragged=True),
    SmokeCase(3, 5, 36, "float32", projection=7, bidirectional=True),
    SmokeCase(3, 5, 100, "bfloat16", bidirectional=True, ragged=True, stepwise=True),
    # Options of the cell, in the same order.
    SmokeCase(4, 9, 40, "float32", ragged=True, cell="options"),
    SmokeCase(4, 9, 90, "float32", bidirectional=True, cell="options"),
    SmokeCase(4, 3, 41, "float32", tf32=True, cell="options"),
    SmokeCase(4, 9, 90, "float32", tf32=True, ragged=True, cell="options"),
    SmokeCase(4, 9, 50, "bfloat16", ragged=True, cell="options"),
    SmokeCase(4, 9, 100, "bfloat16", bidirectional=True, cell="options"),
    SmokeCase(4, 3, 64, "float16", cell="options"),
    SmokeCase(4, 9, 128, "float16", ragged=True, cell="options"),
    SmokeCase(4, 11, 250, "float16", ragged=True, cell="options"),
    SmokeCase(3, 150, 250, "float16", bidirectional=True, ragged=True, cell="options"),
    SmokeCase(4, 11, 250, "bfloat16", cell="options"),
    SmokeCase(4, 17, 200, "float32", tf32=True, cell="options"),
    SmokeCase(3, 5, 36, "float32", projection=7, cell="options"),
    SmokeCase(3, 5, 36, "bfloat16", ragged=True, cell="norms"),
)


@contextmanager
def variant(case: SmokeCase) -> Iterator[None]:
    """Take the variant that a case asks for, whatever the estimates say of a step of its size."""
    from lstm_fused._ops import native

    modules = [module for module in (native.compiled, native.compiled_cuda) if module is not None]
    name = "stepwise" if case.stepwise else "persistent"
    before = [module.set_cuda_variant(name) for module in modules]
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            module.set_cuda_variant(old)


def run(case: SmokeCase, device: Any = "cuda") -> str:
    """Make a training step, and the same forward without gradients. Say which kernels of it an
    earlier call has found not to work; empty if none."""
    import torch

    from lstm_fused import FusedLSTM
    from lstm_fused.info import explain_lines

    torch.backends.cuda.matmul.allow_tf32 = case.tf32
    torch.manual_seed(0)
    cell = dict(CELLS[case.cell])
    if case.projection and case.cell == "options":
        cell["zoneout"] = (0.2, 0.0)  # that of h is not defined
    module = FusedLSTM(
        13,
        case.H,
        bidirectional=case.bidirectional,
        proj_size=case.projection,
        device=device,
        dtype=getattr(torch, case.dtype),
        **cell,
    )
    x = torch.randn(case.T, case.N, 13, device=device, dtype=getattr(torch, case.dtype))
    x.requires_grad_()
    options: dict[str, Any] = {}
    if case.ragged:
        options["lengths"] = torch.arange(case.N, device=device) % (case.T + 1)
        options["reset_mask"] = torch.rand(case.T, case.N, device=device) < 0.2
        if case.cell == "options":
            sizes = (2 if case.bidirectional else 1, case.N, case.H)
            options["reset_state"] = tuple(x.new_empty(sizes).normal_() for _ in range(2))
    torch.manual_seed(1)  # of dropout
    y, _ = module(x, **options)
    y.float().square().sum().backward()
    torch.manual_seed(1)
    with torch.no_grad():
        inferred, _ = module(x, **options)
    if not torch.equal(inferred, y) or not all(
        tensor.grad is not None and bool(tensor.grad.isfinite().all())
        for tensor in (x, *module.parameters())
    ):
        raise AssertionError(f"{case}: results differ between calls, or gradients are not finite")
    return " ".join(plan for plan in explain_lines(module, x) if "off on this device" in plan)


# How CUDA names a launch that it has no room for: too few registers, or too few multiprocessors for
# blocks that run together.
REFUSALS = ("cudaErrorLaunchOutOfResources", "cudaErrorCooperativeLaunchTooLarge")


def refusal_of(case: SmokeCase, device: Any = "cuda") -> str:
    """Make the call. Say why a kernel was not launched, or was replaced; empty if all were."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with variant(case):
                off = run(case, device)
        except RuntimeError as error:
            if not any(name in str(error) for name in REFUSALS):
                raise
            return " ".join(str(error).split())
    replaced = [str(warning.message) for warning in caught if "stepwise" in str(warning.message)]
    return " ".join(" ".join(replaced or [off]).split())


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print(f"the smoke calls need a GPU: torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    refused = False
    for case in CASES:
        why = refusal_of(case)
        torch.cuda.synchronize()
        print(f"refused {case}: {why}" if why else f"ok {case}", flush=True)
        refused |= bool(why)
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
