# SPDX-License-Identifier: BSD-3-Clause
"""Options of FusedLSTM that nn.LSTM lacks and that need no kernel: initial values of the weights,
and dropout of the recurrent ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstm_fused._cell_options import describe_options, is_number
from lstm_fused._ops.layer_weights import GATES, LayerWeights, split_directions
from lstm_fused._torch.private import are_transforms_active

# Options by which a module computes what nn.LSTM does not, beside `cell_options`.
_CHANGE_RESULTS = ("learned_state", "weight_dropout")

_CHRONO = re.compile(r"chrono:(\d+)")


def check_options(
    bias: bool, forget_bias: Any, init: Any, learned_state: Any, weight_dropout: Any
) -> None:
    """Raises TypeError and ValueError for options of FusedLSTM that it cannot have."""
    if not isinstance(learned_state, bool):
        raise TypeError(f"learned_state must be a bool, got {type(learned_state).__name__}")
    if not is_number(weight_dropout) or not 0 <= weight_dropout < 1:
        raise ValueError(f"weight_dropout must be a number in [0, 1), got {weight_dropout!r}")
    if forget_bias is not None and (not is_number(forget_bias) or not math.isfinite(forget_bias)):
        raise ValueError(f"forget_bias must be a finite number or None, got {forget_bias!r}")
    chrono = chrono_steps(init)
    if (forget_bias is not None or chrono is not None) and not bias:
        raise ValueError("forget_bias and chrono set biases, and need bias=True")
    if forget_bias is not None and chrono is not None:
        raise ValueError(f"forget_bias and init={init!r} both set the forget gate's bias")


def chrono_steps(init: Any) -> int | None:
    """The steps of "chrono:STEPS" in `init`; None where that is not asked for.

    Raises:
        TypeError, ValueError: `init` is no text of the form that FusedLSTM takes.
    """
    if init is None:
        return None
    if not isinstance(init, str):
        raise TypeError(f"init must be a str or None, got {type(init).__name__}")
    steps = None
    parts = init.split("+")
    for part in parts:
        found = _CHRONO.fullmatch(part)
        if (found is None and part != "orthogonal") or parts.count(part) > 1:
            raise ValueError(
                f'init must be "orthogonal", "chrono:STEPS" or both joined by "+", got {init!r}'
            )
        if found is not None:
            steps = int(found[1])
            if steps < 3:
                raise ValueError(f"chrono needs at least 3 steps, got {steps}")
    return steps


def add_learned_state(
    module: Any, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Gives a FusedLSTM the parameters initial_h and initial_c."""
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    output_size = module.proj_size or module.hidden_size
    for name, size in (("initial_h", output_size), ("initial_c", module.hidden_size)):
        value = torch.zeros(blocks, size, device=device, dtype=dtype)
        module.register_parameter(name, nn.Parameter(value))


def learned_states(module: Any, batch: int) -> tuple[Tensor, Tensor]:
    """initial_h and initial_c for all rows of a batch."""
    return (
        module.initial_h[:, None].expand(-1, batch, -1),
        module.initial_c[:, None].expand(-1, batch, -1),
    )


@torch.no_grad()
def set_initial_values(module: Any) -> None:
    """Sets what `forget_bias`, `init` and `learned_state` of a FusedLSTM ask for; other values
    stay."""
    if module.learned_state:
        module.initial_h.zero_()
        module.initial_c.zero_()
    if module.forget_bias is None and module.init is None:
        return
    steps = chrono_steps(module.init)
    directions = module.num_layers * (2 if module.bidirectional else 1)
    for weights in split_directions(module._weights(), directions):
        if "orthogonal" in (module.init or ""):
            for gate in weights.w_hh.chunk(GATES):
                nn.init.orthogonal_(gate)
        if module.forget_bias is not None:
            _set_bias(weights, 1, torch.tensor(float(module.forget_bias)))
        if steps is not None:
            # Tallec & Ollivier 2018, section 2: time constants spread over the steps.
            times = torch.empty_like(weights.b_ih[: module.hidden_size]).uniform_(1, steps - 1)
            _set_bias(weights, 1, times.log())
            _set_bias(weights, 0, -times.log())


def _set_bias(weights: LayerWeights, gate: int, value: Tensor) -> None:
    """Makes the sum of both biases of a gate `value`."""
    weights.b_ih.chunk(GATES)[gate].copy_(value)
    weights.b_hh.chunk(GATES)[gate].zero_()


def drop_recurrent_weights(
    weights: Sequence[Tensor], directions: int, probability: float
) -> list[Tensor]:
    """A flat list of weights in which elements of every w_hh are zero with this probability, and
    the others scaled by 1 / (1 - probability): one mask for a whole call (Merity et al. 2018)."""
    parts = split_directions(weights, directions)
    return [
        weight
        for part in parts
        for weight in part._replace(w_hh=_dropout(part.w_hh, probability)).flatten()
    ]


def _dropout(weight: Tensor, probability: float) -> Tensor:
    """F.dropout, to the bits.

    On the CPU with random numbers by `uniform_`, of which `bernoulli_` makes the same flags in
    nearly twice the time.
    """
    if torch.compiler.is_compiling() or are_transforms_active() or not weight.is_cpu:
        return F.dropout(weight, probability)
    kept = 1 - probability
    numbers = torch.empty(weight.shape, dtype=torch.float64, device=weight.device).uniform_()
    return weight * (numbers < kept).to(weight.dtype).div_(kept)


def why_not_torchs(module: Any) -> str | None:
    """The option by which a module computes what nn.LSTM does not; None where there is none."""
    names = [name for name in _CHANGE_RESULTS if getattr(module, name, False)]
    texts = [f"{name}={getattr(module, name)!r}" for name in names]
    texts.append(describe_options(getattr(module, "cell_options", None)))
    return ", ".join(filter(None, texts)) or None
