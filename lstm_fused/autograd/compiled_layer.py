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
from lstm_fused._ops.arguments import ForwardArguments
from lstm_fused._torch.private import (
    HAS_TRANSFORMS,
    are_transforms_active,
    below_autograd,
    single_level_apply,
)
from lstm_fused.autograd.arguments import LayerArguments, LayerResults
from lstm_fused.autograd.composite import composite_layer
from lstm_fused.autograd.eager_function import LayerFunction, copy_arguments_in_trace, guard_output
from lstm_fused.autograd.function_apply import of_one_level, within_transforms
from lstm_fused.autograd.vmap import vmap_forward

# NOTE: what `_differentiate` is traced to cannot change under one name: see `copy_op`.
_NAME = "lstm_layer_v3"


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
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
        arguments, weights = LayerArguments.split(flat)
        is_transformed = are_transforms_active()
        if is_transformed:
            with below_autograd(), torch.enable_grad():
                results = lstm_layer_op(*arguments.for_op(weights, True))
        else:
            arguments, weights = copy_arguments_in_trace(arguments, weights)
            results = native.lstm_forward_op(*arguments.for_op(weights, True))
        results = LayerResults._make(results)
        ctx.set_materialize_grads(False)
        unasked = () if arguments.return_cell_states else (results.cell_states,)
        ctx.mark_non_differentiable(*unasked, results.gates, results.cells)
        ctx.return_cell_states = arguments.return_cell_states
        with torch.set_grad_enabled(is_transformed):  # the copy of y is a function of levels below
            saved_y, y, ctx.was_overwritten = guard_output(results.y, arguments)
        saved = arguments.saved(saved_y, results.gates, results.cells)
        ctx.save_for_backward(*saved, *weights)
        return results._replace(y=y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return LayerFunction.backward(ctx, *grads[: 4 if ctx.return_cell_states else 3])


_apply = single_level_apply(GraphFunction)
_apply_in_transforms = single_level_apply(of_one_level(GraphFunction))


def _differentiate(*op_arguments: Any) -> LayerResults:
    given = ForwardArguments._make(op_arguments)
    arguments = LayerArguments.from_op(given)
    variables = (given.input, given.h_0, given.c_0, *given.weights)
    result: LayerResults
    is_transformed = are_transforms_active()
    if is_transformed and not HAS_TRANSFORMS:
        y, h_n, c_n, cell_states = composite_layer(variables, arguments.masks)
        unused = y.new_empty(0)
        result = LayerResults(y, h_n, c_n, cell_states, unused, unused.clone())
    elif torch.is_grad_enabled() and any(v.requires_grad for v in variables):
        apply = _apply_in_transforms if is_transformed else _apply
        with within_transforms():
            result = apply(*arguments, *given.weights)
    elif below_autograd is None:
        result = native.lstm_forward_op(*given)
    else:
        with below_autograd():
            result = lstm_layer_op(*given)
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
