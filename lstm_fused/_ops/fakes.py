# SPDX-License-Identifier: BSD-3-Clause
"""The shapes that the ops give, for traces and fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lstm_fused._ops.arguments import (
    BackwardArguments,
    CellBackwardArguments,
    ForwardArguments,
    OptionsBackwardArguments,
    OptionsForwardArguments,
)
from lstm_fused._ops.checks import accumulator_dtype, check_rank, product, require
from lstm_fused._ops.layer_weights import GATES, split_layers
from lstm_fused._ops.op_checks import (
    check_cell,
    check_layer,
    check_options,
    check_quantized,
    check_quantized_cell,
    check_samples,
    check_saved,
    check_saved_cell,
    check_saved_norms,
)


def fake_lstm_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = ForwardArguments(*arguments)
    _check_layer(given)
    input, (directions, batch, output_size) = given.input, given.h_0.shape
    hidden_size = given.c_0.shape[2]
    leading = input.shape[:-1]
    rows = product(leading)
    y = input.new_empty((*leading, directions * output_size))
    h_n = input.new_empty((directions, batch, output_size))
    c_n = input.new_empty((directions, batch, hidden_size))
    if given.return_cell_states:
        cell_states = input.new_empty((*leading, directions * hidden_size))
    else:
        cell_states = input.new_empty((0,))
    saves_gates = given.save_for_backward and not given.recompute
    gates = input.new_empty((directions, rows, GATES * hidden_size) if saves_gates else (0,))
    cells = input.new_empty(
        (directions, rows, hidden_size) if given.save_for_backward else (0,),
        dtype=accumulator_dtype(input.dtype),
    )
    return y, h_n, c_n, cell_states, gates, cells


def _check_layer(given: ForwardArguments | BackwardArguments) -> None:
    require(
        given.batch_sizes is None or not given.input.is_cuda,
        lambda: (
            "the CUDA kernels take padded sequences with lengths, got batch_sizes; "
            "lstm_fused.functional.lstm pads them"
        ),
    )
    masks = (given.lengths, given.batch_sizes, given.reset_mask)
    check_layer(given.input, given.h_0, given.c_0, given.weights, *masks)


def fake_lstm_inference(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    directions: int,
    num_layers: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    check_rank(input, "input", 3)
    require(directions in (1, 2), lambda: f"directions must be 1 or 2, got {directions}")
    require(num_layers >= 1, lambda: f"num_layers must be at least 1, got {num_layers}")
    count = len(weights)
    require(
        num_layers == 1 or (count % num_layers == 0 and count >= 2 * num_layers),
        lambda: f"weights must hold as many tensors for each of {num_layers} layers, got {count}",
    )
    _check_first_weights(weights)
    gates, output_size = weights[1].shape
    batch, blocks = input.shape[1], directions * num_layers
    h = input.new_empty((blocks, batch, output_size)) if h_0 is None else h_0
    c = input.new_empty((blocks, batch, gates // GATES)) if c_0 is None else c_0
    y = input
    for layer, layer_weights in enumerate(split_layers(weights, num_layers)):
        states = slice(layer * directions, (layer + 1) * directions)
        masks = (None, None, None, False, False)
        y = fake_lstm_forward(y, h[states], c[states], layer_weights, *masks)[0]
    return y, input.new_empty(h.shape), input.new_empty(c.shape)


def _check_first_weights(weights: list[Tensor]) -> None:
    has_both = len(weights) >= 2 and weights[1].dim() == 2
    require(has_both, lambda: "weights must begin with w_ih and w_hh")


def fake_lstm_cell(
    input: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_rank(input, "input", 2)
    _check_first_weights(weights)
    rows, hidden_size = input.shape[0], weights[1].shape[1]
    zeros = input.new_empty((rows, hidden_size))
    check_cell(input, zeros if h is None else h, zeros if c is None else c, weights)
    saved = (rows, GATES * hidden_size) if save_for_backward else (0,)
    return (
        input.new_empty((rows, hidden_size)),
        input.new_empty((rows, hidden_size)),
        input.new_empty(saved),
        input.new_empty(
            (rows, hidden_size) if save_for_backward else (0,),
            dtype=accumulator_dtype(input.dtype),
        ),
    )


def fake_lstm_cell_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    given = CellBackwardArguments._make(arguments)
    check_cell(given.input, given.h, given.c, given.weights)
    grads = (given.grad_h_next, given.grad_c_next)
    check_saved_cell(given.input, given.h, grads, given.gates, given.cells)
    return _gradients(given, given.h, given.c)


def fake_lstm_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    given = BackwardArguments._make(arguments)
    _check_backward(given)
    return _gradients(given, given.h_0, given.c_0)


def _check_backward(given: BackwardArguments) -> None:
    _check_layer(given)
    grads = (given.grad_y, given.grad_h_n, given.grad_c_n, given.grad_cell_states)
    saved = (given.y, given.gates, given.cells)
    check_saved(given.input, given.h_0, given.c_0, grads, saved)


def _gradients(
    given: BackwardArguments | CellBackwardArguments, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    # NOTE: the results are contiguous whatever the arguments' strides; empty_like would copy them.
    input = given.input
    return (
        input.new_empty(input.shape if given.need_input else (0,)),
        input.new_empty(h.shape if given.need_states else (0,)),
        input.new_empty(c.shape if given.need_states else (0,)),
        [w.new_empty(w.shape) for w in given.weights] if given.need_weights else [],
    )


def fake_lstm_sample_gradients(
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    *shared, samples = arguments
    given = BackwardArguments._make((*shared, True))
    _check_layer(given)
    check_samples(given.h_0.shape[1], samples)
    results = fake_lstm_backward(*given)
    return *results[:3], [grad.new_empty((samples, *grad.shape)) for grad in results[3]]


def fake_lstm_options_forward(*arguments: Any) -> tuple[Tensor, ...]:
    given = OptionsForwardArguments(*arguments)
    _check_options(given)
    results = fake_lstm_forward(*given.plain)
    saves = given.gains is not None and given.save_for_backward and not given.recompute
    directions, rows = results[4].shape[:2] if saves else (0, 0)
    hidden_size = given.c_0.shape[2]
    normalised = (directions, rows, 2 * GATES * hidden_size) if saves else (0,)
    return (
        *results,
        given.input.new_empty(normalised),
        given.input.new_empty(
            (directions, rows, 2) if saves else (0,), dtype=accumulator_dtype(given.input.dtype)
        ),
    )


def fake_lstm_options_backward(*arguments: Any) -> tuple[Any, ...]:
    given = OptionsBackwardArguments._make(arguments)
    _check_options(given)
    check_saved_norms(given)
    require(
        given.gates.dim() == 3,
        lambda: f"gates must have 3 dimensions with options, got {given.gates.dim()}",
    )
    grads = [
        given.input.new_empty((0,) if t is None or not given.need_options else t.shape)
        for t in (given.peephole, given.reset_h, given.reset_c, given.gains, given.cell_norm)
    ]
    return (*fake_lstm_backward(*given.plain), *grads)


def _check_options(given: OptionsForwardArguments | OptionsBackwardArguments) -> None:
    _check_layer(given.plain)
    check_options(given)


def fake_lstm_quantized(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    packed: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    hidden_size: int,
    output_size: int,
    directions: int,
    return_cell_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    runs = len(packed)
    has_batch = h_0 is not None or batch_sizes is None
    require(has_batch, lambda: "h_0 must be given with batch_sizes")
    check_rank(input, "input", 3 if batch_sizes is None else 2)
    batch = input.shape[1] if h_0 is None else h_0.shape[1]
    h = input.new_empty((runs, batch, output_size)) if h_0 is None else h_0
    c = input.new_empty((runs, batch, hidden_size)) if c_0 is None else c_0
    check_quantized(
        *(input, h, c, packed, lengths, batch_sizes, reset_mask),
        *(hidden_size, output_size, directions),
    )
    leading = input.shape[:-1]
    cell_states = (*leading, directions * hidden_size) if return_cell_states else (0,)
    return (
        input.new_empty((*leading, directions * output_size)),
        input.new_empty((runs, batch, output_size)),
        input.new_empty((runs, batch, hidden_size)),
        input.new_empty(cell_states),
    )


def fake_lstm_quantized_cell(
    input: Tensor, h: Tensor | None, c: Tensor | None, packed: Tensor, hidden_size: int
) -> tuple[Tensor, Tensor]:
    check_quantized_cell(input, h, c, packed, hidden_size)
    sizes = (input.shape[0], hidden_size)
    return input.new_empty(sizes), input.new_empty(sizes)


# Each op's function of shapes, by the op's name.
FAKES: dict[str, Callable[..., Any]] = {
    "lstm_forward": fake_lstm_forward,
    "lstm_inference": fake_lstm_inference,
    "lstm_backward": fake_lstm_backward,
    "lstm_sample_gradients": fake_lstm_sample_gradients,
    "lstm_options_forward": fake_lstm_options_forward,
    "lstm_options_backward": fake_lstm_options_backward,
    "lstm_cell": fake_lstm_cell,
    "lstm_cell_backward": fake_lstm_cell_backward,
    "lstm_quantized": fake_lstm_quantized,
    "lstm_quantized_cell": fake_lstm_quantized_cell,
}
