# SPDX-License-Identifier: BSD-3-Clause
"""Subclasses of nn.LSTM and nn.LSTMCell, built once more upon ours."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getattr_static
from types import CellType, CodeType, FunctionType, new_class
from typing import Any

from torch import nn

# What a subclass may bring that no result depends on, or that is there in every class.
HARMLESS = frozenset(
    [
        *("__init__", "__module__", "__doc__", "__qualname__", "__dict__", "__weakref__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
        *("__parameters__", "__orig_bases__", "__constants__", "__init_subclass__", "__slots__"),
        *("__class_getitem__", "__subclasshook__", "reset_parameters", "extra_repr", "__repr__"),
        *("_get_name", "flatten_parameters", "state_dict", "load_state_dict", "_version"),
        *("_load_from_state_dict", "_save_to_state_dict", "get_extra_state", "set_extra_state"),
        *("train", "eval", "parameters", "named_parameters"),
    ]
)
# What a forward that computes by itself, and not by super().forward, has to name.
_COMPUTES = {"_VF", "_flat_weights", "_update_flat_weights", "weight_ih_l0", "weight_hh_l0"}

# The attribute by which a class keeps what was built from it: the two live as long as each other.
_TWIN = "_lstm_fused_twin"


def why_not_rebased(kind: type, torch_class: type, fused_class: type) -> str | None:
    """Why a class derived from `torch_class`, nn.LSTM or nn.LSTMCell, cannot be built upon
    `fused_class`; None if it can."""
    for owner in kind.__mro__:
        if owner in torch_class.__mro__:
            continue
        for name, value in vars(owner).items():
            if name == "__slots__" and value:
                return f"its class {owner.__name__} has __slots__"
            if not hasattr(torch_class, name):
                if hasattr(fused_class, name):
                    return f"its {name} would hide {fused_class.__name__}'s"
            elif name not in HARMLESS and _overrides(kind, torch_class, name):
                is_mixin = not issubclass(owner, torch_class)
                if not (name == "forward" and is_mixin and _calls_super_forward(value)):
                    return f"its class {owner.__name__} overrides {name}"
            if not issubclass(owner, torch_class):
                continue  # what is built from the class has the mixin among its ancestors too
            if name != "__init__" and (call := _names_own_class(value, owner)):
                return f"its class {owner.__name__} calls {call} in {name}"
            if _hides_super(value, owner):
                return f"its class {owner.__name__} calls super() in {name}, which is wrapped"
    return None


def _overrides(kind: type, torch_class: type, name: str) -> bool:
    return getattr_static(kind, name) is not getattr_static(torch_class, name)


def _names_own_class(value: Any, owner: type) -> str | None:
    """The call of a method that may ask for the class by its name, if there is one: an instance of
    what is built from it is none of that class."""
    for function in _functions(value):
        names = {name for code in _codes_of(function) for name in code.co_names}
        if any(function.__globals__.get(name) is owner for name in names):
            if "super" in names:
                return f"super({owner.__name__}, ...)"
            if "isinstance" in names:
                return f"isinstance(..., {owner.__name__})"
    return None


def _hides_super(value: Any, owner: type) -> bool:
    """Whether an attribute that is none of those which `_rebound` takes apart, such as a cached
    method, holds a function whose super() is bound to the class."""
    if isinstance(value, property | staticmethod | classmethod | FunctionType):
        return False
    inner = [getattr_static(value, name, None) for name in ("__wrapped__", "func")]
    inner += list(getattr(value, "__dict__", {}).values()) if not isinstance(value, type) else []
    return any(
        _contents(cell) is owner
        for part in inner
        for function in _functions(part)
        for cell in function.__closure__ or ()
    )


def _calls_super_forward(function: Any) -> bool:
    """Whether a mixin's forward leaves the LSTM to the next class, as super() finds it."""
    names = {name for code in _codes(function) for name in code.co_names}
    frees = {name for code in _codes(function) for name in code.co_freevars}
    return {"super", "forward"} <= names and "__class__" in frees and not names & _COMPUTES


def _codes(value: Any) -> Iterator[CodeType]:
    """The code of a function, method or property, and of what stands within and is wrapped."""
    for function in _functions(value):
        yield from _codes_of(function)


