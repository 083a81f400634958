# SPDX-License-Identifier: BSD-3-Clause
"""An ONNX model of a case: one LSTM node for each layer, weights inside, states as inputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.case import Case
from benchmarks.data import Data

# ONNX orders the gates i, o, f, c; torch i, f, g, o.
GATE_ORDER = (0, 3, 1, 2)


def make_model(case: Case, data: Data) -> bytes:
    """Inputs x, h_0, c_0; outputs y, h_n, c_n; shapes fixed, which is the best case for all."""
    nodes, constants = [], []
    kind = TensorProto.DOUBLE if case.dtype == "float64" else TensorProto.FLOAT
    blocks, features = case.layers * case.directions, case.directions * case.output_size

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    if case.layers > 1:
        sizes = constant("sizes", np.full(case.layers, case.directions, np.int64))
        for name in ("h_0", "c_0"):
            node("Split", [name, sizes], [f"{name}_{i}" for i in range(case.layers)], axis=0)
    y_shape = constant("y_shape", np.array([case.T, case.N, features], np.int64))
    y = "x"
    for layer in range(case.layers):
        suffix = f"_{layer}" if case.layers > 1 else ""
        w, r, b = (constant(f"{n}_{layer}", a) for n, a in _layer_weights(case, data, layer))
        node(
            "LSTM",
            [y, w, r, b, "", f"h_0{suffix}", f"c_0{suffix}"],
            [f"Y_{layer}", f"h_n{suffix}", f"c_n{suffix}"],
            hidden_size=case.H,
            direction="bidirectional" if case.bidirectional else "forward",
        )
        # Y is (T, directions, N, H).
        node("Transpose", [f"Y_{layer}"], [f"Z_{layer}"], perm=[0, 2, 1, 3])
        y = "y" if layer == case.layers - 1 else f"y_{layer}"
        node("Reshape", [f"Z_{layer}", y_shape], [y])
    if case.layers > 1:
        for name in ("h_n", "c_n"):
            node("Concat", [f"{name}_{i}" for i in range(case.layers)], [name], axis=0)

    def info(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    states = (blocks, case.N, case.H)
    graph = helper.make_graph(
        nodes,
        "lstm",
        [info("x", case.T, case.N, case.D), info("h_0", *states), info("c_0", *states)],
        [info("y", case.T, case.N, features), info("h_n", *states), info("c_n", *states)],
        constants,
    )
    # NOTE: the oldest opset that has this LSTM: every runtime reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()


def _layer_weights(case: Case, data: Data, layer: int) -> list[tuple[str, np.ndarray]]:
    ends = [f"_l{layer}{suffix}" for suffix in ("", "_reverse")[: case.directions]]

    def stack(name: str) -> np.ndarray:
        arrays = [data.weights[name + end] for end in ends]
        gates = [np.split(array, 4) for array in arrays]
        return np.stack([np.concatenate([g[i] for i in GATE_ORDER]) for g in gates])

    bias = np.concatenate([stack("bias_ih"), stack("bias_hh")], axis=1)
    return [("W", stack("weight_ih")), ("R", stack("weight_hh")), ("B", bias)]
