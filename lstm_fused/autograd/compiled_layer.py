# SPDX-License-Identifier: BSD-3-Clause
"""One differentiable layer in the graphs of torch.compile: an op of its own.

NOTE: an op and not an autograd.Function, which Dynamo takes apart into a forward and a backward
between which nothing checks the saved tensors: one that is changed in place would silently give
wrong gradients, and torch.func's transforms lose theirs. An op stays one node, whose autograd is
torch's own: eager with backend="eager", traced by AOTAutograd.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._torch.private import (
    HAS_TRANSFORMS,
    are_transforms_active,
    below_autograd,
    single_level_apply,
)
from lstm_fused.autograd.composite import reference_layer
from lstm_fused.autograd.function_apply import within_transforms
from lstm_fused.autograd.layer_function import LayerFunction, SavedLayer, copied_in_trace, keep
from lstm_fused.autograd.vmap import vmap_forward

# y, h_n, c_n, cell_states, gates, cells
LayerResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# NOTE: what `_differentiate` is traced to cannot change under one name: see `copy_op`.
_NAME = "lstm_layer_v2"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Whether torch.export traces, and not torch.compile.

    NOTE: Dynamo evaluates this function where it would fold torch.compiler.is_exporting(), which
    that of torch 2.11 folds to True under plain compilation.
    """
    return torch.compiler.is_exporting()


class GraphFunction(LayerFunction):
    """:class:`LayerFunction` as the op's autograd; its results are the op's, of which gates and
    cells carry no gradient. At a level of torch.func's transforms the others are functions of the
    levels below too."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        input, h_0, c_0 = arguments[:3]
        masks: Any = arguments[3:6]
        return_cell_states, recompute, *weights = arguments[6:]
        is_transformed = are_transforms_active()
        if is_transformed:
            with below_autograd(), torch.enable_grad():
                results = lstm_layer_op(
                    input, h_0, c_0, weights, *masks, True, return_cell_states, recompute
                )
        else:
            h_0, c_0 = copied_in_trace(h_0), copied_in_trace(c_0)
            masks = [copied_in_trace(mask) for mask in masks]
            results = native.lstm_forward_op(
                input, h_0, c_0, weights, *masks, True, return_cell_states, recompute
            )
        y, h_n, c_n, cell_states, gates, cells = results
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([] if return_cell_states else [cell_states]), gates, cells)
        ctx.return_cell_states = return_cell_states
        saved = SavedLayer._make([input, h_0, c_0, *masks, y, gates, cells])
        with torch.set_grad_enabled(is_transformed):  # the copy of y is a function of levels below
            kept, y, ctx.is_overwritten = keep(saved)
        ctx.save_for_backward(*kept, *weights)
        return y, h_n, c_n, cell_states, gates, cells

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return LayerFunction.backward(ctx, *grads[: 4 if ctx.return_cell_states else 3])


_apply = single_level_apply(GraphFunction)


def _differentiate(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    save_for_backward: bool,
    return_cell_states: bool,
    recompute: bool,
) -> LayerResult:
    masks, flags = (lengths, batch_sizes, reset_mask), (return_cell_states, recompute)
    variables = (input, h_0, c_0, *weights)
    result: LayerResult
    if are_transforms_active() and not HAS_TRANSFORMS:
        y, h_n, c_n, cell_states = reference_layer(variables, masks)
        unused = y.new_empty(0)
        result = y, h_n, c_n, cell_states, unused, unused.clone()
    elif torch.is_grad_enabled() and any(v.requires_grad for v in variables):
        with within_transforms():
            result = _apply(input, h_0, c_0, *masks, *flags, *weights)
    elif below_autograd is None:
        result = native.lstm_forward_op(input, h_0, c_0, weights, *masks, save_for_backward, *flags)
    else:
        with below_autograd():
            result = lstm_layer_op(input, h_0, c_0, weights, *masks, save_for_backward, *flags)
    return result


lstm_layer_op: Any = None
if native.compiled is not None:
    if not hasattr(torch.ops.lstm_fused, _NAME):  # else another copy of this package has it
        _library: Any = torch.library.Library("lstm_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
        _library.define(
            f"{_NAME}(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
            "Tensor? batch_sizes, Tensor? reset_mask, bool save_for_backward, "
            "bool return_cell_states, bool recompute) -> "
            "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
        )
        _library.impl(_NAME, native.lstm_forward_op, "CompositeExplicitAutograd")
        _library.impl(_NAME, _differentiate, "Autograd")
    lstm_layer_op = getattr(torch.ops.lstm_fused, _NAME).default
    torch.library.register_vmap(f"lstm_fused::{_NAME}", partial(vmap_forward, lstm_layer_op))
