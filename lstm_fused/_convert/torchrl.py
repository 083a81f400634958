# SPDX-License-Identifier: BSD-3-Clause
"""TorchRL's LSTMModule met in a model, without an import of torchrl where it is not used."""

from __future__ import annotations

from typing import Any

from torch import nn

_MODULE = "torchrl.modules.tensordict_module.rnn"


def _of_torchrl(module: nn.Module) -> Any:
    """TorchRL's class, if the module is an instance of it or of a subclass."""
    name = _MODULE, "LSTMModule"
    return next((c for c in type(module).__mro__ if (c.__module__, c.__name__) == name), None)


def why_foreign(module: nn.Module) -> str | None:
    """Why TorchRL's LSTM in Python, or the cell of it, is left; None for any other module."""
    kind = type(module)
    if kind.__module__ != _MODULE or kind.__name__ not in ("LSTM", "LSTMCell"):
        return None
    return "it is TorchRL's LSTM in Python: call make_cudnn_based() of the LSTMModule first"


def why_kept(module: nn.Module) -> str | None:
    """Why the LSTM of a subclass of TorchRL's LSTMModule is left."""
    kind = _of_torchrl(module)
    if kind is None or type(module) is kind:
        return None
    from lstm_fused.torchrl import FusedLSTMModule

    if isinstance(module, FusedLSTMModule):
        return None
    return (
        f"it is in a {type(module).__name__}, a subclass of TorchRL's LSTMModule: derive that from "
        "lstm_fused.torchrl.FusedLSTMModule"
    )


def settle(module: nn.Module) -> bool:
    """Makes an LSTMModule match the LSTM that it holds; returns whether its class has changed."""
    kind = _of_torchrl(module)
    if kind is None:
        return False
    from lstm_fused.torchrl import FusedLSTMModule, settle

    return type(module) in (kind, FusedLSTMModule) and settle(module)
