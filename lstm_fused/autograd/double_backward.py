# SPDX-License-Identifier: BSD-3-Clause
"""The derivative of one layer's gradient, from what the forward saved.

Let F be the layer, v the incoming gradients of its results, u those of its gradient G = Jᵀv. Since
⟨u, Jᵀv⟩ = ⟨J u, v⟩, the derivative of ⟨u, G⟩ comes from the layer's tangent J u (Pearlmutter: Fast
exact multiplication by the Hessian. Neural Computation 6(1), 1994):

    with respect to v           it is J u itself: one run forward in time, `push_tangents`
    with respect to everything  one run backward in time through tangents and layer. The tangents'
    else                        adjoints do not depend on the layer's: they are G's own, and run
                                first. Both are the same linear recurrence, `pull_adjoints`, from
                                different sources.

Between these runs all is element-wise or a product, over all steps at once. A run takes half a
dozen torch operations a step, a fifth of what differentiating `lstm_fused.reference` twice takes.

Notation of `lstm_fused.reference`; ẋ is the tangent of x, and steps are in a direction's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_fused.autograd.linearization import (
    Adjoints,
    Direction,
    Tangents,
    make_direction,
    pull_adjoints,
    push_tangents,
)
from lstm_fused.autograd.saved_rows import SequenceRows, activated_gates
from lstm_fused.reference import Masks, outer_sum


def second_derivative(
    grad_grads: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    variables: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    saved: Sequence[Tensor],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradient of `lstm_layer`'s gradient. Not differentiable; 16-bit types compute in float32.

    Args:
        grad_grads: incoming gradients of those of input, h_0, c_0 and the weights; None is zero.
            The weights' may be absent.
        grads: incoming gradients of y, h_n, c_n, cell_states, which the gradient came from.
        variables: input, h_0, c_0, and the weights.
        masks: lengths, batch_sizes, reset_mask.
        saved: y, gates (empty with `recompute`) and cells of the forward.

    Returns:
        The gradients of the four `grads`, and of the variables.
    """
    input, h_0, c_0, *weights = variables
    y, gates, cells = saved
    gates = activated_gates(input, h_0, c_0, weights, masks, gates)
    count = h_0.shape[0]
    each = len(weights) // count
    rows = SequenceRows(input, h_0.shape[1], masks)

    def features(sequence: Tensor | None, d: int) -> Any:
        """A direction's share of a sequence of all directions' features, or None."""
        return None if sequence is None else rows.padded(sequence).chunk(count, dim=-1)[d]

    weights_dot = grad_grads[3:] or [None] * len(weights)  # absent where none was asked for
    x, x_dot = rows.padded(input), None if grad_grads[0] is None else rows.padded(grad_grads[0])
    results = []
    for d in range(count):
        own = slice(d * each, (d + 1) * each)
        result = _derive_direction(
            (x_dot, *rows.states(grad_grads[1:3], d)),
            (features(grads[0], d), *rows.states(grads[1:3], d), features(grads[3], d)),
            (x, *rows.states((h_0, c_0), d)),
            [w.to(x.dtype) for w in weights[own]],
            [None if w is None else w.to(x.dtype) for w in weights_dot[own]],
            (features(y, d), rows.padded_saved(gates[d]), rows.padded_saved(cells[d])),
            rows.masks,
            reverse=d == 1,
        )
        results.append(result)
    by_grads = [
        rows.as_given(torch.cat([r.y for r in results], dim=-1)),
        torch.stack([r.h_n for r in results]),
        torch.stack([r.c_n for r in results]),
        rows.as_given(torch.cat([r.cell_states for r in results], dim=-1)),
    ]
    by_variables = [
        rows.as_given(torch.stack([r.x for r in results]).sum(dim=0)),
        torch.stack([r.h_0 for r in results]),
        torch.stack([r.c_0 for r in results]),
        *(grad for r in results for grad in r.weights),
    ]
    return [t.to(input.dtype) for t in by_grads], [t.to(input.dtype) for t in by_variables]


class _Derivatives(NamedTuple):
    """By the incoming gradients of y, h_n, c_n and the cell states, and by the variables."""

    y: Tensor
    h_n: Tensor
    c_n: Tensor
    cell_states: Tensor
    x: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: list[Tensor]


