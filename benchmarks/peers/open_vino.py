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
    core = openvino.Core()
    model = core.compile_model(
        core.read_model(make_model(case, data)),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": setting.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[case.dtype],
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = model.create_infer_request()
    # NOTE: bound once and never copied; OpenVINO does not keep the arrays alive, `run` does.
    bound = {"x": data.x, "h_0": data.h_0, "c_0": data.c_0}
    for name, array in bound.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run(inputs: dict[str, np.ndarray] = bound) -> None:
        request.infer()

    def results() -> dict[str, np.ndarray]:
        run()
        return {name: request.get_tensor(name).data.copy() for name in ("y", "h_n", "c_n")}

    note = "float32 in and out, bfloat16 inside" if case.dtype == "bfloat16" else ""
    return Call(run, results, note)
