# SPDX-License-Identifier: BSD-3-Clause
"""Whether a peer computed the right thing: the error budget that the tests use too.

    max|result - truth|  <=  2 * max|nn.LSTM - truth|  +  FLOORS[dtype] * max(1, max|truth|)

for y, h_n, c_n and, in training, every gradient. truth is nn.LSTM in float64 on the CPU, and the
rival nn.LSTM in the case's dtype, from the same numbers (`verifier` computes both).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]

# What rounding may come to, in units of the results' magnitude: the values of
# tests/kit/numeric.py, which gives the reasons. tf32 keeps float16's 10 bits of mantissa.
FLOORS = {
    "float64": 1e-13,
    "float32": 5e-6,
    "tf32": 2.5e-3,
    "float16": 2.5e-3,
    "bfloat16": 2e-2,
}


def save_arrays(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)


def load_arrays(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def save_truth(path: Path, truth: Arrays, allowed: dict[str, float]) -> None:
    save_arrays(path, truth | {f"allowed_{name}": np.array(allowed[name]) for name in allowed})


def load_truth(path: Path) -> tuple[Arrays, dict[str, float]]:
    arrays = load_arrays(path)
    truth = {name: a for name, a in arrays.items() if not name.startswith("allowed_")}
    return truth, {name: float(arrays[f"allowed_{name}"]) for name in truth}


def budgets(rival: Arrays, truth: Arrays, dtype: str) -> dict[str, float]:
    """The largest error that is allowed, for each result."""
    return {
        name: 2 * largest_error(rival[name], wanted)
        + FLOORS[dtype] * max(1.0, float(np.abs(wanted).max(initial=0)))
        for name, wanted in truth.items()
    }


# What a peer that rounds weights may be off by: beyond it, it computes something else.
ROUNDED_ERROR = 0.2


def for_rounded(allowed: dict[str, float]) -> dict[str, float]:
    """The budgets of a case whose peers may round weights."""
    return {name: max(most, ROUNDED_ERROR) for name, most in allowed.items()}


def find_fault(result: Arrays, truth: Arrays, allowed: dict[str, float]) -> str:
    """What is wrong with a result, in one line; empty if it is right.

    Results that a peer does not give (final states, say) are a fault only if it gives none at all:
    `verifier` is asked for all of them, a peer for what its users get.
    """
    if not result:
        return "gave no result"
    for name, values in result.items():
        if name not in truth:
            return f"{name}: nobody asked for it"
        wanted = truth[name]
        if values.shape != wanted.shape:
            return f"{name}: shape {values.shape}, wanted {wanted.shape}"
        error = largest_error(values, wanted)
        if not error <= allowed[name]:
            return f"{name}: error {error:.3g}, allowed {allowed[name]:.3g}"
    return ""


def worst_share(result: Arrays, truth: Arrays, allowed: dict[str, float]) -> float:
    """The largest share of its budget that a result uses up."""
    return max(largest_error(result[name], truth[name]) / allowed[name] for name in result)


def largest_error(values: np.ndarray, truth: np.ndarray) -> float:
    """max|values - truth|; infinite where one of them is not finite."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(values.astype(np.float64) - truth)
    worst = float(errors.max(initial=0))
    return worst if np.isfinite(worst) else float("inf")
