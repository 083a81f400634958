# SPDX-License-Identifier: BSD-3-Clause
"""torch's dynamically quantized LSTM: int8 weights with one scale for each, 8-bit activations."""

import warnings

import torch
from torch import nn

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.torch_kit import make_call, make_inputs, make_module


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "torch dynamic int8", "training", "op", "ragged", "resets", "P")
    refuse_dtypes(case, "torch dynamic int8", "float32")
    inputs = make_inputs(case, data, setting)
    model = nn.Sequential(make_module(nn.LSTM, case, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.qint8)

    def forward():
        y, (h_n, c_n) = model[0](inputs.x, inputs.hx)
        return y, h_n, c_n

    return make_call(case, inputs, forward, {})
