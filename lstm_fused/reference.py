# SPDX-License-Identifier: BSD-3-Clause
"""The LSTM in plain torch operations: the numerical truth, and the differentiable composite.

Everything the kernels compute is written here once more, to be read rather than to be fast. In
float64 it is the truth that the tests measure against; in any dtype, on any device, it is what runs
where a kernel cannot: on devices without kernels, for derivatives beyond the second, and for those
in transforms and traces. It is therefore pure: no in-place operation, no read of a tensor's values
on the host, a Python loop over time only, and so can be differentiated to any order, batched and
traced. It computes in its arguments' dtype: who wants 32-bit state under 16-bit weights casts.

Notation
    T   time steps                N   rows of the batch         D   features of the input
    H   hidden units              P   features of the output h; P = H without a projection
    dirs  1, or 2 for a bidirectional layer (direction 1 runs backward in time)

One step of one direction, PyTorch's conventions and gate order i, f, g, o (documentation of
``torch.nn.LSTM``):

    a       = x W_ih^T + b_ih + h_prev W_hh^T + b_hh            (N, 4H), split into a_i a_f a_g a_o
    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)          g = tanh(a_g)
    c       = f * c_prev + i * g
    cell_output = o * tanh(c)                                   (N, H)
    h       = cell_output W_hr^T                                (N, P); cell_output without W_hr

Rows that end early (``lengths``) and states that are reset (``reset_mask``) enter by two masks:

    valid[t, n]    t lies inside row n: the step takes place. Elsewhere the state passes through
                   unchanged, and the outputs are 0. Thus the reverse direction, which processes
                   t = T-1 .. 0, keeps its initial state until t = len - 1.
    carried[t, n]  valid, and the state is not reset before step t: h_prev and c_prev are the state
                   that the step before left. Elsewhere they are 0, and no gradient reaches it.

Masks select values (``torch.where``); they never multiply. A NaN that stands in padding, or in a
state that is reset, is replaced *before* it is used: neither values nor gradients see 0 * NaN.

References
    Hochreiter, Schmidhuber: Long short-term memory. Neural Computation 9(8), 1997.  (c, i, g, o)
    Gers, Schmidhuber, Cummins: Learning to forget: continual prediction with LSTM.
        Neural Computation 12(10), 2000.                                             (f)
    Sak, Senior, Beaufays: Long short-term memory recurrent neural network architectures for large
        scale acoustic modeling. Interspeech 2014.                                   (W_hr)
    PyTorch documentation, torch.nn.LSTM: gate order, two biases, names and order of the weights.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["lstm", "lstm_cell", "lstm_layer", "lstm_layer_backward"]

Gates: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class _Weights(NamedTuple):
    """The parameters of one direction of one layer."""

    w_ih: Tensor  # (4H, D)
    w_hh: Tensor  # (4H, P)
    b_ih: Tensor | None  # (4H,)
    b_hh: Tensor | None  # (4H,), there if b_ih is
    w_hr: Tensor | None  # (P, H)


class Masks(NamedTuple):
    """Which steps take place, and which take over the carried state; None means all of them."""

    valid: Tensor | None  # (T, N, 1) bool, or (N, 1) of one step
    carried: Tensor | None  # shaped as valid, and a subset of it

    def at(self, t: int) -> "Masks":
        valid, carried = self
        return Masks(None if valid is None else valid[t], None if carried is None else carried[t])


class _Step(NamedTuple):
    """What one step of one direction read and made."""

    h_prev: Tensor  # (N, P), after masking by carried
    c_prev: Tensor  # (N, H), after masking by carried
    gates: Gates  # four of (N, H), activated
    cell_output: Tensor  # (N, H)
    h: Tensor  # (N, P)
    c: Tensor  # (N, H)


def lstm_cell(preactivations: Tensor, c_prev: Tensor) -> tuple[Gates, Tensor, Tensor]:
    """Apply the gates of one step.

    Args:
        preactivations: (N, 4H), both GEMMs and both biases summed, gate order i, f, g, o.
        c_prev: (N, H), the cell state before the step.

    Returns:
        gates: (i, f, g, o), each (N, H), activated.
        cell_output: (N, H) = o * tanh(c), before any projection.
        c: (N, H) = f * c_prev + i * g.

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.
    """
    a_i, a_f, a_g, a_o = preactivations.chunk(4, dim=-1)
    i, f, g, o = a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()
    c = f * c_prev + i * g
    return (i, f, g, o), o * c.tanh(), c


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one layer, in one direction or in both.

    Args:
        input: (T, N, D), T >= 1.
        h_0: (dirs, N, P). Its first size says how many directions there are.
        c_0: (dirs, N, H).
        weights: per direction w_ih (4H, D), w_hh (4H, P) [, b_ih, b_hh (4H,)] [, w_hr (P, H)], in
            the order of ``nn.LSTM._flat_weights``; their number per direction says which exist.
        lengths: int (N,), any order, 0 <= length <= T, on any device; None means T for every row.
        reset_mask: bool (T, N). True at t zeroes h_prev and c_prev of step t, in the direction of
            processing. Ignored past a row's length.

    Returns:
        y: (T, N, dirs * P), 0 past a row's length.
        h_n: (dirs, N, P), the state at the row's own end; of a row of length 0 its h_0.
        c_n: (dirs, N, H), the cell states there.
        cell_states: (T, N, dirs * H), every c_t, 0 past a row's length.
    """
    directions = _split_weights(weights, h_0.size(0))
    masks = make_masks(input, lengths, reset_mask)
    x = select(masks.valid, input)
    runs = [
        _run_direction(x, h_0[d], c_0[d], w, masks, reverse=d == 1)
        for d, w in enumerate(directions)
    ]
    y = torch.cat([torch.stack([s.h for s in steps]) for steps, _, _ in runs], dim=-1)
    cells = torch.cat([torch.stack([s.c for s in steps]) for steps, _, _ in runs], dim=-1)
    h_n = torch.stack([h for _, h, _ in runs])
    c_n = torch.stack([c for _, _, c in runs])
    return select(masks.valid, y), h_n, c_n, select(masks.valid, cells)


