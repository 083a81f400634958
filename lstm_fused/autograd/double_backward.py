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

from lstm_fused._ops.layer_weights import LayerWeights, split_directions
from lstm_fused.autograd.arguments import (
    IncomingGradients,
    LayerGradient,
    SavedLayer,
    SecondGradient,
)
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
    grad_grads: LayerGradient,
    grads: IncomingGradients,
    saved: SavedLayer,
    weights: Sequence[Tensor],
) -> SecondGradient:
    """The gradient of `lstm_layer`'s gradient. Not differentiable; 16-bit types compute in float32.

    Args:
        grad_grads: incoming gradients of the gradient's parts; None is zero. The weights' may be
            absent.
        grads: the incoming gradients that the gradient came from.
    """
    gates = activated_gates(saved, weights)
    count, batch, _ = saved.h_0.shape
    rows = SequenceRows(saved.input, batch, saved.masks)

    def features(sequence: Tensor | None, d: int) -> Any:
        """A direction's share of a sequence of all directions' features, or None."""
        return None if sequence is None else rows.padded(sequence).chunk(count, dim=-1)[d]

    weights_dot = grad_grads.weights or [None] * len(weights)  # absent where none was asked for
    x = rows.padded(saved.input)
    x_dot = None if grad_grads.input is None else rows.padded(grad_grads.input)
    results = []
    for d, (weights_d, weights_d_dot) in enumerate(
        zip(split_directions(weights, count), split_directions(weights_dot, count), strict=True)
    ):
        result = _derive_direction(
            (x_dot, rows.state(grad_grads.h_0, d), rows.state(grad_grads.c_0, d)),
            IncomingGradients(
                features(grads.y, d),
                rows.state(grads.h_n, d),
                rows.state(grads.c_n, d),
                features(grads.cell_states, d),
            ),
            (x, rows.state(saved.h_0, d), rows.state(saved.c_0, d)),
            _cast(weights_d, x.dtype),
            _cast(weights_d_dot, x.dtype),
            (
                features(saved.y, d),
                rows.padded_saved(gates[d]),
                rows.padded_saved(saved.cells[d]),
            ),
            rows.masks,
            reverse=d == 1,
        )
        results.append(result)
    by_incoming = [
        rows.as_given(torch.cat([r.y for r in results], dim=-1)),
        torch.stack([r.h_n for r in results]),
        torch.stack([r.c_n for r in results]),
        rows.as_given(torch.cat([r.cell_states for r in results], dim=-1)),
    ]
    by_layer = [
        rows.as_given(torch.stack([r.x for r in results]).sum(dim=0)),
        torch.stack([r.h_0 for r in results]),
        torch.stack([r.c_0 for r in results]),
        *(grad for r in results for grad in r.weights.flatten()),
    ]
    dtype = saved.input.dtype
    return SecondGradient(
        [t.to(dtype) for t in by_incoming], LayerGradient.from_flat([t.to(dtype) for t in by_layer])
    )


