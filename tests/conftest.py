# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests, and the module under test run as ``kit.numeric`` runs its rivals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.numeric import (
    Results,
    assert_within_budget,
    differentiate,
    make_module,
    run_rival,
    run_truth,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_fused import FusedLSTM, _native, build_info

ISAS: tuple[str, ...] = tuple(build_info()["isas"])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The sizes of make_twins.
D, H = 3, 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the work is small, and threads that spin take 20 times as long."""
    with use_threads(1):
        yield


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Run the kernels of one instruction set."""
    assert _native.compiled is not None
    before = _native.compiled.set_max_isa(isa)
    try:
        assert build_info()["isa"] == isa
        yield
    finally:
        _native.compiled.set_max_isa(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the kernels of each instruction set that this machine has."""
    with use_isa(request.param):
        yield request.param


def run_ours(
    inputs: LayerInputs,
    *,
    cell_states: bool = False,
    packed: bool = False,
    recompute: bool = False,
) -> Results:
    """Compute results and gradients by FusedLSTM.

    Args:
        inputs: of any case; with ``packed`` one that has lengths of at least 1 and no resets.
        cell_states: ask for the cell states, and differentiate by them too.
        packed: hand the rows over as a PackedSequence, in an order of their own.
        recompute: have the module save no gates.
    """
    inputs = inputs.requiring_grad()
    module: FusedLSTM = make_module(inputs, FusedLSTM)
    module.recompute = recompute
    parameters = dict(module.named_parameters())
    x: Tensor | PackedSequence = inputs.input
    lengths = inputs.lengths
    if packed:
        assert lengths is not None
        first = inputs.case.batch_first
        x = pack_padded_sequence(inputs.input, lengths.cpu(), first, enforce_sorted=False)
        lengths = None
    y, (h_n, c_n), *rest = module(
        x,
        inputs.hx,
        lengths=lengths,
        reset_mask=inputs.reset_mask,
        return_cell_states=cell_states,
    )
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    if cell_states:
        (outputs["cell_states"],) = rest
    for name, output in outputs.items():
        if isinstance(output, PackedSequence):
            outputs[name], _ = pad_packed_sequence(
                output, inputs.case.batch_first, total_length=inputs.case.T
            )
    leaves = {name: parameters.get(name, leaf) for name, leaf in inputs.leaves.items()}
    return differentiate(outputs, leaves, inputs.grads)


class Expected(NamedTuple):
    inputs: LayerInputs
    theirs: Results
    truth: Results


@cache
def expected_of(case: LayerCase, cell_states: bool = False) -> Expected:
    """The inputs of a case and what they must give; computed once for all instruction sets."""
    inputs = make_inputs(case)
    theirs = run_rival(inputs, cell_states=cell_states)
    return Expected(inputs, theirs, run_truth(inputs, cell_states=cell_states))


def assert_results(case: LayerCase, ours: Results, expected: Expected) -> None:
    """Assert that ours has every result and gradient, in the case's dtype, within the budget."""
    assert ours.keys() == expected.truth.keys()
    for name, truth in expected.truth.items():
        assert ours[name].dtype == case.dtype, name
        assert_within_budget(
            f"{case}: {name}", ours[name], expected.theirs[name], truth, case.dtype
        )


def in_dtype(case: LayerCase, dtype: torch.dtype) -> LayerCase:
    return replace(case, dtype=dtype)


def make_twins(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[FusedLSTM, nn.LSTM]:
    """Both modules, each made under the same seed."""
    torch.manual_seed(5)
    theirs = nn.LSTM(D, H, dtype=dtype, **options)
    torch.manual_seed(5)
    return FusedLSTM(D, H, dtype=dtype, **options), theirs


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equal structure, shapes, strides and dtypes, and values within the budget."""
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        assert isinstance(ours, PackedSequence) == isinstance(theirs, PackedSequence)
        assert len(ours) == len(theirs)
        for mine, expected in zip(ours, theirs, strict=True):
            assert_same(mine, expected)
    elif theirs is None or not theirs.is_floating_point():
        assert (ours is None) if theirs is None else torch.equal(ours, theirs)
    else:
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert_within_budget("result", ours, None, theirs, ours.dtype)


def random_hx(module: nn.RNNBase, batch: int | None, dtype: torch.dtype = torch.float64) -> Any:
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    rows = [] if batch is None else [batch]
    return (
        torch.randn(blocks, *rows, module.proj_size or H, dtype=dtype),
        torch.randn(blocks, *rows, H, dtype=dtype),
    )
