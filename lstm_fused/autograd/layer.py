# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function: kernels first, the reference beyond them.

The first derivative runs in the kernels; the second (gradient penalties, MAML, Hessians) comes from
what the forward saved. Beyond it, and in transforms and traces, autograd differentiates
`lstm_fused.reference`, which is plain torch: exact at any order.

Who differentiates: eagerly `layer_function`, under torch.compile the op of `compiled_layer`, in the
transforms of torch.func `function`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.checks import check_layer, check_values
from lstm_fused._torch.private import (
    are_transforms_active,
    is_forward_mode_on,
    single_level_apply,
    unwrap_if_dead,
)
from lstm_fused.autograd.compiled_layer import is_exporting, lstm_layer_op
from lstm_fused.autograd.composite import reference_layer
from lstm_fused.autograd.function import apply_layer
from lstm_fused.autograd.layer_function import LayerFunction

# Classes of tensors that torch's own operations give back as they are.
_PLAIN = (Tensor, torch.nn.Parameter)

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
    if not native.has_kernels(input.device):
        native.check_cuda_kernels(input.device)
        check_layer(input, h_0, c_0, weights, *masks)
        check_values(input, h_0.shape[1], lengths, batch_sizes)
        return reference_layer((input, h_0, c_0, *weights), masks)
    has_forward_mode = is_forward_mode_on()
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
        y, h_n, c_n, cell_states, _, _ = native.lstm_forward_op(
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
        or are_transforms_active()
        or any(isinstance(a, Tensor) and type(a) not in _PLAIN for a in arguments)
    ):
        y, h_n, c_n, cell_states, _, _ = apply_layer(*arguments)
        # A copy, which may be overwritten: y itself is saved.
        return y.clone(), h_n, c_n, cell_states
    own = [unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in arguments]
    y, h_n, c_n, *rest = _apply_eagerly(*own)
    return y, h_n, c_n, rest[0] if rest else y.new_empty(0)
