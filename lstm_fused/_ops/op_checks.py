# SPDX-License-Identifier: BSD-3-Clause
"""The checks of the ops (csrc/torch), in their sentences, where no op runs: for fake tensors, and
for devices without kernels. Sizes may be symbolic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lstm_fused._ops.arguments import OptionsBackwardArguments, OptionsForwardArguments
from lstm_fused._ops.checks import (
    IN_OPS,
    NO_STEPS,
    accumulator_dtype,
    check_batch_sizes,
    check_device,
    check_dtype,
    check_lengths,
    check_rank,
    check_reset_mask,
    check_shape,
    dtype_sentence,
    product,
    refuse_packed_masks,
    require,
)
from lstm_fused._ops.layer_weights import (
    GATES,
    LayerWeights,
    has_projection,
    is_weight_count,
    split_directions,
    weight_sizes,
)
from lstm_fused._torch.private import assert_async


def _check_steps(steps: int) -> None:
    # `require`, since steps may be a symbol whose value only the data tell.
    require(steps >= 1, lambda: NO_STEPS)


def check_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
) -> None:
    """What the ops of a layer check. RuntimeErrors."""
    check_dtype(input)
    check_rank(input, "input", 3 if batch_sizes is None else 2)
    require(
        h_0.dim() == 3 and c_0.dim() == 3,
        lambda: f"h_0 and c_0 must have 3 dimensions, got {h_0.dim()} and {c_0.dim()}",
    )
    batch, output_size = h_0.shape[1:]
    hidden_size = c_0.shape[2]
    require(
        h_0.shape[0] == 1 or h_0.shape[0] == 2,
        lambda: f"h_0 must hold 1 or 2 directions, got {h_0.shape[0]}",
    )
    directions = int(h_0.shape[0])  # which may have been symbolic
    require(
        is_weight_count(len(weights), directions),
        lambda: f"weights must hold 2 to 5 tensors for each direction, got {len(weights)}",
    )
    _check_sequences(input, batch, lengths, batch_sizes, reset_mask)
    require(
        has_projection(len(weights), directions) or output_size == hidden_size,
        lambda: (
            f"h_0 must have hidden_size = {hidden_size} features without projection, got "
            f"{output_size}"
        ),
    )
    _check_operand(h_0, "h_0", (directions, batch, output_size), input)
    _check_operand(c_0, "c_0", (directions, batch, hidden_size), input)
    _check_weights(input, weights, directions, hidden_size, output_size)


def check_options(given: OptionsForwardArguments | OptionsBackwardArguments) -> None:
    """What the ops with options check beside `check_layer`. RuntimeErrors."""
    directions, batch, output_size = given.h_0.shape
    hidden_size = given.c_0.shape[2]
    rows = product(given.input.shape[:-1])
    clip = given.cell_clip
    require(
        0 <= clip < math.inf,
        lambda: f"cell_clip must be a finite number of at least 0, got {clip:g}",
    )
    for name, value in (("zoneout_c", given.zoneout_c), ("zoneout_h", given.zoneout_h)):
        _check_probability(name, value)
    keeps_h = given.keep_h is not None or given.zoneout_h > 0
    require(
        not (keeps_h and has_projection(len(given.weights), int(directions))),
        lambda: "zoneout of h is not defined with an output projection",
    )
    has_reset = given.reset_h is not None
    require(
        has_reset == (given.reset_c is not None) and not (has_reset and given.reset_mask is None),
        lambda: "reset_h and reset_c go together, with reset_mask",
    )
    require(
        (given.gains is None) == (given.cell_norm is None),
        lambda: "gains and cell_norm go together",
    )
    h, c = (directions, batch, output_size), (directions, batch, hidden_size)
    for name, tensor, sizes in (
        ("peephole", given.peephole, (directions, 3, hidden_size)),
        ("h_mask", given.h_mask, h),
        ("gains", given.gains, (directions, 2, GATES * hidden_size)),
        ("cell_norm", given.cell_norm, (directions, 2, hidden_size)),
    ):
        if tensor is not None:
            _check_operand(tensor, name, sizes, given.input)
    for name, keep in (("keep_c", given.keep_c), ("keep_h", given.keep_h)):
        if keep is not None:
            dtype = keep.dtype
            require(dtype == torch.bool, partial("{} must be bool, got {}".format, name, dtype))
            check_shape(keep, name, (directions, rows, hidden_size))
            check_device(keep, name, given.input.device)
    for name, state, sizes in (("reset_h", given.reset_h, h), ("reset_c", given.reset_c, c)):
        if state is not None:
            _check_operand(state, name, sizes, given.input)


def _check_probability(name: str, value: float) -> None:
    require(0 <= value <= 1, lambda: f"{name} must be from 0 to 1, got {value:g}")


def check_quantized(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    packed: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
    hidden_size: int,
    output_size: int,
    directions: int,
) -> None:
    """What the op of packed weights checks, but for what these hold. RuntimeErrors."""
    require(h_0.dim() == 3, lambda: f"h_0 must have 3 dimensions, got {h_0.dim()}")
    require(directions in (1, 2), lambda: f"directions must be 1 or 2, got {directions}")
    require(
        input.dtype == torch.float32,
        lambda: f"input must be torch.float32 with packed weights, got {input.dtype}",
    )
    _check_sequences(input, h_0.shape[1], lengths, batch_sizes, reset_mask)
    runs = len(packed)
    require(
        runs >= 1 and runs % directions == 0,
        lambda: (
            f"packed must hold a tensor for each of {directions} directions of each layer, got "
            f"{runs}"
        ),
    )
    for block in packed:
        check_device(block, "packed", input.device)
    batch = h_0.shape[1]
    _check_operand(h_0, "h_0", (runs, batch, output_size), input)
    _check_operand(c_0, "c_0", (runs, batch, hidden_size), input)


def check_quantized_cell(
    input: Tensor, h: Tensor | None, c: Tensor | None, packed: Tensor, hidden_size: int
) -> None:
    """What the cell's op of packed weights checks, but for what these hold. RuntimeErrors."""
    check_rank(input, "input", 2)
    require(
        input.dtype == torch.float32,
        lambda: f"input must be torch.float32, got {input.dtype}",
    )
    check_device(packed, "packed", input.device)
    for name, state in (("h", h), ("c", c)):
        if state is not None:
            _check_operand(state, name, (input.shape[0], hidden_size), input)


