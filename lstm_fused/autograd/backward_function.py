# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of one layer as a function of its own, so that it can be differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.autocast import without_autocast
from lstm_fused._torch.private import are_transforms_active, count_dispatch_modes
from lstm_fused.autograd.composite import (
    differentiable_second_derivative,
    first_derivative,
    forward_derivative,
    is_legacy_batched,
)
from lstm_fused.autograd.double_backward import second_derivative
from lstm_fused.autograd.vmap import vmap_backward


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
        with without_autocast(input.device):
            grad_input, grad_h_0, grad_c_0, grad_weights = native.lstm_backward_op(
                *grads, input, h_0, c_0, weights, *masks, *saved, *needs
            )
        return grad_input, grad_h_0, grad_c_0, *grad_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.needs = inputs[13:16]
        ctx.save_for_backward(*inputs[:13], *inputs[16:])
        ctx.save_for_forward(*inputs[:10], *inputs[16:])

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads, (input, h_0, c_0), masks = (
            ctx.saved_tensors[k : k + n] for k, n in ((0, 4), (4, 3), (7, 3))
        )
        saved, weights = ctx.saved_tensors[10:13], ctx.saved_tensors[13:]
        variables = (input, h_0, c_0, *weights)
        is_given = any(grad is not None for grad in grads)
        if not is_given or all(grad_grad is None for grad_grad in grad_grads):
            # A gradient that is zero, or that nothing depends on.
            return (None,) * (16 + len(weights))
        derive = second_derivative
        if (
            torch.is_grad_enabled()
            or are_transforms_active()
            or count_dispatch_modes() > 0  # traces, fake tensors
            or variables[0].is_meta
            or any(map(is_legacy_batched, grad_grads))
        ):
            derive = differentiable_second_derivative
        with without_autocast(variables[0].device):
            by_grads, by_variables = derive(grad_grads, grads, variables, masks, saved)
        return (
            *(by if grad is not None else None for by, grad in zip(by_grads, grads, strict=True)),
            *by_variables[:3],
            *([None] * 9),  # masks, saved tensors (functions of the inputs), flags
            *by_variables[3:],
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        grads, masks, weights = (
            ctx.saved_tensors[:4],
            ctx.saved_tensors[7:10],
            ctx.saved_tensors[10:],
        )
        variables = (*ctx.saved_tensors[4:7], *weights)
        given = [k for k, grad in enumerate(grads) if grad is not None]
        results = forward_derivative(
            lambda *arguments: first_derivative(
                given, arguments[: len(given)], arguments[len(given) :], masks
            ),
            (*(grads[k] for k in given), *variables),
            (*(tangents[k] for k in given), *tangents[4:7], *tangents[16:]),
        )
        need_input, need_states, need_weights = ctx.needs
        empty = results[0].new_zeros((0,))  # NOTE: torch does not take None for one of these
        return (
            results[0] if need_input else empty,
            *(results[1:3] if need_states else (empty, empty)),
            *(results[3:] if need_weights else ()),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def call(*own: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
            result = FusedLSTMBackwardFunction.apply(  # type: ignore[no-untyped-call]
                *own[:7], *own[8:], *own[7]
            )
            return *result[:3], list(result[3:])

        (*results, grad_weights), (*dims, weight_dims) = vmap_backward(
            call,
            info,
            (*in_dims[:7], in_dims[16:], *in_dims[7:16]),
            *(*arguments[:7], arguments[16:], *arguments[7:16]),
        )
        return (*results, *grad_weights), (*dims, *weight_dims)
