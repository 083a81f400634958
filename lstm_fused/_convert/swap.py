# SPDX-License-Identifier: BSD-3-Clause
"""A walk over all places of a model that hold modules."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import (
    CellType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
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
_OF_CLASS = "it is an attribute of the class {}: convert it there"
# Objects, such as dataclasses, that are looked into on the way from a module, one in the other.
# NOTE: an attribute may lead to a trainer, and from there to all that a program holds.
_MAX_OBJECTS = 2


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
        self._visit_fields(module, path, 0)
        for kind in type(module).__mro__:
            if id(kind) in self.seen or kind.__module__.startswith("torch."):
                continue
            self.seen.add(id(kind))
            for name, value in vars(kind).items():
                if isinstance(value, nn.Module):
                    self._name_parts(value, _join(path, name), _OF_CLASS.format(kind.__name__))

    def _visit_fields(self, holder: Any, path: str, depth: int) -> None:
        for name, value in _fields(holder):
            if name not in _NOT_ATTRIBUTES:
                swapped = self._swapped(value, _join(path, name), depth)
                if swapped is not value:
                    _set_field(holder, name, swapped)

    def _swapped(self, value: Any, path: str, depth: int) -> Any:
        """What takes the place of a value that may be a module or hold some.

        Args:
            depth: how many objects that are neither modules nor containers lie above it.
        """
        if type(value) in weakref.ProxyTypes:
            # Asked for its class, one of an object that is gone raises.
            own = self._followed(_behind(value))
            return value if own is None else weakref.proxy(own)
        if isinstance(value, nn.Module):
            return self._loose(value, path)
        if isinstance(value, MethodType):
            own = self._swapped(value.__self__, path, depth)
            return value if own is value.__self__ else getattr(own, value.__name__)
        if type(value) is weakref.ref:
            own = self._followed(value())
            return value if own is None else weakref.ref(own)
        if isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = (self._swapped(part, path, depth) for part in parts)
            is_same = func is value.func and args is value.args
            return value if is_same else type(value)(func, *args, **keywords)
        if id(value) in self.seen:
            return value
        if isinstance(value, tuple | frozenset):
            items = [self._swapped(item, f"{path}[{i}]", depth) for i, item in enumerate(value)]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
        if isinstance(value, list | deque | dict | set):
            self.seen.add(id(value))
            self._visit_container(value, path, depth)
        elif isinstance(value, FunctionType):
            self.seen.add(id(value))
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                self._visit_cell(cell, _join(path, name), depth)
        elif depth < _MAX_OBJECTS and _has_fields(value):
            self.seen.add(id(value))
            self._visit_fields(value, path, depth + 1)
        return value

    def _followed(self, held: Any) -> nn.Module | None:
        """What took the place of a module that is held weakly, if anything did. Who holds a module
        so follows one that was swapped, and has none swapped itself."""
        _, own, _ = self.met.get(id(held), (None, None, None))
        return None if own is held else own

    def _visit_container(self, value: Any, path: str, depth: int) -> None:
        if isinstance(value, set):
            for item in list(value):
                swapped = self._swapped(item, path, depth)
                if swapped is not item:
                    value.remove(item)
                    value.add(swapped)
            return
        if isinstance(value, dict) and any(isinstance(key, nn.Module) for key in value):
            items = list(value.items())
            value.clear()
            value.update((self._swapped(key, path, depth), item) for key, item in items)
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            swapped = self._swapped(item, f"{path}[{_label(key)}]", depth)
            if swapped is not item:
                value[key] = swapped

    def _visit_cell(self, cell: CellType, path: str, depth: int) -> None:
        """Swaps what a variable holds that a function shares with the one around it."""
        try:
            value = cell.cell_contents
        except ValueError:  # nothing was assigned to the variable
            return
        swapped = self._swapped(value, path, depth)
        if swapped is not value:
            cell.cell_contents = swapped

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
            parts = list(module.modules())
            self.seen.update(map(id, parts))
            if not any(id(part) in self.met for part in parts):
                self._name_parts(module, path, None)
        return module

    def _name_parts(self, module: nn.Module, path: str, reason: str | None) -> None:
        """Names LSTMs within a module that stays."""
        for name, part in module.named_modules():
            decision = self.decide(part, reason)
            if decision.make is not None or decision.reason is not None:
                own = Left(_join(path, name), type(part).__name__, decision.reason or _LOOSE)
                self.report.left.append(own)


def _behind(proxy: Any) -> Any:
    """The module that a weakref.proxy stands for; None for anything else."""
    try:
        return getattr(getattr(proxy, "modules", None), "__self__", None)
    except Exception:  # it is gone, or what it stands for raises
        return None


def _label(key: Any) -> str:
    # NOTE: the repr of a tensor, which an optimiser's state has for keys, takes a millisecond.
    return repr(key) if isinstance(key, str | int) else type(key).__name__


def _has_fields(value: Any) -> bool:
    if isinstance(value, type | ModuleType | torch.Tensor):
        return False
    return _own_dict(value) is not None or hasattr(type(value), "__slots__")


def _own_dict(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, if it has any, without a call of what its class makes of them:
    proxies raise where there is nothing that they stand for."""
    for kind in type(value).__mro__:
        if "__dict__" in vars(kind):
            descriptor = vars(kind)["__dict__"]
            is_plain = isinstance(descriptor, GetSetDescriptorType | MemberDescriptorType)
            return descriptor.__get__(value) if is_plain else None
    return None


def _fields(holder: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, and what its slots hold."""
    yield from list((_own_dict(holder) or {}).items())
    for kind in type(holder).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            slot = vars(kind).get(name)
            if isinstance(slot, MemberDescriptorType):
                try:
                    yield name, slot.__get__(holder)
                except AttributeError:  # nothing was assigned to it
                    continue


def _set_field(holder: Any, name: str, value: Any) -> None:
    """Past __setattr__, by which a module would register it and a frozen dataclass refuse."""
    own = _own_dict(holder)
    if own is not None and name in own:
        own[name] = value
    else:
        object.__setattr__(holder, name, value)


def _made(make: Callable[[], nn.Module], path: str) -> nn.Module:
    try:
        return make()
    except ValueError as error:  # names a weight of the module
        raise ValueError(f"{path}.{error}" if path else str(error)) from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
