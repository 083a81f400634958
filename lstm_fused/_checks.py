# SPDX-License-Identifier: BSD-3-Clause
"""Checks of arguments, before any kernel runs. Sentences say what, got, wanted; where nn.LSTM has a
sentence of its own, it is that one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lstm_fused._native import KERNEL_DTYPES


def check_tensors(input: Tensor, hx: tuple[Tensor, Tensor], weights: Sequence[Tensor]) -> None:
    """One dtype and one device for input, states and weights."""
    if input.dtype not in KERNEL_DTYPES:
        names = ", ".join(str(dtype) for dtype in KERNEL_DTYPES)
        raise TypeError(f"FusedLSTM: Expected input dtype to be one of {names}, got {input.dtype}")
    for tensor in hx:
        if tensor.device != input.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{input.device} and hidden tensor at {tensor.device}"
            )
        if tensor.dtype != input.dtype:
            raise RuntimeError(
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{_dtype_name(input)} and hidden tensor with {_dtype_name(tensor)}"
            )
    for tensor in weights:
        if tensor.device != input.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{input.device} and parameter tensor at {tensor.device}"
            )
        if tensor.dtype != input.dtype:
            raise RuntimeError(
                "Input and parameter tensors are not the same dtype, found input tensor with "
                f"{_dtype_name(input)} and parameter tensor with {_dtype_name(tensor)}"
            )


def check_lengths(lengths: Tensor | None, input: Tensor, batch_first: bool) -> Tensor | None:
    """lengths on input's device; their values are checked where they are read, in the op."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths must be int32 or int64, got {lengths.dtype}")
    batch = input.shape[0 if batch_first else 1]
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise ValueError(
            f"lengths must have shape ({batch},), one for each row, got {tuple(lengths.shape)}"
        )
    return lengths.to(input.device)


def check_reset_mask(reset_mask: Tensor | None, input: Tensor, layout: str) -> None:
    """reset_mask has input's leading sizes, whose names are `layout`."""
    if reset_mask is None:
        return
    if not isinstance(reset_mask, Tensor):
        raise TypeError(f"reset_mask must be a tensor, got {type(reset_mask).__name__}")
    if reset_mask.dtype != torch.bool:
        raise TypeError(f"reset_mask must be bool, got {reset_mask.dtype}")
    if reset_mask.shape != input.shape[:-1]:
        raise ValueError(
            f"reset_mask must have shape {layout} = {tuple(input.shape[:-1])}, "
            f"got {tuple(reset_mask.shape)}"
        )
    if reset_mask.device != input.device:
        raise RuntimeError(
            f"reset_mask must be on input's device, {input.device}, got {reset_mask.device}"
        )


def _dtype_name(tensor: Tensor) -> str:
    """As torch's C++ errors name it: Float, Double, BFloat16, Half."""
    names = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half"}
    return names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").title())
