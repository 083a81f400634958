# SPDX-License-Identifier: BSD-3-Clause
"""Which gradients a backward was asked for.

A Function's `needs_input_grad` is settled in the forward: it holds for a weight that requires
gradients even where torch.autograd.grad asks for those of the input alone. The engine knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._torch.private import (
    count_dispatch_modes,
    current_graph_task_id,
    will_engine_execute_node,
)
from lstm_fused.autograd.arguments import Needs

# The engine is asked where gradients of the weights take more than this, by the estimate below.
LEAST_NANOSECONDS = 50e3
# The time that an element of a weight's gradient takes: to write it, and what each row adds.
WRITE_NANOSECONDS, ROW_NANOSECONDS = 0.15, 0.01


def needed_gradients(ctx: Any, may_need: Needs, input: Tensor, weights: Sequence[Tensor]) -> Needs:
    """Returns the part of `may_need` that the running backward uses, or all of it where that costs
    less than to ask.

    Args:
        ctx: of a Function whose first three tensors are input and states, and whose last ones are
            the weights.
        may_need: by its needs_input_grad.
        input: of the layer; (..., D).
        weights: of the layer, W_ih and W_hh first.
    """
    if (
        will_engine_execute_node is None
        or current_graph_task_id is None
        or torch.compiler.is_compiling()
    ):
        return may_need
    if count_dispatch_modes() == 0:  # else a trace, whose sizes a comparison would specialise
        row = WRITE_NANOSECONDS + ROW_NANOSECONDS * input.shape[:-1].numel()
        if row * (weights[0].numel() + weights[1].numel()) < LEAST_NANOSECONDS:
            return may_need
    if current_graph_task_id() < 0:  # not called by the engine, as under compiled autograd
        return may_need
    edges = ctx.next_functions
    return Needs(
        # NOTE: an input that is a leaf has been told to require gradients for their own sake.
        may_need.input and (input.is_leaf or _is_used(edges[:1])),
        may_need.states and _is_used(edges[1:3]),
        may_need.weights and _is_used(edges[len(edges) - len(weights) :]),
    )


def _is_used(edges: Any) -> bool:
    for node, _ in edges:
        if node is None:
            continue
        try:
            if will_engine_execute_node(node):
                return True
        except RuntimeError:
            # A leaf while torch.autograd.grad runs: torch tells of those only by this error, which
            # it raises for the leaves whose gradients are asked for, and which takes 10 us.
            return True
    return False
