# SPDX-License-Identifier: BSD-3-Clause
"""What `backend="cudnn"` runs: torch's own kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run_torch(
    module: Any,
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    extras: tuple[object, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels that nn.LSTM runs, which know nothing of what FusedLSTM adds."""
    names = ("lengths", "reset_mask", "reset_state", "return_cell_states", "recompute")
    for name, given in zip(names, extras, strict=True):
        if given is not None:
            raise ValueError(f'{name} needs backend="auto", got backend={module.backend!r}')
    options = (
        *(module.bias, module.num_layers, module.dropout, module.training, module.bidirectional),
        *((module.batch_first,) if batch_sizes is None else ()),
    )
    data = (input,) if batch_sizes is None else (input, batch_sizes)
    run: Any = torch.lstm
    result: tuple[Tensor, Tensor, Tensor] = run(*data, hx, weights, *options)
    return result
