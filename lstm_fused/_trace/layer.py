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
from lstm_fused.autograd.options_layer import run_with_options
from lstm_fused.autograd.saved_rows import SequenceRows
from lstm_fused.reference_options import LayerOptions

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
        if options is not None:
            raise RuntimeError("a trace of a cell with options needs the compiled kernels")
        return open_layer(arguments, weights, _pass)  # which needs no kernel that saves gates
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


def open_layer(arguments: LayerArguments, weights: Sequence[Tensor], passage: Passage) -> Recorded:
    """Runs a layer with every gate, cell state and output as a node of the graph between its input
    and its results.

    The kernels give h of every step, with its gradient. From it all gates follow at once, by one
    product for each direction, W_ih x_t + W_hh h_{t-1} + b. Of the gates, the cell states and the
    outputs are made anew. A gradient takes two ways, then: through what the gates made, and, from
    each gate, through the kernels to all that came before it. Together they are the layer's own,
    since the results are functions of the gates, and the gates of the input.

    16-bit types compute in float32, as the kernels accumulate.
    """
    with without_autocast(arguments.input.device):
        return _open_layer(arguments, weights, passage)


def _open_layer(arguments: LayerArguments, weights: Sequence[Tensor], passage: Passage) -> Recorded:
    y, *_ = lstm_layer(arguments, weights)
    directions, batch, _ = arguments.h_0.shape
    rows = SequenceRows(arguments.input, batch, arguments.masks)
    x, dtype = rows.padded(arguments.input), arguments.input.dtype
    outputs = rows.padded(y).chunk(directions, dim=-1)
    states: list[States] = []
    final_h, final_c = [], []
    for d, own in enumerate(split_directions(weights, directions)):
        h_0, c_0 = rows.state(arguments.h_0, d), rows.state(arguments.c_0, d)
        wide = LayerWeights._make(None if w is None else w.to(rows.dtype) for w in own)
        gates = _gates(x, outputs[d], h_0, wide, rows.masks, reverse=d == 1)
        i, f, g, o = (passage(d, name, gate) for name, gate in zip("ifgo", gates, strict=True))
        c = passage(d, "c", _cell_states(i, f, g, c_0, rows.masks, reverse=d == 1))
        h = o * c.tanh()
        h = reference.select(rows.masks.valid, h if wide.w_hr is None else linear(h, wide.w_hr))
        h = passage(d, "h", h)
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


def _gates(
    x: Tensor,
    h: Tensor,
    h_0: Tensor,
    w: LayerWeights,
    masks: reference.Masks,
    *,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """All gates of one direction (T, N, H) each, of its x (T, N, D) and its h (T, N, P)."""
    # A row that has not begun yet, as the reverse direction meets it, is in its initial state.
    h = reference.select(masks.valid, h, h_0)
    first = h_0.unsqueeze(0)
    h_prev = torch.cat([h[1:], first]) if reverse else torch.cat([first, h[:-1]])
    h_prev = reference.select(masks.carried, h_prev)
    bias = None if w.b_ih is None else w.b_ih + w.b_hh
    preactivations = linear(x, w.w_ih, bias) + linear(h_prev, w.w_hh)
    i, f, g, o = preactivations.chunk(GATES, dim=-1)
    gates = (i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())
    return tuple(reference.select(masks.valid, gate) for gate in gates)


def _cell_states(
    i: Tensor, f: Tensor, g: Tensor, c_0: Tensor, masks: reference.Masks, *, reverse: bool
) -> Tensor:
    """Every cell state (T, N, H) of one direction, zero past a row's length, of gates that are
    given."""
    c, steps = c_0, range(len(f))
    # NOTE: unbound, since the gradient of an index is as large as what was indexed.
    kept, added = f.unbind(), (i * g).unbind()
    states: list[Tensor] = []
    for t in reversed(steps) if reverse else steps:
        valid, carried = masks.at(t)
        c_new = kept[t] * reference.select(carried, c) + added[t]
        c = reference.select(valid, c_new, c)
        states.append(c_new)
    return reference.select(masks.valid, torch.stack(states[::-1] if reverse else states))


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
