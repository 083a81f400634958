# SPDX-License-Identifier: BSD-3-Clause
"""To and from ONNX: standard LSTM nodes, in ONNX Runtime, and the vectors that onnx ships."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.onnx_graphs import assert_has_parameters, lstm_node
from kit.twins import D, H
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning", "ignore:.*axis name:UserWarning"
)

T, N = torch.export.Dim("T", min=1, max=99), torch.export.Dim("N", min=1, max=99)


class Model(nn.Module):
    """Takes its arguments by place, as a graph does."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.lstm = FusedLSTM(D, H, **options)

    def forward(
        self,
        x: Tensor,
        h_0: Tensor | None = None,
        c_0: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hx = None if h_0 is None or c_0 is None else (h_0, c_0)
        y, (h_n, c_n) = self.lstm(x, hx, lengths=lengths)
        return y, h_n, c_n


def arguments_of(model: Model, steps: int, rows: int, extras: bool) -> tuple[Tensor, ...]:
    lstm = model.lstm
    x = torch.randn(*((rows, steps) if lstm.batch_first else (steps, rows)), D)
    blocks = lstm.num_layers * (2 if lstm.bidirectional else 1)
    state = torch.randn(2, blocks, rows, H)
    lengths = torch.arange(rows) % (steps + 1)  # one of them 0
    return (x, *state, lengths) if extras else (x,)


def exported(model: nn.Module, arguments: Any, shapes: Any, opset: int = 18) -> Any:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return torch.onnx.export(
        model,
        arguments,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=opset,
        custom_translation_table=lstm_fused.onnx.translation_table(),
        verbose=False,
    )


CASES: dict[str, tuple[dict[str, Any], bool, int]] = {
    "plain": ({}, False, 18),
    "stack": ({"num_layers": 2, "bidirectional": True}, True, 17),
    "batch_first": ({"batch_first": True, "bias": False}, True, 20),
    "peephole": ({"peephole": True}, True, 18),
    "coupled": ({"coupled_gates": True, "bias": False, "recurrent_dropout": 0.5}, False, 18),
    "options": (
        {"num_layers": 2, "bidirectional": True, "peephole": True, "coupled_gates": True},
        True,
        17,
    ),
}


@pytest.mark.parametrize(("options", "extras", "opset"), CASES.values(), ids=CASES)
def test_export_is_standard_nodes_that_onnx_runtime_runs(
    options: dict[str, Any], extras: bool, opset: int, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = Model(**options).eval()
    by_time = {0: N, 1: T} if model.lstm.batch_first else {0: T, 1: N}
    shapes = (by_time, {1: N}, {1: N}, {0: N})[: 4 if extras else 1]
    program = exported(model, arguments_of(model, 7, 5, extras), shapes, opset)
    path = str(tmp_path / "model.onnx")
    program.save(path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [opset]
    assert {node.domain for node in proto.graph.node} == {""}
    nodes = [node for node in proto.graph.node if node.op_type == "LSTM"]
    assert len(nodes) == model.lstm.num_layers
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for steps, rows in ((7, 5), (1, 1), (12, 3)):
        arguments = arguments_of(model, steps, rows, extras)
        names = [entry.name for entry in session.get_inputs()]
        given = {name: a.numpy() for name, a in zip(names, arguments, strict=True)}
        with torch.no_grad():
            expected = model(*arguments)
        for theirs, ours in zip(session.run(None, given), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-5, atol=1e-6)

    # Read the graph back: the weights of the graph are those of the module, bit for bit.
    back = lstm_fused.from_onnx(nodes, proto.graph.initializer)
    assert isinstance(back, FusedLSTM)
    back.batch_first = model.lstm.batch_first  # the graph transposes around the node
    back.recurrent_dropout = model.lstm.recurrent_dropout  # which an inference does not have
    assert repr(back) == repr(model.lstm)
    assert_has_parameters(back, model.lstm)
    y, (h_n, c_n) = back.eval()(arguments[0])
    for mine, original in zip((y, h_n, c_n), model(arguments[0]), strict=True):
        assert torch.equal(mine, original)


@pytest.mark.parametrize(
    ("options", "keywords", "training", "message"),
    [
        ({"proj_size": 2}, {}, False, "no projections"),
        ({}, {"reset_mask": torch.zeros(4, 2) > 0}, False, "no resets"),
        ({}, {"return_cell_states": True}, False, "the last cell state only"),
        ({"peephole": True, "proj_size": 2}, {}, False, "no projections"),
        ({"peephole": True}, {"reset_mask": torch.zeros(4, 2) > 0}, False, "no resets"),
        ({"peephole": True}, {"return_cell_states": True}, False, "the last cell state only"),
        ({"cell_clip": 1.5}, {}, False, "cell_clip bounds c: .* got cell_clip=1.5"),
        ({"layer_norm": True}, {}, False, "got layer_norm=True"),
        ({"zoneout": (0.25, 0.0)}, {}, False, r"got zoneout=\(0.25, 0.0\)"),
        ({"zoneout": (0.0, 0.25)}, {}, True, "zoneout in training mode: export the module after"),
        ({"recurrent_dropout": 0.5}, {}, True, "no recurrent_dropout, got its mask"),
    ],
)
def test_export_refuses_what_onnx_has_not(
    options: dict[str, Any], keywords: dict[str, Any], training: bool, message: str
) -> None:
    assert_refused(FusedLSTM(D, H, **options).train(training), keywords, message)


def test_export_refuses_packed_weights() -> None:
    for module, rank in ((nn.LSTM(D, H), 3), (nn.LSTMCell(D, H), 2)):
        own = lstm_fused.quantize(nn.Sequential(module))[0]
        assert_refused(own, {}, "no LSTM of packed weights", rank=rank)


def assert_refused(
    module: nn.Module, keywords: dict[str, Any], message: str, *, rank: int = 3
) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        torch.onnx.export(
            module,
            (torch.randn(4, 2, D) if rank == 3 else torch.randn(2, D),),
            kwargs=keywords,
            dynamo=True,
            custom_translation_table=lstm_fused.onnx.translation_table(),
            verbose=False,
        )
    causes: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    assert any(re.search(f"^NotImplementedError: .*{message}", cause) for cause in causes), causes


# The vectors that the onnx package ships.


@cache
def vectors() -> dict[str, Any]:
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case for case in collect_testcases("LSTM")}


def test_vectors_are_there() -> None:
    expected = {"test_lstm_defaults", "test_lstm_batchwise", "test_lstm_with_peepholes"}
    assert expected <= set(vectors())


@pytest.mark.parametrize("name", vectors())
def test_from_onnx_gives_the_shipped_results(name: str) -> None:
    case = vectors()[name]
    graph = case.model.graph
    (node,) = graph.node
    names = [entry.name for entry in graph.input]
    for inputs, outputs in case.data_sets:
        values = dict(zip(names, inputs, strict=True))

        def given(place: int, values: Any = values) -> Any:
            wanted = node.input[place] if len(node.input) > place else ""
            return torch.tensor(values[wanted]) if wanted else None

        module = lstm_fused.from_onnx(node, values)
        lstm = getattr(module, "lstm", module)
        h_0, c_0 = given(5), given(6)
        if lstm.batch_first and h_0 is not None:
            h_0, c_0 = h_0.transpose(0, 1), c_0.transpose(0, 1)
        hx = None if h_0 is None else (h_0, c_0)
        y, (h_n, c_n) = module(given(0), hx, lengths=given(4))
        directions = 2 if lstm.bidirectional else 1
        y = y.unflatten(-1, (directions, lstm.hidden_size))  # (T, N, L, H), or (N, T, L, H)
        if lstm.batch_first:
            h_n, c_n = h_n.transpose(0, 1), c_n.transpose(0, 1)
        else:
            y = y.transpose(1, 2)
        named = {
            key: result for key, result in zip(node.output, (y, h_n, c_n), strict=False) if key
        }
        for result, expected in zip(named.values(), outputs, strict=True):
            torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def values(directions: int = 1) -> dict[str, Tensor]:
    return {
        "W": torch.randn(directions, 4 * H, D),
        "R": torch.randn(directions, 4 * H, H),
        "B": torch.randn(directions, 8 * H),
    }


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"clip": 3.0}, "clip bounds the inputs of the activations, .* cell_clip .* got clip=3.0"),
        ({"activations": ["Sigmoid", "Tanh", "Relu"]}, "Sigmoid, Tanh, Tanh"),
        ({"activation_alpha": [1.0]}, "no activation_alpha"),
    ],
)
def test_from_onnx_refuses_what_fused_lstm_has_not(
    attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        lstm_fused.from_onnx(lstm_node(**attributes), values())


def test_from_onnx_refuses_weights_that_do_not_fit() -> None:
    given = values()
    with pytest.raises(ValueError, match="W must be among the initializers"):
        lstm_fused.from_onnx(lstm_node(), {k: v for k, v in given.items() if k != "W"})
    with pytest.raises(ValueError, match=r"R must have shape \(2, 20, 5\), got \(1, 20, 5\)"):
        lstm_fused.from_onnx(lstm_node(direction="bidirectional"), given)
    with pytest.raises(ValueError, match="takes LSTM nodes"):
        lstm_fused.from_onnx(onnx.helper.make_node("GRU", ["X"], ["Y"]), {})


def test_reversed_rows_start_at_their_own_ends() -> None:
    """direction="reverse" is the second half of a bidirectional layer."""
    both = lstm_fused.from_onnx(lstm_node(direction="bidirectional"), given := values(2))
    second = {name: tensor[1:] for name, tensor in given.items()}
    reverse = lstm_fused.from_onnx(lstm_node(direction="reverse"), second)
    x, lengths = torch.randn(6, 4, D), torch.tensor([6, 0, 1, 4])
    y, (h_n, c_n) = both(x, lengths=lengths)
    y_r, (h_r, c_r) = reverse(x, lengths=lengths)
    torch.testing.assert_close(y_r, y[..., H:])
    torch.testing.assert_close(h_r, h_n[1:])
    torch.testing.assert_close(c_r, c_n[1:])
