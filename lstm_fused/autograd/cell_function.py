# SPDX-License-Identifier: BSD-3-Clause
"""One step of FusedLSTMCell as a node of the autograd graph: on tensors of two dimensions, as the
cell has them, so that its results are no views and a step makes none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused.autograd.arguments import IncomingGradients, Needs, SavedLayer
from lstm_fused.autograd.composite import is_legacy_batched
from lstm_fused.autograd.eager_function import layer_gradient
from lstm_fused.autograd.needed_gradients import needed_gradients


class CellFunction(torch.autograd.Function):
    """apply(input, h, c, *weights) -> (next h, next c), (N, H) each."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, h: Tensor, c: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_next, c_next, gates, cells = native.lstm_cell_op(input, h, c, weights, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, h, c, gates, cells, *weights)
        return h_next, c_next

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, h, c, gates, cells, *weights = ctx.saved_tensors
        need_input, need_h, need_c, *need_weights = ctx.needs_input_grad
        may_need = Needs(need_input, need_h or need_c, any(need_weights))
        needs = needed_gradients(ctx, may_need, input, weights)
        is_traced = torch.compiler.is_compiling()  # by compiled autograd, which follows no builtin
        if torch.is_grad_enabled() or (not is_traced and any(map(is_legacy_batched, grads))):
            return _layer_gradient_of_step(grads, (input, h, c, gates, cells), weights, needs)
        op = native.lstm_cell_backward_op
        if is_traced:
            op = torch.ops.lstm_fused.lstm_cell_backward.default
        grad_input, grad_h, grad_c, grad_weights = op(
            *grads, input, h, c, weights, gates, cells, *needs
        )
        return (
            grad_input if needs.input else None,
            *((grad_h, grad_c) if needs.states else (None, None)),
            *(grad_weights if needs.weights else [None] * len(weights)),
        )


def _layer_gradient_of_step(
    grads: tuple[Tensor | None, ...],
    saved: tuple[Tensor, ...],
    weights: list[Tensor],
    needs: Needs,
) -> tuple[Tensor | None, ...]:
    """The gradient as a layer's of one step, which can be differentiated and batched."""
    with torch.enable_grad():  # batched gradients are found by differentiating by these
        input, h, c, gates, cells = (tensor.unsqueeze(0) for tensor in saved)
    unread = torch.zeros_like(h)  # y, which the gradient of one step does not depend on
    layer = SavedLayer(input, h, c, None, None, None, y=unread, gates=gates, cells=cells)
    grad_h, grad_c = (None if grad is None else grad.unsqueeze(0) for grad in grads)
    incoming = IncomingGradients(y=None, h_n=grad_h, c_n=grad_c, cell_states=None)
    result = layer_gradient(incoming, layer, weights, needs)
    states = (result.input, result.h_0, result.c_0)
    return *(None if grad is None else grad.squeeze(0) for grad in states), *result.weights
