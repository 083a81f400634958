# SPDX-License-Identifier: BSD-3-Clause
"""Swaps the LSTMs of an existing model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from lstm_fused._share import original_class, share_state
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.module import FusedLSTM

M = TypeVar("M", bound=nn.Module)


def convert(model: M) -> M:
    """Replaces every nn.LSTM and nn.LSTMCell in `model` by its fused twin, in place.

    The new modules hold the very same Parameter objects, so optimisers, tied weights and
    checkpoints go on as they are. A module that stands in several places is replaced by one new
    module in all of them. Subclasses of nn.LSTM are left alone, since they may compute something
    else.

    Returns:
        The model; if it is an nn.LSTM or nn.LSTMCell itself, the new module.
    """
    replaced: dict[nn.Module, nn.Module] = {}

    def swap(module: nn.Module) -> nn.Module:
        if module not in replaced:
            replaced[module] = module
            kind = original_class(module)
            if kind is nn.LSTM:
                replaced[module] = share_state(module, FusedLSTM, replaces=True)
            elif kind is nn.LSTMCell:
                replaced[module] = share_state(module, FusedLSTMCell, replaces=True)
            else:
                for name, child in module._modules.items():
                    if child is not None:
                        module._modules[name] = swap(child)
        return replaced[module]

    return swap(model)  # type: ignore[return-value]
