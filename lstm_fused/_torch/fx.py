# SPDX-License-Identifier: BSD-3-Clause
"""torch.fx's symbolic tracing: our modules are leaves, as nn.LSTM and nn.LSTMCell are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from lstm_fused._torch.private import has_global_hooks

# Tracers, users' too, take a module for a leaf if its `__module__` begins so.
_LEAF_ORIGIN = "torch.nn, played by lstm_fused"

# Where our modules' forwards are.
_OUR_MODULES = (
    *("lstm_fused.module", "lstm_fused.cell"),
    *("lstm_fused.quantized", "lstm_fused.quantized_cell"),
)

# What arguments are where nothing is traced. Asked for first, since every call asks.
_PLAIN_TYPES = frozenset([torch.Tensor, nn.Parameter, type(None)])

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def mark_leaf(module: nn.Module) -> None:
    """Makes a module a leaf for tracers, if it is one of ours and runs our forward.

    NOTE: the attribute is the instance's: pickle finds a class by the class's own.
    """
    if _runs_our_forward(module):
        module.__dict__["__module__"] = _LEAF_ORIGIN


def _runs_our_forward(module: nn.Module) -> bool:
    return type(module).forward.__module__ in _OUR_MODULES


def find_proxy(*values: Any) -> Proxy | None:
    """The first argument, or part of one, that a tracer has put in the place of a value."""
    if torch.compiler.is_compiling():
        return None
    for value in values:
        if type(value) in _PLAIN_TYPES:
            continue
        if isinstance(value, Proxy):
            return value
        if isinstance(value, tuple | list):
            for part in value:
                if isinstance(part, Proxy):
                    return part
    return None


def record_call(proxy: Proxy, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a tracer that wants to look into `module` gets: one node that calls it.

    Raises:
        TraceError: such a node would not do what the module does.
    """
    name = type(module).__name__
    tracer: Any = proxy.tracer
    remedy = f"Have the tracer's is_leaf_module return True for {name}"
    if not _runs_our_forward(module):
        raise TraceError(f"{name} calls our forward in its own. {remedy}.")
    if any(vars(module)[kind] for kind in _HOOKS) or has_global_hooks():
        raise TraceError(f"The hooks of {name} would run twice. {remedy}.")
    try:
        path = tracer.path_of_module(module)
    except (AttributeError, NameError):
        path = ""
    if not path:
        raise TraceError(
            f"{name} can be traced as a part of a module, got one that is no part of what is "
            "traced, or all of it: put it into a module, such as nn.Sequential"
        )
    return tracer.create_proxy("call_module", path, args, _given(kwargs))


def record_function(proxy: Proxy, function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a tracer gets for a call of a function: one node, as for torch's own functions."""
    return proxy.tracer.create_proxy("call_function", function, args, _given(kwargs))


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None and value is not False}
