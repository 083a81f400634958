# SPDX-License-Identifier: BSD-3-Clause
"""Modules of another class over the same parameters."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from lstm_fused._torch.flat_weights import carry_list
from lstm_fused._torch.fx import mark_leaf
from lstm_fused._torch.private import inject_parametrized_class, rebound_hook

M = TypeVar("M", bound=nn.Module)

# Options of our modules that torch's lack.
OWN_OPTIONS = (
    *("backend", "recompute", "forget_bias", "init", "learned_state", "weight_dropout"),
    "cell_options",
)

# Lists of the weights, nn.LSTM's and ours, and what they were made from; what marks our leaves; and
# that sizes were assigned.
NOT_SHARED = (
    *("_flat_weights", "_flat_weight_refs", "_listed", "_listed_from"),
    *("__module__", "_is_resized"),
)

# Containers that each module has for itself. Those that users set are attributes like others.
_REGISTERS = frozenset([*vars(nn.Module()), "_all_weights", "_flat_weights_names"])


def share_state(source: nn.Module, target_class: type[M], replaces: bool = False) -> M:
    """A module of class `target_class` with the very same Parameter objects, settings and
    parametrizations as `source`, and with its hooks.

    With `replaces` the new module takes the place of `source`, which is not used any more: the
    handles of its hooks go on working. Else each module has hooks of its own from here on.
    """
    target = target_class.__new__(target_class)
    nn.Module.__init__(target)
    for name, value in source.__dict__.items():
        if name not in NOT_SHARED:
            is_own = name in _REGISTERS and not (replaces and "hooks" in name)
            is_container = isinstance(value, dict | list | set)
            target.__dict__[name] = value.copy() if is_own and is_container else value
    _rebind_methods(source, target)
    for key, hook in target._load_state_dict_pre_hooks.items():
        # A hook that takes the module takes the new one.
        target._load_state_dict_pre_hooks[key] = rebound_hook(hook, source, target, replaces)
    if parametrize.is_parametrized(source):
        # A parametrized weight is a property of a class made for the one module.
        parametrizations = source.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        target._modules["parametrizations"] = nn.ModuleDict(dict(parametrizations.items()))
        inject_parametrized_class(source, target)
    mark_leaf(target)
    if isinstance(target, nn.RNNBase):
        target._init_flat_weights()
        carry_list(source, target, replaces)
    note_sizes = getattr(target_class, "_note_sizes", None)
    if note_sizes is not None:
        note_sizes(target)
    return target


def _rebind_methods(source: nn.Module, target: nn.Module) -> None:
    """Attributes and hooks that are source's own methods become target's."""
    hooks = [value for name, value in vars(target).items() if "hooks" in name]
    for space in (vars(target), *(value for value in hooks if isinstance(value, dict))):
        for key, value in list(space.items()):
            if isinstance(value, MethodType) and value.__self__ is source:
                own = getattr(type(target), value.__name__, None)
                space[key] = MethodType(own if callable(own) else value.__func__, target)


def original_class(module: nn.Module) -> type:
    """The class of a module; of a parametrized one, that which it had before."""
    return parametrize.type_before_parametrizations(module)


def to_torch(module: Any, replaces: bool = False) -> Any:
    """The twin of a FusedLSTM or FusedLSTMCell, of the class that torch has for it, which knows
    nothing of our own options."""
    torch_class: type[nn.Module] = original_class(module)._torch_class  # type: ignore[attr-defined]
    twin = share_state(module, torch_class, replaces)
    for name in OWN_OPTIONS:
        twin.__dict__.pop(name, None)
    return twin
