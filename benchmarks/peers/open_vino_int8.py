# SPDX-License-Identifier: BSD-3-Clause
"""OpenVINO's int8 LSTM on the CPU: 8-bit weights with a scale for each row, 8-bit activations.

OpenVINO takes 8 bits where FakeQuantize operations stand before an LSTMSequence's x, h_0 and
weights. NNCF, which inserts them into models, does not see an ONNX LSTM's weights, which the
importer sorts by gates, so the model is made here.
"""

import numpy as np
import openvino
from openvino import opset13 as ops

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Refusal, Setting, refuse, refuse_dtypes
from benchmarks.peers.open_vino import call_model, compile_model

# OpenVINO orders the gates f, i, g, o; torch i, f, g, o.
GATE_ORDER = (1, 0, 2, 3)
NOTE = "8-bit activations; one range for x and h, the widest of the data"


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "OpenVINO int8", "training", "op", "ragged", "resets", "P", "bidirectional")
    refuse_dtypes(case, "OpenVINO's int8 LSTM", "float32")
    compiled = compile_model(make_model(case, data), setting, "f32")
    _check_types(compiled)
    return call_model(compiled, data, NOTE)


def make_model(case: Case, data: Data) -> openvino.Model:
    """One LSTMSequence for each layer; shapes fixed."""
    x, h_0, c_0 = (ops.parameter(array.shape, np.float32) for array in (data.x, data.h_0, data.c_0))
    lengths = ops.constant(np.full(case.N, case.T, np.int32))
    # NOTE: oneDNN's LSTM has one scale for its input, states and output. With a range for each of
    # x, h_0 and layer, results are wrong (errors of 0.17), so that the widest serves all.
    limit = np.float32(max(np.abs(data.x).max(), np.abs(data.h_0).max(), 1))
    y, finals = _swapped(x), []
    for layer in range(case.layers):
        own_h, own_c = (_rows(state, layer) for state in (h_0, c_0))
        weights = [_weights(data, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh")]
        bias = data.weights[f"bias_ih_l{layer}"] + data.weights[f"bias_hh_l{layer}"]
        node = ops.lstm_sequence(
            _rounded(y, limit, 256),
            _rounded(own_h, limit, 256),
            own_c,
            lengths,
            *weights,
            ops.constant(_reordered(bias)[None]),
            case.H,
            "forward",
        )
        y = ops.squeeze(node.output(0), ops.constant([1]))  # (N, T, H)
        finals.append([_swapped(node.output(i)) for i in (1, 2)])
    h_n, c_n = (ops.concat(list(states), 0) for states in zip(*finals, strict=True))
    results = {"y": _swapped(y), "h_n": h_n, "c_n": c_n}
    inputs = {"x": x, "h_0": h_0, "c_0": c_0}
    for name, node in (inputs | results).items():
        node.output(0).set_names({name})
    return openvino.Model(list(results.values()), list(inputs.values()), "lstm")


def _check_types(compiled: openvino.CompiledModel) -> None:
    """Raises `Refusal` where OpenVINO has no int8 LSTM for this processor."""
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) == "RNNSeq":
            found = facts["runtimePrecision"].astype(str)
            if found not in ("u8", "i8"):
                raise Refusal(f"OpenVINO int8: its LSTM runs in {found} on this processor")


def _rounded(node: openvino.Node, limit: np.ndarray, levels: int) -> openvino.Node:
    """Values within ±limit at `levels` levels."""
    low, high = ops.constant(-limit), ops.constant(limit)
    return ops.fake_quantize(node, low, high, low, high, levels)


def _weights(data: Data, name: str) -> openvino.Node:
    weight = _reordered(data.weights[name])[None]
    return _rounded(ops.constant(weight), np.abs(weight).max(axis=2, keepdims=True), 255)


def _reordered(weight: np.ndarray) -> np.ndarray:
    gates = np.split(weight, 4)
    return np.concatenate([gates[i] for i in GATE_ORDER])


def _rows(states: openvino.Node, layer: int) -> openvino.Node:
    """(N, 1, H) of a layer."""
    own = ops.gather(states, ops.constant([layer]), ops.constant(0))
    return _swapped(own)


def _swapped(node: openvino.Node) -> openvino.Node:
    """The node with its first two dimensions swapped."""
    return ops.transpose(node, ops.constant([1, 0, 2]))
