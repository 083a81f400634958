# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function: kernels first, the composite beyond them.

The first derivative runs in the kernels; the second (gradient penalties, MAML, Hessians) comes from
what the forward saved. Beyond it, and in transforms and traces, autograd differentiates
`lstm_fused.reference`, a composite of torch's operations: exact at any order.

Who differentiates: eagerly `eager_function`, under torch.compile the op of `compiled_layer`, in the
transforms of torch.func `functorch_function`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.private import (
    are_transforms_active,
    is_forward_mode_on,
    single_level_apply,
    unwrap_if_dead,
)
from lstm_fused.autograd.arguments import TENSOR_TYPES, LayerArguments
from lstm_fused.autograd.compiled_layer import is_exporting, lstm_layer_op
from lstm_fused.autograd.composite import check_without_kernels, composite_layer
from lstm_fused.autograd.eager_function import LayerFunction
from lstm_fused.autograd.functorch_function import apply_layer

_apply_eagerly = single_level_apply(LayerFunction)


def lstm_layer(
    arguments: LayerArguments, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, one or both directions; arguments are taken as checked.

    Args:
        weights: for each direction w_ih, w_hh [, b_ih, b_hh] [, w_hr].

    Returns:
        y in input's layout with L·P features, h_n, c_n, and every cell state in y's layout with
        L·H features (empty unless asked for).
    """
    variables = (arguments.input, arguments.h_0, arguments.c_0, *weights)
    device = arguments.input.device
    if not native.has_kernels(device):
        check_without_kernels(arguments, weights)
        return composite_layer(variables, arguments.masks)
    has_forward_mode = is_forward_mode_on()
    if has_forward_mode and torch.compiler.is_compiling():
        # NOTE: torch.compile traces no autograd.Function that has a rule for forward mode.
        return composite_layer(variables, arguments.masks)
    # NOTE: Dynamo takes tensors of torch.func's transforms for some that need no gradients: under
    # torch.compile the op finds out. A program of torch.export has no backward.
    is_exported = torch.compiler.is_compiling() and is_exporting()
    is_traced = torch.compiler.is_compiling() and not is_exported
    needs_grad = torch.is_grad_enabled() and (
        torch.compiler.is_compiling()
        or (any(v.requires_grad for v in variables) and not torch.is_inference_mode_enabled())
    )
    if not (needs_grad or has_forward_mode) or is_exported:
        if arguments.recompute:  # which says what to save for a backward
            arguments = arguments._replace(recompute=False)
        y, h_n, c_n, cell_states, _, _ = native.lstm_forward_op(*arguments.for_op(weights, False))
        return y, h_n, c_n, cell_states
    if is_traced:
        y, h_n, c_n, cell_states, _, _ = lstm_layer_op(*arguments.for_op(weights, False))
        return y, h_n, c_n, cell_states
    flat = (*arguments, *weights)
    if (
        has_forward_mode
        or are_transforms_active()
        or any(isinstance(a, Tensor) and type(a) not in TENSOR_TYPES for a in flat)
    ):
        y, h_n, c_n, cell_states, _, _ = apply_layer(arguments, weights)
        # A copy, which may be overwritten: y itself is saved.
        return y.clone(), h_n, c_n, cell_states
    unwrapped = [unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in flat]
    y, h_n, c_n, *rest = _apply_eagerly(*unwrapped)
    return y, h_n, c_n, rest[0] if rest else y.new_empty(0)
