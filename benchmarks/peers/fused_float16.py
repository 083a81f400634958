# SPDX-License-Identifier: BSD-3-Clause
"""QuantizedLSTM with float16 weights."""

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting
from benchmarks.peers.fused_int8 import prepare_quantized


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    return prepare_quantized(case, data, setting, torch.float16)
