# SPDX-License-Identifier: BSD-3-Clause
"""The numbers that every peer computes with: the same in each process, from a seed, in numpy.

Parameters carry nn.LSTM's names. 16-bit values are rounded here and stored as float32, so that each
peer turns them into its own type without loss.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from benchmarks.case import GATES, Case


@dataclass(frozen=True)
class Data:
    """Arrays of one case; float64 for float64 cases, else float32."""

    x: np.ndarray  # (T, N, D); past a row's length: 0
    h_0: np.ndarray  # (layers · directions, N, P or H)
    c_0: np.ndarray  # (layers · directions, N, H)
    weights: dict[str, np.ndarray]
    grad_y: np.ndarray  # (T, N, directions · (P or H)); past a row's length: 0
    lengths: np.ndarray  # (N,)
    resets: np.ndarray  # (T, N), bool


def make_data(case: Case) -> Data:
    sizes = (case.T, case.N, case.D, case.H, case.P, case.layers, case.bidirectional, case.dtype)
    draw = np.random.default_rng(zlib.crc32(repr(sizes).encode()))
    kind = np.float64 if case.dtype == "float64" else np.float32

    def normal(*shape: int) -> np.ndarray:
        return rounded(draw.standard_normal(shape, dtype=kind), case.dtype)

    def uniform(*shape: int) -> np.ndarray:
        bound = case.H**-0.5
        values = (draw.random(shape, dtype=kind) * 2 - 1) * kind(bound)
        return rounded(values, case.dtype)

    blocks = case.layers * case.directions
    weights: dict[str, np.ndarray] = {}
    for layer in range(case.layers):
        for suffix in ("", "_reverse")[: case.directions]:
            end = f"_l{layer}{suffix}"
            weights[f"weight_ih{end}"] = uniform(GATES * case.H, case.input_size(layer))
            weights[f"weight_hh{end}"] = uniform(GATES * case.H, case.output_size)
            weights[f"bias_ih{end}"] = uniform(GATES * case.H)
            if case.saturated not in ("", "inputs"):
                weights[f"bias_ih{end}"][: case.H] = rounded(
                    np.full(case.H, case.saturated, dtype=kind), case.dtype
                )
            weights[f"bias_hh{end}"] = uniform(GATES * case.H)
            if case.P:
                weights[f"weight_hr{end}"] = uniform(case.P, case.H)
    lengths = case.row_lengths
    live = np.arange(case.T)[:, None, None] < lengths[None, :, None]
    x = normal(case.T, case.N, case.D) * live
    if case.saturated == "inputs":
        # NOTE: one feature alone: sums of large terms that cancel would have errors of any size.
        scale = 1e4 if case.dtype == "float16" else 1e5
        x[:, :, 0] = rounded(x[:, :, 0] * kind(scale), case.dtype)
    data = Data(
        x=x,
        h_0=normal(blocks, case.N, case.output_size) * (not case.zero_states),
        c_0=normal(blocks, case.N, case.H) * (not case.zero_states),
        weights=weights,
        grad_y=normal(case.T, case.N, case.directions * case.output_size) * live,
        lengths=lengths,
        resets=draw.random((case.T, case.N)) < case.resets,
    )
    # Drawn last, and the other numbers are those of the plain layer.
    if case.variant == "peephole":
        weights["peephole_l0"] = uniform(3, case.H)
    elif case.variant == "layer_norm":
        # With gains of 1, gradients grow from step to step, and float32's errors with them: to
        # 2e-3 of the values after 100 steps.
        gates, cell = kind(0.25), kind(1)
        weights["gamma_l0"] = rounded(gates + uniform(2, GATES * case.H), case.dtype)
        weights["gamma_c_l0"] = rounded(cell + uniform(case.H), case.dtype)
        weights["beta_c_l0"] = uniform(case.H)
    elif case.variant == "cell_clip":
        # Such that the clip is met: in the first steps it is by most cells, later by few or none.
        data.c_0[:] *= 8
    return data


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of this dtype, in the array's own type."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        # To nearest, ties to even: bfloat16 is the upper half of a float32.
        bits = values.astype(np.float32).view(np.uint32)
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return values
