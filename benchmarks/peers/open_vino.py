# SPDX-License-Identifier: BSD-3-Clause
"""OpenVINO's LSTM on the CPU, from the same ONNX model."""

import numpy as np
import openvino

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.onnx_graph import make_model

# OpenVINO takes bfloat16 by itself where the processor has it; the precision is therefore said.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "OpenVINO", "training", "op", "ragged", "resets", "P")
    refuse_dtypes(case, "OpenVINO's LSTM", *PRECISIONS)
    note = "float32 in and out, bfloat16 inside" if case.dtype == "bfloat16" else ""
    model = openvino.Core().read_model(make_model(case, data))
    return call_model(compile_model(model, setting, PRECISIONS[case.dtype]), data, note)


def compile_model(
    model: openvino.Model, setting: Setting, precision: str
) -> openvino.CompiledModel:
    options = {
        "INFERENCE_NUM_THREADS": setting.threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(model, "CPU", options)


def call_model(compiled: openvino.CompiledModel, data: Data, note: str = "") -> Call:
    """A call of a model with inputs x, h_0, c_0 and outputs y, h_n, c_n."""
    request = compiled.create_infer_request()
    # NOTE: bound once and never copied; OpenVINO does not keep the arrays alive, `run` does.
    bound = {"x": data.x, "h_0": data.h_0, "c_0": data.c_0}
    for name, array in bound.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run(inputs: dict[str, np.ndarray] = bound) -> None:
        request.infer()

    def results() -> dict[str, np.ndarray]:
        run()
        return {name: request.get_tensor(name).data.copy() for name in ("y", "h_n", "c_n")}

    return Call(run, results, note)
