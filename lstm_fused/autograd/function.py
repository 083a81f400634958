# SPDX-License-Identifier: BSD-3-Clause
"""One layer as the autograd.Function that the transforms of torch.func take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.private import is_forward_mode_on
from lstm_fused.autograd.composite import forward_derivative, reference_layer
from lstm_fused.autograd.function_apply import apply
from lstm_fused.autograd.layer_function import (
    SavedLayer,
    layer_gradient,
    unpack_saved,
)
from lstm_fused.autograd.needed_gradients import Needs
from lstm_fused.autograd.vmap import vmap_forward

# y, h_n, c_n, cell_states, gates, cells
ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class FusedLSTMFunction(torch.autograd.Function):
    """One layer: apply(input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states,
    recompute, *weights) -> (y, h_n, c_n, cell_states, gates, cells), as in :func:`lstm_layer`.

    gates (L, M, 4H; empty with `recompute`) and cells (L, M, H) are what the backward needs; they
    carry no gradient.
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
        recompute: bool,
        *weights: Tensor,
    ) -> ForwardResult:
        masks_and_flags = (lengths, batch_sizes, reset_mask, True, return_cell_states, recompute)
        result: ForwardResult = native.lstm_forward_op(input, h_0, c_0, weights, *masks_and_flags)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: ForwardResult) -> None:
        input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, _, *weights = inputs
        y, _, _, cell_states, gates, cells = output
        if return_cell_states:
            ctx.mark_non_differentiable(gates, cells)
        else:
            ctx.mark_non_differentiable(gates, cells, cell_states)
        ctx.set_materialize_grads(False)
        ctx.return_cell_states = return_cell_states
        saved = SavedLayer(input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells)
        if torch.compiler.is_compiling():
            # Copies: in a graph of torch.compile nothing notices that a saved tensor is changed.
            saved = SavedLayer._make(None if t is None else t.clone() for t in saved)
            weights = [weight.clone() for weight in weights]
        ctx.save_for_backward(*saved, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, weights = unpack_saved(ctx.saved_tensors)
        own = ctx.needs_input_grad
        needs = Needs(own[0], own[1] or own[2], any(own[8:]))
        # NOTE: under torch.compile an output without gradient gets an empty one, not None.
        grad_cell_states = grads[3] if ctx.return_cell_states else None
        result = layer_gradient((*grads[:3], grad_cell_states), saved, weights, needs)
        return *result[:3], *([None] * 5), *result.weights  # None: of masks and flags

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def call(
            input: Any, h_0: Any, c_0: Any, weights: Any, *masks_and_flags: Any
        ) -> ForwardResult:
            return apply_layer(input, h_0, c_0, *masks_and_flags, *weights)

        return vmap_forward(
            call,
            info,
            (*in_dims[:3], in_dims[8:], *in_dims[3:8]),
            *(*arguments[:3], arguments[8:], *arguments[3:8]),
        )


class FusedLSTMForwardModeFunction(FusedLSTMFunction):
    """:class:`FusedLSTMFunction` with a rule for forward mode (torch.func.jvp, forward_ad).

    NOTE: a class of its own, since torch.compile traces no autograd.Function that has such a rule.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: ForwardResult) -> None:
        FusedLSTMFunction.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6], *inputs[8:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        input, h_0, c_0, lengths, batch_sizes, reset_mask, *weights = ctx.saved_tensors
        masks = (lengths, batch_sizes, reset_mask)
        results = forward_derivative(
            lambda *variables: reference_layer(variables, masks),
            (input, h_0, c_0, *weights),
            (*tangents[:3], *tangents[8:]),
        )
        cell_states = results[3] if ctx.return_cell_states else None
        return *results[:3], cell_states, None, None


def apply_layer(*arguments: Any) -> ForwardResult:
    """FusedLSTMFunction.apply, with forward mode where that is on."""
    result: ForwardResult
    if is_forward_mode_on():
        result = FusedLSTMForwardModeFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        result = apply(FusedLSTMFunction, *arguments)
    return result