def _check_sequences(
    input: Tensor,
    batch: int,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset_mask: Tensor | None,
) -> None:
    if batch_sizes is not None:
        refuse_packed_masks(lengths, reset_mask, IN_OPS)
        check_batch_sizes(batch_sizes, IN_OPS)
        _check_steps(batch_sizes.shape[0])
    else:
        _check_steps(input.shape[0])
        rows = input.shape[1]
        require(batch == rows, lambda: f"h_0 must hold {rows} rows as input does, got {batch}")
        if lengths is not None:
            check_lengths(lengths, batch, IN_OPS)
            check_device(lengths, "lengths", input.device)
        if reset_mask is not None:
            check_reset_mask(reset_mask, input.shape[:2], input.device, IN_OPS)


def check_cell(input: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> None:
    """What the ops of a cell check. RuntimeErrors."""
    check_rank(input, "input", 2)
    check_rank(h, "h", 2)
    require(len(weights) in (2, 4), lambda: f"weights must hold 2 or 4 tensors, got {len(weights)}")
    check_dtype(input)
    batch, hidden_size = input.shape[0], h.shape[1]
    _check_operand(h, "h", (batch, hidden_size), input)
    _check_operand(c, "c", (batch, hidden_size), input)
    _check_weights(input, weights, 1, hidden_size, hidden_size)


def _check_weights(
    input: Tensor, weights: Sequence[Tensor], directions: int, hidden_size: int, output_size: int
) -> None:
    input_size = input.shape[-1]
    require(input_size >= 1, lambda: f"input must have at least 1 feature, got {input_size}")
    sizes = weight_sizes(input_size, hidden_size, output_size)
    for direction in split_directions(weights, directions):
        for name, weight, shape in zip(LayerWeights._fields, direction, sizes, strict=True):
            if weight is not None:
                _check_operand(weight, name, shape, input)


def _check_operand(tensor: Tensor, name: str, sizes: Sequence[int], input: Tensor) -> None:
    """A tensor of these sizes, of input's device and dtype."""
    check_shape(tensor, name, sizes)
    check_device(tensor, name, input.device)
    require(tensor.dtype == input.dtype, lambda: dtype_sentence(tensor, name, input))


def check_saved(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    grads: Sequence[Tensor | None],
    saved: Sequence[Tensor],
) -> None:
    """What the backward ops check beside `check_layer`. RuntimeErrors.

    Args:
        grads: incoming gradients of y, h_n, c_n and cell_states.
        saved: y, gates (or none: a tensor of one dimension) and cells, which the forward gave.
    """
    (directions, _, output_size), hidden_size = h_0.shape, c_0.shape[2]
    leading = input.shape[:-1]
    rows = product(leading)
    y_sizes = (*leading, directions * output_size)
    cell_sizes = (*leading, directions * hidden_size)
    names = ("grad_y", "grad_h_n", "grad_c_n", "grad_cell_states")
    for name, grad, sizes in zip(
        names, grads, (y_sizes, h_0.shape, c_0.shape, cell_sizes), strict=True
    ):
        if grad is not None:
            _check_operand(grad, name, sizes, input)
    y, gates, cells = saved
    _check_operand(y, "y", y_sizes, input)
    gate_sizes = (0,) if gates.dim() == 1 else (directions, rows, GATES * hidden_size)
    _check_operand(gates, "gates", gate_sizes, input)
    _check_cells(cells, (directions, rows, hidden_size), input)


def check_saved_cell(
    input: Tensor,
    h: Tensor,
    grads: Sequence[Tensor | None],
    gates: Tensor,
    cells: Tensor,
) -> None:
    """What the backward op of a cell checks beside `check_cell`. RuntimeErrors.

    Args:
        grads: incoming gradients of h_next and c_next.
        gates, cells: what the forward gave.
    """
    rows, hidden_size = h.shape
    _check_operand(gates, "gates", (rows, GATES * hidden_size), input)
    _check_cells(cells, h.shape, input)
    for name, grad in zip(("grad_h_next", "grad_c_next"), grads, strict=True):
        if grad is not None:
            _check_operand(grad, name, h.shape, input)


def check_saved_norms(given: OptionsBackwardArguments) -> None:
    """What the backward op with options checks of a forward's norms. RuntimeErrors."""
    normalised, scales = given.normalised, given.scales
    check_device(normalised, "normalised", given.input.device)
    check_device(scales, "scales", given.input.device)
    if given.gains is None:
        return
    directions, hidden_size = given.h_0.shape[0], given.c_0.shape[2]
    rows = product(given.input.shape[:-1])
    sizes = (directions, rows, 2 * GATES * hidden_size)
    _check_operand(normalised, "normalised", sizes, given.input)
    check_shape(scales, "scales", (directions, rows, 2))
    accumulator = accumulator_dtype(given.input.dtype)
    require(
        scales.dtype == accumulator, lambda: f"scales must be {accumulator}, got {scales.dtype}"
    )


def _check_cells(cells: Tensor, sizes: Sequence[int], input: Tensor) -> None:
    check_shape(cells, "cells", sizes)
    check_device(cells, "cells", input.device)
    accumulator = accumulator_dtype(input.dtype)
    require(cells.dtype == accumulator, lambda: f"cells must be {accumulator}, got {cells.dtype}")


def check_samples(batch: int, samples: int) -> None:
    """Raises RuntimeError unless so many samples share the rows of the batch equally."""

    def sentence() -> str:
        return f"samples must be at least 1 and divide the {batch} rows of h_0, got {samples}"

    require(samples >= 1, sentence)
    require(batch % samples == 0, sentence)


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
