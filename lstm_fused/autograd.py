# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function: kernels first, the reference beyond them.

The first derivative runs in the kernels; the second (gradient penalties, MAML, Hessians) comes from
what the forward saved. Beyond it, and in transforms and traces, autograd differentiates
`lstm_fused.reference`, which is plain torch: exact at any order.

Who differentiates: eagerly `_layer_function`, under torch.compile the op of `_graph_op`, in the
transforms of torch.func `FusedLSTMFunction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from lstm_fused import _native
from lstm_fused._apply import apply, single_level_apply
from lstm_fused._batching import vmap_forward
from lstm_fused._checks import check_layer, check_values
from lstm_fused._engine import Needs
from lstm_fused._graph_op import is_exporting, lstm_layer_op
from lstm_fused._layer_function import LayerFunction, SavedLayer, layer_gradient, unpack_saved
from lstm_fused._plain import forward_derivative, reference_layer

# Classes of tensors that torch's own operations give back as they are.
_PLAIN = (Tensor, torch.nn.Parameter)

# y, h_n, c_n, cell_states, gates, cells
ForwardResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

_apply_eagerly = single_level_apply(LayerFunction)


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
    masks = (lengths, batch_sizes, reset_mask)
    if not _native.has_kernels(input.device):
        _native.check_cuda_kernels(input.device)
        check_layer(input, h_0, c_0, weights, *masks)
        check_values(input, h_0.shape[1], lengths, batch_sizes)
        return reference_layer((input, h_0, c_0, *weights), masks)
    has_forward_mode = forward_ad._current_level >= 0
    if has_forward_mode and torch.compiler.is_compiling():
        # NOTE: torch.compile traces no autograd.Function that has a rule for forward mode.
        return reference_layer((input, h_0, c_0, *weights), masks)
    # NOTE: Dynamo takes tensors of torch.func's transforms for some that need no gradients: under
    # torch.compile the op finds out. A program of torch.export has no backward.
    is_exported = torch.compiler.is_compiling() and is_exporting()
    is_traced = torch.compiler.is_compiling() and not is_exported
    needs_grad = torch.is_grad_enabled() and (
        torch.compiler.is_compiling()
        or (
            any(v.requires_grad for v in (input, h_0, c_0, *weights))
            and not torch.is_inference_mode_enabled()
        )
    )
    if not (needs_grad or has_forward_mode) or is_exported:
        y, h_n, c_n, cell_states, _, _ = _native.lstm_forward_op(
            input, h_0, c_0, weights, *masks, False, return_cell_states
        )
        return y, h_n, c_n, cell_states
    if is_traced:
        y, h_n, c_n, cell_states, _, _ = lstm_layer_op(
            input, h_0, c_0, weights, *masks, False, return_cell_states, recompute
        )
        return y, h_n, c_n, cell_states
    arguments = (input, h_0, c_0, *masks, return_cell_states, recompute, *weights)
    if (
        has_forward_mode
        or torch._C._are_functorch_transforms_active()
        or any(isinstance(a, Tensor) and type(a) not in _PLAIN for a in arguments)
    ):
        y, h_n, c_n, cell_states, _, _ = apply_layer(*arguments)
        # A copy, which may be overwritten: y itself is saved.
        return y.clone(), h_n, c_n, cell_states
    own = [unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in arguments]
    y, h_n, c_n, *rest = _apply_eagerly(*own)
    return y, h_n, c_n, rest[0] if rest else y.new_empty(0)


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
    if forward_ad._current_level >= 0:
        result = FusedLSTMForwardModeFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        result = apply(FusedLSTMFunction, *arguments)
    return result
