# SPDX-License-Identifier: BSD-3-Clause
"""torch.nn.LSTM (oneDNN on the CPU, cuDNN on a GPU): the reference that others are compared with.

For cells it is a loop over nn.LSTMCell, and for options of the cell, which nn.LSTM lacks, a loop
over a cell that has them. It knows no resets. There it runs as users run it: one step at a time, in
a Python loop that multiplies the states by 0 where a row is reset.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers import cell_loop, variant_loop
from benchmarks.peers.base import Call, Setting, refuse
from benchmarks.peers.torch_kit import Inputs, make_call, make_inputs, make_module


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    if case.cell:
        return cell_loop.prepare(case, data, setting)
    if case.variant:
        return variant_loop.prepare(case, data, setting)
    inputs = make_inputs(case, data, setting)
    if case.mode == "op":
        return _prepare_op(case, inputs)
    module = make_module(nn.LSTM, case, inputs)
    leaves = dict(module.named_parameters())
    if case.resets:
        refuse(case, "the loop that resets", "ragged", "bidirectional")
        return make_call(case, inputs, _resetting(module, inputs), leaves, "loop over time steps")
    packed = inputs.packed if case.ragged == "packed" and not case.training else None

    def forward():
        # NOTE: a packed input that carries gradients is packed anew: its graph is used up.
        x = packed or (inputs.packed if case.ragged else inputs.x)
        y, (h_n, c_n) = module(x, inputs.hx)
        if case.ragged == "lengths":
            y, _ = pad_packed_sequence(y, total_length=case.T)
        return y, h_n, c_n

    return make_call(case, inputs, forward, leaves)


def _resetting(module: nn.Module, inputs: Inputs):
    keep = (~inputs.resets).to(inputs.x.dtype)[:, None, :, None]

    def forward():
        states, outputs = inputs.hx, []
        for x, kept in zip(inputs.x.split(1), keep.unbind(), strict=True):
            y, states = module(x, (states[0] * kept, states[1] * kept))
            outputs.append(y)
        return torch.cat(outputs), *states

    return forward


def _prepare_op(case: Case, inputs: Inputs) -> Call:
    refuse(case, "nn.LSTM's operator", "ragged", "resets")
    weights = list(inputs.weights.values())
    options = (True, case.layers, 0.0, False, case.bidirectional, False)

    def forward():
        return torch._VF.lstm(inputs.x, inputs.hx, weights, *options)

    return make_call(case, inputs, forward, {})