def _cast(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    return LayerWeights._make(None if w is None else w.to(dtype) for w in weights)


class _Derivatives(NamedTuple):
    """Derivatives by the incoming gradients of y, h_n, c_n and the cell states, and by the
    variables."""

    y: Tensor
    h_n: Tensor
    c_n: Tensor
    cell_states: Tensor
    x: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: LayerWeights


def _derive_direction(
    inputs_dot: Sequence[Tensor | None],
    grads: IncomingGradients,
    inputs: Sequence[Tensor],
    weights: LayerWeights,
    weights_dot: LayerWeights,
    saved: Sequence[Tensor],
    masks: Masks,
    *,
    reverse: bool,
) -> _Derivatives:
    """One direction's part, of padded sequences.

    Args:
        inputs, inputs_dot: input and initial states, and the incoming gradients of their gradients.
        saved: y, gates, cells.
    """

    def in_order(sequence: Any) -> Any:
        """A sequence, or None, in the order of the direction's steps; or back in time's."""
        return sequence.flip(0) if reverse and sequence is not None else sequence

    x, h_0, c_0 = inputs
    x_dot, h_0_dot, c_0_dot = inputs_dot
    x_dot = in_order(x_dot)
    y, gates, cells = map(in_order, saved)
    valid, carried = map(in_order, masks)
    layer = make_direction(in_order(x), y, gates, cells, h_0, c_0, weights, Masks(valid, carried))
    tangents = push_tangents(layer, x_dot, h_0_dot, c_0_dot, weights_dot)
    first = pull_adjoints(
        layer, h=in_order(grads.y), c=in_order(grads.cell_states), h_n=grads.h_n, c_n=grads.c_n
    )
    second = _pull_second_adjoints(layer, tangents, first, weights_dot)
    along_x = _flat(second.a) @ layer.w_ih
    if weights_dot.w_ih is not None:
        along_x += _flat(first.a) @ weights_dot.w_ih
    # NOTE: tangents are zero where no step takes place, since gates and cells are.
    return _Derivatives(
        y=in_order(tangents.h),
        h_n=tangents.h_n,
        c_n=tangents.c_n,
        cell_states=in_order(tangents.c),
        x=in_order(along_x),
        h_0=second.h_0,
        c_0=second.c_0,
        weights=_weight_gradients(layer, x_dot, tangents, first, second, weights.b_ih is not None),
    )


def _pull_second_adjoints(
    layer: Direction,
    tangents: Tangents,
    first: Adjoints,
    weights_dot: LayerWeights,
) -> Adjoints:
    """The adjoints of the layer's values, from those of their tangents.

    The tangents are
        c' = f' c_prev + f c_prev' + i' g + i g'
        cell_output' = o' tanh(c) + o (1 - tanh(c)²) c'
    with i' = i (1 - i) a_i', and so on; each value's adjoint is their derivative by it.
    """
    i, f, g, o = layer.gates.unbind(2)
    a_i, a_f, a_g, a_o = tangents.a.unbind(2)
    tanh_c, dc, dh = layer.tanh_c, first.c, first.cell_output
    i_slope, f_slope, g_slope, o_slope = i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)
    tanh_slope = 1 - tanh_c * tanh_c
    by_i = dc * (g_slope * a_g + g * a_i * (1 - 2 * i))
    by_f = dc * (tangents.c_prev + layer.c_prev * a_f * (1 - 2 * f))
    by_g = dc * (i_slope * a_i - 2 * g * i * a_g)
    by_o = dh * (tanh_slope * tangents.c + tanh_c * a_o * (1 - 2 * o))
    by_tanh_c = dh * (o_slope * a_o - 2 * tanh_c * o * tangents.c)
    w_hh_dot, w_hr_dot = weights_dot.w_hh, weights_dot.w_hr
    return pull_adjoints(
        layer,
        cell_output=None if w_hr_dot is None else first.h @ w_hr_dot,
        c=tanh_slope * by_tanh_c,
        a=torch.stack([i_slope * by_i, f_slope * by_f, g_slope * by_g, o_slope * by_o], 2),
        h_prev=None if w_hh_dot is None else _flat(first.a) @ w_hh_dot,
        c_prev=dc * f_slope * a_f,
    )


def _weight_gradients(
    layer: Direction,
    x_dot: Tensor | None,
    tangents: Tangents,
    first: Adjoints,
    second: Adjoints,
    has_bias: bool,
) -> LayerWeights:
    by_a, by_a_dot = _flat(second.a), _flat(first.a)
    w_ih = outer_sum(by_a, layer.x)
    if x_dot is not None:
        w_ih += outer_sum(by_a_dot, x_dot)
    w_hh = outer_sum(by_a, layer.h_prev) + outer_sum(by_a_dot, tangents.h_prev)
    b_ih = by_a.sum(dim=(0, 1)) if has_bias else None
    b_hh = None if b_ih is None else b_ih.clone()  # NOTE: two tensors; .grad must not alias
    w_hr = None
    if layer.w_hr is not None:
        w_hr = outer_sum(second.h, layer.cell_output) + outer_sum(first.h, tangents.cell_output)
    return LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr)


def _flat(by_gate: Tensor) -> Tensor:
    return by_gate.flatten(2)  # (T, N, 4, H) -> (T, N, 4H)
