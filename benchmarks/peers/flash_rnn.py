# SPDX-License-Identifier: BSD-3-Clause
"""FlashRNN (github.com/NX-AI/flashrnn), fused backend, one head, on a GPU.

It takes W_ih·x as given: the product is made by torch and timed with it, as nn.LSTM's is. Each
shape compiles an extension of its own while the case is prepared.
"""

import torch
from flashrnn import flashrnn
from torch.nn import functional as F

from benchmarks.case import GATES, Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.torch_kit import make_call, make_inputs


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "FlashRNN", "op", "ragged", "resets", "layers", "bidirectional", "P")
    refuse_dtypes(case, "FlashRNN", "float32", "tf32", "bfloat16", "float16")
    inputs = make_inputs(case, data, setting)
    leaves = {name: w.requires_grad_(case.training) for name, w in inputs.weights.items()}
    w_ih, w_hh, b_ih, b_hh = leaves.values()
    # (states, N, 1, heads, H)
    states = torch.stack([state[0] for state in inputs.hx])[:, :, None, None]
    dtype = str(inputs.x.dtype).removeprefix("torch.")

    def forward():
        gates = F.linear(inputs.x, w_ih).transpose(0, 1)
        every, last = flashrnn(
            gates.reshape(case.N, case.T, GATES, 1, case.H),
            w_hh.view(GATES, 1, case.H, case.H),
            (b_ih + b_hh).view(GATES, 1, case.H),
            states=states,
            function="lstm",
            backend="cuda_fused",
            dtype=dtype,
        )
        y = every[0, :, :, 0].transpose(0, 1)
        return y, last[0, :, 0].transpose(0, 1), last[1, :, 0].transpose(0, 1)

    return make_call(case, inputs, forward, leaves)
