# SPDX-License-Identifier: BSD-3-Clause
"""Autocast: cast on the way in, out of its sight from there on, and results of nn.LSTM's dtypes.

Layers compute in autocast's dtype (float64 stays). Their results are what nn.LSTM's are, which
depends on the kernels that it takes: fused ones cast everything, others keep a wider state.

    on the CPU                                        y, h_n         c_n, every c_t
    padded, input of float32 or bfloat16 (oneDNN)     autocast's     autocast's
    padded, input of float16; a PackedSequence        wider          wider
    padded, without rows, in eager mode               wider          wider
    with proj_size                                    autocast's     wider
    FusedLSTMCell                                     wider          wider
    on other devices (cuDNN), all                     autocast's     autocast's

wider: the dtype to which autocast's and c_0's promote; without c_0, autocast's and input's. Values
have the precision of autocast's dtype all the same.
"""

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

    own = cast(input)
    # NOTE: nn.LSTM's c is promoted where it meets the gates, which stay float64.
    c_0 = hx[1].to(own.dtype) if own.dtype == torch.float64 else cast(hx[1])
    return own, (cast(hx[0]), c_0), [cast(w) for w in weights]


def result_dtypes(
    input: Tensor, c_0: Tensor, *, packed: bool = False, projected: bool = False, cell: bool = False
) -> tuple[torch.dtype, torch.dtype] | None:
    """Dtypes of y and h_n, and of c_n and every c_t, by the table above; None where autocast is
    off.

    Args:
        input, c_0: as the caller gave them.
    """
    if not is_autocast_enabled(input.device):
        return None
    own = compute_dtype(input)
    if input.device.type != "cpu":
        return own, own
    # NOTE: sizes are not looked at in traces, where they may be unknown.
    is_one_dnn = (
        input.dtype in (torch.float32, torch.bfloat16)
        and not (packed or projected or cell)
        and (torch.compiler.is_compiling() or input.numel() > 0)
    )
    wider = own if is_one_dnn else torch.promote_types(own, c_0.dtype)
    return own if projected else wider, wider


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, for GEMMs whose dtype is settled: a backward may be called inside
    of autocast."""
    if not is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
