# SPDX-License-Identifier: BSD-3-Clause
"""What torch.utils.flop_counter.FlopCounterMode counts for the ops: their products, by two for each
multiplication and addition, as it counts torch's own; no element-wise work.

A formula sees shapes and no values: of padded sequences it counts T·N rows whatever their lengths
are (the kernels leave out what is past a row's length), of a PackedSequence the rows there are.

    M rows, D input, H hidden, P output features; of each direction
    forward      2·M·4H·(D + P), and 2·M·H·P with a projection
    backward     2·M·4H·P for the states, 2·M·4H·D for the input if that is asked for, again both
                 for the weights if those are, and 2·M·H·P or twice that with a projection;
                 with `recompute` the gates' 2·M·4H·(D + P) once more; of a cell with options,
                 which runs its forward again, the projection too
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lstm_fused._ops import native
from lstm_fused._ops.arguments import (
    BackwardArguments,
    CellBackwardArguments,
    OptionsBackwardArguments,
    OptionsForwardArguments,
)
from lstm_fused._ops.layer_weights import GATES, split_directions, split_layers

Shape = Sequence[int]


def forward_flops(input: Shape, h_0: Shape, c_0: Shape, weights: Sequence[Shape], *_: Any) -> int:
    """The operations of lstm_forward; from shapes in the place of tensors."""
    return _gate_flops(input, weights, h_0[0]) + _projection_flops(input, weights, h_0[0])


def backward_flops(
    input: Shape,
    h_0: Shape,
    weights: Sequence[Shape],
    gates: Shape,
    need_input: bool,
    need_weights: bool,
) -> int:
    """The operations of lstm_backward; gates of one dimension are rebuilt."""
    directions = h_0[0]
    from_input, from_states = _products(input, weights, directions)
    projection = _projection_flops(input, weights, directions)
    total = from_states + projection
    if need_input:
        total += from_input
    if need_weights:
        total += from_input + from_states + projection
    if len(gates) == 1:
        total += from_input + from_states
    return total


def _products(input: Shape, weights: Sequence[Shape], directions: int) -> tuple[int, int]:
    """x·W_ih and h·W_hh, of all directions."""
    by_direction = split_directions(weights, directions)
    return (
        sum(_product(input, direction.w_ih) for direction in by_direction),
        sum(_product(input, direction.w_hh) for direction in by_direction),
    )


def _gate_flops(input: Shape, weights: Sequence[Shape], directions: int) -> int:
    return sum(_products(input, weights, directions))


def _projection_flops(input: Shape, weights: Sequence[Shape], directions: int) -> int:
    by_direction = split_directions(weights, directions)
    return sum(_product(input, d.w_hr) for d in by_direction if d.w_hr is not None)


def _product(input: Shape, weight: Shape) -> int:
    return 2 * math.prod(input[:-1]) * math.prod(weight)


def _lstm_forward(*arguments: Any, out_shape: Any, **flags: Any) -> int:
    return forward_flops(*arguments)


def _lstm_inference(
    input: Shape,
    h_0: Any,
    c_0: Any,
    weights: Sequence[Shape],
    directions: int,
    num_layers: int = 1,
    *,
    out_shape: Any,
) -> int:
    flops = 0
    for layer_weights in split_layers(weights, num_layers):
        flops += forward_flops(input, (directions,), (directions,), layer_weights)
        input = out_shape[0]  # of every layer
    return flops


def _lstm_backward(*arguments: Any, out_shape: Any) -> int:
    given = BackwardArguments._make(arguments)
    return backward_flops(
        given.input, given.h_0, given.weights, given.gates, given.need_input, given.need_weights
    )


def _lstm_options_forward(*arguments: Any, out_shape: Any) -> int:
    return forward_flops(*OptionsForwardArguments(*arguments).plain)


def _lstm_options_backward(*arguments: Any, out_shape: Any) -> int:
    return _lstm_backward(*OptionsBackwardArguments._make(arguments).plain, out_shape=out_shape)


def _lstm_sample_gradients(*arguments: Any, out_shape: Any) -> int:
    return _lstm_backward(*arguments[:-1], True, out_shape=out_shape)


def _lstm_cell(
    input: Shape, h: Any, c: Any, weights: Sequence[Shape], save: bool, *, out_shape: Any
) -> int:
    return forward_flops(input, (1,), (1,), weights)


def _lstm_cell_backward(*arguments: Any, out_shape: Any) -> int:
    given = CellBackwardArguments._make(arguments)
    saved_gates = (1, *given.gates)
    return backward_flops(
        given.input, (1,), given.weights, saved_gates, given.need_input, given.need_weights
    )


def _lstm_quantized(
    input: Shape,
    h_0: Any,
    c_0: Any,
    packed: Sequence[Shape],
    lengths: Any,
    batch_sizes: Any,
    reset_mask: Any,
    hidden_size: int,
    output_size: int,
    directions: int,
    return_cell_states: bool,
    *,
    out_shape: Any,
) -> int:
    per_row, features = 0, input[-1]
    for _ in range(len(packed) // directions):
        gates = GATES * hidden_size * (features + output_size)
        projection = output_size * hidden_size if output_size != hidden_size else 0
        per_row += 2 * directions * (gates + projection)
        features = directions * output_size
    return math.prod(input[:-1]) * per_row


def _lstm_quantized_cell(
    input: Shape, h: Any, c: Any, packed: Shape, hidden_size: int, *, out_shape: Any
) -> int:
    return 2 * input[0] * GATES * hidden_size * (input[1] + hidden_size)


def register_flop_formulas() -> None:
    """Tells torch the formulas of the ops, where those have loaded."""
    if native.compiled is None:
        return
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    ops = torch.ops.lstm_fused
    for op, formula in (
        (ops.lstm_forward, _lstm_forward),
        (ops.lstm_inference, _lstm_inference),
        (ops.lstm_backward, _lstm_backward),
        (ops.lstm_sample_gradients, _lstm_sample_gradients),
        (ops.lstm_options_forward, _lstm_options_forward),
        (ops.lstm_options_backward, _lstm_options_backward),
        (ops.lstm_cell, _lstm_cell),
        (ops.lstm_cell_backward, _lstm_cell_backward),
        (ops.lstm_quantized, _lstm_quantized),
        (ops.lstm_quantized_cell, _lstm_quantized_cell),
    ):
        if op not in flop_registry:  # a process may hold two copies of this package
            register_flop_formula(op)(formula)
