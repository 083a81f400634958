# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function: kernels first, the reference beyond them.

The first derivative runs in the kernels. Derivatives of the derivative (gradient penalties, MAML,
Hessians) differentiate `lstm_fused.reference`, which is plain torch: exact at any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused import _native, reference
from lstm_fused.packing import pack_rows, packed_lengths, packed_positions, pad_rows

# y, h_n, c_n, cell_states, gates, cells
ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset_mask: Tensor | None = None,
    return_cell_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, one or both directions; arguments are taken as checked.

    Args:
        input: (T, N, D), or a PackedSequence's data (M, D) with `batch_sizes`.
        h_0, c_0: (L, N, P), (L, N, H), L directions.
        weights: for each direction w_ih, w_hh [, b_ih, b_hh] [, w_hr].
        lengths: int32 or int64 (N,), or None.
        batch_sizes: int64 (T,) on the CPU, or None.
        reset_mask: bool (T, N), or None.

    Returns:
        y in input's layout with L·P features, h_n, c_n, and every cell state in y's layout with
        L·H features (empty unless asked for).
    """
    if not _native.has_kernels(input.device):
        return _reference_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
    if torch.is_grad_enabled() and (
        input.requires_grad
        or h_0.requires_grad
        or c_0.requires_grad
        or any(w.requires_grad for w in weights)
    ):
        input, h_0, c_0, *weights = _without_duplicates([input, h_0, c_0, *weights])
        result: ForwardResult = FusedLSTMFunction.apply(  # type: ignore[no-untyped-call]
            input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, *weights
        )
    else:
        result = _native.lstm_forward_op(
            input, h_0, c_0, weights, lengths, batch_sizes, reset_mask, False, return_cell_states
        )
    return result[:4]


def _without_duplicates(tensors: list[Tensor]) -> list[Tensor]:
    """Aliases in place of second appearances (one tensor of zeros for both states, tied weights):
    torch.compile does not trace an autograd.Function that gets the same tensor twice."""
    distinct: list[Tensor] = []
    for tensor in tensors:
        seen = any(tensor is other for other in distinct)
        distinct.append(tensor.view_as(tensor) if seen else tensor)
    return distinct


class FusedLSTMFunction(torch.autograd.Function):
    """One layer: apply(input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states,
    *weights) -> (y, h_n, c_n, cell_states, gates, cells), as in :func:`lstm_layer`.

    gates (L, M, 4H) and cells (L, M, H) are what the backward needs; they carry no gradient.
    """

    @staticmethod
    def forward(
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset_mask: Tensor | None,
        return_cell_states: bool,
        *weights: Tensor,
    ) -> ForwardResult:
        result: ForwardResult = _native.lstm_forward_op(
            input, h_0, c_0, weights, lengths, batch_sizes, reset_mask, True, return_cell_states
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: ForwardResult) -> None:
        input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, *weights = inputs
        y, _, _, cell_states, gates, cells = output
        if return_cell_states:
            ctx.mark_non_differentiable(gates, cells)
        else:
            ctx.mark_non_differentiable(gates, cells, cell_states)
        ctx.set_materialize_grads(False)
        ctx.return_cell_states = return_cell_states
        ctx.save_for_backward(
            input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells, *weights
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells, *weights = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad
        need_input, need_states, need_weights = needs[0], needs[1] or needs[2], any(needs[7:])
        arguments = (
            *grads[:3],
            # NOTE: under torch.compile an output without gradient gets an empty one, not None.
            grads[3] if ctx.return_cell_states else None,
            input,
            h_0,
            c_0,
            lengths,
            batch_sizes,
            reset_mask,
            y,
            gates,
            cells,
            need_input,
            need_states,
            need_weights,
            *weights,
        )
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            result = FusedLSTMBackwardFunction.apply(*arguments)  # type: ignore[no-untyped-call]
        else:
            result = FusedLSTMBackwardFunction.forward(*arguments)
        grad_input, grad_h_0, grad_c_0, *grad_weights = result
        if not need_weights:
            grad_weights = [None] * len(weights)
        return (
            grad_input if need_input else None,
            grad_h_0 if need_states else None,
            grad_c_0 if need_states else None,
            None,
            None,
            None,
            None,
            *grad_weights,
        )


class FusedLSTMBackwardFunction(torch.autograd.Function):
    """The gradient of :class:`FusedLSTMFunction` as a function of its own, so that it can be
    differentiated: apply(grad_y, grad_h_n, grad_c_n, grad_cell_states, input, h_0, c_0, lengths,
    batch_sizes, reset_mask, y, gates, cells, need_input, need_states, need_weights, *weights) ->
    (grad_input, grad_h_0, grad_c_0, *grad_weights).
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        grads, (input, h_0, c_0), masks = arguments[:4], arguments[4:7], arguments[7:10]
        saved, needs, weights = arguments[10:13], arguments[13:16], arguments[16:]
        grad_input, grad_h_0, grad_c_0, grad_weights = _native.lstm_backward_op(
            *grads, input, h_0, c_0, weights, *masks, *saved, *needs
        )
        return grad_input, grad_h_0, grad_c_0, *grad_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.has_weight_grads = len(output) > 3
        ctx.needs = inputs[13:16]
        ctx.save_for_backward(*inputs[:10], *inputs[16:])

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads, (input, h_0, c_0) = ctx.saved_tensors[:4], ctx.saved_tensors[4:7]
        lengths, batch_sizes, reset_mask = ctx.saved_tensors[7:10]
        weights = ctx.saved_tensors[10:]

        with torch.enable_grad():
            # Recompute the first derivative from plain torch operations, on aliases of the inputs:
            # gradients with respect to the aliases are those that this function owes.
            parameters = [_differentiable_alias(t) for t in (input, h_0, c_0, *weights)]
            incoming = [None if g is None else _differentiable_alias(g) for g in grads]
            x, h, c, *w = parameters
            outputs = _reference_layer(x, h, c, w, lengths, batch_sizes, reset_mask)
            pairs = [(o, g) for o, g in zip(outputs, incoming, strict=True) if g is not None]
            first = torch.autograd.grad(
                [o for o, _ in pairs],
                parameters,
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            # Differentiate it along the gradients that arrive here.
            wanted = [(g, gg) for g, gg in zip(first, grad_grads, strict=False) if gg is not None]
            variables = [*(g for g in incoming if g is not None), *parameters]
            second = iter(
                torch.autograd.grad(
                    [g for g, _ in wanted],
                    variables,
                    [gg for _, gg in wanted],
                    create_graph=True,
                    allow_unused=True,
                )
            )
        grad_incoming = [None if g is None else next(second) for g in incoming]
        grad_input, grad_h_0, grad_c_0, *grad_weights = second
        return (
            *grad_incoming,
            grad_input,
            grad_h_0,
            grad_c_0,
            *([None] * 9),  # masks, saved tensors (functions of the inputs), flags
            *grad_weights,
        )


def _differentiable_alias(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def _reference_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`lstm_layer` in plain torch operations, on any device."""
    if batch_sizes is None:
        return reference.lstm_layer(
            input, h_0, c_0, weights, lengths=lengths, reset_mask=reset_mask
        )
    batch, steps = h_0.shape[1], batch_sizes.numel()
    positions = packed_positions(batch_sizes, batch).to(input.device)
    padded = pad_rows(input, positions, steps, batch)
    y, h_n, c_n, cell_states = reference.lstm_layer(
        padded, h_0, c_0, weights, lengths=packed_lengths(batch_sizes, batch).to(input.device)
    )
    return pack_rows(y, positions), h_n, c_n, pack_rows(cell_states, positions)
