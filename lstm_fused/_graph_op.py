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

from lstm_fused import _native
from lstm_fused._apply import within_transforms
from lstm_fused._batching import vmap_forward
from lstm_fused._layer_function import LayerFunction

LayerResult = tuple[Tensor, Tensor, Tensor, Tensor]

# NOTE: what `_differentiate` is traced to cannot change under one name: see `copy_op`.
_NAME = "lstm_layer_v1"

_apply: Any = super(torch.autograd.Function, LayerFunction).apply


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Whether torch.export traces, and not torch.compile.

    NOTE: Dynamo evaluates this function where it would fold torch.compiler.is_exporting(), which
    that of torch 2.11 folds to True under plain compilation.
    """
    return torch.compiler.is_exporting()


def _infer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    return_cell_states: bool,
    recompute: bool,
) -> LayerResult:
    masks = (lengths, batch_sizes, reset_mask)
    result = _native.lstm_forward_op(input, h_0, c_0, weights, *masks, False, return_cell_states)
    return result[:4]  # type: ignore[no-any-return]


def _differentiate(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    return_cell_states: bool,
    recompute: bool,
) -> LayerResult:
    masks_and_flags = (lengths, batch_sizes, reset_mask, return_cell_states, recompute)
    variables = (input, h_0, c_0, *weights)
    if not (torch.is_grad_enabled() and any(v.requires_grad for v in variables)):
        return _infer(input, h_0, c_0, weights, *masks_and_flags)
    with within_transforms():
        y, h_n, c_n, *rest = _apply(input, h_0, c_0, *masks_and_flags, *weights)
    return y, h_n, c_n, rest[0] if rest else y.new_empty(0)


lstm_layer_op: Any = None
if _native.compiled is not None:
    _library: Any = torch.library.Library("lstm_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
    _library.define(
        f"{_NAME}(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
        "Tensor? batch_sizes, Tensor? reset_mask, bool return_cell_states, bool recompute) -> "
        "(Tensor, Tensor, Tensor, Tensor)"
    )
    _library.impl(_NAME, _infer, "CompositeExplicitAutograd")
    _library.impl(_NAME, _differentiate, "Autograd")
    lstm_layer_op = getattr(torch.ops.lstm_fused, _NAME).default
    torch.library.register_vmap(f"lstm_fused::{_NAME}", partial(vmap_forward, lstm_layer_op))
