# SPDX-License-Identifier: BSD-3-Clause
"""One direction of a layer, linearized about what the forward saved: its tangents, forward in
time, and its adjoints, backward in time. Both are linear recurrences of half a dozen torch
operations a step.

Notation of `lstm_fused.reference`. Sequences lie in the order of the direction's steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_fused.reference import Masks, select

GATES = 4


class Direction(NamedTuple):
    """One direction of the layer: (T, N, ...) each, in the order of its steps."""

    x: Tensor
    gates: Tensor  # (T, N, 4, H): i, f, g, o
    h_tilde: Tensor
    tanh_c: Tensor
    h_in: Tensor  # as it enters the step
    c_in: Tensor
    by_gate: Tensor  # (T, N, 4, H): how c (of i, f, g) or h~ (of o) follow pre-activations
    by_cell: Tensor  # how h~ follows c
    w_ih: Tensor
    w_hh: Tensor
    w_hr: Tensor | None
    masks: Masks


class Tangents(NamedTuple):
    a: Tensor  # (T, N, 4, H)
    h_in: Tensor
    c_in: Tensor
    c: Tensor
    h_tilde: Tensor
    h: Tensor
    h_n: Tensor
    c_n: Tensor


class Adjoints(NamedTuple):
    """What a loss gains by each value, from step to step, and by the initial states."""

    h: Tensor  # (T, N, P)
    h_tilde: Tensor
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
    weights: Sequence[Tensor],
    masks: Masks,
) -> Direction:
    """Of input, outputs, activated gates (T, N, 4H) and cell states, zero where no step takes
    place; initial states; w_ih, w_hh [, b_ih, b_hh] [, w_hr]."""
    gates = gates.view(*cells.shape[:2], GATES, cells.shape[2])
    i, f, g, o = gates.unbind(2)
    tanh_c = cells.tanh()
    c_in = _entering(cells, c_0, masks)
    return Direction(
        x=x,
        gates=gates,
        h_tilde=o * tanh_c,
        tanh_c=tanh_c,
        h_in=_entering(h, h_0, masks),
        c_in=c_in,
        by_gate=torch.stack(
            [g * i * (1 - i), c_in * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], 2
        ),
        by_cell=o * (1 - tanh_c * tanh_c),
        w_ih=weights[0],
        w_hh=weights[1],
        w_hr=weights[-1] if len(weights) in (3, 5) else None,
        masks=masks,
    )


def push_tangents(
    layer: Direction,
    x_dot: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    weights_dot: Sequence[Tensor | None],
) -> Tangents:
    """The tangents of all values, from those of the input, the initial states and the weights."""
    steps, batch, _, hidden = layer.gates.shape

    # Sum what does not depend on other steps.
    source = layer.x.new_zeros(steps, batch, GATES * hidden)
    if x_dot is not None:
        source += x_dot @ layer.w_ih.t()
    for value, weight_dot in zip((layer.x, layer.h_in), weights_dot, strict=False):
        if weight_dot is not None:
            source += value @ weight_dot.t()
    if len(weights_dot) >= 4:
        for bias_dot in weights_dot[2:4]:
            if bias_dot is not None:
                source += bias_dot
    w_hr_dot = weights_dot[-1] if layer.w_hr is not None else None
    h_source = None if w_hr_dot is None else layer.h_tilde @ w_hr_dot.t()

    # Run the steps.
    w_hh = layer.w_hh.t()
    f = layer.gates[:, :, 1].unbind(0)
    by_gate, by_cell = layer.by_gate.unbind(0), layer.by_cell.unbind(0)
    valid, keep = _each(layer.masks.valid, steps), _each(layer.masks.keep, steps)
    h = layer.h_in.new_zeros(layer.h_in.shape[1:]) if h is None else h
    c = layer.c_in.new_zeros(layer.c_in.shape[1:]) if c is None else c
    values: list[tuple[Tensor, ...]] = []
    for t, own_source in enumerate(source.unbind(0)):
        h_in, c_in = select(keep[t], h), select(keep[t], c)
        a = torch.addmm(own_source, h_in, w_hh).view(batch, GATES, hidden)
        by_a = a * by_gate[t]
        c_new = torch.addcmul(by_a[:, :3].sum(1), f[t], c_in)
        h_tilde = torch.addcmul(by_a[:, 3], by_cell[t], c_new)
        h_new = h_tilde
        if layer.w_hr is not None:
            h_new = h_tilde @ layer.w_hr.t()
            if h_source is not None:
                h_new = h_new + h_source[t]
        values.append((a, h_in, c_in, c_new, h_tilde, h_new))
        h, c = select(valid[t], h_new, h), select(valid[t], c_new, c)
    sequences = [torch.stack(each) for each in zip(*values, strict=True)]
    return Tangents._make([*sequences, h, c])


def pull_adjoints(
    layer: Direction,
    *,
    h: Tensor | None = None,
    h_tilde: Tensor | None = None,
    c: Tensor | None = None,
    a: Tensor | None = None,
    h_in: Tensor | None = None,
    c_in: Tensor | None = None,
    h_n: Tensor | None = None,
    c_n: Tensor | None = None,
) -> Adjoints:
    """All adjoints, from those that the values have beside the recurrence (None: none); those of
    h_in and c_in as they enter a step. All are zero where no step takes place."""
    steps, batch, _, hidden = layer.gates.shape
    f = layer.gates[:, :, 1].unbind(0)
    by_gate, by_cell = layer.by_gate.unbind(0), layer.by_cell.unbind(0)
    valid, keep = _each(layer.masks.valid, steps), _each(layer.masks.keep, steps)
    along_h = layer.h_in.new_zeros(layer.h_in.shape[1:]) if h_n is None else h_n
    along_c = layer.c_in.new_zeros(layer.c_in.shape[1:]) if c_n is None else c_n
    sequences = [torch.empty_like(t) for t in (layer.h_in, layer.c_in, layer.c_in, layer.gates)]
    rows = [sequence.unbind(0) for sequence in sequences]
    for t in reversed(range(steps)):
        of_h, of_h_tilde, of_c, of_a = (row[t] for row in rows)
        torch.add(*_added(select(valid[t], along_h), h, t), out=of_h)
        if layer.w_hr is not None:
            torch.add(*_added(of_h @ layer.w_hr, h_tilde, t), out=of_h_tilde)
        else:
            torch.add(*_added(of_h, h_tilde, t), out=of_h_tilde)
        torch.add(*_added(select(valid[t], along_c), c, t), out=of_c)
        of_c.addcmul_(of_h_tilde, by_cell[t])
        torch.mul(by_gate[t][:, :3], of_c.unsqueeze(1), out=of_a[:, :3])
        torch.mul(by_gate[t][:, 3], of_h_tilde, out=of_a[:, 3])
        if a is not None:
            of_a += a[t]

        # Hand on: nothing through a reset, everything past a step that did not take place.
        before_h = of_a.view(batch, GATES * hidden) @ layer.w_hh
        before_c = of_c * f[t]
        if h_in is not None:
            before_h += h_in[t]
        if c_in is not None:
            before_c += c_in[t]
        along_h = select(valid[t], select(keep[t], before_h), along_h)
        along_c = select(valid[t], select(keep[t], before_c), along_c)
    return Adjoints._make([*sequences, along_h, along_c])


def _entering(states: Tensor, initial: Tensor, masks: Masks) -> Tensor:
    """The state that enters each step: (T, N, F) of the states that the steps made."""
    before = states[:-1]
    if masks.valid is not None:  # a row that starts later enters with its initial state
        before = torch.where(masks.valid[:-1], before, initial)
    return select(masks.keep, torch.cat([initial.unsqueeze(0), before]))


def _each(mask: Tensor | None, steps: int) -> Sequence[Tensor | None]:
    return [None] * steps if mask is None else mask.unbind(0)


def _added(value: Tensor, sequence: Tensor | None, t: int) -> tuple[Tensor, Tensor | float]:
    return value, 0.0 if sequence is None else sequence[t]
