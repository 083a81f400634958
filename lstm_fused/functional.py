# SPDX-License-Identifier: BSD-3-Clause
"""The stateless form: `lstm`, a stack of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lstm_fused._ops import checks, native
from lstm_fused._ops.layer_weights import has_projection, split_layers
from lstm_fused._torch.autocast import cast_for_autocast, is_autocast_enabled, result_dtypes
from lstm_fused._torch.fx import find_proxy, record_function
from lstm_fused._torch.jit import refuse_trace_with_gradients
from lstm_fused.autograd import lstm_layer
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.autograd.compiled_layer import is_exporting
from lstm_fused.packing import (
    pack_rows,
    packed_lengths,
    packed_positions,
    pad_rows,
    to_device,
)

# `lstm_layer`, or what runs a layer in its place.
LayerRunner: TypeAlias = Callable[
    [LayerArguments, Sequence[Tensor]], tuple[Tensor, Tensor, Tensor, Tensor]
]


class StackOptions(NamedTuple):
    """How a stack of layers runs; see :func:`lstm`.

    NOTE: a frozen dataclass takes a microsecond more to make, in each call.
    """

    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    training: bool = False
    batch_first: bool = False
    return_cell_states: bool = False
    recompute: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset_mask: Tensor | None = None,
    return_cell_states: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A multi-layer LSTM without a module.

    With L directions, H hidden and P output features (P = H without projection), layer for layer::

        i = σ(W_ii x + b_ii + W_hi h + b_hi)      f = σ(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)   o = σ(W_io x + b_io + W_ho h + b_ho)
        c = f ⊙ c + i ⊙ g                         h = o ⊙ tanh(c), or W_hr (o ⊙ tanh(c))

    (Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000; Sak et al. 2014; conventions
    of the PyTorch documentation of ``nn.LSTM``.)

    Args:
        input: (T, N, D), (N, T, D) with ``batch_first``, or a PackedSequence's data (M, D) with
            ``batch_sizes``; float32, float64, bfloat16 or float16.
        hx: h_0 (num_layers·L, N, P) and c_0 (num_layers·L, N, H), of input's dtype and device.
        weights: nn.LSTM's, layer by layer and direction by direction: w_ih (4H, D or L·P),
            w_hh (4H, P) [, b_ih (4H), b_hh (4H)] [, w_hr (P, H)].
        num_layers, bidirectional, dropout, training: as nn.LSTM; dropout between layers draws from
            torch's generator, and acts when ``training``.
        lengths: int32 or int64 (N,), 0 ≤ length ≤ T, in any order, on any device. y is 0 past a
            row's length, its states end there, and the reverse direction starts there.
        batch_sizes: int32 or int64 (T,) on the CPU, as in a PackedSequence.
        reset_mask: bool, (T, N) or (N, T) with ``batch_first``. True: the state that enters this
            step, in the direction of processing, is zero. It holds for every layer.
        return_cell_states: also return every c_t of the last layer.
        recompute: save h and c for the backward but no gates, which it computes anew: less memory,
            a little more time; on the CPU the same bits.

    Returns:
        y (input's layout, L·P features), h_n, c_n (as hx), and the cell states (y's layout, L·H
        features) or None.

    Raises:
        ValueError, TypeError, RuntimeError: arguments that do not fit together, before any kernel
            runs.

    Example:
        >>> own = nn.LSTM(10, 20)
        >>> x, zeros = torch.randn(5, 3, 10), torch.zeros(1, 3, 20)
        >>> y, h_n, c_n, _ = lstm_fused.functional.lstm(x, (zeros, zeros), list(own.parameters()))
        >>> torch.testing.assert_close(y, own(x)[0])
    """
    weights = list(weights)
    proxy = find_proxy(input, hx, weights, lengths, batch_sizes, reset_mask)
    if proxy is not None:
        given = {
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "dropout": dropout,
            "training": training,
            "batch_first": batch_first,
            "lengths": lengths,
            "batch_sizes": batch_sizes,
            "reset_mask": reset_mask,
            "return_cell_states": return_cell_states,
            "recompute": recompute,
        }
        call: tuple[Tensor, Tensor, Tensor, Tensor | None]
        call = record_function(proxy, lstm, input, hx, weights, **given)
        return call
    checks.check_stack(input, hx, weights, num_layers, 2 if bidirectional else 1, dropout)
    checks.check_rank(input, "input", 3 if batch_sizes is None else 2, ValueError)
    options = StackOptions(
        num_layers=num_layers,
        bidirectional=bidirectional,
        dropout=dropout,
        training=training,
        batch_first=batch_first,
        return_cell_states=return_cell_states,
        recompute=recompute,
    )
    return lstm_stack(
        input,
        hx,
        weights,
        options,
        lengths=lengths,
        batch_sizes=batch_sizes,
        reset_mask=reset_mask,
    )


