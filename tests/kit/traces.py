# SPDX-License-Identifier: BSD-3-Clause
"""The gates of a case's LSTM, step by step in plain torch, by the reference's cell."""

from __future__ import annotations

import torch
from torch import Tensor

from lstm_fused import reference
from lstm_fused.reference_options import by_direction, run_direction

from .cases import LayerInputs
from .options import OptionInputs, padded_layer

FIELDS = ("i", "f", "g", "o", "c", "h")


def reference_states(inputs: LayerInputs) -> dict[str, dict[str, Tensor]]:
    """By the names of a trace, the six tensors of every step in the layout of the case, zero past a
    row's length; differentiable with respect to the inputs."""
    case = inputs.case
    x, reset = inputs.input, inputs.reset_mask
    if case.batch_first:
        x = x.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    masks = reference.make_masks(x, inputs.lengths, reset)
    x = reference.select(masks.valid, x)
    weights = iter(inputs.weights.values())
    every: dict[str, dict[str, Tensor]] = {}
    for layer in range(case.num_layers):
        outputs = []
        for d in range(case.dirs):
            block = layer * case.dirs + d
            w_ih, w_hh = next(weights), next(weights)
            bias = next(weights) + next(weights) if case.bias else None
            w_hr = next(weights) if case.P else None
            h = x.new_zeros(case.N, case.output_size) if inputs.h_0 is None else inputs.h_0[block]
            c = x.new_zeros(case.N, case.H) if inputs.c_0 is None else inputs.c_0[block]
            steps: list[tuple[Tensor, ...]] = [()] * case.T
            for t in reversed(range(case.T)) if d else range(case.T):
                valid, carried = masks.at(t)
                a = torch.nn.functional.linear(x[t], w_ih, bias)
                a = a + reference.select(carried, h) @ w_hh.t()
                gates, h_new, c_new = reference.lstm_cell(a, reference.select(carried, c))
                h_new = h_new if w_hr is None else h_new @ w_hr.t()
                steps[t] = tuple(reference.select(valid, v) for v in (*gates, c_new, h_new))
                h, c = reference.select(valid, h_new, h), reference.select(valid, c_new, c)
            states = [torch.stack(values) for values in zip(*steps, strict=True)]
            outputs.append(states[-1])
            if case.batch_first:
                states = [values.transpose(0, 1) for values in states]
            every[f"l{layer}{'_reverse' if d else ''}"] = dict(zip(FIELDS, states, strict=True))
        x = torch.cat(outputs, dim=-1)
    return every


def reference_option_states(inputs: OptionInputs) -> list[dict[str, Tensor]]:
    """The six tensors of every step (T, N, H) of each direction of a cell with options, zero past
    a row's length; differentiable with respect to the inputs."""
    tensors, options, _ = padded_layer(inputs.tensors, inputs.options)
    masks = reference.make_masks(tensors.input, tensors.lengths, tensors.reset_mask)
    x, every = reference.select(masks.valid, tensors.input), []
    for d, own in enumerate(by_direction(inputs.weights, options, inputs.case.directions)):
        states = (inputs.h_0[d], inputs.c_0[d])
        steps, _, _ = run_direction(
            x, *states, *own, masks.valid, inputs.reset_mask, reverse=d == 1
        )
        values = zip(*((*step.gates, step.c, step.h) for step in steps), strict=True)
        stacked = [reference.select(masks.valid, torch.stack(value)) for value in values]
        every.append(dict(zip(FIELDS, stacked, strict=True)))
    return every
