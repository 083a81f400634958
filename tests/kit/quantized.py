# SPDX-License-Identifier: BSD-3-Clause
"""Quantized layers of the kit's cases, and what they must give: the results of the weights that
they hold, which the reference computes in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from kit.cases import LayerInputs
from kit.numeric import FLOORS, Results, make_module
from lstm_fused import QuantizedLSTM, quantize, reference

WEIGHTS = (torch.int8, torch.bfloat16, torch.float16)

# int8: activations are rounded to 2^-16 of the largest of their row, so a pre-activation is off by
# that times the norm of its weights, if errors are independent; and a few times as much after some
# steps and layers. Activations of 8 bits would be off by a hundred times as much.
_ROUNDING, _MARGIN = 2.0**-16, 4


def make_quantized(inputs: LayerInputs, weights: torch.dtype) -> QuantizedLSTM:
    module: Any = quantize(make_module(inputs), weights)
    assert type(module) is QuantizedLSTM
    return module


def run_quantized(
    module: QuantizedLSTM, inputs: LayerInputs, *, packed: bool = False
) -> dict[str, Tensor]:
    """Results of a call, with cell states. packed: as a PackedSequence, of lengths from 1 on."""
    x: Tensor | PackedSequence = inputs.input
    lengths = inputs.lengths
    if packed:
        assert lengths is not None
        first = inputs.case.batch_first
        x = pack_padded_sequence(inputs.input, lengths, first, enforce_sorted=False)
        lengths = None
    y, (h_n, c_n), cells = module(
        x,
        inputs.hx,
        lengths=lengths,
        reset_mask=inputs.reset_mask,
        return_cell_states=True,
    )
    results = {"y": y, "h_n": h_n, "c_n": c_n, "cell_states": cells}
    for name, result in results.items():
        if isinstance(result, PackedSequence):
            results[name], _ = pad_packed_sequence(
                result, inputs.case.batch_first, total_length=inputs.case.T
            )
    return results


def truth_of(module: QuantizedLSTM, inputs: LayerInputs) -> Results:
    """What the module's own weights give, in float64."""
    case, wide = inputs.case, inputs.to(torch.float64)
    weights = [parameter.detach().double() for parameter in module.dequantize().parameters()]
    y, h_n, c_n, cells = reference.lstm(
        wide.input,
        wide.hx,
        weights,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        batch_first=case.batch_first,
        lengths=wide.lengths,
        reset_mask=wide.reset_mask,
    )
    assert cells is not None
    return {"y": y, "h_n": h_n, "c_n": c_n, "cell_states": cells}


def allowed_error(module: QuantizedLSTM, inputs: LayerInputs) -> float:
    """What results of order 1 may be off by; with 16-bit weights as much as float32's."""
    if module.weights != torch.int8:
        return FLOORS[torch.float32]
    parameters = module.dequantize().named_parameters()
    norms = [float(p.detach().norm(dim=1).max()) for name, p in parameters if "weight" in name]
    x = inputs.input[inputs.input.isfinite()]
    largest = max(1.0, float(x.abs().max()) if x.numel() else 0.0)
    return FLOORS[torch.float32] + _MARGIN * _ROUNDING * largest * sum(norms)


def assert_close(module: QuantizedLSTM, inputs: LayerInputs, ours: dict[str, Tensor]) -> None:
    """Assert that results are near enough to the truth of the module's weights."""
    for name, wanted in truth_of(module, inputs).items():
        assert ours[name].dtype == torch.float32
        assert ours[name].shape == wanted.shape, name
        if not wanted.numel():
            continue
        allowed = allowed_error(module, inputs) * max(1.0, float(wanted.abs().max()))
        error = float((ours[name].double() - wanted).abs().max())
        case = f"{inputs.case}, {module.weights}, {name}"
        assert error <= allowed, f"{case}: {error:.3g}, allowed {allowed:.3g}"
