# SPDX-License-Identifier: BSD-3-Clause
"""Every private name of torch that this package uses, and what is done where torch lacks it.

Torch may rename or drop such a name in any release. All of these are there in torch 2.11 to 2.14.
Each has a fallback by public means, so that without it results stay what they are and only some
calls take longer; no other file names what is private to torch. A C function is handed out as it
is: a wrapper in Python would take as long as the function does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import copy
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize


def _find(path: str) -> Any:
    """What torch has under this name, or None."""
    try:
        return resolve_name(path)
    except (AttributeError, ImportError):
        return None


# ---- The state of the process, which the fast path and the choice of a derivative ask for ----


class _Probe(torch.autograd.Function):
    """A Function without setup_context, which transforms refuse."""

    @staticmethod
    def forward(ctx: Any) -> None:
        pass


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_probe_refused() -> bool:
    try:
        _Probe.apply()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return True
    return False


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_dual_level_refused() -> bool:
    try:
        with forward_ad.dual_level():
            return False
    except RuntimeError:  # there is one, and levels do not nest
        return True


def _is_dual_level_on() -> bool:
    return forward_ad._current_level >= 0


def _perhaps_one_mode() -> int:
    return 1


# Whether a transform of torch.func is at work. Fallback: 3 us instead of 0.1.
are_transforms_active: Callable[[], bool] = (
    _find("torch._C._are_functorch_transforms_active") or _is_probe_refused
)

# Whether forward-mode differentiation is on, of forward_ad or torch.func.jvp. Fallback: 6 us.
is_forward_mode_on: Callable[[], bool] = (
    _is_dual_level_refused
    if _find("torch.autograd.forward_ad._current_level") is None
    else _is_dual_level_on
)

# Whether autocast is on for any device. Fallback: for the CPU, whose fast path alone asks; 0.2 us.
is_any_autocast_enabled: Callable[[], bool] = _find("torch._C._is_any_autocast_enabled") or partial(
    torch.is_autocast_enabled, "cpu"
)

# Whether torch.jit.trace records. Fallback: the same in Python.
is_tracing: Callable[[], bool] = _find("torch._C._is_tracing") or _find("torch.jit.is_tracing")

# How many dispatch modes are on: of tracers, fake tensors, counters. Fallback: one may be, so that
# no call takes the fast path, y is copied, and second derivatives are those that can be traced.
count_dispatch_modes: Callable[[], int] = (
    _find("torch._C._len_torch_dispatch_stack") or _perhaps_one_mode
)

# ---- Functions of autograd, and which gradients they are asked for ----

# The tensor that one of a transform that has ended stands for. Fallback: the tensor as it is; who
# applies a Function then does so by torch's own apply, which looks for such tensors itself.
_unwrap_if_dead = _find("torch._C._functorch.unwrap_if_dead")


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


unwrap_if_dead: Callable[[Tensor], Tensor] = _unwrap_if_dead or _as_it_is

# Function.apply without torch.func's part, as a method that is not bound to a class yet.
_plain_apply = vars(_find("torch._C._FunctionBase") or object).get("apply")


def _own_apply(function: Any) -> Any:
    return function.apply


# Function.apply of a function that no transform is to take. Fallback: Function.apply itself, which
# binds its arguments by inspect.signature: 35 us more.
# NOTE: no function of Python, which torch.compile would try to trace by itself after a graph break.
single_level_apply: Callable[[Any], Any] = (
    _own_apply
    if _unwrap_if_dead is None or _plain_apply is None
    else partial(_plain_apply.__get__, None)
)

# Whether the running backward needs what a node of the graph gives, and the number of that
# backward. Fallback for each: None, and all that may be needed is computed.
will_engine_execute_node: Any = _find("torch._C._will_engine_execute_node")
current_graph_task_id: Any = _find("torch._C._current_graph_task_id")


def _has_no_storage(tensor: Tensor) -> bool:
    if are_transforms_active():
        return False
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return True
    return False


# Whether a gradient is many at once, in torch.autograd.grad(is_grads_batched=True). Fallback: such
# a tensor has no storage.
is_batched_gradient: Callable[[Tensor], bool] = (
    _find("torch._C._functorch.is_legacy_batchedtensor") or _has_no_storage
)

# How often a tensor has been written. Fallback: None, and what must not be overwritten is copied.
version_of: Callable[[Tensor], int] | None = getattr(
    _find("torch.Tensor._version"), "__get__", None
)

# Whether a tensor shows the memory of another. Fallback: each may, and is copied in traces.
is_view: Callable[[Tensor], bool] = _find("torch.Tensor._is_view") or (lambda tensor: True)

# ---- The transforms of torch.func, of which `function_apply` does the work itself ----

# The innermost transform; all of them; and their kinds.
current_interpreter: Any = _find(
    "torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter"
)
all_interpreters: Any = _find("torch._functorch.pyfunctorch.retrieve_all_functorch_interpreters")
TransformType: Any = _find("torch._C._functorch.TransformType")
# vmap's tensors, made and taken apart, and what its rules are told.
add_batch_dim: Any = _find("torch._C._functorch._add_batch_dim")
unwrap_batched: Any = _find("torch._C._functorch._unwrap_batched")
VmapInfo: Any = _find("torch._functorch.autograd_function.VmapInfo")
# grad's and vjp's tensors, taken apart and made.
unwrap_for_grad: Any = _find("torch._C._functorch._unwrap_for_grad")
wrap_for_grad: Any = _find("torch._C._functorch._wrap_for_grad")
# A Function of one level of grad: its class, what lets it be applied, and forward mode within it.
SingleLevelFunction: Any = _find("torch.autograd.function._SingleLevelFunction")
allow_single_level: Any = _find("torch._functorch.utils.enable_single_level_autograd_function")
set_forward_mode_enabled: Any = _find("torch.autograd.forward_ad._set_fwd_grad_enabled")
# Calls an op as the levels below the one at work see it. Fallback beyond transforms: None, and the
# op that has no derivative is called, where none is asked for.
below_autograd: Any = _find("torch._C._AutoDispatchBelowAutograd")

# Whether all of these are there. Fallback: Functions go torch's own way, Function.apply; and a
# layer in a graph of torch.compile is plain torch operations where it meets a transform.
HAS_TRANSFORMS = single_level_apply is not _own_apply and None not in (
    *(current_interpreter, TransformType, add_batch_dim, unwrap_batched, VmapInfo),
    *(unwrap_for_grad, wrap_for_grad, SingleLevelFunction, allow_single_level),
    *(set_forward_mode_enabled, below_autograd),
)


def lift(interpreter: Any, values: list[Any]) -> list[Any]:
    """Tensors, and other things, as they are at a level of grad. Fallback: torch's own way, which
    takes `values` for a tree."""
    own = getattr(interpreter, "_cptr", None)
    if own is None:
        return interpreter.lift(values, {})[0]  # type: ignore[no-any-return]
    return [own.lift(value) if isinstance(value, Tensor) else value for value in values]


# ---- Ops ----


def builtin_of(op: Any) -> Any:
    """The C function that an overload of an op calls. Fallback: the overload, 0.5 us slower."""
    return getattr(op, "_op", op)


def _check(condition: Any, sentence: Callable[[], str]) -> None:
    if not condition:
        raise RuntimeError(sentence())


def _check_now(condition: Tensor, sentence: str) -> None:
    if not torch.compiler.is_compiling() and not condition.item():
        raise RuntimeError(sentence)


# Raises RuntimeError unless a condition holds, which may be of symbolic sizes. Fallback: the same,
# by which a trace settles on sizes.
check: Callable[[Any, Callable[[], str]], None] = _find("torch._check") or _check

# Asserts a condition on the device, without a wait of the host. Fallback: the host waits.
assert_async: Callable[[Tensor, str], None] = _find("torch._assert_async") or _check_now

_FakeTensorMode = _find("torch._subclasses.FakeTensorMode")


def call_on_shapes(function: Callable[[Tensor], Any], tensor: Tensor) -> None:
    """Calls a function for what it raises, without computing. Fallback: computes."""
    if _FakeTensorMode is None:
        with torch.no_grad(), torch.random.fork_rng():
            function(tensor)
        return
    with _FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        function(mode.from_tensor(tensor))


# ---- nn.Module ----


def has_global_hooks() -> bool:
    """Whether hooks of all modules' calls are registered. Fallback: those of a kind that torch
    keeps elsewhere count for none; in torch.fx's traces they then run twice."""
    return any(
        vars(nn_module).get(name)
        for name in (
            *("_global_forward_pre_hooks", "_global_forward_hooks"),
            *("_global_backward_pre_hooks", "_global_backward_hooks"),
        )
    )


