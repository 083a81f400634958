# SPDX-License-Identifier: BSD-3-Clause
"""The LSTM whose cell has options, in plain torch operations: `reference` carried on.

Notation, masks and rules are those of :mod:`lstm_fused.reference`; of one step, where an option is
absent, what it adds is left out:

    n(z)    = (z - mean(z)) / sqrt(var(z) + 1e-5) over a row's features
    u, v    = x W_ih^T, (h_prev * h_mask) W_hh^T                             (N, 4H)
    a       = gain_x * n(u) + gain_h * n(v) + b_ih + b_hh
    f       = sigmoid(a_f + w_cf * c_prev)
    i       = sigmoid(a_i + w_ci * c_prev), or 1 - f with coupled gates
    g       = tanh(a_g)
    c_new   = clamp(f * c_prev + i * g, -cell_clip, cell_clip)
    o       = sigmoid(a_o + w_co * c_new)
    shown   = gain_c * n(c_new) + bias_c
    h_new   = cell_output W_hr^T, cell_output = o * tanh(shown)
    c, h    = keep_c * c_prev + (1 - keep_c) * c_new, keep_h * h_prev + (1 - keep_h) * h_new

and where a step is reset, h_prev and c_prev are reset_h and reset_c.

References
    Gers, Schraudolph, Schmidhuber: Learning precise timing with LSTM recurrent networks.
        JMLR 3, 2002.                                                       (w_ci, w_cf, w_co)
    Sak, Senior, Beaufays 2014, as above.                                   (cell_clip)
    Ba, Kiros, Hinton: Layer normalization. arXiv:1607.06450, 2016; with the placement of the
        library haste, of gains without biases but for that of c.           (gain_x, gain_h, gain_c)
    Gal, Ghahramani: A theoretically grounded application of dropout in recurrent neural networks.
        NIPS 2016.                                                          (h_mask)
    Krueger et al.: Zoneout: regularizing RNNs by randomly preserving hidden activations.
        ICLR 2017.                                                          (keep_c, keep_h)
    Greff, Srivastava, Koutník, Steunebrink, Schmidhuber: LSTM: a search space odyssey. IEEE
        Transactions on Neural Networks and Learning Systems 28(10), 2017.  (coupled gates)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from lstm_fused.reference import Gates, make_masks, select

__all__ = ["NORM_EPSILON", "LayerOptions", "lstm_layer"]

# Added to a variance ahead of its square root, as by nn.LayerNorm.
NORM_EPSILON = 1e-5


class LayerOptions(NamedTuple):
    """The options of one layer's cell; tensors hold all its directions, dirs in front. Without
    masks keep_c and keep_h, zoneout_c and zoneout_h say what part is kept. 0 is no cell_clip."""

    peephole: Tensor | None = None  # (dirs, 3, H): w_ci, w_cf, w_co
    h_mask: Tensor | None = None  # (dirs, N, P)
    keep_c: Tensor | None = None  # bool (dirs, T·N, H)
    keep_h: Tensor | None = None  # bool (dirs, T·N, H)
    reset_h: Tensor | None = None  # (dirs, N, P)
    reset_c: Tensor | None = None  # (dirs, N, H)
    gains: Tensor | None = None  # (dirs, 2, 4H): gain_x, gain_h
    cell_norm: Tensor | None = None  # (dirs, 2, H): gain_c, bias_c; there if gains are
    coupled_gates: bool = False
    cell_clip: float = 0.0
    zoneout_c: float = 0.0
    zoneout_h: float = 0.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (
            *(self.peephole, self.h_mask, self.keep_c, self.keep_h),
            *(self.reset_h, self.reset_c, self.gains, self.cell_norm),
        )

    @property
    def are_any(self) -> bool:
        """Whether the cell is another than nn.LSTM's."""
        # NOTE: not by ==, which tensors make a computation.
        has_tensors = any(tensor is not None for tensor in self.tensors)
        return has_tensors or any(self[OPTION_TENSORS:])


# The fields of LayerOptions that are tensors come first.
OPTION_TENSORS = 8


class Step(NamedTuple):
    """What one step of one direction read and made, by the names of the formulas."""

    h_prev: Tensor  # (N, P), as it enters the step: after masks and resets
    c_prev: Tensor  # (N, H), as it enters
    v: Tensor  # (N, 4H)
    gates: Gates  # four of (N, H), activated
    unclipped: Tensor  # (N, H): f * c_prev + i * g
    c_new: Tensor  # (N, H)
    shown: Tensor  # (N, H)
    cell_output: Tensor  # (N, H)
    h: Tensor  # (N, P)
    c: Tensor  # (N, H)


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    options: LayerOptions,
    *,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`lstm_fused.reference.lstm_layer` with options of the cell."""
    directions = h_0.size(0)
    masks = make_masks(input, lengths, reset_mask)
    x = select(masks.valid, input)
    runs = [
        run_direction(x, h_0[d], c_0[d], own, given, masks.valid, reset_mask, reverse=d == 1)
        for d, (own, given) in enumerate(by_direction(weights, options, directions))
    ]
    y = torch.cat([torch.stack([s.h for s in steps]) for steps, _, _ in runs], dim=-1)
    cells = torch.cat([torch.stack([s.c for s in steps]) for steps, _, _ in runs], dim=-1)
    h_n = torch.stack([h for _, h, _ in runs])
    c_n = torch.stack([c for _, _, c in runs])
    return select(masks.valid, y), h_n, c_n, select(masks.valid, cells)


def by_direction(
    weights: Sequence[Tensor], options: LayerOptions, directions: int
) -> list[tuple[Sequence[Tensor], LayerOptions]]:
    each = len(weights) // directions
    return [
        (weights[d * each : (d + 1) * each], of_direction(options, d)) for d in range(directions)
    ]


def of_direction(options: LayerOptions, d: int) -> LayerOptions:
    """One direction's, without the first size of the tensors."""
    own = [None if tensor is None else tensor[d] for tensor in options.tensors]
    return LayerOptions._make((*own, *options[OPTION_TENSORS:]))


