# SPDX-License-Identifier: BSD-3-Clause
"""nn.LSTM without oneDNN and cuDNN: torch's own operations, step by step."""

import torch

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers import nn_lstm
from benchmarks.peers.base import Call, Setting


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    torch.backends.mkldnn.set_flags(False)
    torch.backends.cudnn.enabled = False
    return nn_lstm.prepare(case, data, setting)