def rebound_hook(hook: Any, source: nn.Module, target: nn.Module, in_place: bool) -> Any:
    """A hook that is called with the module `source`, which it holds weakly, for `target`; any
    other hook as it is, which is the fallback for all."""
    holder = getattr(hook, "module", None)
    if not (isinstance(holder, weakref.ref) and holder() is source):
        return hook
    own = hook if in_place else copy(hook)
    own.module = weakref.ref(target)
    return own


_inject_class = _find("torch.nn.utils.parametrize._inject_new_class")
_inject_property = _find("torch.nn.utils.parametrize._inject_property")


def inject_parametrized_class(source: nn.Module, target: nn.Module) -> None:
    """Makes target's class, as torch made source's, one in which parametrized tensors are
    properties. Fallback: with the properties of source's class, which keep source alive."""
    if _inject_class is None or _inject_property is None:
        body = {
            name: value
            for name, value in vars(type(source)).items()
            if name not in ("__dict__", "__weakref__", "__module__", "__doc__")
        }
        own = type(target)
        target.__class__ = type(f"Parametrized{own.__name__}", (own,), body)
        return
    assert isinstance(source.parametrizations, nn.ModuleDict)
    assert parametrize.is_parametrized(source)
    _inject_class(target)
    for name in source.parametrizations:
        _inject_property(target, name)
