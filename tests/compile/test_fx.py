# SPDX-License-Identifier: BSD-3-Clause
"""torch.fx: FusedLSTM and FusedLSTMCell are leaves, for every tracer."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, assert_same, make_twins, random_hx
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

F64 = torch.float64


class Model(nn.Module):
    def __init__(self, kind: type[nn.Module] = FusedLSTM) -> None:
        super().__init__()
        cell = FusedLSTMCell if kind is FusedLSTM else nn.LSTMCell
        torch.manual_seed(0)
        self.lstm = kind(D, H, num_layers=2, dtype=F64)
        self.head = nn.Linear(H, D, dtype=F64)
        self.cells = nn.ModuleList([cell(D, H, dtype=F64)])

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        y, (h, c) = self.lstm(x, hx)
        state = self.cells[0](self.head(y)[-1])
        return self.cells[0](self.head(state[0]), state)[0] + h[0] + c[1]


class LooksInto(fx.Tracer):
    """Knows no leaves, or does not take ours for any."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear)


class ByPath(fx.Tracer):
    """As torchvision's feature extraction: a call_module of its own."""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        return forward(*args, **kwargs)


def traced_by(tracer: type[fx.Tracer], model: nn.Module) -> fx.GraphModule:
    own = tracer()
    return fx.GraphModule(model, own.trace(model))


def targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


tracers = pytest.mark.parametrize("tracer", [fx.Tracer, LooksInto, ByPath])


@tracers
@pytest.mark.parametrize("converts", [False, True])
@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_traced_models_run(
    tracer: type[fx.Tracer], converts: bool, copied: Callable[[Any], Any]
) -> None:
    model = copied(lstm_fused.convert(Model(nn.LSTM)) if converts else Model())
    graph = traced_by(tracer, model)
    assert targets(graph.graph) == ["lstm", "head", "cells.0", "head", "cells.0"]
    theirs = Model(nn.LSTM)
    for batch in (4, 2):
        x = torch.randn(6, batch, D, dtype=F64)
        hx = tuple(torch.randn(2, batch, H, dtype=F64) for _ in "hc")
        assert_same(graph(x), theirs(x))
        assert_same(graph(x, hx), theirs(x, hx))
        expected = [g.grad for g in _backward(theirs, x)]
        assert_same(tuple(p.grad for p in _backward(graph, x)), tuple(expected))
    again = traced_by(tracer, graph)
    assert_same(pickle.loads(pickle.dumps(again))(x), theirs(x))
    assert_same(torch.compile(graph, backend="eager")(x), theirs(x))


def _backward(model: nn.Module, x: Tensor) -> list[nn.Parameter]:
    model.zero_grad()
    model(x).square().sum().backward()
    return list(model.parameters())


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = FusedLSTM(D, H, dtype=F64, batch_first=True)

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, lengths: Any = None, done: Any = None
    ) -> Any:
        y = self.lstm(input=x, hx=(h, c), lengths=lengths, reset_mask=done, return_cell_states=True)
        return y[0].sum() + y[2].sum()


@tracers
def test_keyword_arguments_are_kept(tracer: type[fx.Tracer]) -> None:
    model = Masked()
    x, hx = torch.randn(4, 6, D, dtype=F64), random_hx(model.lstm, 4)
    lengths, done = torch.tensor([6, 0, 3, 1]), torch.rand(4, 6) < 0.3
    graph = traced_by(tracer, model)
    assert_bitwise_equal(graph(x, *hx, lengths, done), model(x, *hx, lengths, done))
    assert_bitwise_equal(graph(x, *hx), model(x, *hx))
    (node,) = (node for node in graph.graph.nodes if node.op == "call_module")
    assert node.kwargs["return_cell_states"] is True


@pytest.mark.parametrize("argument", ["hx", "lengths", "reset_mask"])
def test_a_proxy_in_any_argument_is_seen(argument: str) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = FusedLSTM(D, H, num_layers=2, dtype=F64)
            self.x = torch.ones(6, 4, D, dtype=F64)

        def forward(self, value: Any) -> Any:
            return self.lstm(self.x, **{argument: value})[0]

    model = Fixed()
    values = {
        "hx": random_hx(model.lstm, 4),
        "lengths": torch.tensor([1, 2, 3, 6]),
        "reset_mask": torch.rand(6, 4) < 0.5,
    }
    graph = traced_by(LooksInto, model)
    assert_bitwise_equal(graph(values[argument]), model(values[argument]))


class Stateless(nn.Module):
    def __init__(self, lengths: Tensor | None) -> None:
        super().__init__()
        self.weights = nn.ParameterList(FusedLSTM(D, H, bidirectional=True, dtype=F64).parameters())
        self.lengths = lengths

    def forward(self, x: Tensor, h: Tensor) -> Any:
        y, h_n, c_n, c = lstm_fused.functional.lstm(
            *(x, (h, h), list(self.weights)),
            bidirectional=True,
            batch_first=True,
            lengths=self.lengths,
            return_cell_states=True,
        )
        return y, h_n, c_n, c.relu()


