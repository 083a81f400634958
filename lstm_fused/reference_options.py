# SPDX-License-Identifier: BSD-3-Clause
"""The LSTM whose cell has options, in plain torch operations: `reference` carried on.

Notation, masks and rules are those of :mod:`lstm_fused.reference`; of one step, where an option is
absent, what it adds is left out:

    n(v)    = (v - mean(v)) / sqrt(var(v) + 1e-5) over a row's features
    a       = gain_x * n(x W_ih^T) + gain_h * n((h_prev * h_mask) W_hh^T) + b_ih + b_hh
    f       = sigmoid(a_f + w_cf * c_prev)
    i       = sigmoid(a_i + w_ci * c_prev), or 1 - f with coupled gates
    g       = tanh(a_g)
    c_new   = clamp(f * c_prev + i * g, -cell_clip, cell_clip)
    o       = sigmoid(a_o + w_co * c_new)
    h_new   = o * tanh(gain_c * n(c_new) + bias_c)
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

from lstm_fused.reference import make_masks, select

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
    each = len(weights) // directions
    masks = make_masks(input, lengths, reset_mask)
    x = select(masks.valid, input)
    parts = [
        _run_direction(
            x,
            h_0[d],
            c_0[d],
            weights[d * each : (d + 1) * each],
            _of_direction(options, d),
            masks.valid,
            None if reset_mask is None else reset_mask.unsqueeze(-1),
            reverse=d == 1,
        )
        for d in range(directions)
    ]
    y = torch.cat([torch.stack(hs) for hs, _, _, _ in parts], dim=-1)
    cells = torch.cat([torch.stack(cs) for _, cs, _, _ in parts], dim=-1)
    h_n = torch.stack([h for _, _, h, _ in parts])
    c_n = torch.stack([c for _, _, _, c in parts])
    return select(masks.valid, y), h_n, c_n, select(masks.valid, cells)


def _of_direction(options: LayerOptions, d: int) -> LayerOptions:
    own = [None if tensor is None else tensor[d] for tensor in options.tensors]
    return LayerOptions._make((*own, *options[OPTION_TENSORS:]))


def _run_direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    options: LayerOptions,
    valid: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """One direction: h and c of all steps, in time order, and the last states."""
    w_ih, w_hh = weights[:2]
    bias = weights[2] + weights[3] if len(weights) >= 4 else None
    w_hr = weights[-1] if len(weights) in (3, 5) else None
    steps = x.shape[0]
    if options.gains is None:
        from_input = linear(x, w_ih, bias)
    else:
        from_input = _normalised(linear(x, w_ih)) * options.gains[0]
        from_input = from_input if bias is None else from_input + bias
    keep_c = _each_step(options.keep_c, options.zoneout_c, x)
    keep_h = _each_step(options.keep_h, options.zoneout_h, x)
    hs: list[Tensor] = []
    cs: list[Tensor] = []
    for t in range(steps - 1, -1, -1) if reverse else range(steps):
        h_prev, c_prev = h, c
        if reset is not None:
            h_prev = select(~reset[t], h, 0.0 if options.reset_h is None else options.reset_h)
            c_prev = select(~reset[t], c, 0.0 if options.reset_c is None else options.reset_c)
        mask = None if valid is None else valid[t]
        # NOTE: a row that takes no part may hold the NaN of a state that a later step resets.
        h_prev, c_prev = select(mask, h_prev), select(mask, c_prev)
        entering = h_prev if options.h_mask is None else h_prev * options.h_mask
        from_state = linear(entering, w_hh)
        if options.gains is not None:
            from_state = _normalised(from_state) * options.gains[1]
        h_new, c_new = _cell(from_input[t] + from_state, c_prev, options)
        h_new = h_new if w_hr is None else linear(h_new, w_hr)
        h_new = _kept(keep_h[t], h_prev, h_new)
        c_new = _kept(keep_c[t], c_prev, c_new)
        hs.append(h_new)
        cs.append(c_new)
        h, c = select(mask, h_new, h), select(mask, c_new, c)
    return (hs[::-1], cs[::-1], h, c) if reverse else (hs, cs, h, c)


def _each_step(keep: Tensor | None, fixed: float, x: Tensor) -> Sequence[Tensor | float]:
    """What each step keeps: masks (N, H), or the fixed part."""
    if keep is None:
        return [fixed] * x.shape[0]
    return keep.view(*x.shape[:2], keep.shape[-1]).to(x.dtype).unbind()


def _cell(preactivations: Tensor, c_prev: Tensor, options: LayerOptions) -> tuple[Tensor, Tensor]:
    """o * tanh of the normalised c_new, and c_new."""
    a_i, a_f, a_g, a_o = preactivations.chunk(4, dim=-1)
    if options.peephole is not None:
        a_i = a_i + options.peephole[0] * c_prev
        a_f = a_f + options.peephole[1] * c_prev
    f = a_f.sigmoid()
    i = 1 - f if options.coupled_gates else a_i.sigmoid()
    c = f * c_prev + i * a_g.tanh()
    if options.cell_clip > 0:
        c = c.clamp(-options.cell_clip, options.cell_clip)
    if options.peephole is not None:
        a_o = a_o + options.peephole[2] * c
    shown = c
    if options.cell_norm is not None:
        shown = _normalised(c) * options.cell_norm[0] + options.cell_norm[1]
    return a_o.sigmoid() * shown.tanh(), c


def _kept(keep: Tensor | float, before: Tensor, after: Tensor) -> Tensor:
    if isinstance(keep, float) and keep == 0:
        return after
    return keep * before + (1 - keep) * after


def _normalised(values: Tensor) -> Tensor:
    return layer_norm(values, values.shape[-1:], eps=NORM_EPSILON)
