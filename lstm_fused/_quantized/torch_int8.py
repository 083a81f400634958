# SPDX-License-Identifier: BSD-3-Clause
"""torch's own dynamically quantized LSTM, read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lstm_fused._ops.layer_weights import LayerWeights, split_directions
from lstm_fused._quantized.packing import Scales


class _Missing:
    """Stands for the class where torch has dropped it."""


def _find() -> Any:
    try:
        from torch.ao.nn.quantized.dynamic import LSTM
    except ImportError:
        return _Missing
    return LSTM


LSTM: Any = _find()


def why_left(module: Any) -> str | None:
    """Why such a module is left; None if it can be read."""
    for tensor in _weights(module).values():
        if tensor.is_quantized and not _is_symmetric(tensor):
            return "its weights have zero points other than 0"
    return None


def read(module: Any) -> tuple[list[LayerWeights], list[list[str]], list[Scales] | None]:
    """Weights of each layer and direction, their names, and their scales if they are integers."""
    weights, biases = _weights(module), module.get_bias()
    names, flat = [], []
    scales: list[Scales] = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            end = f"l{layer}{suffix}"
            own = [f"{kind}_{end}" for kind in ("weight_ih", "weight_hh")]
            scales.append(Scales(*(_row_scales(weights[name]) for name in own)))
            flat += [_float(weights[name]) for name in own]
            if module.bias:
                own += [f"{kind}_{end}" for kind in ("bias_ih", "bias_hh")]
                flat += [biases[name].detach() for name in own[2:]]
            names.append(own)
    are_integers = all(tensor.is_quantized for tensor in weights.values())
    return split_directions(flat, len(names)), names, scales if are_integers else None


def _weights(module: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = module.get_weight()
    return found


def _float(weight: Tensor) -> Tensor:
    return weight.dequantize() if weight.is_quantized else weight.float()


def _is_symmetric(weight: Tensor) -> bool:
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return int(weight.q_zero_point()) == 0
    return not weight.q_per_channel_zero_points().any()


def _row_scales(weight: Tensor) -> Tensor | None:
    if not weight.is_quantized:
        return None
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch.full((weight.shape[0],), weight.q_scale(), dtype=torch.float32, device="cpu")
    return weight.q_per_channel_scales().float()
