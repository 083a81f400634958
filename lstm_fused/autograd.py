# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function: kernels first, the reference beyond them.

The first derivative runs in the kernels; the second (gradient penalties, MAML, Hessians) comes from
what the forward saved. Beyond it, and in transforms and traces, autograd differentiates
`lstm_fused.reference`, which is plain torch: exact at any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lstm_fused import _native
from lstm_fused._apply import apply
from lstm_fused._autocast import without_autocast
from lstm_fused._batching import vmap_backward, vmap_forward
from lstm_fused._checks import check_layer, check_values
from lstm_fused._plain import (
    differentiable_second_derivative,
    first_derivative,
    forward_derivative,
    is_legacy_batched,
    reference_gradient,
    reference_layer,
)
from lstm_fused._second_derivative import second_derivative

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
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, one or both directions; arguments are taken as checked.

    Args:
        input: (T, N, D), or a PackedSequence's data (M, D) with `batch_sizes`.
        h_0, c_0: (L, N, P), (L, N, H), L directions.
        weights: for each direction w_ih, w_hh [, b_ih, b_hh] [, w_hr].
        lengths: int32 or int64 (N,), or None.
        batch_sizes: int64 (T,) on the CPU, or None.
        reset_mask: bool (T, N), or None.
        recompute: save no gates for the backward, which computes them anew.

    Returns:
        y in input's layout with L·P features, h_n, c_n, and every cell state in y's layout with
        L·H features (empty unless asked for).
    """
    if not _native.has_kernels(input.device):
        _native.check_cuda_kernels(input.device)
        check_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask)
        check_values(input, h_0.shape[1], lengths, batch_sizes)
        return reference_layer((input, h_0, c_0, *weights), (lengths, batch_sizes, reset_mask))
    if (
        torch.is_grad_enabled()
        and (
            input.requires_grad
            or h_0.requires_grad
            or c_0.requires_grad
            or any(w.requires_grad for w in weights)
        )
        # A program of torch.export has no backward: nothing is to be saved for it.
        and not torch.compiler.is_exporting()
    ) or forward_ad._current_level >= 0:
        if torch.compiler.is_compiling():
            input, h_0, c_0, *weights = _without_duplicates([input, h_0, c_0, *weights])
        masks_and_flags = (lengths, batch_sizes, reset_mask, return_cell_states, recompute)
        result = apply_layer(input, h_0, c_0, *masks_and_flags, *weights)
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
        result: ForwardResult = _native.lstm_forward_op(input, h_0, c_0, weights, *masks_and_flags)
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
        ctx.save_for_backward(
            input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells, *weights
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, h_0, c_0, lengths, batch_sizes, reset_mask, y, gates, cells, *weights = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad
        if not torch.compiler.is_compiling() and any(map(is_legacy_batched, grads)):
            variables = (input, h_0, c_0, *weights)
            needed = (*needs[:3], *needs[8:])
            masks = (lengths, batch_sizes, reset_mask)
            states_and_input, by_weight = reference_gradient(grads, variables, needed, masks)
            return (*states_and_input, *([None] * 5), *by_weight)
        need_input, need_states, need_weights = needs[0], needs[1] or needs[2], any(needs[8:])
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
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            result = FusedLSTMBackwardFunction.apply(*arguments)  # type: ignore[no-untyped-call]
        elif torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            result = apply(FusedLSTMBackwardFunction, *arguments)
        else:
            result = FusedLSTMBackwardFunction.forward(*arguments)
        grad_input, grad_h_0, grad_c_0, *grad_weights = result
        if not need_weights:
            grad_weights = [None] * len(weights)
        return (
            grad_input if need_input else None,
            grad_h_0 if need_states else None,
            grad_c_0 if need_states else None,
            *([None] * 5),  # masks, flags
            *grad_weights,
        )

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


class FusedLSTMDirectFunction(torch.autograd.Function):
    """:class:`FusedLSTMFunction` for the short way (`_direct`): no masks, y, h_n and c_n alone.

    NOTE: what has no `setup_context`, and no results that carry no gradient, costs 4 us less; and
    no transform takes it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        lengths: None,
        batch_sizes: None,
        reset_mask: None,
        return_cell_states: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        masks = (lengths, batch_sizes, reset_mask)
        y, h_n, c_n, _, gates, cells = _native.lstm_forward_op(
            input, h_0, c_0, weights, *masks, True, return_cell_states, recompute
        )
        ctx.set_materialize_grads(False)
        ctx.return_cell_states = return_cell_states
        ctx.save_for_backward(input, h_0, c_0, *masks, y, gates, cells, *weights)
        return y, h_n, c_n

    backward = FusedLSTMFunction.backward


def apply_layer(*arguments: Any) -> ForwardResult:
    """FusedLSTMFunction.apply, with forward mode where that is on."""
    result: ForwardResult
    if forward_ad._current_level >= 0:
        result = FusedLSTMForwardModeFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    elif torch.compiler.is_compiling():
        result = FusedLSTMFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        result = apply(FusedLSTMFunction, *arguments)
    return result


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
            grad_input, grad_h_0, grad_c_0, grad_weights = _native.lstm_backward_op(
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
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack() > 0  # traces, fake tensors
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
            _native.sample_gradients,
            info,
            (*in_dims[:7], in_dims[16:], *in_dims[7:16]),
            *(*arguments[:7], arguments[16:], *arguments[7:16]),
        )
        return (*results, *grad_weights), (*dims, *weight_dims)
