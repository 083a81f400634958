# SPDX-License-Identifier: BSD-3-Clause
"""Checks of arguments, before any kernel runs. A sentence says what, got, wanted.

A fault has one sentence, wherever it is found: in the stateless form and the modules before they
call an op, in the op (csrc/torch/layer.cpp), and in `op_checks`, which stands for the op where none
runs. Only faults that nn.LSTM has sentences for are refused in those by the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lstm_fused._ops.layer_weights import LayerWeights, is_weight_count, split_directions
from lstm_fused._torch.private import assert_async, check

# Dtypes that the kernels compute in.
KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Errors(NamedTuple):
    """The exceptions for an argument of a wrong type and for one of a wrong value."""

    for_type: type[Exception]
    for_value: type[Exception]


IN_PYTHON = Errors(TypeError, ValueError)
IN_OPS = Errors(RuntimeError, RuntimeError)  # the one exception that an op raises


def require(
    condition: Any, sentence: Callable[[], str], error: type[Exception] = RuntimeError
) -> None:
    """Raises the error unless the condition holds, which may be symbolic, or in torch.jit.trace a
    tensor."""
    if isinstance(condition, torch.SymBool) and error is RuntimeError:
        check(condition, sentence)
    elif not condition:
        raise error(sentence())


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels keep cell states of layers of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_dtype(input: Tensor, error: type[Exception] = RuntimeError) -> None:
    if input.dtype not in KERNEL_DTYPES:
        raise error(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")


def check_tensors(
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int = 1,
    names: tuple[str, str] = ("h_0", "c_0"),
) -> None:
    """One dtype and one device for input, states and weights.

    Args:
        directions: of all layers, whose weights are given.
        names: what the states are called.
    """
    check_dtype(input, TypeError)
    dtype, device = input.dtype, input.device
    for tensor in hx:
        if tensor.dtype is not dtype or tensor.device != device:
            name = next(name for name, state in zip(names, hx, strict=False) if state is tensor)
            _refuse_tensor(tensor, name, "hidden", input)
    for tensor in weights:
        if tensor.dtype is not dtype or tensor.device != device:
            for direction in split_directions(weights, directions):
                for name, weight in zip(LayerWeights._fields, direction, strict=True):
                    if weight is tensor:
                        _refuse_tensor(tensor, name, "parameter", input)


def _refuse_tensor(tensor: Tensor, name: str, kind: str, input: Tensor) -> NoReturn:
    if tensor.device != input.device:  # in nn.LSTM's sentence
        raise RuntimeError(
            f"Input and {kind} tensors are not at the same device, found input tensor at "
            f"{input.device} and {kind} tensor at {tensor.device}"
        )
    raise RuntimeError(dtype_sentence(tensor, name, input))


def dtype_sentence(tensor: Tensor, name: str, input: Tensor) -> str:
    return f"{name} must have input's dtype, {input.dtype}, got {tensor.dtype}"


# ---- Masks ----


def place_lengths(lengths: Tensor | None, input: Tensor, batch_first: bool) -> Tensor | None:
    """lengths on input's device. Their values are checked where they are read: in the op on the
    CPU, on the device elsewhere, which the host does not wait for."""
    if lengths is None:
        return None
    check_lengths(lengths, input.shape[0 if batch_first else 1], IN_PYTHON)
    if lengths.device.type == "meta" and input.device.type != "meta":
        raise RuntimeError(f"lengths must hold values, as input on {input.device} does, got meta")
    if lengths.is_cpu and input.is_cpu:
        return lengths
    # The CUDA kernels read int64: converted here, once for all layers and the backward.
    dtype = torch.int64 if input.is_cuda else lengths.dtype
    lengths = lengths.to(input.device, dtype)
    if lengths.is_cuda:
        steps = input.shape[1 if batch_first else 0]
        in_range = ((lengths >= 0) & (lengths <= steps)).all()
        assert_async(in_range, "lengths must be between 0 and T")
    return lengths


def check_lengths(lengths: Tensor, batch: int, errors: Errors) -> None:
    """int32 or int64 (N,)."""
    _check_integers(lengths, "lengths", errors)
    require(
        lengths.shape[0] == batch,
        lambda: f"lengths must have shape ({batch},), got {tuple(lengths.shape)}",
        errors.for_value,
    )


def check_batch_sizes(batch_sizes: Tensor, errors: Errors) -> None:
    """int32 or int64 (T,) on the CPU; the values are checked where they are read, in the op."""
    _check_integers(batch_sizes, "batch_sizes", errors)
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes must be on the CPU, got {batch_sizes.device}")


def _check_integers(tensor: Tensor, name: str, errors: Errors) -> None:
    _check_is_tensor(tensor, name)
    if tensor.dim() != 1:
        raise errors.for_value(f"{name} must have 1 dimension, got {tensor.dim()}")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise errors.for_type(f"{name} must be int32 or int64, got {tensor.dtype}")


def check_reset_mask(
    reset_mask: Tensor, sizes: Sequence[int], device: torch.device, errors: Errors
) -> None:
    """bool of these sizes, on input's device."""
    _check_is_tensor(reset_mask, "reset_mask")
    if reset_mask.dtype != torch.bool:
        raise errors.for_type(f"reset_mask must be bool, got {reset_mask.dtype}")
    check_shape(reset_mask, "reset_mask", sizes, errors.for_value)
    check_device(reset_mask, "reset_mask", device)


