# SPDX-License-Identifier: BSD-3-Clause
"""ONNX Runtime's LSTM on the CPU."""

import numpy as np
import onnxruntime

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.onnx_graph import make_model


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "ONNX Runtime", "training", "op", "ragged", "resets", "P")
    refuse_dtypes(case, "ONNX Runtime's LSTM", "float32")
    return call_model(make_model(case, data), data, setting)


def call_model(model: bytes, data: Data, setting: Setting) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": data.x, "h_0": data.h_0, "c_0": data.c_0}

    def results() -> dict[str, np.ndarray]:
        return dict(zip(("y", "h_n", "c_n"), session.run(None, feed), strict=True))

    return Call(lambda: session.run(None, feed), results)