def _derive_direction(
    grad_grads: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    weights_dot: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    masks: Masks,
    *,
    reverse: bool,
) -> _Derivatives:
    """One direction's part: arguments of `second_derivative`, padded."""

    def in_order(sequence: Any) -> Any:
        """A sequence, or None, in the order of the direction's steps; or back in time's."""
        return sequence.flip(0) if reverse and sequence is not None else sequence

    grad_y, grad_h_n, grad_c_n, grad_cells = grads
    x, h_0, c_0 = inputs
    x_dot, h_0_dot, c_0_dot = grad_grads
    x_dot = in_order(x_dot)
    y, gates, cells = map(in_order, saved)
    valid, keep = map(in_order, masks)
    layer = make_direction(in_order(x), y, gates, cells, h_0, c_0, weights, Masks(valid, keep))
    tangents = push_tangents(layer, x_dot, h_0_dot, c_0_dot, weights_dot)
    first = pull_adjoints(
        layer, h=in_order(grad_y), c=in_order(grad_cells), h_n=grad_h_n, c_n=grad_c_n
    )
    second = _pull_second_adjoints(layer, tangents, first, weights_dot)
    along_x = _flat(second.a) @ layer.w_ih
    if weights_dot[0] is not None:
        along_x += _flat(first.a) @ weights_dot[0]
    # NOTE: tangents are zero where no step takes place, since gates and cells are.
    return _Derivatives(
        y=in_order(tangents.h),
        h_n=tangents.h_n,
        c_n=tangents.c_n,
        cell_states=in_order(tangents.c),
        x=in_order(along_x),
        h_0=second.h_0,
        c_0=second.c_0,
        weights=_weight_gradients(layer, x_dot, tangents, first, second, len(weights)),
    )


def _pull_second_adjoints(
    layer: Direction,
    tangents: Tangents,
    first: Adjoints,
    weights_dot: Sequence[Tensor | None],
) -> Adjoints:
    """The adjoints of the layer's values, from those of their tangents.

    The tangents are
        c' = f' c_in + f c_in' + i' g + i g'      h~' = o' tanh(c) + o (1 - tanh(c)²) c'
    with i' = i (1 - i) a_i', and so on; each value's adjoint is their derivative by it.
    """
    i, f, g, o = layer.gates.unbind(2)
    a_i, a_f, a_g, a_o = tangents.a.unbind(2)
    tanh_c, dc, dh = layer.tanh_c, first.c, first.h_tilde
    i_slope, f_slope, g_slope, o_slope = i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)
    tanh_slope = 1 - tanh_c * tanh_c
    by_i = dc * (g_slope * a_g + g * a_i * (1 - 2 * i))
    by_f = dc * (tangents.c_in + layer.c_in * a_f * (1 - 2 * f))
    by_g = dc * (i_slope * a_i - 2 * g * i * a_g)
    by_o = dh * (tanh_slope * tangents.c + tanh_c * a_o * (1 - 2 * o))
    by_tanh_c = dh * (o_slope * a_o - 2 * tanh_c * o * tangents.c)
    w_hh_dot, w_hr_dot = weights_dot[1], weights_dot[-1] if layer.w_hr is not None else None
    return pull_adjoints(
        layer,
        h_tilde=None if w_hr_dot is None else first.h @ w_hr_dot,
        c=tanh_slope * by_tanh_c,
        a=torch.stack([i_slope * by_i, f_slope * by_f, g_slope * by_g, o_slope * by_o], 2),
        h_in=None if w_hh_dot is None else _flat(first.a) @ w_hh_dot,
        c_in=dc * f_slope * a_f,
    )


def _weight_gradients(
    layer: Direction,
    x_dot: Tensor | None,
    tangents: Tangents,
    first: Adjoints,
    second: Adjoints,
    count: int,
) -> list[Tensor]:
    """Those of w_ih, w_hh [, b_ih, b_hh] [, w_hr], `count` in all."""
    by_a, by_a_dot = _flat(second.a), _flat(first.a)
    w_ih = outer_sum(by_a, layer.x)
    if x_dot is not None:
        w_ih += outer_sum(by_a_dot, x_dot)
    grads = [w_ih, outer_sum(by_a, layer.h_in) + outer_sum(by_a_dot, tangents.h_in)]
    if count >= 4:
        bias = by_a.sum(dim=(0, 1))
        grads += [bias, bias.clone()]  # NOTE: two tensors; .grad must not alias
    if layer.w_hr is not None:
        grads.append(outer_sum(second.h, layer.h_tilde) + outer_sum(first.h, tangents.h_tilde))
    return grads


def _flat(by_gate: Tensor) -> Tensor:
    return by_gate.flatten(2)  # (T, N, 4, H) -> (T, N, 4H)