def lstm_stack(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: list[Tensor],
    options: StackOptions,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset_mask: Tensor | None = None,
    run_layer: LayerRunner = lstm_layer,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """:func:`lstm` for a module, whose constructor has checked the counts that `lstm` checks.

    Args:
        run_layer: what runs each layer.
    """
    refuse_trace_with_gradients(input, hx, weights)
    all_directions = options.num_layers * options.directions
    dtypes: tuple[torch.dtype, torch.dtype] | None = None
    if is_autocast_enabled(input.device):
        projected = has_projection(len(weights), all_directions)
        dtypes = result_dtypes(input, hx[1], packed=batch_sizes is not None, projected=projected)
        input, hx, weights = cast_for_autocast(input, hx, weights)
    checks.check_tensors(input, hx, weights, all_directions)
    is_batch_first = options.batch_first and batch_sizes is None
    if batch_sizes is None:
        lengths = checks.place_lengths(lengths, input, is_batch_first)
        if reset_mask is not None:
            checks.check_reset_mask(reset_mask, input.shape[:2], input.device, checks.IN_PYTHON)
        checks.check_steps(input.shape[1 if is_batch_first else 0])
    else:
        checks.refuse_packed_masks(lengths, reset_mask, checks.IN_PYTHON)
        checks.check_batch_sizes(batch_sizes, checks.IN_PYTHON)

    if is_batch_first:
        # The kernels want it so, forward and backward. A copy stays what it is, too, when the input
        # is changed later.
        input = input.transpose(0, 1).contiguous()
        reset_mask = None if reset_mask is None else reset_mask.transpose(0, 1).contiguous()
    positions: Tensor | None = None
    if batch_sizes is not None and not native.takes_batch_sizes(input.device):
        # NOTE: here and not in lstm_layer: once for all layers.
        batch = hx[0].shape[1]
        positions = to_device(packed_positions(batch_sizes, batch), input.device)
        lengths = to_device(packed_lengths(batch_sizes, batch), input.device)
        input = pad_rows(input, positions, batch_sizes.numel(), batch)
        batch_sizes = None
    num_layers, directions = options.num_layers, options.directions
    final_h: list[Tensor] = []
    final_c: list[Tensor] = []
    y, (h_0, c_0) = input, hx
    cell_states: Tensor | None = None
    for layer, layer_weights in enumerate(split_layers(weights, num_layers)):
        if layer > 0 and options.dropout > 0 and options.training:
            y = F.dropout(y, options.dropout)
        states = slice(layer * directions, (layer + 1) * directions)
        arguments = LayerArguments(
            y,
            h_0[states] if num_layers > 1 else h_0,
            c_0[states] if num_layers > 1 else c_0,
            lengths,
            batch_sizes,
            reset_mask,
            options.return_cell_states and layer == num_layers - 1,
            options.recompute,
        )
        y, h_n, c_n, cell_states = run_layer(arguments, layer_weights)
        final_h.append(h_n)
        final_c.append(c_n)
    h_n = final_h[0] if num_layers == 1 else torch.cat(final_h)
    c_n = final_c[0] if num_layers == 1 else torch.cat(final_c)
    if not options.return_cell_states:
        cell_states = None
    if positions is not None:
        y = pack_rows(y, positions)
        cell_states = None if cell_states is None else pack_rows(cell_states, positions)
    if is_batch_first:
        y = y.transpose(0, 1)
        if torch.compiler.is_compiling() and y.requires_grad and not is_exporting():
            # Inductor's views share no version with what they show: a caller who overwrites the
            # view would overwrite what the backward reads, unnoticed.
            y = y.contiguous()
        cell_states = None if cell_states is None else cell_states.transpose(0, 1)
    if dtypes is not None:
        y, h_n, c_n = y.to(dtypes[0]), h_n.to(dtypes[0]), c_n.to(dtypes[1])
        cell_states = None if cell_states is None else cell_states.to(dtypes[1])
    return y, h_n, c_n, cell_states
