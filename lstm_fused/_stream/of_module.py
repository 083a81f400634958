# SPDX-License-Identifier: BSD-3-Clause
"""A stream of a module's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused._ops import native
from lstm_fused._ops.layer_weights import (
    GATES,
    LayerWeights,
    split_directions,
    split_layers,
    weight_sizes,
)
from lstm_fused._stream.stream import Stream

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def stream_of(
    module: nn.Module,
    read_weights: Callable[[], Sequence[Tensor]],
    num_layers: int,
    batch_size: int,
    *,
    batch_first: bool = False,
) -> Stream:
    """A stream of a stack of layers of one direction.

    Args:
        module: what the errors name.
        read_weights: gives the weights, a flat list in nn.LSTM's order, each time it is called.

    Raises:
        TypeError, ValueError: batch_size is no int of at least 1; weights of other or mixed dtypes,
            of shapes that do not fit, or not on the CPU.
        RuntimeError: the compiled kernels did not load.
    """
    if native.compiled is None:
        raise RuntimeError("a stream needs the compiled kernels, which did not load")
    check_batch_size(batch_size)
    core_class = native.compiled.Stream

    def make() -> tuple[Any, torch.dtype]:
        layers = snapshot(module, read_weights(), num_layers)
        dtype = layers[0].w_ih.dtype
        sizes = [_sizes_and_addresses(weights) for weights in layers]
        return core_class(DTYPES[dtype], sizes, batch_size), dtype

    core, dtype = make()
    return Stream(core, batch_size, dtype, make=make, batch_first=batch_first)


def packed_stream_of(
    module: nn.Module,
    read_blocks: Callable[[], Sequence[Tensor]],
    batch_size: int,
    *,
    batch_first: bool = False,
) -> Stream:
    """A stream of float32 over packed weights of low precision, which stay as they are.

    Args:
        module: what the errors name.
        read_blocks: gives the packed weights of each layer, each time it is called.

    Raises:
        TypeError, ValueError: batch_size is no int of at least 1; weights not on the CPU.
        RuntimeError: the compiled kernels did not load.
    """
    if native.compiled is None:
        raise RuntimeError("a stream needs the compiled kernels, which did not load")
    check_batch_size(batch_size)
    core_class = native.compiled.Stream

    def make() -> tuple[Any, torch.dtype]:
        blocks = [block.contiguous() for block in read_blocks()]
        for block in blocks:
            _check_on_cpu(block, type(module).__name__)
        addresses = [(block.data_ptr(), block.numel()) for block in blocks]
        return core_class.packed(addresses, batch_size), torch.float32

    core, dtype = make()
    return Stream(core, batch_size, dtype, make=make, batch_first=batch_first)


def check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def snapshot(module: nn.Module, weights: Sequence[Tensor], num_layers: int) -> list[LayerWeights]:
    """The layers' weights as kernels may read them: checked, contiguous, without gradients."""
    name = type(module).__name__
    dtype = weights[0].dtype
    for tensor in weights:
        _check_on_cpu(tensor, name)
        if tensor.dtype != dtype or dtype not in DTYPES:
            raise TypeError(
                "a stream needs weights of one dtype, float32, float64, bfloat16 or float16, and "
                f"{name} has {dtype} and {tensor.dtype}"
            )
    layers = []
    for flat in split_layers(weights, num_layers):
        (layer,) = split_directions(flat, 1)
        _check_shapes(layer, name)
        layers.append(
            LayerWeights(
                *(None if t is None else t.detach().resolve_neg().contiguous() for t in layer)
            )
        )
    return layers


def _check_on_cpu(tensor: Tensor, module: str) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(
            f"a stream runs on the CPU, and {module} has weights on {tensor.device}: move a copy "
            "of it there first"
        )


def sizes_of(layer: LayerWeights) -> tuple[int, int, int]:
    """D, H and P."""
    return layer.w_ih.shape[1], layer.w_hh.shape[0] // GATES, layer.w_hh.shape[1]


def _check_shapes(layer: LayerWeights, module: str) -> None:
    wanted = weight_sizes(*sizes_of(layer))
    for name, tensor, shape in zip(LayerWeights._fields, layer, wanted, strict=True):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{module}: {name} must have shape {shape}, got {tuple(tensor.shape)}")


def _sizes_and_addresses(layer: LayerWeights) -> tuple[int, int, int, list[int]]:
    return *sizes_of(layer), [0 if t is None else t.data_ptr() for t in layer]
