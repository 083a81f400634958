# SPDX-License-Identifier: BSD-3-Clause
"""A walk over all places of a model that hold modules."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from lstm_fused._convert import torchrl
from lstm_fused._convert.reasons import why_kept_by, why_kept_within
from lstm_fused._convert.report import ConversionReport, Converted, Left


@dataclass(frozen=True)
class Decision:
    """What becomes of a module: another in its place, or a reason why not, or neither."""

    make: Callable[[], nn.Module] | None = None
    reason: str | None = None
    lost: str = ""
    is_closed: bool = False  # what stands within is none of ours


# A module, and the reason, if there is one, why what holds it must keep it.
Decide = Callable[[nn.Module, str | None], Decision]

_NOT_ATTRIBUTES = ("_parameters", "_buffers", "_modules", "_flat_weights", "_listed", "_orig_mod")
_LOOSE = "it is in a module that a plain attribute holds: convert that module too"


def swap_modules(model: Any, decide: Decide) -> tuple[Any, ConversionReport]:
    """Puts what `decide` gives in the place of each module of `model`, in place.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    walk = _Walk(decide)
    result = walk.visit(model, "")
    for path, module in list(walk.visited):
        walk.visit_attributes(module, path)
    return result, walk.report


class _Walk:
    def __init__(self, decide: Decide) -> None:
        self.decide, self.report = decide, ConversionReport()
        # By the id of a module: itself, so that it lives, what stands in its place, the decision.
        self.met: dict[int, tuple[nn.Module, nn.Module, Decision]] = {}
        self.visited: list[tuple[str, nn.Module]] = []
        self.seen: set[int] = set()  # containers, and modules that nothing registers

    def visit(
        self, module: nn.Module, path: str, outer: str | None = None, deep: str | None = None
    ) -> nn.Module:
        """What takes the module's place, with all that is registered in it swapped. Unless for the
        reason `outer` it must stay, or for the reason `deep` all within must."""
        if id(module) in self.met:
            _, own, decision = self.met[id(module)]
            self._note(module, own, path, decision)
            return own
        decision = self.decide(module, deep or outer)
        own = module if decision.make is None else _made(decision.make, path)
        self.met[id(own)] = (own, own, Decision())
        self.met[id(module)] = (module, own, decision)
        self._note(module, own, path, decision)
        if decision.is_closed:
            return own
        is_scripted = isinstance(own, torch.jit.ScriptModule)
        if not is_scripted:
            self.visited.append((path, own))
        deep, outer = deep or why_kept_within(own), why_kept_by(own)
        for name, child in list(own._modules.items()):
            if child is not None:
                swapped = self.visit(child, _join(path, name), outer, deep)
                if swapped is not child:
                    own._modules[name] = swapped
        before = type(own).__name__
        if torchrl.settle(own):
            self.report.converted.append(Converted(path, before, type(own).__name__))
        return own

    def _note(self, module: nn.Module, own: nn.Module, path: str, decision: Decision) -> None:
        if own is not module:
            names = type(module).__name__, type(own).__name__
            self.report.converted.append(Converted(path, *names, decision.lost))
        elif decision.reason is not None:
            self.report.left.append(Left(path, type(module).__name__, decision.reason))

    def visit_attributes(self, module: nn.Module, path: str) -> None:
        """Swaps modules that attributes hold past nn.Module's own registers."""
        for name, value in list(vars(module).items()):
            if name not in _NOT_ATTRIBUTES and "hooks" not in name:
                swapped = self._swapped(value, _join(path, name))
                if swapped is not value:
                    module.__dict__[name] = swapped

    def _swapped(self, value: Any, path: str) -> Any:
        if isinstance(value, nn.Module):
            return self._loose(value, path)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            own = self._loose(value.__self__, path)
            return value if own is value.__self__ else getattr(own, value.__name__)
        if not isinstance(value, list | deque | dict | tuple | set) or id(value) in self.seen:
            return value
        if isinstance(value, tuple):
            items = [self._swapped(item, f"{path}[{i}]") for i, item in enumerate(value)]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
        self.seen.add(id(value))
        if isinstance(value, set):
            for item in list(value):
                swapped = self._swapped(item, path)
                if swapped is not item:
                    value.remove(item)
                    value.add(swapped)
            return value
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            swapped = self._swapped(item, f"{path}[{key!r}]")
            if swapped is not item:
                value[key] = swapped
        return value

    def _loose(self, module: nn.Module, path: str) -> nn.Module:
        """What takes the place of a module that is held but perhaps not registered.

        NOTE: of such modules only LSTMs are swapped: another may be a model of its own, even the
        one that holds this one. LSTMs within it are named.
        """
        if id(module) in self.met:
            return self.met[id(module)][1]
        decision = self.decide(module, None)
        if decision.make is not None or decision.reason is not None:
            return self.visit(module, path)
        if id(module) not in self.seen:
            parts = dict(module.named_modules())
            self.seen.update(map(id, parts.values()))
            if not any(id(part) in self.met for part in parts.values()):
                for name, part in parts.items():
                    inner = self.decide(part, None)
                    if inner.make is not None or inner.reason is not None:
                        reason = inner.reason or _LOOSE
                        left = Left(_join(path, name), type(part).__name__, reason)
                        self.report.left.append(left)
        return module


def _made(make: Callable[[], nn.Module], path: str) -> nn.Module:
    try:
        return make()
    except ValueError as error:  # names a weight of the module
        raise ValueError(f"{path}.{error}" if path else str(error)) from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
