# SPDX-License-Identifier: BSD-3-Clause
"""Fused LSTM kernels for PyTorch, under a drop-in replacement of nn.LSTM.

>>> import torch
>>> from lstm_fused import FusedLSTM
>>> lstm = FusedLSTM(10, 20, num_layers=2)   # in place of nn.LSTM(10, 20, num_layers=2)
>>> y, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
"""

from pathlib import Path

from lstm_fused import functional, onnx, reference
from lstm_fused._convert.report import ConversionReport
from lstm_fused._ops.flops import register_flop_formulas
from lstm_fused._torch.fork import protect_forked_children
from lstm_fused._trace.record import trace
from lstm_fused._trace.result import Trace
from lstm_fused.autograd import FusedLSTMFunction
from lstm_fused.cell import FusedLSTMCell
from lstm_fused.convert import convert, revert
from lstm_fused.devices import check_cuda
from lstm_fused.info import build_info, explain
from lstm_fused.module import FusedLSTM
from lstm_fused.onnx import from_onnx
from lstm_fused.quantize import quantize
from lstm_fused.quantized import QuantizedLSTM
from lstm_fused.quantized_cell import QuantizedLSTMCell
from lstm_fused.scratch import release_scratch
from lstm_fused.stream import Stream, load_stream, save_stream

__version__ = "0.1.0"

protect_forked_children()
register_flop_formulas()

# What CMake's find_package(lstm_fused) is to look through for the C interface (CMAKE_PREFIX_PATH).
cmake_prefix_path = str(Path(__file__).resolve().parent / "lib" / "cmake")

__all__ = [
    "ConversionReport",
    "FusedLSTM",
    "FusedLSTMCell",
    "FusedLSTMFunction",
    "QuantizedLSTM",
    "QuantizedLSTMCell",
    "Stream",
    "Trace",
    "__version__",
    "build_info",
    "check_cuda",
    "cmake_prefix_path",
    "convert",
    "explain",
    "from_onnx",
    "functional",
    "load_stream",
    "onnx",
    "quantize",
    "reference",
    "release_scratch",
    "revert",
    "save_stream",
    "trace",
]
