# SPDX-License-Identifier: BSD-3-Clause
"""The file of a stream, docs/stream_format.md."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lstm_fused._ops.layer_weights import LayerWeights
from lstm_fused._stream.of_module import sizes_of
from lstm_fused._torch.tensor_bytes import tensor_bytes

MAGIC, VERSION, ALIGNMENT = b"LSTMFUSE", 1, 64
# The number of a weight type in a file.
WEIGHT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
MAX_LAYERS, MAX_SIZE = 1 << 10, 1 << 20  # kMaxLayers, kMaxSize of csrc/cpu/stream/file.cpp
_HAS_BIAS = 1
_AFTER_CHECKSUM = "<QIIIIIII12x"


def file_bytes(
    layers: Sequence[LayerWeights],
    head: nn.Linear | None,
    weights: torch.dtype,
    scales: Sequence[Sequence[Tensor]] | None = None,
) -> bytes:
    """The bytes of a file.

    Args:
        layers: contiguous, on the CPU, of one dtype.
        head: a linear layer behind the last one.
        weights: the type to which the layers' matrices are rounded.
        scales: of each layer's matrices, whose rows are int8 values times them already.
    """
    arrays: list[bytes] = []
    for index, layer in enumerate(layers):
        matrices = [m for m in (layer.w_ih, layer.w_hh, layer.w_hr) if m is not None]
        own = [None] * len(matrices) if scales is None else scales[index]
        for matrix, scale in zip(matrices, own, strict=True):
            arrays += _matrix(matrix, weights, scale)
        if layer.b_ih is not None:
            arrays.append(tensor_bytes(layer.b_ih.float() + layer.b_hh.float()))
    if head is not None:
        bias = torch.zeros(head.out_features, device="cpu") if head.bias is None else head.bias
        arrays += [tensor_bytes(head.weight.detach().float()), tensor_bytes(bias.detach().float())]
    data = b"".join(_padded(array) for array in arrays)

    input_size, hidden_size, output_size = sizes_of(layers[0])
    proj_size = 0 if layers[0].w_hr is None else output_size
    rest = struct.pack(
        _AFTER_CHECKSUM,
        *(ALIGNMENT + len(data), len(layers), WEIGHT_TYPES[weights]),
        *(input_size, hidden_size, proj_size, 0 if head is None else head.out_features),
        0 if layers[0].b_ih is None else _HAS_BIAS,
    )
    rest += data
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(rest)) + rest


def round_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the float32 scale of each row, of which the row is the product: the largest
    magnitude of a row becomes 127."""
    scales = matrix.float().abs().amax(dim=1) / 127
    divisors = torch.where(scales > 0, scales, 1)
    return (matrix.float() / divisors[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def _matrix(matrix: Tensor, weights: torch.dtype, scales: Tensor | None) -> list[bytes]:
    if scales is not None:
        divisors = torch.where(scales != 0, scales, 1)
        values = (matrix / divisors[:, None]).round().clamp(-128, 127).to(torch.int8)
        return [tensor_bytes(values), tensor_bytes(scales)]
    if weights == torch.int8:
        values, scales = round_rows(matrix)
        return [tensor_bytes(values), tensor_bytes(scales)]
    return [tensor_bytes(matrix.to(weights))]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
