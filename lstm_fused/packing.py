# SPDX-License-Identifier: BSD-3-Clause
"""Differentiable moves between a PackedSequence's data and padded sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_positions(batch_sizes: Tensor, batch: int) -> Tensor:
    """Rows of the flattened padded sequence (T·N) that hold the packed data, in packed order.

    Args:
        batch_sizes: int64 (T,), on the CPU: rows at each step.
        batch: N.
    """
    device = batch_sizes.device
    steps = torch.arange(batch_sizes.numel(), device=device)
    first = torch.cumsum(batch_sizes, 0) - batch_sizes
    step_of = torch.repeat_interleave(steps, batch_sizes)
    within = torch.arange(step_of.numel(), device=device) - first[step_of]
    return step_of * batch + within


def packed_lengths(batch_sizes: Tensor, batch: int) -> Tensor:
    """Lengths (N,) of the sorted rows of a PackedSequence."""
    rows = torch.arange(batch, device=batch_sizes.device)
    return (batch_sizes[:, None] > rows[None, :]).sum(0)


def saved_positions(lengths: Tensor, steps: int) -> Tensor:
    """As :func:`packed_positions`, of the rows that the CPU's kernels save of padded sequences:
    those of a PackedSequence, whose rows are sorted by falling length.

    Args:
        lengths: int (N,), on the CPU.
        steps: T.
    """
    batch = lengths.numel()
    batch_sizes = (lengths > torch.arange(steps, device=lengths.device)[:, None]).sum(1)
    positions = packed_positions(batch_sizes, batch)
    row_of = torch.argsort(lengths, descending=True, stable=True)
    return positions - positions % batch + row_of[positions % batch]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy for which the host does not wait; pinned, since a GPU reads other memory by a wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pad_rows(data: Tensor, positions: Tensor, steps: int, batch: int) -> Tensor:
    """Packed data (M, F) as padded (T, N, F), zero past each row's length."""
    padded = data.new_zeros(steps * batch, data.shape[1])
    return padded.index_copy(0, positions, data).view(steps, batch, data.shape[1])


def pack_rows(padded: Tensor, positions: Tensor) -> Tensor:
    """Padded (T, N, F) as packed data (M, F)."""
    return padded.flatten(0, 1).index_select(0, positions)
