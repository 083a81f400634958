# SPDX-License-Identifier: BSD-3-Clause
"""One layer as the autograd.Function that the transforms of torch.func take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.arguments import ForwardArguments
from lstm_fused._torch.private import is_forward_mode_on
from lstm_fused.autograd.arguments import (
    IncomingGradients,
    LayerArguments,
    LayerResults,
    LayerTensors,
    Needs,
    SavedLayer,
    unflatten,
)
from lstm_fused.autograd.composite import composite_layer, forward_mode_derivative
from lstm_fused.autograd.eager_function import layer_gradient
from lstm_fused.autograd.function_apply import apply
from lstm_fused.autograd.vmap import vmap_forward


class FusedLSTMFunction(torch.autograd.Function):
    """One layer as a differentiable function, with rules for the transforms of torch.func.

    ::

        y, h_n, c_n, cell_states, gates, cells = FusedLSTMFunction.apply(
            input, h_0, c_0, lengths, batch_sizes, reset_mask, return_cell_states, recompute,
            *weights
        )

    Arguments are those of :func:`lstm_fused.functional.lstm` for one layer, (T, N, D) or packed
    rows, with the states of its directions, h_0 (L, N, P) and c_0 (L, N, H), and its weights.
    gates (L, M, 4H; empty with `recompute`) and cells (L, M, H) are what the backward needs; they
    carry no gradient.
    """

    @staticmethod
    def forward(*flat: Any) -> LayerResults:
        arguments, weights = LayerArguments.split(flat)
        result: LayerResults = native.lstm_forward_op(*arguments.for_op(weights, True))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        arguments, weights = LayerArguments.split(inputs)
        results = LayerResults._make(output)
        if arguments.return_cell_states:
            ctx.mark_non_differentiable(results.gates, results.cells)
        else:
            ctx.mark_non_differentiable(results.gates, results.cells, results.cell_states)
        ctx.set_materialize_grads(False)
        ctx.return_cell_states = arguments.return_cell_states
        saved = arguments.saved(results.y, results.gates, results.cells)
        if torch.compiler.is_compiling():
            # Copies: in a graph of torch.compile nothing notices that a saved tensor is changed.
            saved = SavedLayer._make(None if t is None else t.clone() for t in saved)
            weights = [weight.clone() for weight in weights]
        ctx.save_for_backward(*saved, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, weights = unflatten(ctx.saved_tensors, SavedLayer)
        # NOTE: under torch.compile an output without gradient gets an empty one, not None.
        incoming = IncomingGradients._make(grads[: len(IncomingGradients._fields)])
        if not ctx.return_cell_states:
            incoming = incoming._replace(cell_states=None)
        needs = Needs.of(ctx.needs_input_grad)
        return layer_gradient(incoming, saved, weights, needs).for_arguments()

    @staticmethod
    def vmap(info: Any, in_dims: Any, *flat: Any) -> Any:
        arguments, weights = LayerArguments.split(flat)
        dims, weight_dims = LayerArguments.split(in_dims)

        def call(*op_arguments: Any) -> LayerResults:
            given = ForwardArguments._make(op_arguments)
            return apply_layer(LayerArguments.from_op(given), given.weights)

        return vmap_forward(
            call, info, dims.for_op(weight_dims, None), *arguments.for_op(weights, True)
        )


class FusedLSTMForwardModeFunction(FusedLSTMFunction):
    """:class:`FusedLSTMFunction` with a rule for forward mode (torch.func.jvp, forward_ad).

    NOTE: a class of its own, since torch.compile traces no autograd.Function that has such a rule.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        FusedLSTMFunction.setup_context(ctx, inputs, output)
        arguments, weights = LayerArguments.split(inputs)
        ctx.save_for_forward(*arguments.tensors, *weights)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        saved, weights = unflatten(ctx.saved_tensors, LayerTensors)
        dot, weights_dot = LayerArguments.split(tangents)
        results = forward_mode_derivative(
            lambda *variables: composite_layer(variables, saved.masks),
            (saved.input, saved.h_0, saved.c_0, *weights),
            (dot.input, dot.h_0, dot.c_0, *weights_dot),
        )
        cell_states = results[3] if ctx.return_cell_states else None
        return *results[:3], cell_states, None, None


def apply_layer(arguments: LayerArguments, weights: Any) -> LayerResults:
    """FusedLSTMFunction.apply, with forward mode where that is on."""
    flat = (*arguments, *weights)
    if is_forward_mode_on():
        results = FusedLSTMForwardModeFunction.apply(*flat)  # type: ignore[no-untyped-call]
    else:
        results = apply(FusedLSTMFunction, *flat)
    return LayerResults._make(results)
