# SPDX-License-Identifier: BSD-3-Clause
"""Results and every gradient of a cell with options against the reference in float64."""

from functools import cache

import pytest
import torch
from kit.numeric import Results, assert_bitwise_equal, assert_within_budget
from kit.options import (
    CASES,
    OPTION_SETS,
    Case,
    OptionInputs,
    make_option_inputs,
    reference_layer,
    run_by_hand,
    run_options,
)
from kit.settings import DTYPES, use_threads
from torch import Tensor

from lstm_fused import reference
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.options_layer import options_layer
from lstm_fused.reference_options import LayerOptions

sets = pytest.mark.parametrize("names", OPTION_SETS)
cases = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@cache
def expected(case: Case, names: str, dtype: torch.dtype) -> tuple[OptionInputs, Results, Results]:
    """Inputs, what the reference makes of them in their dtype, and the truth."""
    inputs = make_option_inputs(case, OPTION_SETS[names], dtype)
    truth = run_by_hand(inputs.to(torch.float64))
    return inputs, run_options(inputs, reference_layer), truth


@cases
@sets
@dtypes
def test_results_and_gradients(case: Case, names: str, dtype: torch.dtype, isa: str) -> None:
    inputs, theirs, truth = expected(case, names, dtype)
    ours = run_options(inputs)
    # A value that a 16-bit type rounds to the other side of the clip has another gradient.
    rounds_clip = inputs.options.cell_clip > 0 and dtype.itemsize == 2
    for name, value in ours.items():
        if not (rounds_clip and name.startswith("grad_")):
            assert_within_budget(name, value, theirs[name], truth[name], dtype)


@sets
def test_two_threads_give_the_bits_of_one(names: str) -> None:
    for case in (Case(6, 40, 8, 33), Case(9, 2, 40, 200), Case(5, 9, 6, 48, P=20, directions=2)):
        inputs = make_option_inputs(case, OPTION_SETS[names], torch.float32)
        one = run_options(inputs)
        with use_threads(2):
            two = run_options(inputs)
        for name, value in one.items():
            assert_within_budget(name, two[name], None, value.double(), torch.float32)
        with use_threads(2):
            again = run_options(inputs)
        for name, value in two.items():
            assert_bitwise_equal(value, again[name])


@sets
def test_rows_do_not_see_one_another(names: str) -> None:
    """A row alone has the bits that it has in a batch, within one plan's kind of products."""
    case = Case(6, 8, 5, 17, reset="state")
    inputs = make_option_inputs(case, OPTION_SETS[names], torch.float64)
    whole = run_options(inputs)

    def row(tensor: Tensor | None, n: int) -> Tensor | None:
        return None if tensor is None else tensor[:, n : n + 1]

    def flags(keep: Tensor | None, n: int) -> Tensor | None:
        if keep is None:
            return None
        return keep.view(1, case.T, case.N, -1)[:, :, n].contiguous()

    for n in (0, 5):
        options = inputs.options
        alone = inputs._replace(
            case=case._replace(N=1),
            input=inputs.input[:, n : n + 1],
            h_0=inputs.h_0[:, n : n + 1],
            c_0=inputs.c_0[:, n : n + 1],
            reset_mask=row(inputs.reset_mask, n),
            options=options._replace(
                h_mask=row(options.h_mask, n),
                keep_c=flags(options.keep_c, n),
                keep_h=flags(options.keep_h, n),
                reset_h=row(options.reset_h, n),
                reset_c=row(options.reset_c, n),
            ),
            grads={name: grad[:, n : n + 1] for name, grad in inputs.grads.items()},
        )
        found = run_options(alone)
        for name in ("y", "cell_states", "grad_input", "grad_h_0", "grad_c_0"):
            part = whole[name][:, n : n + 1]
            assert_within_budget(name, found[name], None, part, torch.float64)


@cases
def test_without_options_the_reference_is_the_plain_one(case: Case) -> None:
    if case.batch_sizes is not None or case.reset == "state":
        pytest.skip("the plain reference has neither")
    inputs = make_option_inputs(case, (), torch.float64)
    found = run_options(inputs, reference_layer)
    plain = reference.lstm_layer(
        *(inputs.input, inputs.h_0, inputs.c_0, inputs.weights),
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    for name, value in zip(("y", "h_n", "c_n", "cell_states"), plain, strict=True):
        assert_within_budget(name, found[name], None, value, torch.float64)


@pytest.mark.parametrize("names", [n for n in OPTION_SETS if n not in ("clip", "all")])
def test_gradients_by_finite_differences(names: str) -> None:
    case = Case(3, 2, 2, 3, reset="state")
    inputs = make_option_inputs(case, OPTION_SETS[names], torch.float64)

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        arguments = LayerArguments(x, h, c, None, None, inputs.reset_mask, True)
        return options_layer(arguments, inputs.options, weights)

    leaves = [t.requires_grad_() for t in (inputs.input, inputs.h_0, inputs.c_0, *inputs.weights)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_gradients_of_the_options_by_finite_differences() -> None:
    inputs = make_option_inputs(
        Case(3, 2, 2, 3, reset="state"), ("peephole", "norms"), torch.float64
    )
    names = ("peephole", "reset_h", "reset_c", "gains", "cell_norm")
    arguments = LayerArguments(
        *(inputs.input, inputs.h_0, inputs.c_0, None, None, inputs.reset_mask, True)
    )

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        options = inputs.options._replace(**dict(zip(names, values, strict=True)))
        return options_layer(arguments, options, inputs.weights)

    leaves = [getattr(inputs.options, name).requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_the_gradient_beyond_a_clip_is_zero() -> None:
    """c is 20 before the clip at 3: h does not feel what made it so."""
    x, state = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
    c_0 = torch.full((1, 1, 1), 20.0, requires_grad=True)
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.tensor([0.0, 50, 0, 0]), torch.zeros(4)]
    for clip, gradient in ((3.0, 0.0), (30.0, 1.0)):
        arguments = LayerArguments(x, state, c_0)
        _, _, c_n, _ = options_layer(arguments, LayerOptions(cell_clip=clip), weights)
        assert c_n.item() == min(clip, 20.0)
        assert torch.autograd.grad(c_n.sum(), c_0)[0].item() == gradient


def test_kept_states_keep_their_bits() -> None:
    inputs = make_option_inputs(Case(5, 3, 4, 9), ("keep",), torch.float32)
    everything = torch.ones_like(inputs.options.keep_c)  # type: ignore[arg-type]
    arguments = LayerArguments(inputs.input, inputs.h_0, inputs.c_0)
    options = LayerOptions(keep_c=everything, keep_h=everything)
    y, h_n, c_n, _ = options_layer(arguments, options, inputs.weights)
    assert_bitwise_equal(h_n, inputs.h_0)
    assert_bitwise_equal(c_n, inputs.c_0)
    assert_bitwise_equal(y, inputs.h_0.expand_as(y).contiguous())