def lstm_layer_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Differentiate ``lstm_layer``, by formulas derived by hand; autograd is not used.

    Args:
        grad_y, grad_h_n, grad_c_n, grad_cell_states: gradients of the four results, in their
            shapes; None means zero. What they hold past a row's length is ignored.
        the others: the arguments of ``lstm_layer``; the forward pass is computed again from them.

    Returns:
        grad_input: (T, N, D), 0 past a row's length.
        grad_h_0: (dirs, N, P).
        grad_c_0: (dirs, N, H).
        grad_weights: one for each of weights, in its order and shapes.

    One step, from dh and dc, the gradients of the state it leaves (grad_y[t] and
    grad_cell_states[t] included):

        dcell_output = dh W_hr                                   (dh itself without a projection)
        do    = dcell_output * tanh(c)         dc += dcell_output * o * (1 - tanh(c)^2)
        di    = dc * g                         dg  = dc * i          df = dc * c_prev
        da    = [di * i(1-i), df * f(1-f), dg * (1-g^2), do * o(1-o)]          (N, 4H)
        dh_in = da W_hh                        dc_in = dc * f

    and over all steps dW_ih = sum da^T x, dW_hh = sum da^T h_prev, db_ih = db_hh = sum da,
    dW_hr = sum dh^T cell_output, dx = da W_ih. Every operation is itself differentiable.
    """
    directions = _split_weights(weights, h_0.size(0))
    masks = make_masks(input, lengths, reset_mask)
    x = select(masks.valid, input)

    def of_direction(grad: Tensor | None, d: int) -> Tensor | None:
        if grad is None:
            return None
        return select(masks.valid, grad.chunk(len(directions), dim=-1)[d])

    parts = [
        _differentiate_direction(
            of_direction(grad_y, d),
            torch.zeros_like(h_0[d]) if grad_h_n is None else grad_h_n[d],
            torch.zeros_like(c_0[d]) if grad_c_n is None else grad_c_n[d],
            of_direction(grad_cell_states, d),
            x,
            h_0[d],
            c_0[d],
            w,
            masks,
            reverse=d == 1,
        )
        for d, w in enumerate(directions)
    ]
    grad_input = torch.stack([grad_x for grad_x, _, _, _ in parts]).sum(dim=0)
    grad_h_0 = torch.stack([grad_h for _, grad_h, _, _ in parts])
    grad_c_0 = torch.stack([grad_c for _, _, grad_c, _ in parts])
    return grad_input, grad_h_0, grad_c_0, [g for _, _, _, own in parts for g in own]


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a stack of layers, each reading the outputs of the one below; no dropout.

    Args:
        input: (T, N, D), or (N, T, D) with batch_first.
        hx: (h_0 (num_layers * dirs, N, P), c_0 (num_layers * dirs, N, H)); None means zeros.
        params: the weights of every layer, bottom first, as ``nn.LSTM._flat_weights``.
        lengths: int (N,), for every layer.
        reset_mask: bool, (T, N) or with batch_first (N, T), for every layer.

    Returns:
        y, h_n, c_n, cell_states: y and the cell states are the last layer's, in input's layout;
        h_n and c_n have the shapes of hx.
    """
    dirs = 2 if bidirectional else 1
    if len(params) % num_layers:
        raise ValueError(f"params: got {len(params)}, wanted a multiple of num_layers={num_layers}")
    x = input.transpose(0, 1) if batch_first else input
    if batch_first and reset_mask is not None:
        reset_mask = reset_mask.transpose(0, 1)
    if hx is None:
        w_hh = params[1]
        hx = (
            x.new_zeros(num_layers * dirs, x.size(1), w_hh.size(1)),
            x.new_zeros(num_layers * dirs, x.size(1), w_hh.size(0) // 4),
        )
    finals: list[tuple[Tensor, Tensor]] = []
    cells = x
    for layer, weights in enumerate(_split_evenly(params, num_layers)):
        of_layer = slice(layer * dirs, (layer + 1) * dirs)
        x, h_n, c_n, cells = lstm_layer(
            x, hx[0][of_layer], hx[1][of_layer], weights, lengths=lengths, reset_mask=reset_mask
        )
        finals.append((h_n, c_n))
    if batch_first:
        x, cells = x.transpose(0, 1), cells.transpose(0, 1)
    return x, torch.cat([h for h, _ in finals]), torch.cat([c for _, c in finals]), cells


def _run_direction(
    x: Tensor, h: Tensor, c: Tensor, w: _Weights, masks: Masks, *, reverse: bool
) -> tuple[list[_Step], Tensor, Tensor]:
    """Run one direction over x (T, N, D), padding masked: its steps in time order, h_n, c_n."""
    bias = None if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
    from_input = linear(x, w.w_ih, bias)  # (T, N, 4H), all steps at once
    steps: list[_Step] = []
    for t in _processing_order(x.size(0), reverse):
        valid, carried = masks.at(t)
        h_prev, c_prev = select(carried, h), select(carried, c)
        gates, cell_output, c_new = lstm_cell(from_input[t] + linear(h_prev, w.w_hh), c_prev)
        h_new = cell_output if w.w_hr is None else linear(cell_output, w.w_hr)
        steps.append(_Step(h_prev, c_prev, gates, cell_output, h_new, c_new))
        h, c = select(valid, h_new, h), select(valid, c_new, c)
    return steps[::-1] if reverse else steps, h, c


def _differentiate_direction(
    grad_y: Tensor | None,
    grad_h: Tensor,
    grad_c: Tensor,
    grad_cells: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w: _Weights,
    masks: Masks,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Differentiate one direction; padding is masked in grad_y, grad_cells and x.

    Returns grad_input (T, N, D), grad_h_0 (N, P), grad_c_0 (N, H) and the gradients of the weights.
    """
    steps, _, _ = _run_direction(x, h_0, c_0, w, masks, reverse=reverse)
    grads_a: list[Tensor] = []
    grads_h: list[Tensor] = []

    # Walk the steps from the last processed to the first, carrying the state's gradient.
    for t in reversed(_processing_order(x.size(0), reverse)):
        step, (i, f, g, o) = steps[t], steps[t].gates
        valid, carried = masks.at(t)

        # Collect what reaches the state made here; where no step takes place that is nothing.
        dh, dc = select(valid, grad_h), select(valid, grad_c)
        if grad_y is not None:
            dh = dh + grad_y[t]
        if grad_cells is not None:
            dc = dc + grad_cells[t]

        # Go through the projection, the output, the cell and the gates.
        grad_cell_output = dh if w.w_hr is None else dh @ w.w_hr
        tanh_c = step.c.tanh()
        dc = dc + grad_cell_output * o * (1 - tanh_c * tanh_c)
        da_i = dc * g * i * (1 - i)
        da_f = dc * step.c_prev * f * (1 - f)
        da_g = dc * i * (1 - g * g)
        da_o = grad_cell_output * tanh_c * o * (1 - o)
        da = torch.cat([da_i, da_f, da_g, da_o], dim=-1)
        grads_a.append(da)
        grads_h.append(dh)

        # Hand on: nothing through a reset, everything past a step that did not take place.
        grad_h = select(valid, select(carried, da @ w.w_hh), grad_h)
        grad_c = select(valid, select(carried, dc * f), grad_c)

    # Sum over time and batch, as one GEMM each.
    if not reverse:
        grads_a, grads_h = grads_a[::-1], grads_h[::-1]
    da_all = torch.stack(grads_a)
    grad_weights = [
        outer_sum(da_all, x),
        outer_sum(da_all, torch.stack([step.h_prev for step in steps])),
    ]
    if w.b_ih is not None:
        grad_bias = da_all.sum(dim=(0, 1))
        grad_weights += [grad_bias, grad_bias.clone()]  # NOTE: two tensors; .grad must not alias
    if w.w_hr is not None:
        cell_output = torch.stack([step.cell_output for step in steps])
        grad_weights.append(outer_sum(torch.stack(grads_h), cell_output))
    return da_all @ w.w_ih, grad_h, grad_c, grad_weights


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum the outer products of left (T, N, A) and right (T, N, B) over T and N: (A, B)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)


def select(mask: Tensor | None, value: Tensor, other: Tensor | float = 0.0) -> Tensor:
    """Take value where mask is True, else other; no mask is all True."""
    return value if mask is None else torch.where(mask, value, other)


def _processing_order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def make_masks(input: Tensor, lengths: Tensor | None, reset_mask: Tensor | None) -> Masks:
    """Build the masks of the module's docstring for input (T, N, D)."""
    steps, batch = input.size(0), input.size(1)
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    _check_shape("lengths", lengths, (batch,))
    _check_shape("reset_mask", reset_mask, (steps, batch))
    valid = None
    if lengths is not None:
        time = torch.arange(steps, device=input.device).unsqueeze(1)
        valid = (time < lengths.to(input.device)).unsqueeze(-1)
    if reset_mask is None:
        return Masks(valid, valid)
    not_reset = reset_mask.logical_not().unsqueeze(-1)
    return Masks(valid, not_reset if valid is None else valid & not_reset)


def _check_shape(name: str, tensor: Tensor | None, wanted: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != wanted:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, wanted {wanted}")


def _split_weights(weights: Sequence[Tensor], dirs: int) -> list[_Weights]:
    """Split a layer's weights by direction and name them; their number says which exist."""
    if len(weights) not in (2 * dirs, 3 * dirs, 4 * dirs, 5 * dirs):
        raise ValueError(f"weights: got {len(weights)} for {dirs} directions, wanted 2 to 5 each")
    directions = []
    for own in _split_evenly(weights, dirs):
        b_ih, b_hh = (own[2], own[3]) if len(own) >= 4 else (None, None)
        w_hr = own[-1] if len(own) in (3, 5) else None
        directions.append(_Weights(own[0], own[1], b_ih, b_hh, w_hr))
    return directions


def _split_evenly(tensors: Sequence[Tensor], parts: int) -> list[Sequence[Tensor]]:
    size = len(tensors) // parts
    return [tensors[k * size : (k + 1) * size] for k in range(parts)]
