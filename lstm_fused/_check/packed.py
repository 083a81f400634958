# SPDX-License-Identifier: BSD-3-Clause
"""Layers with packed weights, as `quantize` makes them: held to what the weights that they keep
give in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused._check.problem import (
    FLOORS,
    Errors,
    Inputs,
    Problem,
    dtype_of,
    make_module,
    share_of,
)
from lstm_fused.module import FusedLSTM
from lstm_fused.quantize import quantize
from lstm_fused.quantized import QuantizedLSTM

# int8: activations are rounded to 2^-16 of the largest of their row, so a pre-activation is off by
# that times the norm of its weights, and a few times as much after some steps.
_ROUNDING, _MARGIN = 2.0**-16, 4


def make_packed(problem: Problem, kind: str, inputs: Inputs) -> QuantizedLSTM:
    """A module whose weights are packed; `kind` is their dtype."""
    module = make_module(FusedLSTM, problem, torch.float32, torch.device("cpu"))
    module.load_state_dict(inputs.weights)
    packed = quantize(module, dtype_of(kind))
    assert isinstance(packed, QuantizedLSTM)
    return packed


@torch.no_grad()
def find_packed_errors(problem: Problem, kind: str, device: torch.device) -> Errors:
    """How far an inference lies from float64's with the weights that the module keeps, as shares of
    what float32 may be off by, with int8 weights and the activations' rounding."""
    inputs = Inputs(problem, "float32")
    module = make_packed(problem, kind, inputs)
    y, (h_n, c_n) = module(
        inputs.x, (inputs.h_0, inputs.c_0), lengths=inputs.lengths, reset_mask=inputs.reset_mask
    )
    weights = [parameter.double() for parameter in module.dequantize().parameters()]
    truth = reference.lstm(
        inputs.x.double(),
        (inputs.h_0.double(), inputs.c_0.double()),
        weights,
        bidirectional=problem.bidirectional,
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    allowed = _allowed(kind, inputs.x, weights)
    pairs = zip((y, h_n, c_n), truth, strict=False)
    return Errors(
        max(share_of(ours, wanted, allowed * max(1.0, float(wanted.abs().max())))
            for ours, wanted in pairs),
        None,
    )  # fmt: skip


def _allowed(kind: str, x: Tensor, weights: list[Tensor]) -> float:
    """What results of order 1 may be off by."""
    if kind != "int8":
        return FLOORS["float32"]
    norms = sum(float(weight.norm(dim=1).max()) for weight in weights if weight.dim() == 2)
    largest = max(1.0, float(x.abs().max()))
    return FLOORS["float32"] + _MARGIN * _ROUNDING * largest * norms
