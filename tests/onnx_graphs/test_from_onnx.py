# SPDX-License-Identifier: BSD-3-Clause
"""Modules from ONNX models: exporters' own, and graphs that compute their weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.onnx_graphs import (
    ROWS,
    STEPS,
    assert_has_parameters,
    helper,
    integers,
    lstm_node,
    model_of,
    numpy_helper,
    onnx,
    run_in_ort,
    weights,
)
from kit.twins import D, H
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*axis name:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*batch_size.*:UserWarning"),
]

# Sizes from which on exporters leave the weights behind nodes.
LARGE_D, LARGE_H = 40, 64


class Model(nn.Module):
    def __init__(self, lstm: Any) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        keywords = {} if lengths is None else {"lengths": lengths}
        y, (h_n, c_n) = self.lstm(x, **keywords)
        return y, h_n, c_n


Sizes = dict[int, Any]
N = torch.export.Dim("N", min=1, max=99)
# The class, its options, whether it takes lengths, sizes that are dynamic, and torch's exporter.
EXPORTS: dict[str, tuple[Any, dict[str, Any], bool, Sizes, bool]] = {
    "ours": (FusedLSTM, {"num_layers": 2, "bidirectional": True}, False, {}, True),
    "ours_rows": (FusedLSTM, {"batch_first": True, "bias": False}, True, {0: N}, True),
    "ours_options": (
        FusedLSTM,
        {"num_layers": 2, "bidirectional": True, "peephole": True, "coupled_gates": True},
        False,
        {},
        True,
    ),
    "torch": (nn.LSTM, {"num_layers": 2, "bidirectional": True}, False, {}, True),
    "torch_rows": (nn.LSTM, {"num_layers": 2, "batch_first": True}, False, {0: N}, True),
    "torchscript": (nn.LSTM, {"num_layers": 2, "bidirectional": True}, False, {}, False),
    "torchscript_rows": (nn.LSTM, {"batch_first": True, "bias": False}, False, {}, False),
}


@pytest.mark.parametrize(
    ("kind", "options", "extras", "sizes", "dynamo"), EXPORTS.values(), ids=EXPORTS
)
def test_exports_lead_back(
    kind: Any, options: dict[str, Any], extras: bool, sizes: Sizes, dynamo: bool, tmp_path: Path
) -> None:
    """A FusedLSTM of the exported module's bits, and of ONNX Runtime's results."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(4)
    model = Model(kind(LARGE_D, LARGE_H, **options)).eval()
    first = model.lstm.batch_first
    x = torch.randn(*((ROWS, STEPS) if first else (STEPS, ROWS)), LARGE_D)
    arguments = (x, torch.tensor([6, 0, 4])) if extras else (x,)
    path = str(tmp_path / "model.onnx")
    settings: dict[str, Any] = {}
    if dynamo:
        settings["dynamic_shapes"] = (sizes, {0: N}) if extras else (sizes,)
        if kind is FusedLSTM:
            settings["custom_translation_table"] = lstm_fused.onnx.translation_table()
    torch.onnx.export(model, arguments, path, dynamo=dynamo, verbose=False, **settings)
    proto = onnx.load(path)
    nodes = [node for node in proto.graph.node if node.op_type == "LSTM"]
    assert any(node.op_type in ("Slice", "Constant") for node in proto.graph.node)
    for back in (lstm_fused.from_onnx(proto), lstm_fused.from_onnx(nodes, proto)):
        assert isinstance(back, FusedLSTM)
        back.batch_first = first  # the graph transposes around the node
        # TorchScript's exporter writes biases of zeros.
        has_bias = back.bias
        assert has_bias == model.lstm.bias or not dynamo
        assert_has_parameters(back, model.lstm)
        with torch.no_grad():
            found = back(x, lengths=arguments[1]) if extras else back(x)
            results = [found[0], *found[1]]
            for ours, theirs in zip(results, model(*arguments), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(results, run_in_ort(proto, arguments), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- Graphs written by hand ----


def assert_as_ort(module: Any, model: Any, inputs: int = D) -> None:
    x = torch.randn(STEPS, ROWS, inputs)
    with torch.no_grad():
        y = module(x)[0]
    (theirs,) = run_in_ort(model, (x,))
    if theirs.dim() == 4:
        theirs = theirs.transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, theirs, rtol=1e-5, atol=1e-6)


NODE = helper.make_node
# The integers of a quantized W.
INTEGERS = np.arange(4 * H * D).reshape(1, 4 * H, D)
CHAINS: dict[str, tuple[list[Any], dict[str, Any], int]] = {
    "constant": (
        [NODE("Constant", [], ["W"], value=numpy_helper.from_array(weights()["W"]))],
        {},
        17,
    ),
    "identity": ([NODE("Identity", ["w"], ["v"]), NODE("Identity", ["v"], ["W"])], {}, 17),
    "transpose": (
        [
            NODE("Transpose", ["w"], ["v"], perm=[2, 0, 1]),
            NODE("Transpose", ["v"], ["W"], perm=[1, 2, 0]),
        ],
        {},
        17,
    ),
    "reshape": (
        [NODE("Reshape", ["w", "s"], ["v"]), NODE("Reshape", ["v", "t"], ["W"])],
        {"s": integers(-1), "t": integers(1, 4 * H, D)},
        17,
    ),
    "cast": ([NODE("Cast", ["w"], ["v"], to=11), NODE("Cast", ["v"], ["W"], to=1)], {}, 17),
    "split": (
        [NODE("Split", ["w", "s"], ["a", "b"], axis=1), NODE("Concat", ["b", "a"], ["W"], axis=1)],
        {"s": integers(H, 3 * H)},
        17,
    ),
    "old_opset": (
        [NODE("Squeeze", ["w"], ["v"], axes=[0]), NODE("Unsqueeze", ["v"], ["W"], axes=[0])],
        {},
        11,
    ),
    "sum": (
        [NODE("Mul", ["w", "s"], ["v"]), NODE("Add", ["v", "w"], ["W"])],
        {"s": np.float32([0.5])},
        17,
    ),
    "quantized": (
        [NODE("DequantizeLinear", ["q", "s"], ["W"])],
        {"q": INTEGERS.astype(np.int8), "s": np.float32(0.01)},
        19,
    ),
    "quantized_rows": (
        [NODE("DequantizeLinear", ["q", "s", "z"], ["W"], axis=1)],
        {
            "q": INTEGERS.astype(np.int8),
            "s": np.linspace(0.01, 0.03, 4 * H, dtype=np.float32),
            "z": np.arange(4 * H, dtype=np.int8),
        },
        13,
    ),
    "quantized_early": (
        [NODE("DequantizeLinear", ["q", "s"], ["W"])],
        {"q": INTEGERS.astype(np.uint8), "s": np.float32(0.01)},
        10,
    ),
    "domain_by_name": (
        [NODE("Concat", ["w"], ["W"], axis=0, domain="ai.onnx")],
        {},
        17,
    ),
}


@pytest.mark.parametrize(("nodes", "others", "opset"), CHAINS.values(), ids=CHAINS)
def test_computed_weights(nodes: list[Any], others: dict[str, Any], opset: int) -> None:
    given = weights()
    given["w"] = given.pop("W")
    model = model_of([*nodes, lstm_node()], given | others, opset=opset)
    assert_as_ort(lstm_fused.from_onnx(model), model)
    assert_as_ort(lstm_fused.from_onnx(model.graph.node[-1], model), model)


@pytest.mark.parametrize("between", ["squeeze", "reshape", "identity"])
def test_stacks_of_a_model(between: str) -> None:
    """With initializers that two layers share."""
    given = weights(1, H)
    first = lstm_node("X", "W", "R", "B")
    second = lstm_node("y", "W", "R", "B")
    second.output[0] = "Z"
    joins = {
        "squeeze": [NODE("Squeeze", ["Y", "one"], ["y"])],
        "reshape": [
            NODE("Transpose", ["Y"], ["v"], perm=[0, 2, 1, 3]),
            NODE("Reshape", ["v", "s"], ["y"]),
        ],
        "identity": [
            NODE("Squeeze", ["Y", "one"], ["v"]),
            NODE("Dropout", ["v"], ["u"]),
            NODE("Identity", ["u"], ["y"]),
        ],
    }[between]
    sizes = {"one": integers(1), "s": integers(0, 0, -1)}
    model = model_of([first, *joins, second], given | sizes, output="Z")
    module = lstm_fused.from_onnx(model)
    assert module.num_layers == 2
    assert_as_ort(module, model, H)
    # Sizes that no export has are as good as none.
    model.graph.value_info.append(helper.make_tensor_value_info("Y", 1, (-3, 1, 0, H)))
    assert lstm_fused.from_onnx(model).num_layers == 2


def test_models_that_are_no_stack() -> None:
    first, second = lstm_node("X"[:1], "W", "R", "B"), lstm_node("y", "W", "R", "B")
    second.output[0] = "Z"
    given = weights(1, H) | {"one": integers(1)}
    squeeze = NODE("Squeeze", ["Y", "one"], ["v"])
    wrong: dict[str, tuple[list[Any], str]] = {
        "steps and rows swapped": (
            [squeeze, NODE("Transpose", ["v"], ["y"], perm=[1, 0, 2])],
            "else",
        ),
        "twice as much": ([squeeze, NODE("Add", ["v", "v"], ["y"])], "else"),
        "beside": ([NODE("Identity", ["X"], ["y"])], "which comes from 'X', an input"),
        "with another input": ([squeeze, NODE("Add", ["v", "X"], ["y"])], "'X', an input"),
        "with an activation": ([squeeze, NODE("Relu", ["v"], ["y"])], "Relu.*not evaluated"),
    }
    for name, (joins, message) in wrong.items():
        model = model_of([first, *joins, second], given, output="Z")
        with pytest.raises(ValueError, match=f"X of the node .* must be Y of .*{message}"):
            pytest.fail(f"{name}: {lstm_fused.from_onnx(model)}")
        assert lstm_fused.from_onnx(second, model).num_layers == 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("form", ["protos", "tensors", "model"])
def test_dtypes(dtype: torch.dtype, form: str) -> None:
    tensors = {name: torch.tensor(value).to(dtype) for name, value in weights().items()}
    kinds = {torch.float32: 1, torch.float64: 11, torch.float16: 10, torch.bfloat16: 16}
    protos = [
        helper.make_tensor(
            name,
            kinds[dtype],
            t.shape,
            t.contiguous().view(torch.uint8).numpy().tobytes(),
            raw=True,
        )
        for name, t in tensors.items()
    ]
    model = model_of([lstm_node()], {})
    model.graph.initializer.extend(protos)
    module: Any
    if form == "model":
        module = lstm_fused.from_onnx(model)
    else:
        module = lstm_fused.from_onnx(lstm_node(), protos if form == "protos" else tensors)
    expected = lstm_fused.from_onnx(lstm_node(), weights()).to(dtype)
    for mine, bits in zip(module.parameters(), expected.parameters(), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, bits)
