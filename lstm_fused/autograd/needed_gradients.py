# SPDX-License-Identifier: BSD-3-Clause
"""Which gradients a backward was asked for.

A Function's `needs_input_grad` is settled in the forward: it holds for a weight that requires
gradients even where torch.autograd.grad asks for those of the input alone. The engine knows.
"""

from __future__ import annotations

from typing import Any

import torch

from lstm_fused._torch.private import current_graph_task_id, will_engine_execute_node
from lstm_fused.autograd.arguments import Needs


def needed_gradients(ctx: Any, may_need: Needs, weights: int) -> Needs:
    """Returns the part of `may_need` that the running backward uses.

    Args:
        ctx: of a Function whose first three tensors are input and states, and whose last
            `weights` ones are the weights.
        may_need: by its needs_input_grad.
    """
    if (
        will_engine_execute_node is None
        or current_graph_task_id is None
        or torch.compiler.is_compiling()
        or current_graph_task_id() < 0  # not called by the engine, as under compiled autograd
    ):
        return may_need
    edges = ctx.next_functions
    return Needs(
        may_need.input and _is_used(edges[:1]),
        may_need.states and _is_used(edges[1:3]),
        may_need.weights and _is_used(edges[len(edges) - weights :]),
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
            # it raises for the leaves whose gradients are asked for.
            return True
    return False
