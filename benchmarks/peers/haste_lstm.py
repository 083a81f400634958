# SPDX-License-Identifier: BSD-3-Clause
"""haste's LSTM (github.com/lmnt-com/haste), on a GPU.

It has one bias for both products, gates in the order i, g, f, o, and takes no initial states: they
are zero, and the check is against what the truth gives for zero states.
"""

import haste_pytorch
import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Refusal, Setting, refuse, refuse_dtypes
from benchmarks.peers.torch_kit import make_call, make_inputs

# Where torch's gates i, f, g, o stand in haste's order.
GATE_ORDER = (0, 2, 1, 3)


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "haste", "op", "ragged", "resets", "layers", "bidirectional", "P")
    refuse_dtypes(case, "haste", "float32", "float64")
    if data.h_0.any() or data.c_0.any():
        raise Refusal("haste: no initial states (ask for --zero-states)")
    inputs = make_inputs(case, data, setting)
    module = haste_pytorch.LSTM(case.D, case.H).to(inputs.x.dtype).train(case.training)

    def reorder(weight: Tensor) -> Tensor:
        parts = weight.chunk(4)
        return torch.cat([parts[i] for i in GATE_ORDER]).t().contiguous()

    with torch.no_grad():
        module.kernel.copy_(reorder(inputs.weights["weight_ih_l0"]))
        module.recurrent_kernel.copy_(reorder(inputs.weights["weight_hh_l0"]))
        both = inputs.weights["bias_ih_l0"] + inputs.weights["bias_hh_l0"]
        module.bias.copy_(reorder(both))
    # NOTE: the gradients are haste's own layout, so that y, the states and grad_x are checked.
    hidden = [module.kernel, module.recurrent_kernel, module.bias]

    def forward():
        y, (h_n, c_n) = module(inputs.x)
        return y, h_n, c_n

    return make_call(case, inputs, forward, {}, unnamed=hidden)
