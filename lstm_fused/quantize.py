# SPDX-License-Identifier: BSD-3-Clause
"""Swaps the LSTMs of a model for ones with weights of 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from lstm_fused._convert import reasons
from lstm_fused._convert.report import ConversionReport
from lstm_fused._convert.swap import Decision, swap_modules
from lstm_fused._ops.layer_weights import split_directions
from lstm_fused._quantized import torch_int8
from lstm_fused._quantized.packing import check_weight_dtype
from lstm_fused._torch.module_state import original_class, share_state
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.module import FusedLSTM
from lstm_fused.quantized import QuantizedLSTM
from lstm_fused.quantized_cell import QuantizedLSTMCell

M = TypeVar("M", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
_CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@overload
def quantize(
    model: M, weights: torch.dtype = torch.int8, *, return_report: Literal[False] = False
) -> M: ...
@overload
def quantize(
    model: M, weights: torch.dtype = torch.int8, *, return_report: Literal[True]
) -> tuple[M, ConversionReport]: ...
def quantize(
    model: M, weights: torch.dtype = torch.int8, *, return_report: bool = False
) -> M | tuple[M, ConversionReport]:
    """Replaces every LSTM and LSTM cell in `model` by one for inference whose weights are packed.

    FusedLSTM, nn.LSTM and torch.ao.nn.quantized.dynamic.LSTM (with the int8 weights that it has)
    become :class:`QuantizedLSTM`, FusedLSTMCell and nn.LSTMCell :class:`QuantizedLSTMCell`. Weights
    that parametrizations compute are taken as they are. What stays, and modules whose hooks are
    lost, are named in one UserWarning: subclasses stay, and what `convert` leaves.

    Args:
        model: any module.
        weights: torch.int8, with a scale for each row of 4H; torch.bfloat16 or torch.float16.
        return_report: also return what was changed and what was left.

    Returns:
        The model; if it is an LSTM itself, the new module. With `return_report` a pair of it and a
        ConversionReport.

    Raises:
        TypeError: `model` is no module.
        ValueError: another dtype; or a weight, which is named, is infinite or NaN, or does not fit
            float16. The model is then as it was.

    Example:
        >>> model = lstm_fused.quantize(nn.Sequential(nn.LSTM(10, 20), nn.Identity()))
        >>> model[0]
        QuantizedLSTM(10, 20, weights=torch.int8)
    """
    check_weight_dtype(weights)
    # Pack everything first, so that an error leaves the model as it was.
    packed: dict[int, nn.Module] = {}
    swap_modules(model, partial(_pack_only, packed, weights))
    model, report = swap_modules(model, partial(_decide, packed, weights))
    report.warn("quantize", stacklevel=2)
    return (model, report) if return_report else model


def _pack_only(
    packed: dict[int, nn.Module], weights: torch.dtype, module: nn.Module, outer: str | None
) -> Decision:
    """What `_decide` does, but the new module goes to `packed` in place of the model."""
    decision = _decide(packed, weights, module, outer)
    make = decision.make
    if make is None:
        return decision

    def keep() -> nn.Module:
        packed[id(module)] = make()
        return module

    return replace(decision, make=keep)


def _decide(
    packed: dict[int, nn.Module], weights: torch.dtype, module: nn.Module, outer: str | None
) -> Decision:
    own = packed.get(id(module))
    make = _maker_of(module, weights) if own is None else lambda: own
    if make is None:
        foreign = reasons.why_foreign(module)
        if foreign is not None:
            return Decision(reason=foreign, is_closed=True)
        kind = next((k for k in _MAKERS if isinstance(module, k)), None)
        reason = None if kind is None else f"its class is a subclass of {kind.__name__}"
        return Decision(reason=outer or reason) if reason else Decision()
    reason = outer or _why_left(module)
    if reason is not None:
        return Decision(reason=reason)
    lost = "its hooks" if any(vars(module).get(name) for name in _HOOKS) else ""
    # NOTE: what it holds was its own, and is not looked into.
    return Decision(make, lost=lost, is_closed=True)


def _why_left(module: nn.Module) -> str | None:
    """Why an LSTM, of a class that can be packed, is left."""
    kind = original_class(module)
    if isinstance(module, torch_int8.LSTM):
        return torch_int8.why_left(module)
    if kind not in _MAKERS:
        return None
    return reasons.why_not_swapped(module, kind) or reasons.why_not_packed(module)


def _maker_of(module: nn.Module, weights: torch.dtype) -> Callable[[], nn.Module] | None:
    kind = original_class(module)
    if type(module) is torch_int8.LSTM:
        return partial(_pack_torch_int8, module, weights)
    make = _MAKERS.get(kind)
    return None if make is None else partial(make, module, weights)


def _pack_lstm(module: Any, weights: torch.dtype) -> nn.Module:
    own = module if isinstance(module, FusedLSTM) else share_state(module, FusedLSTM)
    parts, names = own._weights(), _names_of(module)
    return QuantizedLSTM.from_float(module, split_directions(parts, len(names)), names, weights)


def _names_of(module: Any) -> list[list[str]]:
    """The names of each layer's and direction's weights, in nn.LSTM's order."""
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if module.bias else []
    kinds += ["weight_hr"] if module.proj_size > 0 else []
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [
        [f"{kind}_l{layer}{suffix}" for kind in kinds]
        for layer in range(module.num_layers)
        for suffix in suffixes
    ]


def _pack_cell(module: Any, weights: torch.dtype) -> nn.Module:
    own = module if isinstance(module, FusedLSTMCell) else share_state(module, FusedLSTMCell)
    parts = own._weights()
    (part,) = split_directions(parts, 1)
    return QuantizedLSTMCell.from_float(module, part, _CELL_NAMES[: len(parts)], weights)


def _pack_torch_int8(module: Any, weights: torch.dtype) -> nn.Module:
    parts, names, scales = torch_int8.read(module)
    own = scales if weights == torch.int8 else None
    return QuantizedLSTM.from_float(module, parts, names, weights, own)


_MAKERS: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    FusedLSTM: _pack_lstm,
    nn.LSTM: _pack_lstm,
    FusedLSTMCell: _pack_cell,
    nn.LSTMCell: _pack_cell,
}
