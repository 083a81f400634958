# SPDX-License-Identifier: BSD-3-Clause
"""Autocast: cast on the way in, and out of its sight from there on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device; torch refuses to be asked of "meta"."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor takes part in: autocast's where that is on; float64 stays."""
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    if eligible and is_autocast_enabled(tensor.device):
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def cast_for_autocast(
    input: Tensor, hx: tuple[Tensor, Tensor], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Casts to autocast's dtype, as torch does for nn.LSTM.

    NOTE: here and not by `register_autocast`: casting beneath an autograd.Function breaks its
    backward (it would save tensors of another dtype than its gradients have).
    """
    if not is_autocast_enabled(input.device):
        return input, hx, weights

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(compute_dtype(tensor))

    return cast(input), (cast(hx[0]), cast(hx[1])), [cast(w) for w in weights]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For GEMMs of a layer whose dtype is settled: a backward may be called inside of autocast."""
    if not is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
