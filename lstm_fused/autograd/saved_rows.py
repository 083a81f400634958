# SPDX-License-Identifier: BSD-3-Clause
"""The rows that a layer's forward saved, as padded sequences; and what it did not save, made
anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import GATES, split_directions
from lstm_fused.autograd.arguments import LayerArguments, LayerMasks, LayerResults, SavedLayer
from lstm_fused.packing import (
    pack_rows,
    packed_lengths,
    packed_positions,
    pad_rows,
    saved_positions,
)
from lstm_fused.reference import make_masks, select


class SequenceRows:
    """Brings sequences to (T, N, features), zero past a row's length, in the dtype to compute in;
    and back.

    Args:
        input: the layer's, (T, N, D), or (M, D) with batch_sizes.
        batch: N.
    """

    def __init__(self, input: Tensor, batch: int, masks: LayerMasks) -> None:
        lengths, batch_sizes, reset_mask = masks
        is_16_bit = input.dtype in (torch.bfloat16, torch.float16)
        self.dtype = torch.float32 if is_16_bit else input.dtype
        self.steps = input.shape[0] if batch_sizes is None else batch_sizes.numel()
        self.batch = batch
        # Where the rows of packed data, and those that the kernels saved, belong; None: in order.
        self._given: Tensor | None = None
        self._saved: Tensor | None = None
        if batch_sizes is not None:
            self._given = self._saved = packed_positions(batch_sizes, batch).to(input.device)
            lengths = packed_lengths(batch_sizes, batch).to(input.device)
        elif lengths is not None and native.saves_packed_rows(input.device):
            self._saved = saved_positions(lengths, self.steps)
        shape = input.new_empty(0).expand(self.steps, batch, 0)
        self.masks = make_masks(shape, lengths, reset_mask)

    def padded(self, sequence: Tensor) -> Tensor:
        return self._at(self._given, sequence)

    def padded_saved(self, values: Tensor) -> Tensor:
        """Padded gates or cells of one direction."""
        return self._at(self._saved, values)

    def _at(self, positions: Tensor | None, data: Tensor) -> Tensor:
        if positions is not None:
            data = pad_rows(data[: positions.numel()], positions, self.steps, self.batch)
        # Rows past a length may never have been written.
        padded = data.reshape(self.steps, self.batch, data.shape[-1])
        return select(self.masks.valid, padded).to(self.dtype)

    def state(self, states: Tensor | None, d: int) -> Any:
        """One direction's state, or None."""
        return None if states is None else states[d].to(self.dtype)

    def as_given(self, padded: Tensor) -> Tensor:
        return padded if self._given is None else pack_rows(padded, self._given)


def activated_gates(saved: SavedLayer, weights: Sequence[Tensor]) -> Tensor:
    """The gates (L, M, 4H) of a forward; of one with `recompute`, which saved none, by another
    forward, to the same bits."""
    return saved.gates if _has_gates(saved) else _rerun(saved, weights, True).gates


def rebuild_output(saved: SavedLayer, weights: Sequence[Tensor]) -> Tensor:
    """The output y of a forward, for whoever has overwritten it: h = o·tanh(c), projected where the
    layer is; or, where no gates were saved, another forward's."""
    if not _has_gates(saved):
        return _rerun(saved, weights, False).y
    directions, batch, _ = saved.h_0.shape
    rows = SequenceRows(saved.input, batch, saved.masks)
    outputs = []
    for d, direction in enumerate(split_directions(weights, directions)):
        output_gate, cells = saved.gates[d].chunk(GATES, dim=-1)[3], saved.cells[d]
        h = rows.padded_saved(output_gate.to(cells.dtype) * cells.tanh())
        if direction.w_hr is not None:
            # NOTE: rounded as the kernels round what they multiply.
            h = h.to(direction.w_hr.dtype).to(h.dtype) @ direction.w_hr.to(h.dtype).t()
        outputs.append(h)
    return rows.as_given(torch.cat(outputs, dim=-1)).to(saved.input.dtype)


def _has_gates(saved: SavedLayer) -> bool:
    return saved.gates.dim() == 3


def _rerun(saved: SavedLayer, weights: Sequence[Tensor], save_for_backward: bool) -> LayerResults:
    arguments = LayerArguments(*saved.tensors)
    return LayerResults._make(native.lstm_forward_op(*arguments.for_op(weights, save_for_backward)))