def _codes_of(function: FunctionType) -> Iterator[CodeType]:
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        yield code
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _functions(value: Any, seen: set[int] | None = None) -> Iterator[FunctionType]:
    seen = set() if seen is None else seen
    if isinstance(value, property):
        parts: Any = (value.fget, value.fset, value.fdel)
    elif isinstance(value, staticmethod | classmethod):
        parts = (value.__func__,)
    elif isinstance(value, FunctionType) and id(value) not in seen:
        seen.add(id(value))
        yield value
        parts = [_contents(cell) for cell in value.__closure__ or ()]
    else:
        return
    for part in parts:
        yield from _functions(part, seen)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned to the variable
        return None


def rebased(kind: type, torch_class: type, fused_class: type) -> Any:
    """`kind`, with `fused_class` in the place of `torch_class` among its ancestors: its attributes,
    methods and properties, whose super() finds ours."""
    if kind is torch_class:
        return fused_class
    if _TWIN not in vars(kind):
        bases = tuple(
            rebased(base, torch_class, fused_class) if issubclass(base, torch_class) else base
            for base in kind.__bases__
        )
        class_cell = CellType()
        left_out = ("__dict__", "__weakref__", "_abc_impl", _TWIN)
        body = {
            name: _rebound(value, kind, class_cell, {})
            for name, value in vars(kind).items()
            if name not in left_out
        }
        body["__qualname__"] = f"Fused{kind.__name__}"
        body["_torch_class"] = kind
        body["__reduce_ex__"] = _reduce
        own = _new_class(kind, f"Fused{kind.__name__}", bases, fused_class, body)
        class_cell.cell_contents = own
        setattr(kind, _TWIN, own)
    return vars(kind)[_TWIN]


def _new_class(
    kind: type, name: str, bases: tuple[type, ...], fused_class: type, body: dict[str, Any]
) -> Any:
    """A class of these bases, if it can be without their __init_subclass__, which may want
    arguments, or enter the class in a list. What that has once set for `kind` is in the body."""

    def fill(space: dict[str, Any]) -> None:
        space.update(body)

    start = {"metaclass": type(kind)}
    own: Any = new_class(name, (fused_class,), start, fill)
    try:
        own.__bases__ = bases
    except TypeError:  # Python finds their layouts too different, as after abc.ABC
        own = new_class(name, bases, start, fill)
    return own


def _rebound(value: Any, kind: type, class_cell: CellType, made: dict[int, Any]) -> Any:
    """A function, or what holds functions, for whose super() the class is that of `class_cell`."""
    if isinstance(value, property):
        fget, fset, fdel = (
            _rebound(f, kind, class_cell, made) for f in (value.fget, value.fset, value.fdel)
        )
        return property(fget, fset, fdel, value.__doc__)
    if isinstance(value, staticmethod | classmethod):
        return type(value)(_rebound(value.__func__, kind, class_cell, made))
    if not isinstance(value, FunctionType) or value.__closure__ is None:
        return value
    if id(value) in made:
        return made[id(value)]
    made[id(value)] = value  # a function that is in its own closure
    cells = []
    for cell in value.__closure__:
        contents = _contents(cell)
        if contents is kind:
            cells.append(class_cell)
            continue
        own = _rebound(contents, kind, class_cell, made)
        cells.append(cell if own is contents else CellType(own))
    if all(a is b for a, b in zip(cells, value.__closure__, strict=True)):
        return value
    function = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells)
    )
    function.__kwdefaults__ = value.__kwdefaults__
    function.__annotations__ = value.__annotations__
    function.__qualname__, function.__doc__ = value.__qualname__, value.__doc__
    function.__module__ = value.__module__
    function.__dict__.update(value.__dict__)
    made[id(value)] = function
    return function


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickled by the class that it was built from, which pickle finds by its name."""
    fused_class: Any = next(c for c in type(self).__mro__ if c.__module__ in _OURS)
    return _blank, (self._torch_class, fused_class._torch_class, fused_class), self.__getstate__()


_OURS = ("lstm_fused.module", "lstm_fused.cell")


def _blank(kind: type, torch_class: type, fused_class: type) -> nn.Module:
    own: type[nn.Module] = rebased(kind, torch_class, fused_class)
    return own.__new__(own)


# Pickles name this function, so its place is one that stays.
_blank.__module__ = "lstm_fused.convert"
