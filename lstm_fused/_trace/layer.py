# SPDX-License-Identifier: BSD-3-Clause
"""The gates of one layer, as the kernels save them for the backward, or as a graph that leads
through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from lstm_fused import reference
from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import GATES, LayerWeights, split_directions
from lstm_fused._torch.autocast import without_autocast
from lstm_fused.autograd import lstm_layer
from lstm_fused.autograd.arguments import LayerArguments, LayerResults
from lstm_fused.autograd.options_layer import options_layer, run_with_options
from lstm_fused.autograd.saved_rows import SequenceRows
from lstm_fused.reference_options import (
    LayerOptions,
    cell,
    clipped,
    each_step,
    kept,
    masked,
    normalised,
    of_direction,
    shown_state,
)

Results: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
# Takes the direction, a name of `States` and its values (T, N, features), and gives what goes on in
# their place.
Passage: TypeAlias = Callable[[int, str, Tensor], Tensor]


class States(NamedTuple):
    """The gates, cell states and outputs of one direction of one layer: (T, N, H), and h (T, N, P);
    zero past a row's length."""

    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    c: Tensor
    h: Tensor


class Recorded(NamedTuple):
    """What one layer gave, and what was seen of it."""

    results: Results  # as those of `lstm_layer`
    states: list[States]  # for each direction
    valid: Tensor | None  # bool (T, N): t lies inside row n; None: everywhere


def record_layer(
    arguments: LayerArguments, weights: Sequence[Tensor], options: LayerOptions | None = None
) -> Recorded:
    """Runs a layer by the kernels of training, without a graph, and reads what they save."""
    if not native.has_kernels(arguments.input.device):
        native.check_cuda_kernels(arguments.input.device)
        # Plain torch operations run here, and give every gate.
        return open_layer(arguments, weights, options, _pass)
    # NOTE: recompute would leave the gates out of what is saved.
    arguments = arguments._replace(recompute=False)
    if options is None:
        results = LayerResults._make(native.lstm_forward_op(*arguments.for_op(weights, True)))
    else:
        results = run_with_options(arguments, options, weights)
    directions, batch, _ = arguments.h_0.shape
    rows = SequenceRows(arguments.input, batch, arguments.masks)
    outputs = rows.padded(results.y).chunk(directions, dim=-1)
    states = [
        States._make(
            (
                *rows.padded_saved(results.gates[d]).chunk(GATES, dim=-1),
                rows.padded_saved(results.cells[d]),
                outputs[d],
            )
        )
        for d in range(directions)
    ]
    return Recorded(
        (results.y, results.h_n, results.c_n, results.cell_states), states, _valid(rows)
    )


def open_layer(
    arguments: LayerArguments,
    weights: Sequence[Tensor],
    options: LayerOptions | None,
    passage: Passage,
) -> Recorded:
    """Runs a layer with every gate, cell state and output as a node of the graph between its input
    and its results.

    The kernels give h of every step, with its gradient; with options c too. From them all gates
    follow at once, by one product for each direction, W_ih x_t + W_hh h_{t-1} + b. Of the gates,
    the cell states and the outputs are made anew. A gradient takes two ways, then: through what the
    gates made, and, from each gate, through the kernels to all that came before it. Together they
    are the layer's own, since the results are functions of the gates, and the gates of the input.

    16-bit types compute in float32, as the kernels accumulate.
    """
    with without_autocast(arguments.input.device):
        return _open_layer(arguments, weights, options, passage)


