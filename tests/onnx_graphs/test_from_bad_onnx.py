# SPDX-License-Identifier: BSD-3-Clause
"""Bad ONNX files raise what is documented, and nothing of them is taken for something else."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from kit.onnx_graphs import (
    ROWS,
    STEPS,
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

import lstm_fused

NODE = helper.make_node
PEEPHOLED = ("X", "W", "R", "B", "", "", "", "P")


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


def test_refuses_nodes_that_mean_something_else() -> None:
    """Masks drawn at random, broadcasting of old, and a model's own meanings of ONNX's names."""
    square = 4 * H  # with rows as long as columns, both ways to broadcast have the sizes
    given = weights(1, square)
    given["w"] = given.pop("W")
    others = given | {"v": np.ones(square, "f"), "half": np.float32(0.5), "yes": np.array(True)}

    def of(*nodes: Any, opset: int = 17) -> Any:
        return model_of([*nodes, lstm_node()], others, opset=opset)

    training = NODE("Dropout", ["w", "half", "yes"], ["W"])
    by_columns = NODE("Add", ["w", "v"], ["W"], broadcast=1, axis=1)
    refused: list[tuple[Any, str]] = [
        (of(training), r"of W \(Dropout\) with training_mode"),
        (of(by_columns, opset=6), r"of W \(Add\), which is not evaluated"),
    ]
    for name in ("Identity", "LSTM"):
        own = of(NODE("Identity", ["w"], ["W"]))
        body = [NODE("Neg", ["a"], ["b"])]
        own.functions.append(helper.make_function("", name, ["a"], ["b"], body, own.opset_import))
        refused.append((own, f"{name} must be ONNX's own"))
    for model, message in refused:
        with pytest.raises(NotImplementedError, match=message):
            lstm_fused.from_onnx(model)
    for versions in ((17, 6), (0,), (-1,)):
        model = of(NODE("Identity", ["w"], ["W"]))
        del model.opset_import[:]
        for domain, version in zip(("", "ai.onnx"), versions, strict=False):
            model.opset_import.append(helper.make_opsetid(domain, version))
        with pytest.raises(ValueError, match="one of at least 1, got"):
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
    ({"input_forget": 2}, "input_forget must be 0 or 1, got 2"),
    ({"input_forget": -1}, "input_forget must be 0 or 1, got -1"),
    ({"input_forget": 1.0}, "input_forget must be a value of type INT"),
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
        ([lstm_node(), lstm_node(*PEEPHOLED)], ValueError, "agree in .* P and input_forget"),
        ([lstm_node(), lstm_node(input_forget=1)], ValueError, "agree in .* P and input_forget"),
        (lstm_node(*PEEPHOLED), ValueError, "P must be among the initializers, got no 'P'"),
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
        (changed("W", torch.nested.nested_tensor([torch.zeros(4 * H, D)])), TypeError, "a nested"),
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
    peepholes = np.zeros((1, 3 * H), "f")
    for value, kind, message in (
        (peepholes[:, 1:], ValueError, r"P must have shape \(1, 15\), got \(1, 14\)"),
        (peepholes.astype("d"), TypeError, "P must have W's dtype"),
        (peepholes.astype("i"), TypeError, "P must be float32, .* got int32"),
    ):
        with pytest.raises(kind, match=message):
            lstm_fused.from_onnx(lstm_node(*PEEPHOLED), weights() | {"P": value})
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
    """A damaged file that is taken gives ONNX Runtime's results, if that takes it too."""
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
