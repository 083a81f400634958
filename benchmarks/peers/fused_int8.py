# SPDX-License-Identifier: BSD-3-Clause
"""QuantizedLSTM with int8 weights."""

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.torch_kit import make_call, make_inputs, make_module
from lstm_fused import FusedLSTM, quantize


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    return prepare_quantized(case, data, setting, torch.int8)


def prepare_quantized(case: Case, data: Data, setting: Setting, weights: torch.dtype) -> Call:
    refuse(case, "QuantizedLSTM", "training", "op", "ragged", "resets")
    refuse_dtypes(case, "QuantizedLSTM", "float32")
    inputs = make_inputs(case, data, setting)
    module = quantize(make_module(FusedLSTM, case, inputs), weights)

    def forward():
        y, (h_n, c_n) = module(inputs.x, inputs.hx)
        return y, h_n, c_n

    return make_call(case, inputs, forward, {})