class _Course(NamedTuple):
    """How one direction goes through time."""

    masks: reference.Masks
    reset: Tensor | None  # bool (T, N, 1)
    options: LayerOptions  # this direction's, in the dtype to compute in
    reverse: bool

    def entering(self, states: Tensor, first: Tensor, given: Tensor | None) -> Tensor:
        """The states (T, N, features) that enter each step, of those that each left. given: what a
        reset leads to, in the place of zeros."""
        # A row that has not begun yet, as the reverse direction meets it, is in its initial state.
        states = reference.select(self.masks.valid, states, first)
        begin = first.unsqueeze(0)
        parts = [states[1:], begin] if self.reverse else [begin, states[:-1]]
        return _enter(torch.cat(parts), self.masks, self.reset, given)

    def run(
        self,
        step: Callable[[int, Tensor], Tensor],
        count: int,
        first: Tensor,
        given: Tensor | None,
    ) -> Tensor:
        """The states (T, N, features) that `count` steps leave, each made of its number and what
        enters it; zero past a row's length."""
        state, states = first, []
        for t in reversed(range(count)) if self.reverse else range(count):
            masks = self.masks.at(t)
            reset = None if self.reset is None else self.reset[t]
            made = step(t, _enter(state, masks, reset, given))
            state = reference.select(masks.valid, made, state)
            states.append(made)
        return reference.select(
            self.masks.valid, torch.stack(states[::-1] if self.reverse else states)
        )


def _enter(
    before: Tensor, masks: reference.Masks, reset: Tensor | None, given: Tensor | None
) -> Tensor:
    if reset is None or given is None:
        return reference.select(masks.carried, before)
    return reference.select(masks.valid, torch.where(reset, given, before))


def _open_layer(
    arguments: LayerArguments,
    weights: Sequence[Tensor],
    options: LayerOptions | None,
    passage: Passage,
) -> Recorded:
    if options is None:
        y, *_ = lstm_layer(arguments, weights)
        cell_states = None
    else:
        y, _, _, cell_states = options_layer(
            arguments._replace(return_cell_states=True), options, weights
        )
    directions, batch, _ = arguments.h_0.shape
    rows = SequenceRows(arguments.input, batch, arguments.masks)
    x, dtype = rows.padded(arguments.input), arguments.input.dtype
    outputs = rows.padded(y).chunk(directions, dim=-1)
    cells = None if cell_states is None else rows.padded(cell_states).chunk(directions, dim=-1)
    states: list[States] = []
    final_h, final_c = [], []
    for d, own in enumerate(split_directions(weights, directions)):
        h_0, c_0 = rows.state(arguments.h_0, d), rows.state(arguments.c_0, d)
        wide = LayerWeights._make(None if w is None else w.to(rows.dtype) for w in own)
        course = _course(rows, arguments.reset_mask, options, d)
        c_prev = None
        if cells is not None:
            c_prev = course.entering(cells[d], c_0, course.options.reset_c)
        h_prev = course.entering(outputs[d], h_0, course.options.reset_h)
        gates = _gates(x, h_prev, c_prev, wide, course)
        i, f, g, o = (passage(d, name, gate) for name, gate in zip("ifgo", gates, strict=True))
        c = passage(d, "c", _cell_states(i, f, g, c_0, course))
        h = passage(d, "h", _outputs(i, f, g, o, c, h_0, c_0, wide.w_hr, course))
        states.append(States(i, f, g, o, c, h))
        final_h.append(_final(h, h_0, rows.masks.valid, reverse=d == 1))
        final_c.append(_final(c, c_0, rows.masks.valid, reverse=d == 1))
    everything = rows.as_given(torch.cat([s.c for s in states], dim=-1)).to(dtype)
    results = (
        rows.as_given(torch.cat([s.h for s in states], dim=-1)).to(dtype),
        torch.stack(final_h).to(dtype),
        torch.stack(final_c).to(dtype),
        everything if arguments.return_cell_states else y.new_empty(0),
    )
    return Recorded(results, states, _valid(rows))


def _course(
    rows: SequenceRows, reset_mask: Tensor | None, options: LayerOptions | None, d: int
) -> _Course:
    """Direction d's, with options of padded rows."""
    own = LayerOptions()
    if options is not None:
        own = of_direction(options, d)

        def padded(keep: Tensor | None) -> Tensor | None:
            return None if keep is None else rows.padded(keep).flatten(0, 1)

        own = own._replace(keep_c=padded(own.keep_c), keep_h=padded(own.keep_h))
        own = LayerOptions._make(o.to(rows.dtype) if isinstance(o, Tensor) else o for o in own)
    reset = None if reset_mask is None else reset_mask.unsqueeze(-1)
    return _Course(rows.masks, reset, own, d == 1)


