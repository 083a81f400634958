# SPDX-License-Identifier: BSD-3-Clause
"""MNN's LSTM with 8-bit weights, from the ONNX model by its converter.

The file's weights are integers with a scale for each row; MNN widens them when it loads them, and
computes in float32.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import MNN
import numpy as np

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes
from benchmarks.peers.onnx_graph import make_model

OUTPUTS = ("y", "h_n", "c_n")


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "MNN int8", "training", "op", "ragged", "resets", "P", "bidirectional")
    refuse_dtypes(case, "MNN's LSTM", "float32")
    options = {"backend": "CPU", "numThread": setting.threads, "precision": "high", "memory": "low"}
    manager = MNN.nn.create_runtime_manager((options,))
    inputs = {"x": data.x, "h_0": data.h_0, "c_0": data.c_0}
    with tempfile.TemporaryDirectory(prefix="lstm_fused_bench_") as folder:
        path = _convert(make_model(case, data), Path(folder))
        module = MNN.nn.load_module_from_file(
            str(path), list(inputs), list(OUTPUTS), runtime_manager=manager
        )
    variables = [
        MNN.expr.const(array.copy(), list(array.shape), MNN.expr.NCHW) for array in inputs.values()
    ]
    states = (case.layers, case.N, case.H)
    shapes = ((case.T, case.N, case.H), states, states)

    def run() -> list[np.ndarray]:
        # NOTE: reading is what computes: a forward alone may leave results for later.
        return [found.read() for found in module.forward(variables)]

    def results() -> dict[str, np.ndarray]:
        arrays = (np.array(a).reshape(shape) for a, shape in zip(run(), shapes, strict=True))
        return dict(zip(OUTPUTS, arrays, strict=True))

    return Call(run, results, "int8 in its file, float32 once loaded")


def _convert(model: bytes, folder: Path) -> Path:
    """Writes MNN's file of an ONNX model, with weights of 8 bits."""
    source, target = folder / "lstm.onnx", folder / "lstm.mnn"
    source.write_bytes(model)
    arguments = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
    arguments += ["--bizCode", "bench", "--weightQuantBits", "8"]
    # NOTE: not its script `mnnconvert`: that installs packages by pip, downgrading others, and
    # reports the model's size and options to a server. A process, because it may end its own.
    code = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if not target.is_file():
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise RuntimeError(f"MNN's converter wrote nothing: {' '.join(last)}")
    return target
