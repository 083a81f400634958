# SPDX-License-Identifier: BSD-3-Clause
"""Outputs and every gradient of FusedLSTM against nn.LSTM and the float64 reference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import CORE, WIDE, LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal, make_module
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.settings import DTYPES, ISAS, use_isa
from torch import Tensor, nn

from lstm_fused import FusedLSTM, build_info

# More steps, rows or features than the selections of the kit: sums that are long, weights that
# leave the first cache, batches of many row blocks, products of x and W_ih in several chunks.
LARGE = (
    LayerCase(200, 1, 5, 20),
    LayerCase(12, 40, 300, 130, bidirectional=True),
    LayerCase(3, 20, 64, 520, lengths=(3, 1) * 10, poison=True),
    LayerCase(40, 9, 70, 96, P=48, num_layers=2, lengths=(40, 7, 0) * 3, reset=0.1, poison=True),
    LayerCase(2, 130, 17, 200, P=150, bidirectional=True, batch_first=True, reset=0.5),
)
RAGGED = [case for case in CORE if case.lengths and min(case.lengths) > 0 and case.reset == 0]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
core_cases = pytest.mark.parametrize("case", CORE, ids=str)


def test_every_instruction_set_of_this_machine_is_tested() -> None:
    assert ISAS[0] == "baseline"
    for isa in ISAS:
        with use_isa(isa):
            assert build_info()["isa"] == isa


def test_instruction_sets_are_told_apart_by_their_bits() -> None:
    """The variable has an effect on the kernels, not on build_info alone."""
    if len(ISAS) == 1:
        pytest.skip("this machine has one instruction set")
    inputs = make_inputs(LayerCase(8, 16, 64, 64))
    results = []
    for isa in ISAS[:2]:
        with use_isa(isa):
            results.append(run_ours(inputs)["y"])
    assert not torch.equal(*results), "with and without fused multiply-add the rounding differs"


@core_cases
@dtypes
def test_results_and_gradients(case: LayerCase, dtype: torch.dtype, isa: str) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case)
    assert_results(case, run_ours(expected.inputs), expected)


@core_cases
@dtypes
def test_results_and_gradients_with_cell_states(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


@pytest.mark.parametrize("case", [case for case in WIDE if case not in CORE], ids=str)
@dtypes
@pytest.mark.parametrize("cell_states", [False, True], ids=["y", "cell_states"])
def test_results_and_gradients_of_every_pair_of_options(
    case: LayerCase, dtype: torch.dtype, cell_states: bool
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states)
    assert_results(case, run_ours(expected.inputs, cell_states=cell_states), expected)


@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_and_gradients_of_larger_shapes(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


@pytest.mark.parametrize("case", RAGGED, ids=str)
@dtypes
def test_results_and_gradients_of_packed_sequences(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    ours = run_ours(expected.inputs, cell_states=True, packed=True)
    assert_results(case, ours, expected)


@core_cases
@dtypes
def test_inference_gives_the_bits_of_training(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    module = make_module(inputs, FusedLSTM)
    arguments = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    y, (h_n, c_n) = module(inputs.input, inputs.hx, **arguments)
    assert y.requires_grad
    with torch.no_grad():
        y_2, (h_2, c_2) = module(inputs.input, inputs.hx, **arguments)
    with torch.inference_mode():
        y_3, (h_3, c_3), _ = module(inputs.input, inputs.hx, **arguments, return_cell_states=True)
    for trained, *others in ((y, y_2, y_3), (h_n, h_2, h_3), (c_n, c_2, c_3)):
        for other in others:
            assert not other.requires_grad
            assert_bitwise_equal(other, trained)


@pytest.mark.parametrize("case", [case for case in CORE if case.lengths], ids=str)
@dtypes
@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64], ids=str)
def test_outputs_and_gradients_are_zero_past_the_lengths(
    case: LayerCase, dtype: torch.dtype, length_dtype: torch.dtype, isa: str
) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    x = inputs.input.detach().requires_grad_()
    assert inputs.lengths is not None
    y, _, cells = make_module(inputs, FusedLSTM)(
        x,
        inputs.hx,
        lengths=inputs.lengths.to(length_dtype),
        reset_mask=inputs.reset_mask,
        return_cell_states=True,
    )
    # Where a gradient arrives in padding it must count as nothing, NaN too.
    past = torch.arange(case.T).unsqueeze(1) >= inputs.lengths
    past = (past.t() if case.batch_first else past).unsqueeze(-1)
    grads = [torch.where(past, float("nan"), inputs.grads[name]) for name in ("y", "cell_states")]
    (grad_x,) = torch.autograd.grad((y, cells), x, grads) if case.N else (x,)
    for result in (y, cells, grad_x):
        assert not result.masked_select(past).any()
        assert result.isfinite().all()


# Each gives a tensor of the values and the shape of its argument, somewhere else in memory.


def sliced(tensor: Tensor) -> Tensor:
    """Inside a larger tensor whose other elements are NaN."""
    whole = tensor.new_full([size + 3 for size in tensor.shape], float("nan"))
    inside = whole[tuple(slice(1, size + 1) for size in tensor.shape)]
    inside.copy_(tensor)
    return inside


def every_second(tensor: Tensor) -> Tensor:
    whole = tensor.new_full([2 * size for size in tensor.shape], float("nan"))
    inside = whole[tuple(slice(1, None, 2) for _ in tensor.shape)]
    inside.copy_(tensor)
    return inside


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def unaligned(tensor: Tensor) -> Tensor:
    """Contiguous, but one element off the boundary that the allocator keeps to."""
    whole = tensor.new_full([tensor.numel() + 1], float("nan"))
    return whole[1:].copy_(tensor.flatten()).view(tensor.shape)


@pytest.mark.parametrize("place", [sliced, every_second, transposed, unaligned])
@pytest.mark.parametrize(
    "case",
    [
        LayerCase(1, 2, 3, 17),
        LayerCase(6, 5, 7, 17, P=3, bidirectional=True, lengths=(6, 0, 4, 6, 1), reset=0.2),
    ],
    ids=str,
)
@dtypes
def test_memory_layout_changes_no_bit(
    place: Callable[[Tensor], Tensor], case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    """The layout of the input, the states, the masks, the incoming gradients and the weights."""
    inputs = make_inputs(in_dtype(case, dtype))
    placed = replace(
        inputs,
        input=place(inputs.input),
        h_0=None if inputs.h_0 is None else place(inputs.h_0),
        c_0=None if inputs.c_0 is None else place(inputs.c_0),
        lengths=None if inputs.lengths is None else inputs.lengths.repeat_interleave(2)[::2],
        reset_mask=None if inputs.reset_mask is None else inputs.reset_mask.t().contiguous().t(),
        grads={name: place(grad) for name, grad in inputs.grads.items()},
    )
    results = []
    for given, lay_out in ((inputs, torch.clone), (placed, place)):
        given = given.requiring_grad()
        module: Any = make_module(given, FusedLSTM)
        for name, weight in given.weights.items():
            setattr(module, name, nn.Parameter(lay_out(weight.detach())))
        y, hidden, cells = module(
            given.input,
            given.hx,
            lengths=given.lengths,
            reset_mask=given.reset_mask,
            return_cell_states=True,
        )
        leaves = [given.input, *(given.hx or ()), *module.parameters()]
        outputs = [y, *hidden, cells]
        results.append(
            outputs + list(torch.autograd.grad(outputs, leaves, [*given.grads.values()]))
        )
    for mine, bits in zip(*results, strict=True):
        assert_bitwise_equal(mine, bits)
