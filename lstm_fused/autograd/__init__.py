# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function."""

from lstm_fused.autograd.functorch_function import FusedLSTMFunction
from lstm_fused.autograd.layer import lstm_layer

__all__ = ["FusedLSTMFunction", "lstm_layer"]
