# SPDX-License-Identifier: BSD-3-Clause
"""Modules from ONNX models: exporters' own, graphs that compute their weights, and bad files."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import D, H
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*axis name:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*batch_size.*:UserWarning"),
]

# Sizes from which on exporters leave the weights behind nodes.
LARGE_D, LARGE_H = 40, 64
STEPS, ROWS = 6, 3


def run_in_ort(model: Any, arguments: Sequence[Tensor]) -> list[Tensor]:
    ort: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = {name: a.numpy() for name, a in zip(names, arguments, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, given)]


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
        for name, weight in model.lstm.named_parameters():
            assert torch.equal(back.get_parameter(name), weight)
        with torch.no_grad():
            found = back(x, lengths=arguments[1]) if extras else back(x)
            results = [found[0], *found[1]]
            for ours, theirs in zip(results, model(*arguments), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(results, run_in_ort(proto, arguments), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- Graphs written by hand ----


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


def weights(directions: int = 1, inputs: int = D, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"W": (4 * H, inputs), "R": (4 * H, H), "B": (8 * H,)}
    return {name: draw((directions, *sizes)).astype("f") for name, sizes in shapes.items()}


def assert_as_ort(module: Any, model: Any, inputs: int = D) -> None:
    x = torch.randn(STEPS, ROWS, inputs)
    with torch.no_grad():
        y = module(x)[0]
    (theirs,) = run_in_ort(model, (x,))
    if theirs.dim() == 4:
        theirs = theirs.transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, theirs, rtol=1e-5, atol=1e-6)


NODE = helper.make_node
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
        {"q": np.arange(4 * H * D, dtype=np.int8).reshape(1, 4 * H, D), "s": np.float32(0.01)},
        19,
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


# ---- What is refused ----


def test_names_what_is_not_constant() -> None:
    given = weights()
    w = given.pop("W")

    def of(*nodes: Any, **others: Any) -> Any:
        return model_of([*nodes, lstm_node()], given | others, inputs=("X", "V"))

    cases: list[tuple[Any, type[Exception], str]] = [
        (of(), ValueError, "W must be constant, got 'W', which is no value of the graph"),
        (
            of(NODE("Identity", ["V"], ["u"]), NODE("Identity", ["u"], ["W"])),
            ValueError,
            "W must be constant, got 'W', which comes from 'V', an input of the graph",
        ),
        (
            of(NODE("Identity", ["u"], ["W"]), NODE("Identity", ["W"], ["u"])),
            ValueError,
            "got 'W', which comes from itself",
        ),
        (
            of(NODE("RandomNormal", [], ["W"], shape=[1, 4 * H, D])),
            NotImplementedError,
            r"comes from the node of W \(RandomNormal\), which is not evaluated",
        ),
        (
            of(NODE("Mine", ["w"], ["W"], domain="mine"), w=w),
            NotImplementedError,
            r"the node of W \(Mine\)",
        ),
        (of(NODE("Reshape", ["w", "s"], ["W"]), w=w, s=integers(7)), ValueError, "be evaluated"),
        (
            of(NODE("Expand", ["w", "s"], ["W"]), w=w, s=integers(10**6, 4 * H, D)),
            ValueError,
            "too many elements",
        ),
        (of(NODE("Identity", ["w"], ["W"]), NODE("Identity", ["w"], ["W"])), ValueError, "twice"),
    ]
    for model, kind, message in cases:
        with pytest.raises(kind, match=message):
            lstm_fused.from_onnx(model)


def test_bodies_are_not_looked_into() -> None:
    body = helper.make_graph(
        [lstm_node("X", "W", "R", "B")],
        "body",
        [],
        [helper.make_tensor_value_info("Y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    branch = NODE("If", ["V"], ["Z"], then_branch=body, else_branch=body)
    model = model_of([branch], {}, inputs=("X", "V"), output="Z")
    with pytest.raises(ValueError, match=r"must hold LSTM nodes, got none; .* bodies of If"):
        lstm_fused.from_onnx(model)
    with pytest.raises(ValueError, match=r"got 'W', which is no value of the graph \(bodies of If"):
        lstm_fused.from_onnx(body.node[0], model)
    assert lstm_fused.from_onnx(body.node[0], body.initializer).input_size == D


ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"direction": "sideways"}, "direction must be forward, reverse or bidirectional"),
    ({"direction": "FORWARD"}, "direction must be"),
    ({"direction": b"\xff"}, "direction must be text"),
    ({"direction": 1}, "direction must be a value of type STRING"),
    ({"layout": 2}, "layout must be 0 or 1, got 2"),
    ({"layout": -1}, "layout must be 0 or 1, got -1"),
    ({"layout": 1.0}, "layout must be a value of type INT"),
    ({"hidden_size": 0}, "hidden_size, of at least 1, got 0"),
    ({"hidden_size": -H}, "hidden_size, of at least 1"),
    ({"hidden_size": H + 1}, "R must have shape"),
    ({"hidden_size": 2**62}, "R must have shape"),
    ({"hidden_size": "5"}, "hidden_size must be a value of type INT"),
    ({"activations": ["Sigmoid"]}, "3 for each direction"),
    ({"activations": ["Sigmoid", "Tanh", "Tanh"] * 2}, "3 for each direction"),
    ({"activations": [b"\xff", "Tanh", "Tanh"]}, "activations must be text"),
    ({"activations": "Tanh"}, "activations must be a value of type STRINGS"),
    ({"clip": 3}, "clip must be a value of type FLOAT"),
    ({"bogus": 1}, "the attribute 'bogus' which it has not"),
]


@pytest.mark.parametrize(("attributes", "message"), ATTRIBUTES, ids=str)
def test_bad_attributes(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        lstm_fused.from_onnx(lstm_node(**attributes), weights())
    assert not isinstance(caught.value, UnicodeError)


def test_bad_nodes() -> None:
    twice = lstm_node()
    twice.attribute.append(twice.attribute[0])
    referring = lstm_node()
    referring.attribute[0].ref_attr_name = "size"
    not_text = onnx.NodeProto()
    not_text.ParseFromString(lstm_node().SerializeToString().replace(b"LSTM", b"LS\xffM"))
    upper = lstm_node("X", "W", "R", "B", "lengths")
    nodes: list[tuple[Any, type[Exception], str]] = [
        (twice, ValueError, "'hidden_size' twice"),
        (referring, ValueError, "hidden_size must be a value of type INT"),
        (not_text, ValueError, "takes LSTM nodes"),
        (lstm_node("X", "W"), ValueError, "needs the inputs X, W and R"),
        (lstm_node("", "W", "R"), ValueError, "needs the inputs X, W and R"),
        (lstm_node("X", "W", ""), ValueError, "needs the inputs X, W and R"),
        (lstm_node(*"XWRB", *[""] * 5), ValueError, "at most 8 inputs"),
        ([], ValueError, "at least one node"),
        ([lstm_node(), upper], ValueError, "agree in .* sequence_lens"),
        ("LSTM", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        ([None], TypeError, "got NoneType"),
    ]
    for node, kind, message in nodes:
        with pytest.raises(kind, match=message):
            lstm_fused.from_onnx(node, weights())


def test_bad_values() -> None:
    def proto(name: str, **fields: Any) -> Any:
        tensor = numpy_helper.from_array(weights()[name], name)
        for field, value in fields.items():
            if field == "dims":
                tensor.ClearField("dims")
                tensor.dims.extend(value)
            elif isinstance(value, list):
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)
        return tensor

    def changed(name: str, value: Any) -> Any:
        return weights() | {name: value}

    def cast(name: str, dtype: str) -> Any:
        return changed(name, weights()[name].astype(dtype))

    external = proto("W", data_location=onnx.TensorProto.EXTERNAL)
    for place in ("w.bin", "../w.bin", "/etc/hostname"):
        external.external_data.add(key="location", value=place)
    cases: list[tuple[Any, type[Exception], str]] = [
        (changed("W", external), ValueError, "values in another file"),
        (changed("W", proto("W", dims=[-1, 4 * H, D])), ValueError, "cannot have shape"),
        (changed("W", proto("W", dims=[2**62, 4, 4])), ValueError, "cannot have shape"),
        (changed("W", proto("W", dims=[1, 4 * H, D + 1])), ValueError, "cannot be read"),
        (changed("W", proto("W", dims=[])), ValueError, "cannot be read"),
        (changed("W", proto("W", raw_data=b"\0" * 7)), ValueError, "cannot be read"),
        (changed("W", proto("W", float_data=[1.0])), ValueError, "values once"),
        (changed("W", proto("W", data_type=0)), ValueError, "cannot be read"),
        (changed("W", proto("W", data_type=99)), ValueError, "cannot be read"),
        (changed("W", weights()["W"][0]), ValueError, "W must have shape"),
        (changed("W", np.float32(1.0)), TypeError, "W must be a TensorProto"),
        (changed("W", weights()["W"][..., :0]), ValueError, "W must have shape"),
        (changed("B", weights()["B"][:, 1:]), ValueError, "B must have shape"),
        (changed("W", [[1.0]]), TypeError, "W must be a TensorProto, a NumPy array or a tensor"),
        (cast("W", "int32"), TypeError, "W must be float32, .* got int32"),
        (cast("W", "complex64"), TypeError, "W must be float32, .* got complex64"),
        (cast("R", "int64"), TypeError, "R must be float32, .* got int64"),
        (cast("R", "float64"), TypeError, "R must have W's dtype"),
        (cast("B", "float16"), TypeError, "B must have W's dtype"),
        (changed("W", torch.zeros(1, 4 * H, D).to_sparse()), TypeError, "torch.sparse_coo"),
        (changed("R", torch.zeros(1, 4 * H, H, device="meta")), ValueError, "W's device"),
        ([*map(proto, "WRB"), proto("W")], ValueError, "names of their own, got 'W'"),
        (None, TypeError, "got NoneType"),
        ("WRB", TypeError, "got str"),
        ([1], TypeError, "got int"),
        (onnx.GraphProto(), TypeError, "pass the model"),
        (onnx.ModelProto(), ValueError, "opset"),
    ]
    for given, kind, message in cases:
        if isinstance(given, dict) and isinstance(given["W"], np.ndarray):
            given["W"] = np.asarray(given["W"])
        with pytest.raises(kind, match=message):
            pytest.fail(f"{message}: {lstm_fused.from_onnx(lstm_node(), given)}")
    with pytest.raises(TypeError, match="initializers too"):
        lstm_fused.from_onnx(model_of([lstm_node()], weights()), {})
    wide = helper.make_node("LSTM", ["Y", "W2", "R", "B"], ["Z"], hidden_size=H)
    others = {"W2": weights(1, H)["W"].astype("d")}
    with pytest.raises(ValueError, match="W of an upper layer must have 5 columns, got 3"):
        lstm_fused.from_onnx([lstm_node()] * 2, weights())
    with pytest.raises(TypeError, match="R must have W's dtype"):
        lstm_fused.from_onnx([lstm_node(), wide], weights() | others)


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, kind = draw.randrange(len(changed)), draw.randrange(3)
        if kind == 0:
            changed[place] = draw.randrange(256)
        elif kind == 1:
            del changed[place : place + draw.choice((1, 2, 8))]
        else:
            changed.insert(place, draw.randrange(256))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(10))
def test_damaged_files_raise_what_is_documented(seed: int) -> None:
    """Of what is taken all the same, the results are ONNX Runtime's, if that takes it too."""
    draw = random.Random(seed)
    given = weights(draw.choice((1, 2)))
    directions = len(given["W"])
    given["w"] = given.pop("W")[0]
    parts = [
        NODE("Slice", ["w", "zero", "five"], ["a"]),
        NODE("Slice", ["w", "five", "end"], ["b"]),
        NODE("Concat", ["b", "a"], ["c"], axis=0),
        NODE("Unsqueeze", ["c", "zero"], ["d"]),
        NODE("Concat", ["d"] * directions, ["W"], axis=0),
    ]
    direction = "bidirectional" if directions == 2 else "forward"
    sizes = {"zero": integers(0), "five": integers(5), "end": integers(4 * H)}
    model = model_of([*parts, lstm_node(direction=direction)], given | sizes)
    data, taken = model.SerializeToString(), 0
    for _ in range(60):
        damaged = onnx.ModelProto()
        try:
            damaged.ParseFromString(mutated(data, draw))
        except Exception:  # protobuf's own, which differs from version to version
            continue
        try:
            module: Any = lstm_fused.from_onnx(damaged)
        except (ValueError, TypeError, NotImplementedError) as error:
            assert not isinstance(error, UnicodeError)
            continue
        taken += 1
        ends = [node for node in damaged.graph.node if node.op_type == "LSTM"]
        finite = all(bool((p.abs() < 100).all()) for p in module.parameters())
        if not finite or ends[0].input[0] != "X" or list(ends[0].output) != ["Y"]:
            continue
        x = torch.randn(STEPS, ROWS, module.input_size)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (theirs,) = run_in_ort(damaged, (x,))
        except Exception:  # what ONNX Runtime refuses
            continue
        with torch.no_grad():
            y = module(x)[0]
        torch.testing.assert_close(y, theirs.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)
    assert taken > 0
