# SPDX-License-Identifier: BSD-3-Clause
"""Streams: a module taken through time step by step, here or, from a file, in C."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lstm_fused._cell_options import describe_options
from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import LayerWeights
from lstm_fused._quantized.packing import row_scales
from lstm_fused._stream.file import MAX_LAYERS, MAX_SIZE, WEIGHT_TYPES, file_bytes
from lstm_fused._stream.of_module import check_batch_size, sizes_of, snapshot
from lstm_fused._stream.stream import Stream
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.module import FusedLSTM
from lstm_fused.quantized import QuantizedLSTM
from lstm_fused.quantized_cell import QuantizedLSTMCell

__all__ = ["Stream", "load_stream", "save_stream"]


def save_stream(
    module: FusedLSTM | FusedLSTMCell | QuantizedLSTM | QuantizedLSTMCell,
    path: str | os.PathLike[str],
    *,
    head: nn.Linear | None = None,
    weights: torch.dtype | None = None,
) -> None:
    """Writes a module to a file from which C programs and :func:`load_stream` make streams.

    docs/stream_format.md describes the file, lstm_fused/include/lstm_fused.h the C interface.

    Args:
        module: of one direction, on the CPU.
        path: of the file, which is replaced.
        head: a linear layer applied to the last layer's output, (O, P).
        weights: the type of the weights in the file: float32, float16, bfloat16, or int8 with a
            scale for each of the 4H rows. None: one that holds the module's own weights exactly.
            Streams of a file compute in float32 with the weights as they were rounded, which stay
            in this type where they are many; biases and the head stay float32.

    Raises:
        TypeError: module, head or weights of another kind.
        ValueError: a bidirectional module, options of the cell, a learned state, a head that takes
            other features than the module gives or gives none, sizes beyond the format's, weights
            on another device or, where they are to be rounded, not finite then.

    Example:
        >>> lstm, head = lstm_fused.FusedLSTM(8, 32), nn.Linear(32, 1)
        >>> lstm_fused.save_stream(lstm, "model.stream", head=head)
        >>> stream = lstm_fused.load_stream("model.stream")
        >>> x = torch.randn(100, 1, 8)
        >>> torch.testing.assert_close(stream.run(x), head(lstm(x)[0]), check_stride=False)
    """
    own = scales = None
    if isinstance(module, QuantizedLSTM | QuantizedLSTMCell):
        own = module.weights
        if own == torch.int8 and weights in (None, torch.int8):
            # By scales of their own the rows' largest magnitudes need not be 127.
            pairs = zip(module._packed(), module._headers().values(), strict=True)
            scales = [row_scales(packed, header) for packed, header in pairs]
        module = module.dequantize()
    layers = snapshot(module, *_weights_of(module))
    if weights is None:
        weights = own or layers[0].w_ih.dtype
        weights = torch.float32 if weights == torch.float64 else weights
    if weights not in WEIGHT_TYPES:
        raise TypeError(
            f"weights must be torch.float32, float16, bfloat16 or int8, got {weights!r}"
        )
    if head is not None:
        _check_head(head, layers[0].w_hh.shape[1])
    _check_sizes(layers)
    if weights != layers[0].w_ih.dtype:
        for tensor in (t for layer in layers for t in (layer.w_ih, layer.w_hh, layer.w_hr)):
            rounded = tensor if tensor is None or weights == torch.int8 else tensor.to(weights)
            if rounded is not None and not rounded.isfinite().all():
                raise ValueError(f"weights of {weights} must be finite, got inf or NaN")
    Path(path).write_bytes(file_bytes(layers, head, weights, scales))


def load_stream(path: str | os.PathLike[str], batch_size: int = 1) -> Stream:
    """A stream of a file that :func:`save_stream` has written; of float32.

    Raises:
        OSError: the file cannot be read.
        TypeError, ValueError: batch_size is no int of at least 1.
        RuntimeError: no whole and sound file of a stream, or the compiled kernels did not load.
    """
    if native.compiled is None:
        raise RuntimeError("a stream needs the compiled kernels, which did not load")
    check_batch_size(batch_size)
    core = native.compiled.Stream.open(Path(path).read_bytes(), batch_size)
    return Stream(core, batch_size, torch.float32)


def _weights_of(module: object) -> tuple[Sequence[Tensor], int]:
    """A module's weights, a flat list, and its layers."""
    if isinstance(module, FusedLSTM):
        if module.bidirectional:
            raise ValueError("a stream has one direction, got a bidirectional FusedLSTM")
        if module.cell_options is not None:
            raise ValueError(
                f"a stream has nn.LSTM's cell, got {describe_options(module.cell_options)}"
            )
        if module.learned_state:
            raise ValueError(
                "streams of a file begin with zeros, got learned_state=True: save a FusedLSTM "
                "without it, and set the state of its streams"
            )
        return module._weights(), module.num_layers
    if isinstance(module, FusedLSTMCell):
        return module._weights(), 1
    raise TypeError(
        f"save_stream takes a FusedLSTM or a FusedLSTMCell, got {type(module).__name__}; "
        "lstm_fused.convert makes one of an nn.LSTM or nn.LSTMCell"
    )


def _check_sizes(layers: Sequence[LayerWeights]) -> None:
    """What no reader would take need not be written."""
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"the file of a stream has at most {MAX_LAYERS} layers, got {len(layers)}")
    if max(sizes_of(layers[0])) > MAX_SIZE:
        raise ValueError(
            f"input_size and hidden_size of a stream's file must be at most {MAX_SIZE}, got "
            f"{sizes_of(layers[0])[:2]}"
        )


def _check_head(head: object, features: int) -> None:
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be an nn.Linear, got {type(head).__name__}")
    if head.weight.device.type != "cpu":
        raise ValueError(f"head must be on the CPU, got {head.weight.device}")
    if not 1 <= head.out_features <= MAX_SIZE:
        raise ValueError(f"head must have 1 to {MAX_SIZE} outputs, got {head.out_features}")
    if head.in_features != features:
        raise ValueError(
            f"head must take the {features} features that the module gives, got {head.in_features}"
        )
