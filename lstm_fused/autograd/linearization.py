# SPDX-License-Identifier: BSD-3-Clause
"""The linearization of one direction of a layer about what the forward saved: its tangents, forward
in time, and its adjoints, backward in time. Both are linear recurrences of half a dozen torch
operations a step.

Notation of `lstm_fused.reference`. Sequences lie in the order of the direction's steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_fused._ops.layer_weights import GATES, LayerWeights
from lstm_fused.reference import Masks, select


class Direction(NamedTuple):
    """One direction of the layer: (T, N, ...) each, in the order of its steps."""

    x: Tensor
    gates: Tensor  # (T, N, 4, H): i, f, g, o
    cell_output: Tensor
    tanh_c: Tensor
    h_prev: Tensor  # the state before the step, zero where it is reset
    c_prev: Tensor
    # Derivatives by the pre-activations: of c for i, f, g, and of cell_output for o.
    gate_slopes: Tensor  # (T, N, 4, H)
    cell_slope: Tensor  # the derivative of cell_output by c
    w_ih: Tensor
    w_hh: Tensor
    w_hr: Tensor | None
    masks: Masks


class Tangents(NamedTuple):
    a: Tensor  # (T, N, 4, H)
    h_prev: Tensor
    c_prev: Tensor
    c: Tensor
    cell_output: Tensor
    h: Tensor
    h_n: Tensor
    c_n: Tensor


class Adjoints(NamedTuple):
    """What a loss gains by each value, from step to step, and by the initial states."""

    h: Tensor  # (T, N, P)
    cell_output: Tensor
    c: Tensor
    a: Tensor  # (T, N, 4, H), of the pre-activations
    h_0: Tensor
    c_0: Tensor


def make_direction(
    x: Tensor,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: LayerWeights,
    masks: Masks,
) -> Direction:
    """Linearizes about outputs h, activated gates (T, N, 4H) and cell states, all zero where no
    step takes place."""
    gates = gates.view(*cells.shape[:2], GATES, cells.shape[2])
    i, f, g, o = gates.unbind(2)
    tanh_c = cells.tanh()
    c_prev = _previous(cells, c_0, masks)
    return Direction(
        x=x,
        gates=gates,
        cell_output=o * tanh_c,
        tanh_c=tanh_c,
        h_prev=_previous(h, h_0, masks),
        c_prev=c_prev,
        gate_slopes=torch.stack(
            [g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], 2
        ),
        cell_slope=o * (1 - tanh_c * tanh_c),
        w_ih=weights.w_ih,
        w_hh=weights.w_hh,
        w_hr=weights.w_hr,
        masks=masks,
    )


def push_tangents(
    layer: Direction,
    x_dot: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    weights_dot: LayerWeights,
) -> Tangents:
    """The tangents of all values, from those of the input, the initial states and the weights."""
    steps, batch, _, hidden = layer.gates.shape

    # Sum what does not depend on other steps.
    source = layer.x.new_zeros(steps, batch, GATES * hidden)
    if x_dot is not None:
        source += x_dot @ layer.w_ih.t()
    for value, weight_dot in ((layer.x, weights_dot.w_ih), (layer.h_prev, weights_dot.w_hh)):
        if weight_dot is not None:
            source += value @ weight_dot.t()
    for bias_dot in (weights_dot.b_ih, weights_dot.b_hh):
        if bias_dot is not None:
            source += bias_dot
    w_hr_dot = weights_dot.w_hr
    h_source = None if w_hr_dot is None else layer.cell_output @ w_hr_dot.t()

    # Run the steps.
    w_hh = layer.w_hh.t()
    f = layer.gates[:, :, 1].unbind(0)
    gate_slopes, cell_slope = layer.gate_slopes.unbind(0), layer.cell_slope.unbind(0)
    valid, carried = _steps_of(layer.masks.valid, steps), _steps_of(layer.masks.carried, steps)
    h = layer.h_prev.new_zeros(layer.h_prev.shape[1:]) if h is None else h
    c = layer.c_prev.new_zeros(layer.c_prev.shape[1:]) if c is None else c
    values: list[tuple[Tensor, ...]] = []
    for t, step_source in enumerate(source.unbind(0)):
        h_prev, c_prev = select(carried[t], h), select(carried[t], c)
        a = torch.addmm(step_source, h_prev, w_hh).view(batch, GATES, hidden)
        by_a = a * gate_slopes[t]
        c_new = torch.addcmul(by_a[:, :3].sum(1), f[t], c_prev)
        cell_output = torch.addcmul(by_a[:, 3], cell_slope[t], c_new)
        h_new = cell_output
        if layer.w_hr is not None:
            h_new = cell_output @ layer.w_hr.t()
            if h_source is not None:
                h_new = h_new + h_source[t]
        values.append((a, h_prev, c_prev, c_new, cell_output, h_new))
        h, c = select(valid[t], h_new, h), select(valid[t], c_new, c)
    sequences = [torch.stack(each) for each in zip(*values, strict=True)]
    return Tangents._make([*sequences, h, c])


def pull_adjoints(
    layer: Direction,
    *,
    h: Tensor | None = None,
    cell_output: Tensor | None = None,
    c: Tensor | None = None,
    a: Tensor | None = None,
    h_prev: Tensor | None = None,
    c_prev: Tensor | None = None,
    h_n: Tensor | None = None,
    c_n: Tensor | None = None,
) -> Adjoints:
    """Backpropagates through time: the adjoints of all values, zero where no step takes place.

    The arguments are what the values, h_prev and c_prev after their resets, add to a loss beside
    the recurrence; None is zero.
    """
    steps, batch, _, hidden = layer.gates.shape
    f = layer.gates[:, :, 1].unbind(0)
    gate_slopes, cell_slope = layer.gate_slopes.unbind(0), layer.cell_slope.unbind(0)
    valid, carried = _steps_of(layer.masks.valid, steps), _steps_of(layer.masks.carried, steps)
    adj_state_h = layer.h_prev.new_zeros(layer.h_prev.shape[1:]) if h_n is None else h_n
    adj_state_c = layer.c_prev.new_zeros(layer.c_prev.shape[1:]) if c_n is None else c_n
    sequences = [
        torch.empty_like(t) for t in (layer.h_prev, layer.c_prev, layer.c_prev, layer.gates)
    ]
    rows = [sequence.unbind(0) for sequence in sequences]
    for t in reversed(range(steps)):
        adj_h, adj_cell_output, adj_c, adj_a = (row[t] for row in rows)
        torch.add(*_added(select(valid[t], adj_state_h), h, t), out=adj_h)
        if layer.w_hr is not None:
            torch.add(*_added(adj_h @ layer.w_hr, cell_output, t), out=adj_cell_output)
        else:
            torch.add(*_added(adj_h, cell_output, t), out=adj_cell_output)
        torch.add(*_added(select(valid[t], adj_state_c), c, t), out=adj_c)
        adj_c.addcmul_(adj_cell_output, cell_slope[t])
        torch.mul(gate_slopes[t][:, :3], adj_c.unsqueeze(1), out=adj_a[:, :3])
        torch.mul(gate_slopes[t][:, 3], adj_cell_output, out=adj_a[:, 3])
        if a is not None:
            adj_a += a[t]

        # Hand on: nothing through a reset, everything past a step that did not take place.
        adj_h_prev = adj_a.view(batch, GATES * hidden) @ layer.w_hh
        adj_c_prev = adj_c * f[t]
        if h_prev is not None:
            adj_h_prev += h_prev[t]
        if c_prev is not None:
            adj_c_prev += c_prev[t]
        adj_state_h = select(valid[t], select(carried[t], adj_h_prev), adj_state_h)
        adj_state_c = select(valid[t], select(carried[t], adj_c_prev), adj_state_c)
    return Adjoints._make([*sequences, adj_state_h, adj_state_c])


def _previous(states: Tensor, initial: Tensor, masks: Masks) -> Tensor:
    """The state before each step, from the states (T, N, F) that the steps made."""
    before = states[:-1]
    if masks.valid is not None:  # a row that starts later has its initial state
        before = torch.where(masks.valid[:-1], before, initial)
    return select(masks.carried, torch.cat([initial.unsqueeze(0), before]))


def _steps_of(mask: Tensor | None, steps: int) -> Sequence[Tensor | None]:
    return [None] * steps if mask is None else mask.unbind(0)


def _added(value: Tensor, sequence: Tensor | None, t: int) -> tuple[Tensor, Tensor | float]:
    return value, 0.0 if sequence is None else sequence[t]
