# SPDX-License-Identifier: BSD-3-Clause
"""TorchScript: what is said where torch would fail without a hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from lstm_fused._torch.private import is_tracing

_TWIN = (
    "Script its to_torch(), torch's own module over the same parameters, or "
    "lstm_fused.revert(model)"
)


def refuse_script(module: nn.Module, instead: str = _TWIN) -> NoReturn:
    """For `__prepare_scriptable__` of our modules, which torch.jit.script calls on each module of a
    model.

    Args:
        module: the one that is to be compiled.
        instead: what can be compiled in its place, as a sentence without its full stop.

    NOTE: a twin given back here would take the module's place in the user's own model, not in the
    script alone.
    """
    name = type(module).__name__
    raise RuntimeError(
        f"{name} cannot be compiled by torch.jit.script. {instead}; or use torch.jit.trace under "
        "torch.no_grad(), torch.export or torch.compile"
    )


def refuse_trace_with_gradients(
    input: Tensor, hx: tuple[Tensor, Tensor], weights: Sequence[Tensor]
) -> None:
    """Raises RuntimeError in torch.jit.trace where gradients are to be recorded: the trace would
    hold a call of Python, which can neither be saved nor be checked."""
    if torch.compiler.is_compiling() or not is_tracing():
        return
    if torch.is_grad_enabled() and any(t.requires_grad for t in (input, *hx, *weights)):
        raise RuntimeError(
            "FusedLSTM and FusedLSTMCell cannot be traced by torch.jit.trace with gradients. Trace "
            "under torch.no_grad(); or, where the trace is to be trained and the module has no "
            "option that nn.LSTM lacks, trace its to_torch() or lstm_fused.revert(model)"
        )