@tracers
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 0, 1, 6])])
def test_the_stateless_form_is_one_node(tracer: type[fx.Tracer], lengths: Tensor | None) -> None:
    model = Stateless(lengths)
    x, h = torch.randn(4, 6, D, dtype=F64), torch.randn(2, 4, H, dtype=F64)
    graph = traced_by(tracer, model)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert calls[0] is lstm_fused.functional.lstm
    for traced in (graph, pickle.loads(pickle.dumps(graph)), fx.symbolic_trace(graph)):
        for result, expected in zip(traced(x, h), model(x, h), strict=True):
            assert_bitwise_equal(result, expected)


class OfOneArgument(nn.Module):
    """The stateless form, of whose arguments a tracer sees one."""

    def __init__(self, argument: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(FusedLSTM(D, H, dtype=F64).parameters())
        self.argument = argument

    def forward(self, value: Tensor) -> Any:
        rows = 11 if self.argument == "batch_sizes" else (6, 4)
        x = torch.ones(rows, dtype=F64).unsqueeze(-1).repeat_interleave(D, -1)
        h = torch.zeros(1, 4, H, dtype=F64)
        given = {self.argument: value}
        return lstm_fused.functional.lstm(x, (h, h), list(self.weights), recompute=True, **given)[0]


@tracers
@pytest.mark.parametrize(
    "argument, value",
    [
        ("lengths", torch.tensor([2, 5, 1, 6])),
        ("batch_sizes", torch.tensor([4, 4, 2, 1])),
        ("reset_mask", torch.arange(24).view(6, 4) % 5 == 0),
    ],
)
def test_a_proxy_in_any_argument_of_the_stateless_form_is_seen(
    tracer: type[fx.Tracer], argument: str, value: Tensor
) -> None:
    model = OfOneArgument(argument)
    graph = traced_by(tracer, model)
    (call,) = [n for n in graph.graph.nodes if n.target is lstm_fused.functional.lstm]
    assert call.kwargs["recompute"] is True
    assert_bitwise_equal(graph(value), model(value))


def test_hooks_run_once_in_a_leaf() -> None:
    model = nn.Sequential(FusedLSTM(D, H, dtype=F64))
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model[0].register_forward_hook(lambda module, args, result: 3 * result[0])
    x = torch.randn(6, 4, D, dtype=F64)
    assert_bitwise_equal(fx.symbolic_trace(model)(x), model(x))
    with pytest.raises(TraceError, match="The hooks of FusedLSTM would run twice"):
        traced_by(LooksInto, model)


class Doubling(FusedLSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(2 * input, hx)[0]


class Plain(FusedLSTM):
    pass


def test_subclasses() -> None:
    x = torch.randn(6, 4, D, dtype=F64)
    model = nn.Sequential(Plain(D, H, dtype=F64))
    assert_same(fx.symbolic_trace(model)(x), model(x))
    assert_same(pickle.loads(pickle.dumps(model))(x), model(x))
    with pytest.raises(TraceError, match="Doubling calls our forward in its own"):
        fx.symbolic_trace(nn.Sequential(Doubling(D, H)))


@pytest.mark.parametrize("module", [FusedLSTM(D, H), FusedLSTMCell(D, H)])
def test_a_module_by_itself_cannot_be_traced(module: nn.Module) -> None:
    with pytest.raises(TraceError, match="can be traced as a part of a module, got"):
        fx.symbolic_trace(module)

    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return module.forward(x)

    with pytest.raises(TraceError, match="no part of what is traced"):
        fx.symbolic_trace(Outside())


def test_quantisation_by_graph_leaves_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

        model = Model().float().eval()
        x = torch.randn(6, 4, D)
        prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping(), (x,))
        assert type(prepared.lstm) is FusedLSTM
        prepared(x)
        quantized = quantize_fx.convert_fx(prepared)
    assert type(quantized.lstm) is FusedLSTM
    assert type(quantized.head) is not nn.Linear
    assert quantized(x).isfinite().all()
    assert_bitwise_equal(quantized.lstm(x)[0], model.lstm(x)[0])


def test_the_mark_of_leaves_stays_on_ours() -> None:
    ours, theirs = make_twins()
    assert ours.to_torch().__module__ == nn.LSTM.__module__
    assert ours.to_torch().__dict__.keys() == theirs.__dict__.keys()
    assert FusedLSTM.__module__ == "lstm_fused.module"
    assert type(pickle.loads(pickle.dumps(ours))) is FusedLSTM
