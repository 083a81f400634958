# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of the ops by name, in the order of their schemas (csrc/torch/schemas.h).

The values are tensors, or what stands for tensors: shapes, and dimensions of torch.vmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class ForwardArguments(NamedTuple):
    """The arguments of lstm_forward, and of the layer's op under torch.compile."""

    input: Any
    h_0: Any
    c_0: Any
    weights: Any
    lengths: Any
    batch_sizes: Any
    reset_mask: Any
    save_for_backward: bool
    return_cell_states: bool
    recompute: bool = False


class OptionsForwardArguments(NamedTuple):
    """The arguments of lstm_options_forward, and of its op under torch.compile."""

    input: Any
    h_0: Any
    c_0: Any
    weights: Any
    lengths: Any
    batch_sizes: Any
    reset_mask: Any
    peephole: Any
    h_mask: Any
    keep_c: Any
    keep_h: Any
    reset_h: Any
    reset_c: Any
    gains: Any
    cell_norm: Any
    coupled_gates: bool
    cell_clip: float
    zoneout_c: float
    zoneout_h: float
    save_for_backward: bool
    return_cell_states: bool
    recompute: bool = False

    @property
    def plain(self) -> ForwardArguments:
        """The arguments that lstm_forward takes of these."""
        return ForwardArguments(*self[:7], *self[-3:])


class OptionsBackwardArguments(NamedTuple):
    """The arguments of lstm_options_backward."""

    grad_y: Any
    grad_h_n: Any
    grad_c_n: Any
    grad_cell_states: Any
    input: Any
    h_0: Any
    c_0: Any
    weights: Any
    lengths: Any
    batch_sizes: Any
    reset_mask: Any
    peephole: Any
    h_mask: Any
    keep_c: Any
    keep_h: Any
    reset_h: Any
    reset_c: Any
    gains: Any
    cell_norm: Any
    coupled_gates: bool
    cell_clip: float
    zoneout_c: float
    zoneout_h: float
    y: Any
    gates: Any
    cells: Any
    normalised: Any
    scales: Any
    need_input: bool
    need_states: bool
    need_weights: bool
    need_options: bool

    @property
    def plain(self) -> BackwardArguments:
        """The arguments that lstm_backward takes of these."""
        saved = (self.y, self.gates, self.cells)
        return BackwardArguments(*self[:11], *saved, *self[-4:-1])


class BackwardArguments(NamedTuple):
    """The arguments of lstm_backward."""

    grad_y: Any
    grad_h_n: Any
    grad_c_n: Any
    grad_cell_states: Any
    input: Any
    h_0: Any
    c_0: Any
    weights: Any
    lengths: Any
    batch_sizes: Any
    reset_mask: Any
    y: Any
    gates: Any
    cells: Any
    need_input: Any
    need_states: Any
    need_weights: Any

    @classmethod
    def from_flat(cls, flat: Sequence[Any]) -> BackwardArguments:
        """Reads flat arguments, in which the weights come one by one, last."""
        at, count = cls._fields.index("weights"), len(cls._fields) - 1
        return cls._make((*flat[:at], flat[count:], *flat[at:count]))

    def flatten(self) -> tuple[Any, ...]:
        at = self._fields.index("weights")
        return *self[:at], *self[at + 1 :], *self.weights


class CellBackwardArguments(NamedTuple):
    """The arguments of lstm_cell_backward."""

    grad_h_next: Any
    grad_c_next: Any
    input: Any
    h: Any
    c: Any
    weights: Any
    gates: Any
    cells: Any
    need_input: bool
    need_states: bool
    need_weights: bool
