# SPDX-License-Identifier: BSD-3-Clause
"""The fast path of eager calls of a module or cell on the CPU: straight to the op, which checks
its arguments itself, and, where no gradients are needed, to an op that makes the results alone.

A step of a small LSTM takes 2 microseconds, and each look at a tensor from Python 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import GATES, split_layers
from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused._torch.private import (
    are_transforms_active,
    count_dispatch_modes,
    is_any_autocast_enabled,
    is_forward_mode_on,
    is_tracing,
    single_level_apply,
    unwrap_if_dead,
)
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.cell_function import CellFunction
from lstm_fused.autograd.eager_function import LayerFunction

_apply = single_level_apply(LayerFunction)
_apply_cell = single_level_apply(CellFunction)


def can_run(input: Any, hx: Any, rank: int) -> bool:
    """Whether a call may take the fast path: its input has this rank, and no transform, autocast,
    trace or dispatch mode is on."""
    return (
        not torch.compiler.is_compiling()
        and type(input) is Tensor
        and input.dim() == rank
        and input.is_cpu
        and (hx is None or _is_pair(hx))
        and native.lstm_inference_op is not None
        and not is_tracing()
        and not is_any_autocast_enabled()
        and not are_transforms_active()
        and count_dispatch_modes() == 0
        and not is_forward_mode_on()
    )


def run_layer(
    input: Any,
    hx: Hidden | None,
    weights: Sequence[Tensor],
    directions: int = 1,
    batch_first: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Hidden]:
    """One layer, as `FusedLSTM` runs it.

    Raises:
        RuntimeError: the tensors do not fit together; in the op's sentence.
    """
    x = input.transpose(0, 1) if batch_first else input
    if torch.is_grad_enabled() and _requires_grad(input, hx, weights):
        if batch_first:
            # The kernels want it so, forward and backward. A copy stays what it is, too, when the
            # input is changed later.
            x = x.contiguous()
        h_0, c_0 = zero_states(x, weights[1], directions) if hx is None else hx
        x, h_0, c_0 = map(unwrap_if_dead, (x, h_0, c_0))
        arguments = LayerArguments(x, h_0, c_0, recompute=recompute)
        y, h_n, c_n = _apply(*arguments, *map(unwrap_if_dead, weights))
    else:
        states = (None, None) if hx is None else hx
        y, h_n, c_n = native.lstm_inference_op(x, *states, weights, directions)
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def run_stack(
    input: Any,
    hx: Hidden | None,
    weights: list[Tensor],
    num_layers: int,
    directions: int,
    batch_first: bool,
    recompute: bool,
) -> tuple[Tensor, Hidden] | None:
    """Several layers, in one call where no gradients are needed; None where `hx` does not fit.
    Raises what `run_layer` does."""
    x = input.transpose(0, 1) if batch_first else input
    if torch.is_grad_enabled() and _requires_grad(input, hx, weights):
        blocks = num_layers * directions
        if hx is not None and any(state.dim() != 3 or len(state) != blocks for state in hx):
            return None  # slices of it might fit
        x = x.contiguous() if batch_first else x  # as in `run_layer`
        y, (h_n, c_n) = _run_layers(x, hx, weights, num_layers, directions, recompute)
    else:
        states = (None, None) if hx is None else hx
        y, h_n, c_n = native.lstm_inference_op(x, *states, weights, directions, num_layers)
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def _run_layers(
    x: Tensor,
    hx: Hidden | None,
    weights: list[Tensor],
    num_layers: int,
    directions: int,
    recompute: bool,
) -> tuple[Tensor, Hidden]:
    """One layer after the other, each of which autograd knows by itself."""
    h_n, c_n = [], []
    for layer, own in enumerate(split_layers(weights, num_layers)):
        of_layer = slice(layer * directions, (layer + 1) * directions)
        states = None if hx is None else (hx[0][of_layer], hx[1][of_layer])
        x, (h, c) = run_layer(x, states, own, directions, recompute=recompute)
        h_n.append(h)
        c_n.append(c)
    return x, (torch.cat(h_n), torch.cat(c_n))


def run_cell(input: Tensor, hx: Hidden | None, weights: list[Tensor]) -> Hidden:
    """One step, as `FusedLSTMCell` runs it. Raises what `run_layer` raises."""
    if torch.is_grad_enabled() and _requires_grad(input, hx, weights):
        if hx is None:
            h = c = input.new_zeros((input.shape[0], weights[1].shape[1]))
        else:
            h, c = hx
        h_next, c_next = _apply_cell(*map(unwrap_if_dead, (input, h, c, *weights)))
    else:
        states = (None, None) if hx is None else hx
        h_next, c_next, _, _ = native.lstm_cell_op(input, *states, weights, False)
    return h_next, c_next


def _is_pair(hx: Any) -> bool:
    return (
        type(hx) in (tuple, list)
        and len(hx) == 2
        and isinstance(hx[0], Tensor)
        and isinstance(hx[1], Tensor)
    )


def _requires_grad(input: Tensor, hx: Hidden | None, weights: Sequence[Tensor]) -> bool:
    return (
        weights[0].requires_grad  # most often it does
        or any(weight.requires_grad for weight in weights)
        or input.requires_grad
        or (hx is not None and (hx[0].requires_grad or hx[1].requires_grad))
    ) and not torch.is_inference_mode_enabled()


def zero_states(x: Tensor, w_hh: Tensor, directions: int) -> Hidden:
    """h_0 and c_0 of a layer; one tensor where they have one size."""
    gates, output_size = w_hh.shape
    h_0 = x.new_zeros((directions, x.shape[1], output_size))
    if gates == GATES * output_size:
        return h_0, h_0
    return h_0, x.new_zeros((directions, x.shape[1], gates // GATES))
