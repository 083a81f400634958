# SPDX-License-Identifier: BSD-3-Clause
"""Checks of arguments, before any kernel runs. Sentences say what, got, wanted; where nn.LSTM has a
sentence of its own, it is that one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from lstm_fused._torch.private import assert_async, check

# Dtypes that the kernels compute in.
KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensors(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """One dtype and one device for input, states and weights."""
    if input.dtype not in KERNEL_DTYPES:
        names = ", ".join(str(dtype) for dtype in KERNEL_DTYPES)
        raise TypeError(f"FusedLSTM: Expected input dtype to be one of {names}, got {input.dtype}")
    dtype, device = input.dtype, input.device
    for tensor in hx:
        if tensor.dtype is not dtype or tensor.device != device:
            _refuse(tensor, "hidden", input)
    for tensor in weights:
        if tensor.dtype is not dtype or tensor.device != device:
            _refuse(tensor, "parameter", input)


def _refuse(tensor: Tensor, name: str, input: Tensor) -> NoReturn:
    if tensor.device != input.device:
        raise RuntimeError(
            f"Input and {name} tensors are not at the same device, found input tensor at "
            f"{input.device} and {name} tensor at {tensor.device}"
        )
    raise RuntimeError(
        f"Input and {name} tensors are not the same dtype, found input tensor with "
        f"{_dtype_name(input)} and {name} tensor with {_dtype_name(tensor)}"
    )


def check_lengths(lengths: Tensor | None, input: Tensor, batch_first: bool) -> Tensor | None:
    """lengths on input's device. Their values are checked where they are read: in the op on the
    CPU, on the device elsewhere, which the host does not wait for."""
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
    if lengths.device.type == "meta" and input.device.type != "meta":
        raise RuntimeError(f"lengths must hold values, as input on {input.device} does, got meta")
    lengths = lengths.to(input.device)
    if lengths.is_cuda:
        steps = input.shape[1 if batch_first else 0]
        in_range = ((lengths >= 0) & (lengths <= steps)).all()
        assert_async(in_range, "lengths must be between 0 and T")
    return lengths


def check_steps(steps: int) -> None:
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_batch_sizes(batch_sizes: Tensor) -> None:
    """int64 (T,) on the CPU; the values are checked where they are read, in the op."""
    if not isinstance(batch_sizes, Tensor):
        raise TypeError(f"batch_sizes must be a tensor, got {type(batch_sizes).__name__}")
    if batch_sizes.dtype != torch.int64:
        raise TypeError(f"batch_sizes must be int64, got {batch_sizes.dtype}")
    if batch_sizes.dim() != 1:
        raise ValueError(f"batch_sizes must have shape (T,), got {tuple(batch_sizes.shape)}")
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes must be on the CPU, got {batch_sizes.device}")


def refuse_packed_masks(lengths: Tensor | None, reset_mask: Tensor | None) -> None:
    """lengths and reset_mask are for padded input; a PackedSequence says its own lengths."""
    if lengths is not None or reset_mask is not None:
        name = "lengths" if lengths is not None else "reset_mask"
        raise ValueError(
            f"{name} does not go with a PackedSequence, got both; pass padded input instead"
        )


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


def check_stack(
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
    if isinstance(hx, Tensor) or len(hx) != 2:
        got = "a tensor" if isinstance(hx, Tensor) else f"{len(hx)} values"
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
    each = len(weights) // runs
    if each * runs != len(weights) or not 2 <= each <= 5:
        raise ValueError(
            f"weights must hold 2 to 5 tensors for each of {num_layers} layers and {directions} "
            f"directions, got {len(weights)}"
        )


def check_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
) -> None:
    """What the ops check, in their sentences (csrc/torch/layer.cpp), where no op runs: for fake
    tensors, and for devices without kernels. RuntimeErrors; sizes may be symbolic, values are not
    read."""

    def fits(tensor: Tensor, name: str, *sizes: int) -> None:
        _fits(tensor, name, sizes, input.device)

    wanted(
        input.dtype in KERNEL_DTYPES,
        f"input must be float32, float64, bfloat16 or float16, got {input.dtype}",
    )
    rank = 3 if batch_sizes is None else 2
    wanted(input.dim() == rank, f"input must have {rank} dimensions, got {input.dim()}")
    wanted(
        h_0.dim() == 3 and c_0.dim() == 3,
        f"h_0 and c_0 must have 3 dimensions, got {h_0.dim()} and {c_0.dim()}",
    )
    directions, batch, output_size = h_0.shape
    hidden_size = c_0.shape[2]
    wanted(directions == 1 or directions == 2, f"h_0 must hold 1 or 2 directions, got {directions}")
    each = len(weights) // directions
    wanted(
        each * directions == len(weights) and 2 <= each <= 5,
        f"weights must hold 2 to 5 tensors for each direction, got {len(weights)}",
    )
    steps = input.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    wanted(steps >= 1, "Expected sequence length to be larger than 0 in RNN")
    wanted(input.shape[-1] >= 1, f"input must have at least 1 feature, got {input.shape[-1]}")
    projection = each in (3, 5)
    wanted(
        projection or output_size == hidden_size,
        f"h_0 must have hidden_size = {hidden_size} features without projection, got {output_size}",
    )
    fits(h_0, "h_0", directions, batch, output_size)
    fits(c_0, "c_0", directions, batch, hidden_size)
    for k, weight in enumerate(weights):
        place = k % each
        if place == 0:
            fits(weight, "w_ih", 4 * hidden_size, input.shape[-1])
        elif place == 1:
            fits(weight, "w_hh", 4 * hidden_size, output_size)
        elif projection and place == each - 1:
            fits(weight, "w_hr", output_size, hidden_size)
        else:
            fits(weight, "b_ih" if place == 2 else "b_hh", 4 * hidden_size)
    for tensor in (h_0, c_0, *weights):
        wanted(
            tensor.dtype == input.dtype,
            f"h_0, c_0 and weights must have input's dtype, {input.dtype}, got {tensor.dtype}",
        )
    if batch_sizes is not None:
        wanted(
            lengths is None and reset_mask is None,
            "lengths and reset_mask do not go with batch_sizes",
        )
        wanted(batch_sizes.device.type == "cpu", "batch_sizes must be on the CPU for a CPU op")
        _check_integers(batch_sizes, "batch_sizes")
        return
    wanted(
        input.shape[1] == batch,
        f"h_0 must hold {input.shape[1]} rows as input does, got {batch}",
    )
    if lengths is not None:
        _check_integers(lengths, "lengths")
        fits(lengths, "lengths", batch)
    if reset_mask is not None:
        wanted(reset_mask.dtype == torch.bool, f"reset_mask must be bool, got {reset_mask.dtype}")
        fits(reset_mask, "reset_mask", steps, batch)


def wanted(condition: bool, sentence: str) -> None:
    check(condition, lambda: sentence)


def _fits(tensor: Tensor, name: str, sizes: Sequence[int], device: torch.device) -> None:
    sizes = tuple(sizes)
    sentence = f"{name} must have shape {sizes}, got {tuple(tensor.shape)}"
    wanted(tensor.dim() == len(sizes), sentence)
    for got, size in zip(tensor.shape, sizes, strict=True):
        wanted(got == size, sentence)
    wanted(tensor.device == device, f"{name} must be on {device}, as input is, got {tensor.device}")


def _check_integers(tensor: Tensor, name: str) -> None:
    wanted(tensor.dim() == 1, f"{name} must have 1 dimension, got {tensor.dim()}")
    is_integer = tensor.dtype in (torch.int32, torch.int64)
    wanted(is_integer, f"{name} must be int32 or int64, got {tensor.dtype}")


def check_saved(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Tensor],
) -> None:
    """What the backward ops check beside `check_layer`: the incoming gradients of y, h_n, c_n and
    cell_states, and y, gates (or none: a tensor of one dimension) and cells, which the forward
    gave."""
    (directions, _, output_size), hidden_size = h_0.shape, c_0.shape[2]
    leading = input.shape[:-1]
    rows = leading[0] if len(leading) == 1 else leading[0] * leading[1]
    accumulator = torch.float64 if input.dtype == torch.float64 else torch.float32
    y_sizes = (*leading, directions * output_size)
    given = dict(zip(("grad_y", "grad_h_n", "grad_c_n", "grad_cell_states"), grads, strict=True))
    expected = (
        ("grad_y", given["grad_y"], y_sizes, input.dtype),
        ("grad_h_n", given["grad_h_n"], h_0.shape, input.dtype),
        ("grad_c_n", given["grad_c_n"], c_0.shape, input.dtype),
        (
            "grad_cell_states",
            given["grad_cell_states"],
            (*leading, directions * hidden_size),
            input.dtype,
        ),
        ("y", saved[0], y_sizes, input.dtype),
        (
            "gates",
            saved[1],
            (0,) if saved[1].dim() == 1 else (directions, rows, 4 * hidden_size),
            input.dtype,
        ),
        ("cells", saved[2], (directions, rows, hidden_size), accumulator),
    )
    for name, tensor, sizes, dtype in expected:
        if tensor is not None:
            _fits(tensor, name, sizes, input.device)
            wanted(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}")


def check_values(
    input: Tensor, batch: int, lengths: Tensor | None, batch_sizes: Tensor | None
) -> None:
    """The values that the ops check, where no op runs; in the ops' sentences on the CPU."""
    if lengths is not None:
        steps = input.shape[0]
        outside = (lengths < 0) | (lengths > steps)
        if lengths.device.type != "cpu":  # NOTE: to read it here would wait for the device
            assert_async(~outside.any(), f"lengths must be between 0 and T = {steps}")
        elif outside.any():
            row = int(outside.nonzero()[0])
            raise RuntimeError(
                f"lengths must be between 0 and T = {steps}, got {int(lengths[row])} for row {row}"
            )
    if batch_sizes is not None:
        sizes = batch_sizes.tolist()
        for t, size in enumerate(sizes):
            if size <= 0 or (t > 0 and size > sizes[t - 1]):
                raise RuntimeError(
                    f"batch_sizes must be positive and never increase, got {size} at step {t}"
                )
        if sum(sizes) != input.shape[0]:
            raise RuntimeError(
                f"batch_sizes must add up to {input.shape[0]} rows of input, got {sum(sizes)}"
            )
        if sizes and sizes[0] > batch:
            raise RuntimeError(
                f"batch_sizes must not exceed the {batch} rows of h_0, got {sizes[0]}"
            )


def _dtype_name(tensor: Tensor) -> str:
    """As torch's C++ errors name it: Float, Double, BFloat16, Half."""
    names = {
        torch.float32: "Float",
        torch.float64: "Double",
        torch.float16: "Half",
        torch.bfloat16: "BFloat16",
    }
    return names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").title())
