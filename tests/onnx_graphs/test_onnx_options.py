# SPDX-License-Identifier: BSD-3-Clause
"""Peepholes and coupled gates: ONNX's input P and attribute input_forget, both ways."""

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
    onnx,
    run_in_ort,
    weights,
)
from kit.twins import D, H

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused.reference_options import LayerOptions, lstm_layer

OPTIONS = {"P": (True, 0), "input_forget": (False, 1), "both": (True, 1)}
GIVEN = pytest.mark.parametrize(("peepholes", "coupled"), OPTIONS.values(), ids=OPTIONS)


def node_of(peepholes: bool, coupled: int, x: str = "X", y: str = "Y", **attributes: Any) -> Any:
    names = [x, "W", "R", "B", *(["", "", "", "P"] if peepholes else [])]
    node = lstm_node(*names, input_forget=coupled, **attributes)
    node.output[0] = y
    return node


@GIVEN
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_from_onnx_computes_what_onnx_runtime_does(
    direction: str, peepholes: bool, coupled: int
) -> None:
    directions = 2 if direction == "bidirectional" else 1
    node = node_of(peepholes, coupled, direction=direction)
    model = model_of([node], weights(directions, peepholes=peepholes))
    module: Any = lstm_fused.from_onnx(model)
    lstm = getattr(module, "lstm", module)
    assert (lstm.peephole, lstm.coupled_gates) == (peepholes, coupled == 1)
    x = torch.randn(STEPS, ROWS, D)
    with torch.no_grad():
        y = module(x)[0]
    (theirs,) = run_in_ort(model, (x,))
    torch.testing.assert_close(y, theirs.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)


@GIVEN
def test_stacks_have_options_in_every_layer(peepholes: bool, coupled: int) -> None:
    """With weights that both layers share."""
    given = weights(1, H, peepholes=peepholes) | {"one": integers(1)}
    join = helper.make_node("Squeeze", ["Y", "one"], ["y"])
    nodes = [node_of(peepholes, coupled), join, node_of(peepholes, coupled, "y", "Z")]
    model = model_of(nodes, given, output="Z")
    module: Any = lstm_fused.from_onnx(model)
    assert module.num_layers == 2
    x = torch.randn(STEPS, ROWS, H)
    with torch.no_grad():
        y = module(x)[0]
    (theirs,) = run_in_ort(model, (x,))
    torch.testing.assert_close(y, theirs[:, 0], rtol=1e-5, atol=1e-6)


def test_peepholes_are_of_their_gates() -> None:
    """By `reference_options` in float64, with weights put in its order by hand."""
    given = {name: value.astype("d") for name, value in weights(peepholes=True).items()}
    module: Any = lstm_fused.from_onnx(node_of(True, 0), given)
    i, o, f, c = (np.arange(H) + k * H for k in range(4))
    ours, p = np.concatenate([i, f, c, o]), given["P"][0]
    flat = [given["W"][0, ours], given["R"][0, ours], *given["B"][0].reshape(2, -1)[:, ours]]
    peephole = np.stack([p[:H], p[2 * H :], p[H : 2 * H]])
    x, state = torch.randn(STEPS, ROWS, D).double(), torch.randn(2, 1, ROWS, H).double()
    expected = lstm_layer(
        x, *state, list(map(torch.tensor, flat)), LayerOptions(torch.tensor(peephole)[None])
    )
    with torch.no_grad():
        y, (h_n, c_n) = module(x, tuple(state))
    for found, truth in zip((y, h_n, c_n), expected[:3], strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:.*axis name:UserWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_exports_need_no_runtime_that_couples(bidirectional: bool) -> None:
    """onnx's own evaluator knows P, and does not look at input_forget; ONNX Runtime does."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(6)
    options = {"peephole": True, "coupled_gates": True, "bidirectional": bidirectional}
    lstm = FusedLSTM(D, H, **options).eval()
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.normal_()
    x = torch.randn(STEPS, ROWS, D)
    program = torch.onnx.export(
        lstm,
        (x,),
        dynamo=True,
        custom_translation_table=lstm_fused.onnx.translation_table(),
        verbose=False,
    )
    model: Any = program.model_proto  # type: ignore[union-attr]
    (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes["input_forget"] == 1
    assert len(node.input) == 8
    assert node.input[7]
    with torch.no_grad():
        y, (h_n, c_n) = lstm(x)
    evaluator = onnx.reference.ReferenceEvaluator(model)
    name = model.graph.input[0].name
    evaluated = [torch.tensor(result) for result in evaluator.run(None, {name: x.numpy()})]
    for results in (evaluated, run_in_ort(model, (x,))):
        for theirs, ours in zip(results, (y, h_n, c_n), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
