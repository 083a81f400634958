# SPDX-License-Identifier: BSD-3-Clause
"""ONNX Runtime's DynamicQuantizeLSTM on the CPU, as its own tool makes it of an LSTM node."""

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.onnx_graph import make_model
from benchmarks.peers.onnx_runtime import call_model


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "ONNX Runtime int8", "training", "op", "ragged", "resets", "P")
    refuse_dtypes(case, "ONNX Runtime's DynamicQuantizeLSTM", "float32")
    logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess
    return call_model(_quantized(make_model(case, data)), data, setting)


def _quantized(model: bytes) -> bytes:

    with tempfile.TemporaryDirectory(prefix="lstm_fused_bench_") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            onnx.load_from_string(model),
            path,
            op_types_to_quantize=["LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        quantized = onnx.load(path)
    if not any(node.op_type == "DynamicQuantizeLSTM" for node in quantized.graph.node):
        raise RuntimeError("ONNX Runtime's tool has quantized nothing")
    return quantized.SerializeToString()
