# SPDX-License-Identifier: BSD-3-Clause
"""Packed weights (csrc/cpu/quantized/packed_weights.h): made, read, checked."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import GATES, LayerWeights

FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIIqqqIIQQ")  # PackedHeader
_MAGIC = b"LSTMPACK"
_UNITS, _INT8_GROUP = 16, 4  # kUnits, group_size
_MAX_INT8_COLUMNS = 1 << 16  # kMaxInt8K
_TYPES = {1: torch.int8, 2: torch.bfloat16, 3: torch.float16}
WEIGHT_DTYPES = tuple(_TYPES.values())


class Header(NamedTuple):
    """What packed weights say of themselves."""

    weights: torch.dtype
    input_size: int
    hidden_size: int
    output_size: int
    projection: bool
    bias: bool


class Scales(NamedTuple):
    """Scales of weights that are integers times them already, one for each row."""

    w_ih: Tensor | None = None
    w_hh: Tensor | None = None


def check_weight_dtype(weights: torch.dtype) -> None:
    if weights not in WEIGHT_DTYPES:
        raise ValueError(
            f"weights must be torch.int8, torch.bfloat16 or torch.float16, got {weights!r}"
        )


def pack(
    weights: LayerWeights, names: Sequence[str], dtype: torch.dtype, scales: Scales | None = None
) -> Tensor:
    """One direction's weights as a tensor of bytes.

    Args:
        names: of the weights that are there, for errors.

    Raises:
        ValueError: a weight is not finite, or would not be so in the dtype.
    """
    if native.compiled is None:
        raise RuntimeError("quantized layers need the compiled kernels, which did not load")
    floats = [weight.detach().to("cpu", torch.float32).contiguous() for weight in weights.flatten()]
    for name, weight in zip(names, floats, strict=True):
        if not weight.isfinite().all():
            raise ValueError(f"{name} must be finite to be quantized, got infinity or NaN")
        is_matrix = weight.dim() == 2
        if is_matrix and dtype == torch.int8 and weight.shape[1] > _MAX_INT8_COLUMNS:
            raise ValueError(
                f"{name} must have at most {_MAX_INT8_COLUMNS} columns to be int8, got "
                f"{weight.shape[1]}"
            )
        if is_matrix and dtype.is_floating_point and not weight.to(dtype).isfinite().all():
            raise ValueError(
                f"{name} must fit {dtype} to be quantized, got {float(weight.abs().max())}"
            )
    name = str(dtype).removeprefix("torch.")
    packed: Tensor = torch.ops.lstm_fused.lstm_pack(floats, name, *(scales or Scales()))
    return packed


def unpack(packed: Tensor) -> list[Tensor]:
    """The float32 weights that the packed ones stand for, in nn.LSTM's order; b_hh is zero."""
    weights: list[Tensor] = torch.ops.lstm_fused.lstm_unpack(packed)
    return weights


def row_scales(packed: Tensor, header: Header) -> list[Tensor]:
    """The float32 scales of int8 weights' rows: of w_ih, w_hh and, with projection, w_hr."""
    matrices = [(GATES * header.hidden_size, header.input_size)]
    matrices.append((GATES * header.hidden_size, header.output_size))
    if header.projection:
        matrices.append((header.output_size, header.hidden_size))
    scales = []
    begin = _HEADER.size
    for index, (rows, k_size) in enumerate(matrices):
        is_of_gates = index < 2
        columns = header.hidden_size if is_of_gates else rows
        panels = -(-columns // (_UNITS if is_of_gates else GATES * _UNITS))
        begin += panels * -(-k_size // _INT8_GROUP) * _INT8_GROUP * GATES * _UNITS
        end = begin + panels * GATES * _UNITS * 4
        found = packed[begin:end].cpu().clone().view(torch.float32)
        if is_of_gates:
            found = found.view(panels, GATES, _UNITS).transpose(0, 1).reshape(GATES, -1)
            scales.append(found[:, :columns].reshape(-1))
        else:
            scales.append(found[:columns])
        begin = end + (end - begin)  # the offsets, of as many bytes
    return scales


def zero_weights(header: Header) -> LayerWeights:
    """Weights of zeros, of the sizes of a header."""
    rows, output_size = GATES * header.hidden_size, header.output_size
    # Whatever torch.set_default_device and set_default_dtype say.
    zeros = partial(torch.zeros, dtype=torch.float32, device="cpu")
    bias = zeros(rows) if header.bias else None
    return LayerWeights(
        zeros(rows, header.input_size),
        zeros(rows, output_size),
        bias,
        bias,
        zeros(output_size, header.hidden_size) if header.projection else None,
    )


def why_not_loaded(packed: object, wanted: Header) -> str | None:
    """Why a tensor of a state_dict cannot take the place of packed weights of this header; None if
    it can."""
    kind_wanted = (
        "packed weights must be a torch.uint8 tensor of 1 dimension that begins with a header"
    )
    if not isinstance(packed, Tensor) or packed.layout != torch.strided:
        return f"{kind_wanted}, got {getattr(packed, 'layout', type(packed).__name__)}"
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() < _HEADER.size:
        return f"{kind_wanted}, got {packed.dtype} of shape {tuple(packed.shape)}"
    if packed.device.type == "meta":
        return None
    magic, version, kind, *sizes, projection, bias, first, second = _HEADER.unpack(
        bytes(packed[: _HEADER.size].tolist())
    )
    if magic != _MAGIC:
        return "packed weights must be made by lstm_fused.quantize, got something else"
    if version != FORMAT_VERSION:
        return (
            f"packed weights must have format version {FORMAT_VERSION}, got {version}: this "
            "version of lstm_fused does not read them; quantize the model anew"
        )
    if kind not in _TYPES or projection > 1 or bias > 1 or first or second:
        return "packed weights have a header that is damaged"
    found = Header._make((_TYPES[kind], *sizes, bool(projection), bool(bias)))
    return None if found == wanted else f"packed weights must be of {wanted}, got {found}"
