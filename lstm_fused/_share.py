# SPDX-License-Identifier: BSD-3-Clause
"""Modules of another class over the same parameters."""

from __future__ import annotations

import weakref
from typing import TypeVar

from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)

# RNNBase's own list of the weights, and what it was made from.
_NOT_SHARED = ("_flat_weights", "_flat_weight_refs")


def share_state(source: nn.Module, target_class: type[M]) -> M:
    """A module of class `target_class` in the place of `source`: with the very same Parameter
    objects, hooks (whose handles go on working), settings and parametrizations."""
    target = target_class.__new__(target_class)
    nn.Module.__init__(target)
    for name, value in source.__dict__.items():
        if name not in _NOT_SHARED:
            is_container = isinstance(value, dict | list | set) and "hooks" not in name
            target.__dict__[name] = value.copy() if is_container else value
    for hook in target._load_state_dict_pre_hooks.values():
        # A hook that takes the module holds it weakly: from here on it is the new one.
        if isinstance(hook, _WrappedHook) and hook.with_module and hook.module() is source:
            hook.module = weakref.ref(target)
    if parametrize.is_parametrized(source):
        # A parametrized weight is a property of a class made for the one module.
        parametrize._inject_new_class(target)
        for name in source.parametrizations:  # type: ignore[union-attr]
            parametrize._inject_property(target, name)
    return target


def original_class(module: nn.Module) -> type:
    """The class of a module; of a parametrized one, that which it had before."""
    return parametrize.type_before_parametrizations(module)
