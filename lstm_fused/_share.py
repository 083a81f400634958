# SPDX-License-Identifier: BSD-3-Clause
"""Modules of another class over the same parameters."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

# RNNBase's own list of the weights, and what it was made from.
_NOT_SHARED = ("_flat_weights", "_flat_weight_refs")


def share_state(source: nn.Module, target_class: type[M]) -> M:
    """A module of class `target_class` with the attributes of `source`: the very same Parameter
    objects, hooks and settings. Containers are copied, so that a parameter or hook that is added to
    one module later is not added to the other."""
    target = target_class.__new__(target_class)
    nn.Module.__init__(target)
    for name, value in source.__dict__.items():
        if name not in _NOT_SHARED:
            copied = value.copy() if isinstance(value, dict | list | set) else value
            target.__dict__[name] = copied
    return target
