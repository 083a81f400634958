# SPDX-License-Identifier: BSD-3-Clause
"""The shapes that the ops give, for traces and fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops.checks import check_layer, check_saved, wanted

GATES = 4


def _accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake_lstm_forward(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    save_for_backward: bool,
    return_cell_states: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    directions, batch, output_size = h_0.shape
    hidden_size = c_0.shape[2]
    leading = input.shape[:-1]
    rows = 1
    for size in leading:  # NOTE: not leading.numel(), which would specialise symbolic sizes
        rows = rows * size
    accumulator = _accumulator_dtype(input.dtype)
    y = input.new_empty((*leading, directions * output_size))
    h_n = input.new_empty((directions, batch, output_size))
    c_n = input.new_empty((directions, batch, hidden_size))
    if return_cell_states:
        cell_states = input.new_empty((*leading, directions * hidden_size))
    else:
        cell_states = input.new_empty((0,))
    saves_gates = save_for_backward and not recompute
    gates = input.new_empty((directions, rows, GATES * hidden_size) if saves_gates else (0,))
    cells = input.new_empty(
        (directions, rows, hidden_size) if save_for_backward else (0,), dtype=accumulator
    )
    return y, h_n, c_n, cell_states, gates, cells


def fake_lstm_inference(
    input: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: list[Tensor], directions: int
) -> tuple[Tensor, Tensor, Tensor]:
    wanted(input.dim() == 3, f"input must have 3 dimensions, got {input.dim()}")
    _check_first_weights(weights)
    gates, output_size = weights[1].shape
    batch = input.shape[1]
    h = input.new_empty((directions, batch, output_size)) if h_0 is None else h_0
    c = input.new_empty((directions, batch, gates // GATES)) if c_0 is None else c_0
    return fake_lstm_forward(input, h, c, weights, None, None, None, False, False)[:3]


def _check_first_weights(weights: list[Tensor]) -> None:
    has_both = len(weights) >= 2 and weights[1].dim() == 2
    wanted(has_both, "weights must begin with w_ih and w_hh")


def _check_cell(input: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> None:
    states = h.unsqueeze(0), c.unsqueeze(0)
    check_layer(input.unsqueeze(0), *states, weights, None, None, None)


def fake_lstm_cell(
    input: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted(input.dim() == 2, f"input must have 2 dimensions, got {input.dim()}")
    _check_first_weights(weights)
    rows, hidden_size = input.shape[0], weights[1].shape[1]
    states = [input.new_empty((rows, hidden_size)) if s is None else s for s in (h, c)]
    _check_cell(input, states[0], states[1], weights)
    saved = (rows, GATES * hidden_size) if save_for_backward else (0,)
    return (
        input.new_empty((rows, hidden_size)),
        input.new_empty((rows, hidden_size)),
        input.new_empty(saved),
        input.new_empty(
            (rows, hidden_size) if save_for_backward else (0,),
            dtype=_accumulator_dtype(input.dtype),
        ),
    )


def fake_lstm_cell_backward(
    grad_h_next: Tensor | None,
    grad_c_next: Tensor | None,
    input: Tensor,
    h: Tensor,
    c: Tensor,
    weights: list[Tensor],
    gates: Tensor,
    cells: Tensor,
    need_input: bool,
    need_states: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check_cell(input, h, c, weights)
    grads = [None if g is None else g.unsqueeze(0) for g in (grad_h_next, grad_c_next)]
    y, gates, cells = h.unsqueeze(0), gates.unsqueeze(0), cells.unsqueeze(0)
    layer = (input.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0))
    check_saved(*layer, grads=(None, *grads, None), saved=(y, gates, cells))
    return (
        input.new_empty(input.shape if need_input else (0,)),
        input.new_empty(h.shape if need_states else (0,)),
        input.new_empty(c.shape if need_states else (0,)),
        [w.new_empty(w.shape) for w in weights] if need_weights else [],
    )


def fake_lstm_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    need_input: bool,
    need_states: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    grads = (grad_y, grad_h_n, grad_c_n, grad_cell_states)
    check_saved(input, h_0, c_0, grads, (y, gates, cells))
    # NOTE: the results are contiguous whatever the arguments' strides; empty_like would copy them.
    grad_input = input.new_empty(input.shape if need_input else (0,))
    grad_h_0 = input.new_empty(h_0.shape if need_states else (0,))
    grad_c_0 = input.new_empty(c_0.shape if need_states else (0,))
    grad_weights = [w.new_empty(w.shape) for w in weights] if need_weights else []
    return grad_input, grad_h_0, grad_c_0, grad_weights


def fake_lstm_sample_gradients(
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    results = fake_lstm_backward(*(*arguments[:-1], True))
    samples = arguments[-1]
    return *results[:3], [grad.new_empty((samples, *grad.shape)) for grad in results[3]]


# By the ops' names.
FAKES: dict[str, Callable[..., Any]] = {
    "lstm_forward": fake_lstm_forward,
    "lstm_inference": fake_lstm_inference,
    "lstm_backward": fake_lstm_backward,
    "lstm_sample_gradients": fake_lstm_sample_gradients,
    "lstm_cell": fake_lstm_cell,
    "lstm_cell_backward": fake_lstm_cell_backward,
}