def run_direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    options: LayerOptions,
    valid: Tensor | None,
    reset_mask: Tensor | None,
    *,
    reverse: bool,
) -> tuple[list[Step], Tensor, Tensor]:
    """Run one direction over x (T, N, D), padding masked: its steps in time order, h_n, c_n."""
    w_ih, w_hh = weights[:2]
    bias = weights[2] + weights[3] if len(weights) >= 4 else None
    w_hr = weights[-1] if len(weights) in (3, 5) else None
    if options.gains is None:
        from_input = linear(x, w_ih, bias)
    else:
        from_input = normalised(linear(x, w_ih)) * options.gains[0]
        from_input = from_input if bias is None else from_input + bias
    keep_c = each_step(options.keep_c, options.zoneout_c, x)
    keep_h = each_step(options.keep_h, options.zoneout_h, x)
    steps: list[Step] = []
    for t in range(x.shape[0] - 1, -1, -1) if reverse else range(x.shape[0]):
        h_prev, c_prev = h, c
        if reset_mask is not None:
            carried = ~reset_mask[t].unsqueeze(-1)
            h_prev = select(carried, h, 0.0 if options.reset_h is None else options.reset_h)
            c_prev = select(carried, c, 0.0 if options.reset_c is None else options.reset_c)
        mask = None if valid is None else valid[t]
        # NOTE: a row that takes no part may hold the NaN of a state that a later step resets.
        h_prev, c_prev = select(mask, h_prev), select(mask, c_prev)
        v = from_state = linear(masked(h_prev, options.h_mask), w_hh)
        if options.gains is not None:
            from_state = normalised(v) * options.gains[1]
        gates, unclipped, c_new, shown = cell(from_input[t] + from_state, c_prev, options)
        cell_output = gates[3] * shown.tanh()
        h_new = cell_output if w_hr is None else linear(cell_output, w_hr)
        h_new = kept(keep_h[t], h_prev, h_new)
        c_next = kept(keep_c[t], c_prev, c_new)
        made = (unclipped, c_new, shown, cell_output, h_new, c_next)
        steps.append(Step(h_prev, c_prev, v, gates, *made))
        h, c = select(mask, h_new, h), select(mask, c_next, c)
    return steps[::-1] if reverse else steps, h, c


def each_step(keep: Tensor | None, fixed: float, x: Tensor) -> Sequence[Tensor | float]:
    """What each step keeps: masks (N, H), or the fixed part."""
    if keep is None:
        return [fixed] * x.shape[0]
    return keep.view(*x.shape[:2], keep.shape[-1]).to(x.dtype).unbind()


def masked(h_prev: Tensor, h_mask: Tensor | None) -> Tensor:
    return h_prev if h_mask is None else h_prev * h_mask


def cell(
    preactivations: Tensor, c_prev: Tensor, options: LayerOptions
) -> tuple[Gates, Tensor, Tensor, Tensor]:
    """The gates, f * c_prev + i * g, c_new, and what tanh takes of it; of one step (N, …), or of
    many."""
    a_i, a_f, a_g, a_o = preactivations.chunk(4, dim=-1)
    if options.peephole is not None:
        a_i = a_i + options.peephole[0] * c_prev
        a_f = a_f + options.peephole[1] * c_prev
    f, g = a_f.sigmoid(), a_g.tanh()
    i = 1 - f if options.coupled_gates else a_i.sigmoid()
    unclipped = f * c_prev + i * g
    c = clipped(unclipped, options.cell_clip)
    if options.peephole is not None:
        a_o = a_o + options.peephole[2] * c
    return (i, f, g, a_o.sigmoid()), unclipped, c, shown_state(c, options.cell_norm)


def clipped(c: Tensor, cell_clip: float) -> Tensor:
    """c within the limit; 0 is none."""
    return c.clamp(-cell_clip, cell_clip) if cell_clip > 0 else c


def shown_state(c: Tensor, cell_norm: Tensor | None) -> Tensor:
    """What tanh takes of c_new (…, H), with cell_norm (2, H) of one direction."""
    return c if cell_norm is None else normalised(c) * cell_norm[0] + cell_norm[1]


def kept(keep: Tensor | float, before: Tensor, after: Tensor) -> Tensor:
    """The state that zoneout leaves."""
    if isinstance(keep, float) and keep == 0:
        return after
    return keep * before + (1 - keep) * after


def normalised(values: Tensor) -> Tensor:
    """n of the module's docstring."""
    return layer_norm(values, values.shape[-1:], eps=NORM_EPSILON)
