# SPDX-License-Identifier: BSD-3-Clause
"""ONNX graphs written by hand, and ONNX Runtime. Where onnx is not, importing this skips."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.twins import D, H
from lstm_fused import FusedLSTM

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

# Sizes of the inputs.
STEPS, ROWS = 6, 3


def run_in_ort(model: Any, arguments: Sequence[Tensor]) -> list[Tensor]:
    ort: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = {name: a.numpy() for name, a in zip(names, arguments, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, given)]


def assert_has_parameters(found: FusedLSTM, expected: nn.Module) -> None:
    """Assert the bits of all of `expected` that is read: with coupled gates, those of i are not."""
    for name, value in expected.named_parameters():
        parts = 3 if name.startswith("peephole") else 4
        unread = len(value) // parts if found.coupled_gates else 0
        assert torch.equal(found.get_parameter(name)[unread:], value[unread:]), name


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


def model_of(
    nodes: Sequence[Any],
    values: dict[str, Any],
    *,
    dtype: int = 1,
    opset: int = 17,
    inputs: Sequence[str] = ("X",),
    output: str = "Y",
) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, None) for name in inputs],
        [helper.make_tensor_value_info(output, dtype, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def lstm_node(*names: str, **attributes: Any) -> Any:
    names = names or ("X", "W", "R", "B")
    return helper.make_node("LSTM", names, ["Y"], **{"hidden_size": H} | attributes)


def weights(
    directions: int = 1, inputs: int = D, seed: int = 0, *, peepholes: bool = False
) -> dict[str, Any]:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"W": (4 * H, inputs), "R": (4 * H, H), "B": (8 * H,)}
    if peepholes:
        shapes["P"] = (3 * H,)
    return {name: draw((directions, *sizes)).astype("f") for name, sizes in shapes.items()}
