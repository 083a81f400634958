# SPDX-License-Identifier: BSD-3-Clause
"""The gradients of options that were derived by hand, against autograd and finite differences."""

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.options import (
    CASES,
    OPTION_SETS,
    Case,
    make_option_inputs,
    reference_layer,
    run_by_hand,
    run_options,
)
from torch import Tensor

from lstm_fused import reference
from lstm_fused.reference_options import lstm_layer
from lstm_fused.reference_options_backward import lstm_layer_backward

F64 = torch.float64
OUTPUTS = ("y", "h_n", "c_n", "cell_states")
TINY = (
    Case(3, 2, 2, 3, reset="state"),
    Case(3, 3, 2, 3, P=2, directions=2, lengths=(3, 0, 2), reset="state"),
)

sets = pytest.mark.parametrize("names", OPTION_SETS)
tiny = pytest.mark.parametrize("case", TINY, ids=str)


@sets
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_those_of_autograd(case: Case, names: str) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], F64)
    by_autograd, by_hand = run_options(inputs, reference_layer), run_by_hand(inputs)
    assert by_hand.keys() == by_autograd.keys()
    for name, value in by_autograd.items():
        assert not by_hand[name].requires_grad
        assert_within_budget(name, by_hand[name], None, value, F64)


@pytest.mark.parametrize("given", OUTPUTS)
def test_a_result_without_gradient_counts_as_zero(given: str) -> None:
    inputs = make_option_inputs(TINY[1], OPTION_SETS["all"], F64)
    zeros = {name: torch.zeros_like(grad) for name, grad in inputs.grads.items()}
    expected = run_by_hand(inputs._replace(grads={**zeros, given: inputs.grads[given]}))
    found = lstm_layer_backward(
        *(inputs.grads[name] if name == given else None for name in OUTPUTS),
        *(inputs.input, inputs.h_0, inputs.c_0, inputs.weights, inputs.options),
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    for name in ("input", "h_0", "c_0"):
        assert_within_budget(name, getattr(found, name), None, expected[f"grad_{name}"], F64)


@tiny
@sets
def test_they_are_those_of_finite_differences(case: Case, names: str) -> None:
    """Along a random direction of each argument."""
    inputs = make_option_inputs(case, OPTION_SETS[names], F64)
    grads, leaves, step = run_by_hand(inputs), inputs.leaves, 1e-5
    torch.manual_seed(0)

    def score(name: str, value: Tensor) -> float:
        moved = inputs.with_leaves({**leaves, name: value})
        outputs = lstm_layer(
            *(moved.input, moved.h_0, moved.c_0, moved.weights, moved.options),
            lengths=moved.lengths,
            reset_mask=moved.reset_mask,
        )
        pairs = zip(outputs, inputs.grads.values(), strict=True)
        # NOTE: gradients of results are not 0 past a row's length, where the results are.
        return sum(float((output * grad).sum()) for output, grad in pairs)

    for name, leaf in leaves.items():
        direction = torch.randn_like(leaf)
        ends = [score(name, leaf + side * step * direction) for side in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        found = float((grads[f"grad_{name}"] * direction).sum())
        assert found == pytest.approx(numeric, rel=1e-6, abs=1e-8), name


@tiny
@pytest.mark.parametrize("names", ["masks", "expectations", "all"])
def test_they_can_be_differentiated(case: Case, names: str) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], F64)
    grads = {name: grad.detach().requires_grad_() for name, grad in inputs.grads.items()}
    given = inputs.requiring_grad()._replace(grads=grads)
    leaves = given.leaves
    outputs = lstm_layer(
        *(given.input, given.h_0, given.c_0, given.weights, given.options),
        lengths=given.lengths,
        reset_mask=given.reset_mask,
    )
    by_autograd = torch.autograd.grad(
        outputs, list(leaves.values()), list(grads.values()), create_graph=True
    )
    by_hand = run_by_hand(given)
    weights = [torch.randn_like(grad) for grad in by_autograd]
    variables = [*leaves.values(), *grads.values()]
    second = [
        torch.autograd.grad(first, variables, weights, allow_unused=True)
        for first in (by_autograd, [by_hand[f"grad_{name}"] for name in leaves])
    ]
    for name, expected, found in zip([*leaves, *grads], *second, strict=True):
        expected = torch.zeros(()) if expected is None else expected
        found = torch.zeros_like(expected) if found is None else found
        assert_within_budget(name, found, None, expected.expand_as(found), F64)


PLAIN = [case for case in CASES if case.batch_sizes is None and case.reset != "state"]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_without_options_they_are_the_plain_ones(case: Case) -> None:
    inputs = make_option_inputs(case, (), F64)
    found = run_by_hand(inputs)
    *plain, weights = reference.lstm_layer_backward(
        *inputs.grads.values(),
        *(inputs.input, inputs.h_0, inputs.c_0, inputs.weights),
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    names = ("input", "h_0", "c_0", *(f"weight_{k}" for k in range(len(weights))))
    for name, value in zip(names, (*plain, *weights), strict=True):
        assert_within_budget(name, found[f"grad_{name}"], None, value, F64)
