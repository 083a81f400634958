# SPDX-License-Identifier: BSD-3-Clause
"""Swaps the LSTMs of an existing model, and back."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeVar, overload

from torch import nn

from lstm_fused._convert import reasons
from lstm_fused._convert.report import ConversionReport
from lstm_fused._convert.report import Converted as Converted  # by these names pickles find them
from lstm_fused._convert.report import Left as Left
from lstm_fused._convert.subclass import _blank as _blank
from lstm_fused._convert.subclass import rebased
from lstm_fused._convert.swap import Decision, swap_modules
from lstm_fused._torch.module_state import original_class, share_state, to_torch
from lstm_fused._variants import why_not_torchs
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.module import FusedLSTM

M = TypeVar("M", bound=nn.Module)

_TWINS: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.LSTM, FusedLSTM),
    (nn.LSTMCell, FusedLSTMCell),
)


@overload
def convert(model: M, *, return_report: Literal[False] = False) -> M: ...
@overload
def convert(model: M, *, return_report: Literal[True]) -> tuple[M, ConversionReport]: ...
def convert(model: M, *, return_report: bool = False) -> M | tuple[M, ConversionReport]:
    """Replaces every nn.LSTM and nn.LSTMCell in `model` by its fused twin, in place.

    The new modules hold the very same Parameter objects, hooks and parametrizations, so optimisers,
    tied weights and checkpoints go on as they are. A module that stands in several places is
    replaced by one new module in all of them; lists, tuples, dicts and plain attributes of the
    model's modules that hold LSTMs are seen to as well, as are objects, functools.partial and
    variables of functions that these hold. Instances of subclasses that compute as their base does
    become instances of a like subclass of ours.

    What stays is named, with its reason, in one UserWarning: LSTMs whose class or instance has a
    forward (or another method that computes) of its own, and quantised, scripted, compiled, lazy,
    sharded and complex ones, and those on devices without kernels.

    Args:
        model: any module.
        return_report: also return what was changed and what was left.

    Returns:
        The model; if it is an nn.LSTM or nn.LSTMCell itself, the new module. With `return_report`
        a pair of it and a ConversionReport.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> lstm_fused.convert(nn.Sequential(nn.Linear(8, 10), nn.LSTM(10, 20)))
        Sequential(
          (0): Linear(in_features=8, out_features=10, bias=True)
          (1): FusedLSTM(10, 20)
        )
    """
    model, report = swap_modules(model, _fuse)
    report.warn("convert", stacklevel=2)
    return (model, report) if return_report else model


@overload
def revert(model: M, *, return_report: Literal[False] = False) -> M: ...
@overload
def revert(model: M, *, return_report: Literal[True]) -> tuple[M, ConversionReport]: ...
def revert(model: M, *, return_report: bool = False) -> M | tuple[M, ConversionReport]:
    """The way back: replaces every FusedLSTM and FusedLSTMCell in `model` by an nn.LSTM or
    nn.LSTMCell over the very same Parameter objects, in place; for quantisation, TorchScript and
    whatever looks for nn.LSTM by its type.

    Options that nn.LSTM lacks (`recompute`, `backend`) are lost; a UserWarning names them, and the
    modules that stay.

    Args, Returns, Raises: as :func:`convert`.

    Example:
        >>> lstm_fused.revert(lstm_fused.FusedLSTM(10, 20))
        LSTM(10, 20)
    """
    model, report = swap_modules(model, _unfuse)
    report.warn("revert", stacklevel=2)
    return (model, report) if return_report else model


def _fuse(module: nn.Module, outer: str | None) -> Decision:
    foreign = reasons.why_foreign(module)
    if foreign is not None:
        return Decision(reason=foreign, is_closed=True)
    kind = original_class(module)
    for torch_class, fused_class in _TWINS:
        if issubclass(kind, torch_class):
            reason = (
                outer
                or reasons.why_not_fused(module, torch_class, fused_class)
                or reasons.why_not_on_its_device(module)
            )
            if reason is not None:
                return Decision(reason=reason)
            try:
                target = rebased(kind, torch_class, fused_class)
            except Exception as error:  # of a metaclass, which may do anything
                text = f"{type(error).__name__}: {error}"
                return Decision(reason=f"no class like {kind.__name__} can be made: {text}")
            return Decision(partial(share_state, module, target, replaces=True))
    return Decision()


def _unfuse(module: nn.Module, outer: str | None) -> Decision:
    kind: Any = original_class(module)
    for torch_class, fused_class in _TWINS:
        if issubclass(kind, fused_class):
            reason = outer or reasons.why_not_swapped(module, fused_class)
            if rebased(kind._torch_class, torch_class, fused_class) is not kind:
                reason = f"its class is a subclass of {fused_class.__name__}"
            if only_ours := why_not_torchs(module):
                reason = reason or f"{torch_class.__name__} has no {only_ours}"
            if reason is not None:
                return Decision(reason=reason)
            lost = ", ".join(
                f"{name}={value!r}"
                for name in ("backend", "recompute", "forget_bias", "init")
                if (value := getattr(module, name, None)) != getattr(fused_class, name, None)
            )
            return Decision(partial(to_torch, module, replaces=True), lost=lost)
    return Decision()
