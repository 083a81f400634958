# SPDX-License-Identifier: BSD-3-Clause
"""A short list of calls that reaches every kernel variant, for compute-sanitizer, which is slow.

Prints a line for each: "ok", or "refused" where a kernel's launch was. Exits with 1 if one was.
"""

from __future__ import annotations

import sys
import warnings
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


# Sizes that no tile divides among them, for those are where a kernel leaves its memory.
CASES = (
    SmokeCase(5, 3, 40, "float32"),
    SmokeCase(5, 9, 96, "float32", bidirectional=True, tf32=True),
    SmokeCase(5, 9, 100, "bfloat16", bidirectional=True, ragged=True),
    SmokeCase(4, 11, 250, "float16", ragged=True),
    SmokeCase(4, 17, 250, "float32", bidirectional=True),
    SmokeCase(4, 17, 200, "float32", tf32=True),
    SmokeCase(4, 9, 640, "bfloat16"),
    SmokeCase(3, 5, 33, "float64", ragged=True),
    SmokeCase(3, 5, 36, "float32", projection=7, bidirectional=True),
)


def run(case: SmokeCase, device: Any = "cuda") -> None:
    """A training step, and the same forward without gradients."""
    import torch

    from lstm_fused import FusedLSTM

    torch.backends.cuda.matmul.allow_tf32 = case.tf32
    torch.manual_seed(0)
    module = FusedLSTM(
        13,
        case.H,
        bidirectional=case.bidirectional,
        proj_size=case.projection,
        device=device,
        dtype=getattr(torch, case.dtype),
    )
    x = torch.randn(case.T, case.N, 13, device=device, dtype=getattr(torch, case.dtype))
    x.requires_grad_()
    options = {}
    if case.ragged:
        options["lengths"] = torch.arange(case.N, device=device) % (case.T + 1)
        options["reset_mask"] = torch.rand(case.T, case.N, device=device) < 0.2
    y, _ = module(x, **options)
    y.float().square().sum().backward()
    with torch.no_grad():
        inferred, _ = module(x, **options)
    if not torch.equal(inferred, y) or not all(
        tensor.grad is not None and bool(tensor.grad.isfinite().all())
        for tensor in (x, *module.parameters())
    ):
        raise AssertionError(f"{case}: results differ between calls, or gradients are not finite")


# How CUDA names a launch that it has no room for: too few registers, or too few multiprocessors for
# blocks that run together.
REFUSALS = ("cudaErrorLaunchOutOfResources", "cudaErrorCooperativeLaunchTooLarge")


def refusal_of(case: SmokeCase, device: Any = "cuda") -> str:
    """Make the call. Say why a kernel was not launched, or was replaced; empty if all were."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(case, device)
        except RuntimeError as error:
            if not any(name in str(error) for name in REFUSALS):
                raise
            return " ".join(str(error).split())
    replaced = [str(warning.message) for warning in caught if "stepwise" in str(warning.message)]
    return " ".join(" ".join(replaced).split())


def main() -> int:
    import torch

    refused = False
    for case in CASES:
        why = refusal_of(case)
        torch.cuda.synchronize()
        print(f"refused {case}: {why}" if why else f"ok {case}", flush=True)
        refused |= bool(why)
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
