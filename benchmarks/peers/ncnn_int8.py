# SPDX-License-Identifier: BSD-3-Clause
"""ncnn's LSTM layer with int8 weights: a scale for each row, activations rounded step by step."""

import struct
import tempfile
from pathlib import Path

import ncnn
import numpy as np

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Refusal, Setting, refuse, refuse_dtypes

# ncnn orders the gates i, f, o, g; torch i, f, g, o.
GATE_ORDER = (0, 1, 3, 2)
# What stands before an array in a file of weights, and says what it holds.
FLOATS, INTEGERS = struct.pack("<I", 0), struct.pack("<I", 0x000D4B38)


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "ncnn int8", "training", "op", "ragged", "resets", "P", "bidirectional")
    refuse_dtypes(case, "ncnn's int8 LSTM", "float32")
    if case.N > 1:
        raise Refusal("ncnn: no second row")
    net = ncnn.Net()
    net.opt.num_threads = setting.threads
    with tempfile.TemporaryDirectory(prefix="lstm_fused_bench_") as folder:
        graph, weights = Path(folder) / "lstm.param", Path(folder) / "lstm.bin"
        graph.write_text(_graph(case))
        weights.write_bytes(b"".join(_weights(data, layer) for layer in range(case.layers)))
        if net.load_param(str(graph)) or net.load_model(str(weights)):
            raise RuntimeError("ncnn does not read the model")

    layers = range(case.layers)
    arrays = {"x": data.x[:, 0]}
    arrays |= {f"h_{i}": data.h_0[i] for i in layers} | {f"c_{i}": data.c_0[i] for i in layers}
    # NOTE: a Mat of an array is a view of memory that may be gone when a call is timed.
    inputs = {name: ncnn.Mat(np.ascontiguousarray(a)).clone() for name, a in arrays.items()}

    def run() -> list[ncnn.Mat]:
        extractor = net.create_extractor()
        for name, mat in inputs.items():
            extractor.input(name, mat)
        wanted = [f"y_{case.layers - 1}", *(f"{s}_{i}" for s in ("hn", "cn") for i in layers)]
        return [extractor.extract(name)[1] for name in wanted]

    def results() -> dict[str, np.ndarray]:
        y, *states = (np.array(mat) for mat in run())
        h_n, c_n = np.split(np.stack(states), 2)
        return {"y": y[:, None], "h_n": h_n, "c_n": c_n}

    return Call(run, results)


def _graph(case: Case) -> str:
    """The layers, as lines of ncnn's format: type, name, counts, inputs, outputs, parameters."""
    states = [f"{kind}_{layer}" for layer in range(case.layers) for kind in "hc"]
    lines = [f"Input {name} 0 1 {name}" for name in ("x", *states)]
    for layer in range(case.layers):
        blobs = [f"y_{layer - 1}" if layer else "x", f"h_{layer}", f"c_{layer}"]
        blobs += [f"{kind}_{layer}" for kind in ("y", "hn", "cn")]
        # 0 and 3: units; 1: weights of x; 2: forward; 8: with int8 weights.
        size = 4 * case.H * case.input_size(layer)
        options = f"0={case.H} 1={size} 2=0 3={case.H} 8=2"
        lines.append(f"LSTM lstm_{layer} 3 3 {' '.join(blobs)} {options}")
    magic, blob_count = 7767517, 1 + 5 * case.layers
    return "\n".join([str(magic), f"{len(lines)} {blob_count}", *lines, ""])


def _weights(data: Data, layer: int) -> bytes:
    """A layer's W_ih, bias, W_hh and both scales, as ncnn's file has them."""
    own = {
        name: _reordered(data.weights[f"{name}_l{layer}"])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    (w_ih, ih_scales), (w_hh, hh_scales) = (
        _quantized(own[name]) for name in ("weight_ih", "weight_hh")
    )
    bias = (own["bias_ih"] + own["bias_hh"]).tobytes()
    return b"".join([INTEGERS, w_ih, FLOATS, bias, INTEGERS, w_hh, ih_scales, hh_scales])


def _quantized(weight: np.ndarray) -> tuple[bytes, bytes]:
    """Integers, whose number is a multiple of 4, and what each row was multiplied by."""
    scales = 127 / np.abs(weight).max(axis=1)
    integers = np.rint(weight * scales[:, None]).astype(np.int8)
    return integers.tobytes(), scales.astype(np.float32).tobytes()


def _reordered(weight: np.ndarray) -> np.ndarray:
    gates = np.split(weight, 4)
    return np.concatenate([gates[i] for i in GATE_ORDER])
