# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of one layer as a function of its own, so that it can be differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.arguments import BackwardArguments
from lstm_fused._torch.autocast import without_autocast
from lstm_fused._torch.private import are_transforms_active, count_dispatch_modes
from lstm_fused.autograd.arguments import (
    IncomingGradients,
    LayerGradient,
    LayerTensors,
    Needs,
    SavedLayer,
    unflatten,
)
from lstm_fused.autograd.composite import (
    composite_first_derivative,
    composite_second_derivative,
    forward_mode_derivative,
    is_legacy_batched,
)
from lstm_fused.autograd.double_backward import second_derivative
from lstm_fused.autograd.vmap import vmap_backward


class FusedLSTMBackwardFunction(torch.autograd.Function):
    """The gradient of :class:`FusedLSTMFunction` as a function of its own, so that it can be
    differentiated: apply(*IncomingGradients, *SavedLayer, *Needs, *weights) ->
    (grad_input, grad_h_0, grad_c_0, *grad_weights).
    """

    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, ...]:
        grad_input, grad_h_0, grad_c_0, grad_weights = run_backward_op(
            BackwardArguments.from_flat(flat)
        )
        return grad_input, grad_h_0, grad_c_0, *grad_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grads, saved, ctx.needs, weights = unflatten(inputs, IncomingGradients, SavedLayer, Needs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *saved, *weights)
        ctx.save_for_forward(*grads, *saved.tensors, *weights)

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grads, saved, weights = unflatten(ctx.saved_tensors, IncomingGradients, SavedLayer)
        is_given = any(grad is not None for grad in grads)
        if not is_given or all(grad_grad is None for grad_grad in grad_grads):
            # A gradient that is zero, or that nothing depends on.
            return (None,) * len(ctx.needs_input_grad)
        derive = second_derivative
        if (
            torch.is_grad_enabled()
            or are_transforms_active()
            or count_dispatch_modes() > 0  # traces, fake tensors
            or saved.input.is_meta
            or any(map(is_legacy_batched, grad_grads))
        ):
            derive = composite_second_derivative
        with without_autocast(saved.input.device):
            by_grads, by_layer = derive(LayerGradient.from_flat(grad_grads), grads, saved, weights)
        by_given = (
            by if grad is not None else None for by, grad in zip(by_grads, grads, strict=True)
        )
        # NOTE: y, gates and cells are functions of the others; masks and needs have no gradient.
        return (
            *by_given,
            *(by_layer.input, by_layer.h_0, by_layer.c_0, *_NO_GRADIENTS),
            *by_layer.weights,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        grads, layer, weights = unflatten(ctx.saved_tensors, IncomingGradients, LayerTensors)
        grads_dot, saved_dot, _, weights_dot = unflatten(
            tangents, IncomingGradients, SavedLayer, Needs
        )
        given = [k for k, grad in enumerate(grads) if grad is not None]
        results = forward_mode_derivative(
            lambda *arguments: composite_first_derivative(
                given, arguments[: len(given)], arguments[len(given) :], layer.masks
            ),
            (*(grads[k] for k in given), layer.input, layer.h_0, layer.c_0, *weights),
            (
                *(grads_dot[k] for k in given),
                *(saved_dot.input, saved_dot.h_0, saved_dot.c_0),
                *weights_dot,
            ),
        )
        empty = results[0].new_zeros((0,))  # NOTE: torch does not take None for one of these
        return (
            results[0] if ctx.needs.input else empty,
            *(results[1:3] if ctx.needs.states else (empty, empty)),
            *(results[3:] if ctx.needs.weights else ()),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *flat: Any) -> Any:
        def call(*op_arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
            result = FusedLSTMBackwardFunction.apply(  # type: ignore[no-untyped-call]
                *BackwardArguments._make(op_arguments).flatten()
            )
            return *result[:3], list(result[3:])

        (*results, grad_weights), (*dims, weight_dims) = vmap_backward(
            call,
            info,
            BackwardArguments.from_flat(in_dims),
            *BackwardArguments.from_flat(flat),
        )
        return (*results, *grad_weights), (*dims, *weight_dims)


# None for the fields of `SavedLayer` after input, h_0 and c_0, and for the fields of `Needs`.
_NO_GRADIENTS = (None,) * (len(SavedLayer._fields) - 3 + len(Needs._fields))


def run_backward_op(
    arguments: BackwardArguments,
) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]:
    """The op lstm_backward, out of autocast's sight."""
    with without_autocast(arguments.input.device):
        return native.lstm_backward_op(*arguments)  # type: ignore[no-any-return]