def refuse_packed_masks(lengths: Any, reset_mask: Any, errors: Errors) -> None:
    """lengths and reset_mask are for padded input; a PackedSequence says its own lengths."""
    for name, mask in (("lengths", lengths), ("reset_mask", reset_mask)):
        if mask is not None:
            raise errors.for_value(
                f"{name} does not go with a PackedSequence, got both; pass padded input instead"
            )


NO_STEPS = "Expected sequence length to be larger than 0 in RNN"


def check_steps(steps: int) -> None:
    if steps == 0:
        raise RuntimeError(NO_STEPS)


# ---- Shapes ----


def _check_is_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_rank(tensor: Tensor, name: str, rank: int, error: type[Exception] = RuntimeError) -> None:
    if tensor.dim() != rank:
        raise error(f"{name} must have {rank} dimensions, got {tensor.dim()}")


def check_shape(
    tensor: Tensor, name: str, sizes: Sequence[int], error: type[Exception] = RuntimeError
) -> None:
    def sentence() -> str:
        return f"{name} must have shape {tuple(sizes)}, got {tuple(tensor.shape)}"

    require(tensor.dim() == len(sizes), sentence, error)
    for got, size in zip(tensor.shape, sizes, strict=True):
        require(got == size, sentence, error)


def product(sizes: Sequence[int]) -> int:
    """The product of sizes that may be symbolic: the rows, T·N or M, of a sequence's shape[:-1].

    NOTE: torch.Size.numel() would specialise symbolic sizes.
    """
    total = 1
    for size in sizes:
        total = total * size
    return total


def check_device(tensor: Tensor, name: str, device: torch.device) -> None:
    if tensor.device != device:
        raise RuntimeError(f"{name} must be on {device}, as input is, got {tensor.device}")


def check_stack(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    num_layers: int,
    directions: int,
    dropout: float,
) -> None:
    """What a module's constructor promises, for the stateless form."""
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise ValueError(f"num_layers must be an integer of at least 1, got {num_layers!r}")
    if isinstance(dropout, bool) or not math.isfinite(dropout) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a number between 0 and 1, got {dropout!r}")
    if not isinstance(input, Tensor):
        raise TypeError(
            f"input must be a tensor, got {type(input).__name__}; of a PackedSequence, its data"
        )
    if hx is None or isinstance(hx, Tensor) or len(hx) != 2:
        got = (
            "None" if hx is None else "a tensor" if isinstance(hx, Tensor) else f"{len(hx)} values"
        )
        raise TypeError(f"hx must be two tensors, h_0 and c_0, got {got}")
    for tensor in (*hx, *weights):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"hx and weights must hold tensors, got {type(tensor).__name__}")
    runs = num_layers * directions
    for name, state in zip(("h_0", "c_0"), hx, strict=True):
        if state.dim() != 3 or state.shape[0] != runs:
            raise ValueError(
                f"{name} must have 3 dimensions, the first of size num_layers * directions = "
                f"{runs}, got shape {tuple(state.shape)}"
            )
    if not is_weight_count(len(weights), runs):
        raise ValueError(
            f"weights must hold 2 to 5 tensors for each of {num_layers} layers and {directions} "
            f"directions, got {len(weights)}"
        )
