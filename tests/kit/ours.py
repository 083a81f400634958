# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTM run as `kit.numeric` runs its rivals, and what it must give."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.numeric import (
    Results,
    assert_within_budget,
    differentiate,
    make_module,
    run_rival,
    run_truth,
)
from lstm_fused import FusedLSTM


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