def _gates(
    x: Tensor, h_prev: Tensor, c_prev: Tensor | None, w: LayerWeights, course: _Course
) -> tuple[Tensor, ...]:
    """All gates of one direction (T, N, H) each, of its x (T, N, D) and the states that enter, h
    (T, N, P) and with options c (T, N, H)."""
    bias = None if w.b_ih is None else w.b_ih + w.b_hh
    from_h, gains = linear(masked(h_prev, course.options.h_mask), w.w_hh), course.options.gains
    if gains is None:
        preactivations = linear(x, w.w_ih, bias) + from_h
    else:
        preactivations = gains[0] * normalised(linear(x, w.w_ih)) + gains[1] * normalised(from_h)
        preactivations = preactivations if bias is None else preactivations + bias
    if c_prev is None:
        i, f, g, o = preactivations.chunk(GATES, dim=-1)
        gates = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    else:
        # NOTE: views, since one gate may have been made of another, which is held as it was.
        made, *_ = cell(preactivations, c_prev, course.options)
        gates = [gate.view_as(gate) for gate in made]
    return tuple(reference.select(course.masks.valid, gate) for gate in gates)


def _cell_states(i: Tensor, f: Tensor, g: Tensor, c_0: Tensor, course: _Course) -> Tensor:
    """Every cell state (T, N, H) of one direction, zero past a row's length, of gates that are
    given."""
    options = course.options
    # NOTE: unbound, since the gradient of an index is as large as what was indexed.
    of_before, added = f.unbind(), (i * g).unbind()
    keep = each_step(options.keep_c, options.zoneout_c, f)

    def step(t: int, c: Tensor) -> Tensor:
        return kept(keep[t], c, clipped(of_before[t] * c + added[t], options.cell_clip))

    return course.run(step, len(f), c_0, options.reset_c)


def _outputs(
    i: Tensor,
    f: Tensor,
    g: Tensor,
    o: Tensor,
    c: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w_hr: Tensor | None,
    course: _Course,
) -> Tensor:
    """Every output h (T, N, P) of one direction, zero past a row's length, of gates and cell states
    that are given."""
    options = course.options
    if options.keep_c is not None or options.zoneout_c > 0:
        # h sees the cell state ahead of zoneout, which is made of the one before it.
        before = course.entering(c, c_0, options.reset_c)
        c = clipped(f * before + i * g, options.cell_clip)
    h = o * shown_state(c, options.cell_norm).tanh()
    h = reference.select(course.masks.valid, h if w_hr is None else linear(h, w_hr))
    if options.keep_h is None and options.zoneout_h == 0:
        return h
    made, keep = h.unbind(), each_step(options.keep_h, options.zoneout_h, h)

    def step(t: int, before: Tensor) -> Tensor:
        return kept(keep[t], before, made[t])

    return course.run(step, len(made), h_0, options.reset_h)


def _final(h: Tensor, h_0: Tensor, valid: Tensor | None, *, reverse: bool) -> Tensor:
    """h (N, P) at each row's own end, of h (T, N, P); of rows of length 0 their h_0. So with c."""
    if valid is None:
        return h[0] if reverse else h[-1]
    lengths = valid.sum(dim=0)  # (N, 1)
    at = torch.zeros_like(lengths) if reverse else (lengths - 1).clamp_min(0)
    last = h.gather(0, at.expand(1, -1, h.shape[-1])).squeeze(0)
    return torch.where(lengths > 0, last, h_0)


def _valid(rows: SequenceRows) -> Tensor | None:
    return None if rows.masks.valid is None else rows.masks.valid.squeeze(-1)


def _pass(_: int, __: str, values: Tensor) -> Tensor:
    return values
