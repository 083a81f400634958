# SPDX-License-Identifier: BSD-3-Clause
"""The gradients of :mod:`lstm_fused.reference_options`, by formulas derived by hand.

In float64 they are the truth that the kernels' gradients are tested against. Notation is that of
the module; dz is the gradient of a scalar by z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from lstm_fused.reference import make_masks, outer_sum, select
from lstm_fused.reference_options import (
    NORM_EPSILON,
    OPTION_TENSORS,
    LayerOptions,
    by_direction,
    each_step,
    masked,
    normalised,
    run_direction,
)

__all__ = ["LayerGradients", "lstm_layer_backward"]


class LayerGradients(NamedTuple):
    """The gradients of a layer's arguments, each in its argument's shape."""

    input: Tensor  # 0 past a row's length
    h_0: Tensor
    c_0: Tensor
    weights: list[Tensor]
    options: LayerOptions  # gradients in the place of the tensors; None of the masks


def lstm_layer_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    options: LayerOptions,
    *,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
) -> LayerGradients:
    """Differentiate ``lstm_layer``, by formulas derived by hand; autograd is not used.

    Arguments are those of :func:`lstm_fused.reference.lstm_layer_backward`, and options. One step,
    from dh and dc, the gradients of the state it leaves; d(n)(z, dz) is the gradient of n:

        dh_new   = (1 - keep_h) * dh             dcell_output = dh_new W_hr
        dshown   = dcell_output * o * (1 - tanh(shown)^2)
        da_o     = dcell_output * tanh(shown) * o(1-o)
        dc_new   = (1 - keep_c) * dc + w_co * da_o + d(n)(c_new, gain_c * dshown)
        dc_in    = dc_new where |f * c_prev + i * g| <= cell_clip, else 0
        da_g     = dc_in * i * (1 - g^2)
        da_i     = dc_in * g * i(1-i)                  da_f = dc_in * c_prev * f(1-f)
        coupled:   da_i = 0                            da_f = dc_in * (c_prev - g) * f(1-f)
        du, dv   = d(n)(u, gain_x * da), d(n)(v, gain_h * da)
        dh_prev  = (dv W_hh) * h_mask + keep_h * dh
        dc_prev  = dc_in * f + keep_c * dc + w_ci * da_i + w_cf * da_f
        d(n)(z, dz) = (dz - mean(dz) - n(z) * mean(n(z) * dz)) / sqrt(var(z) + 1e-5)

    Where the step is reset, dh_prev and dc_prev go to reset_h and reset_c. Over all steps

        dW_ih = sum du^T x         dW_hh = sum dv^T (h_prev * h_mask)       db_ih = db_hh = sum da
        dW_hr = sum dh_new^T cell_output                                    dx = du W_ih
        dw_ci = sum da_i * c_prev  dw_cf = sum da_f * c_prev                dw_co = sum da_o * c_new
        dgain_x = sum da * n(u)    dgain_h = sum da * n(v)
        dgain_c = sum dshown * n(c_new)                                     dbias_c = sum dshown

    Every operation is itself differentiable.
    """
    directions = h_0.size(0)
    masks = make_masks(input, lengths, reset_mask)
    x = select(masks.valid, input)

    def of_direction(grad: Tensor | None, d: int) -> Tensor | None:
        return None if grad is None else select(masks.valid, grad.chunk(directions, dim=-1)[d])

    parts = [
        _differentiate_direction(
            of_direction(grad_y, d),
            torch.zeros_like(h_0[d]) if grad_h_n is None else grad_h_n[d],
            torch.zeros_like(c_0[d]) if grad_c_n is None else grad_c_n[d],
            of_direction(grad_cell_states, d),
            *(x, h_0[d], c_0[d], own, given, masks.valid, reset_mask),
            reverse=d == 1,
        )
        for d, (own, given) in enumerate(by_direction(weights, options, directions))
    ]
    of_options = [
        None if values[0] is None else torch.stack(values)
        for values in zip(*(part.options.tensors for part in parts), strict=True)
    ]
    return LayerGradients(
        torch.stack([part.input for part in parts]).sum(dim=0),
        torch.stack([part.h_0 for part in parts]),
        torch.stack([part.c_0 for part in parts]),
        [grad for part in parts for grad in part.weights],
        LayerOptions._make((*of_options, *LayerOptions()[OPTION_TENSORS:])),
    )


def _differentiate_norm(values: Tensor, grad: Tensor) -> Tensor:
    """d(n)(values, grad) of `lstm_layer_backward`."""
    n = normalised(values)
    centred = grad - grad.mean(-1, keepdim=True) - n * (n * grad).mean(-1, keepdim=True)
    # NOTE: no var(), which warns where there are no rows.
    variance = (values - values.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    return centred * (variance + NORM_EPSILON).rsqrt()


def _differentiate_direction(
    grad_y: Tensor | None,
    grad_h: Tensor,
    grad_c: Tensor,
    grad_cells: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    options: LayerOptions,
    valid: Tensor | None,
    reset_mask: Tensor | None,
    *,
    reverse: bool,
) -> LayerGradients:
    """Differentiate one direction; padding is masked in grad_y, grad_cells and x."""
    steps, _, _ = run_direction(x, h_0, c_0, weights, options, valid, reset_mask, reverse=reverse)
    w_ih, w_hh = weights[:2]
    w_hr = weights[-1] if len(weights) in (3, 5) else None
    gains, cell_norm, peephole = options.gains, options.cell_norm, options.peephole
    keep_c = each_step(options.keep_c, options.zoneout_c, x)
    keep_h = each_step(options.keep_h, options.zoneout_h, x)
    grad_reset_h, grad_reset_c = torch.zeros_like(h_0), torch.zeros_like(c_0)
    grads: list[tuple[Tensor, ...]] = []  # da, dv, dshown, dh_new of each step

    # Walk the steps from the last processed to the first, carrying the state's gradient.
    for t in range(len(steps)) if reverse else range(len(steps) - 1, -1, -1):
        step, (i, f, g, o) = steps[t], steps[t].gates
        mask = None if valid is None else valid[t]

        # Collect what reaches the state made here; where no step takes place that is nothing.
        dh, dc = select(mask, grad_h), select(mask, grad_c)
        dh = dh if grad_y is None else dh + grad_y[t]
        dc = dc if grad_cells is None else dc + grad_cells[t]

        # Go through zoneout, the projection, the output, the cell and the gates.
        dh_new = (1 - keep_h[t]) * dh
        dcell_output = dh_new if w_hr is None else dh_new @ w_hr
        tanh = step.shown.tanh()
        dshown = dcell_output * o * (1 - tanh * tanh)
        da_o = dcell_output * tanh * o * (1 - o)
        dc_new = (1 - keep_c[t]) * dc + (
            dshown if cell_norm is None else _differentiate_norm(step.c_new, cell_norm[0] * dshown)
        )
        if peephole is not None:
            dc_new = dc_new + peephole[2] * da_o
        if options.cell_clip > 0:
            dc_new = select(step.unclipped.abs() <= options.cell_clip, dc_new)
        da_g = dc_new * i * (1 - g * g)
        di = dc_new * g
        da_i = torch.zeros_like(di) if options.coupled_gates else di * i * (1 - i)
        df = dc_new * step.c_prev - di if options.coupled_gates else dc_new * step.c_prev
        da_f = df * f * (1 - f)
        da = torch.cat([da_i, da_f, da_g, da_o], dim=-1)
        dv = da if gains is None else _differentiate_norm(step.v, gains[1] * da)
        grads.append((da, dv, dshown, dh_new))

        # Hand on: to the given state at a reset, everything past a step that did not take place.
        dh_prev = masked(dv @ w_hh, options.h_mask) + keep_h[t] * dh
        dc_prev = dc_new * f + keep_c[t] * dc
        if peephole is not None:
            dc_prev = dc_prev + peephole[0] * da_i + peephole[1] * da_f
        if reset_mask is not None:
            reset = reset_mask[t].unsqueeze(-1)
            taken = reset if mask is None else reset & mask
            grad_reset_h = grad_reset_h + select(taken, dh_prev)
            grad_reset_c = grad_reset_c + select(taken, dc_prev)
            dh_prev, dc_prev = select(~reset, dh_prev), select(~reset, dc_prev)
        grad_h, grad_c = select(mask, dh_prev, grad_h), select(mask, dc_prev, grad_c)

    # Sum over time and batch, as one GEMM each.
    da, dv, dshown, dh_new = map(
        torch.stack, zip(*(grads if reverse else grads[::-1]), strict=True)
    )
    h_prev, c_prev, v, _, _, c_new, _, cell_output, _, _ = zip(*steps, strict=True)
    u = linear(x, w_ih)
    du = da if gains is None else _differentiate_norm(u, gains[0] * da)
    entering = masked(torch.stack(h_prev), options.h_mask)
    grad_weights = [outer_sum(du, x), outer_sum(dv, entering)]
    if len(weights) >= 4:
        grad_weights += [da.sum(dim=(0, 1)), da.sum(dim=(0, 1))]
    if w_hr is not None:
        grad_weights.append(outer_sum(dh_new, torch.stack(cell_output)))

    def sums(*products: Tensor) -> Tensor:
        return torch.stack([product.sum(dim=(0, 1)) for product in products])

    before, made = torch.stack(c_prev), torch.stack(c_new)
    da_i, da_f, _, da_o = da.chunk(4, dim=-1)
    of_options = LayerOptions(
        peephole=None if peephole is None else sums(da_i * before, da_f * before, da_o * made),
        reset_h=None if options.reset_h is None else grad_reset_h,
        reset_c=None if options.reset_c is None else grad_reset_c,
        gains=None if gains is None else sums(da * normalised(u), da * normalised(torch.stack(v))),
        cell_norm=None if cell_norm is None else sums(dshown * normalised(made), dshown),
    )
    return LayerGradients(du @ w_ih, grad_h, grad_c, grad_weights, of_options)
