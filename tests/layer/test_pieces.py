# SPDX-License-Identifier: BSD-3-Clause
"""The CPU's backward when it goes through time in several pieces, by the public interface.

A piece is some steps of 512 rows of data at least, or of more that fill 1 MiB by their gates'
gradients: 512 rows from H = 128 in float32, 64 in float64 and 256 in bfloat16 on. Where the
weights' gradients take more than 1 MiB, as in the second layer of some cases, it is 1024 rows.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.numeric import Results, assert_bitwise_equal, make_module
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.settings import use_threads
from torch import Tensor

from lstm_fused import FusedLSTM, functional

# The smallest H of which 512 rows fill a piece.
UNITS = {torch.float64: 64, torch.float32: 128, torch.bfloat16: 256}
dtypes = pytest.mark.parametrize("dtype", UNITS, ids=str)

# H = 0 stands for the dtype's.
CASES = (
    LayerCase(1101, 1, 2, 0),
    LayerCase(403, 3, 3, 0, reset=0.1, hx=False),
    LayerCase(3, 520, 2, 0, bidirectional=True),  # pieces of a step
    LayerCase(34, 33, 5, 0, num_layers=2, bias=False, batch_first=True),
    LayerCase(13, 130, 3, 0, P=5, bidirectional=True, reset=0.2),
    LayerCase(70, 20, 3, 0, P=17, num_layers=2, batch_first=True, layout="strided"),
    LayerCase(57, 20, 3, 0, bidirectional=True, num_layers=2, lengths=(57,) * 20),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)


def of_size(case: LayerCase, dtype: torch.dtype) -> LayerCase:
    return replace(in_dtype(case, dtype), H=UNITS[dtype] + 1)


def assert_same(results: Results, expected: Results) -> None:
    assert results.keys() == expected.keys()
    for name, bits in expected.items():
        try:
            assert_bitwise_equal(results[name], bits)
        except AssertionError as problem:
            raise AssertionError(f"{name}: {problem}") from None


@cases
@dtypes
def test_results_and_gradients(case: LayerCase, dtype: torch.dtype) -> None:
    case = of_size(case, dtype)
    expected = expected_of(case)
    results = run_ours(expected.inputs)
    assert_results(case, results, expected)
    assert_same(run_ours(expected.inputs, recompute=True), results)
    with use_threads(2):
        assert_same(run_ours(expected.inputs), results)
        assert_same(run_ours(expected.inputs, recompute=True), results)


def test_sums_that_no_cache_holds() -> None:
    """Weights' gradients of more than 4 MiB, which are summed in larger blocks of rows."""
    case = in_dtype(LayerCase(34, 20, 5, 520), torch.float32)
    expected = expected_of(case)
    assert_results(case, run_ours(expected.inputs), expected)


@pytest.mark.parametrize("cell_states", [True, False], ids=["cell_states", "y"])
def test_every_instruction_set(cell_states: bool, isa: str) -> None:
    case = of_size(LayerCase(9, 150, 3, 0, P=6, bidirectional=True, reset=0.1), torch.float64)
    expected = expected_of(case, cell_states=cell_states)
    assert_results(case, run_ours(expected.inputs, cell_states=cell_states), expected)


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
def test_gradients_of_some(bidirectional: bool, recompute: bool) -> None:
    """Frozen weights, an input without a gradient, states alone: as where all are asked for."""
    case = of_size(
        LayerCase(11, 130, 3, 0, P=7, bidirectional=bidirectional, num_layers=2), torch.float32
    )
    inputs = make_inputs(case)
    expected = run_ours(inputs)
    module: Any = make_module(inputs, FusedLSTM)
    module.recompute = recompute
    parameters = dict(module.named_parameters())
    for wanted in (
        ["input"],
        ["h_0", "c_0"],
        list(parameters),
        ["input", "weight_hh_l1"],
        ["bias_ih_l0", "c_0"],
    ):
        leaves = {name: leaf.detach() for name, leaf in inputs.leaves.items()}
        leaves |= parameters
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in wanted)
        y, (h_n, c_n) = module(leaves["input"], (leaves["h_0"], leaves["c_0"]))
        found = torch.autograd.grad(
            (y, h_n, c_n),
            [leaves[name] for name in wanted],
            [inputs.grads[name] for name in ("y", "h_n", "c_n")],
        )
        for name, grad in zip(wanted, found, strict=True):
            assert_bitwise_equal(grad, expected[f"grad_{name}"])


def test_functional_form() -> None:
    case = of_size(LayerCase(20, 60, 2, 0, bidirectional=True, hx=False), torch.float64)
    expected = expected_of(case)
    inputs = expected.inputs.requiring_grad()
    states = (torch.zeros(2, 60, case.H, dtype=case.dtype),) * 2
    y, h_n, c_n = functional.lstm(
        inputs.input, states, list(inputs.weights.values()), bidirectional=True
    )[:3]
    grads = torch.autograd.grad(
        (y, h_n, c_n),
        list(inputs.leaves.values()),
        [inputs.grads[name] for name in ("y", "h_n", "c_n")],
    )
    results = {"y": y.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
    results |= dict(zip((f"grad_{name}" for name in inputs.leaves), grads, strict=True))
    assert_results(case, results, expected)


def of_rows(inputs: LayerInputs, rows: slice) -> LayerInputs:
    """The inputs of some rows (of a case that is not batch_first)."""

    def pick(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, rows]

    return replace(
        inputs,
        case=replace(inputs.case, N=len(range(*rows.indices(inputs.case.N)))),
        input=inputs.input[:, rows],
        h_0=pick(inputs.h_0),
        c_0=pick(inputs.c_0),
        reset_mask=pick(inputs.reset_mask),
        grads={name: grad[:, rows] for name, grad in inputs.grads.items()},
    )


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_in_pieces_and_alone(
    dtype: torch.dtype, bidirectional: bool, recompute: bool
) -> None:
    """The rows alone are one piece; among 200 they are several, on any number of threads."""
    case = of_size(LayerCase(8, 200, 6, 0, bidirectional=bidirectional, reset=0.1), dtype)
    inputs = make_inputs(case)
    rows = slice(71, 76)
    alone = run_ours(of_rows(inputs, rows), recompute=recompute)
    for threads in (1, 2):
        with use_threads(threads):
            together = run_ours(inputs, recompute=recompute)
        for name in ("y", "h_n", "c_n", "grad_input", "grad_h_0", "grad_c_0"):
            assert_bitwise_equal(together[name][:, rows], alone[name])
