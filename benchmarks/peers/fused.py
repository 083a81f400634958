# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTM, for mode "op" the operator beneath it, and for cells a loop over FusedLSTMCell."""

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Refusal, Setting, refuse
from benchmarks.peers.cell_loop import leaves_of, make_cell, make_loop
from benchmarks.peers.torch_kit import (
    Inputs,
    checked_in_evaluation,
    make_call,
    make_inputs,
    make_module,
)
from lstm_fused import FusedLSTM, FusedLSTMCell


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    if case.cell:
        cell, inputs = make_cell(case, data, setting, FusedLSTMCell)
        return make_call(case, inputs, make_loop(case, cell, inputs), leaves_of(cell))
    inputs = make_inputs(case, data, setting)
    if case.mode == "op":
        return _prepare_op(case, inputs)
    module = make_module(FusedLSTM, case, inputs, **case.variant_options)
    module.recompute = case.recompute
    x = inputs.packed if case.ragged == "packed" else inputs.x
    masks = {"reset_mask": inputs.resets} if case.resets else {}
    if case.ragged == "lengths":
        masks["lengths"] = inputs.lengths.to(inputs.x.device)

    def forward():
        # NOTE: a packed input that carries gradients is packed anew: its graph is used up.
        packed = case.ragged == "packed" and case.training
        y, (h_n, c_n) = module(inputs.packed if packed else x, inputs.hx, **masks)
        return y, h_n, c_n

    call = make_call(case, inputs, forward, dict(module.named_parameters()))
    return checked_in_evaluation(case, call, module)


def _prepare_op(case: Case, inputs: Inputs) -> Call:
    refuse(case, "one layer's operator", "ragged", "resets", "layers")
    if inputs.x.device.type != "cpu":
        raise Refusal("no operator for this device")
    op = torch.ops.lstm_fused.lstm_forward.default
    weights = list(inputs.weights.values())

    def forward():
        return op(inputs.x, *inputs.hx, weights, None, None, None, False, False)[:3]

    return make_call(case, inputs, forward, {})
