# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTMCell where gradients are batched, transformed, compiled or counted."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.twins import D, H
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import FusedLSTM, FusedLSTMCell

N = 3
F64 = torch.float64
cell_op: Any = torch.ops.lstm_fused.lstm_cell.default
cell_backward_op: Any = torch.ops.lstm_fused.lstm_cell_backward.default


def twins() -> tuple[FusedLSTMCell, nn.LSTMCell, Tensor]:
    torch.manual_seed(0)
    ours = FusedLSTMCell(D, H, dtype=F64)
    return ours, ours.to_torch(), torch.randn(N, D, dtype=F64)


def same(ours: Any, expected: Any) -> None:
    flat = torch.utils._pytree.tree_leaves
    for mine, theirs in zip(flat(ours), flat(expected), strict=True):
        assert_within_budget("result", mine, None, theirs, F64)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("function", ["jacobian", "hessian"])
def test_vectorized_jacobians(function: str, vectorize: bool) -> None:
    ours, theirs, x = twins()
    of = getattr(torch.autograd.functional, function)

    def result(cell: Any) -> Any:
        def outputs(x: Tensor) -> Tensor:
            h, c = cell(x)
            return h if function == "jacobian" else (h * c).sum()

        return of(outputs, x, vectorize=vectorize)

    same(result(ours), result(theirs))


def test_batched_gradients_of_all_variables() -> None:
    ours, theirs, x = twins()
    hx = [torch.randn(N, H, dtype=F64, requires_grad=True) for _ in range(2)]
    x.requires_grad_()
    batch = torch.randn(4, N, H, dtype=F64)
    results = []
    for cell in (ours, theirs):
        h, _ = cell(x, tuple(hx))
        results.append(
            torch.autograd.grad(
                h, [x, *hx, *cell.parameters()], batch, is_grads_batched=True, retain_graph=True
            )
        )
        one = torch.vmap(lambda v, h=h: torch.autograd.grad(h, x, v, retain_graph=True)[0])
        results[-1] += (one(batch),)
    same(*results)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_compiled_autograd_of_an_overwritten_output(kind: str, backend: str) -> None:
    torch._dynamo.reset()
    cell, _, x = twins()
    layer = FusedLSTM(D, H, dtype=F64)
    module: Any = cell if kind == "cell" else layer
    x = x if kind == "cell" else torch.randn(4, N, D, dtype=F64)
    module(x)[0].clone().relu().sum().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    y = module(x)[0]
    y.relu_()
    with compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):  # type: ignore[no-untyped-call]
        y.sum().backward()
    same([parameter.grad for parameter in module.parameters()], expected)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_of_the_ops(save: bool, given: bool, bias: bool) -> None:
    cell = FusedLSTMCell(D, H, bias=bias)
    weights = [w.detach() for w in cell.parameters()]
    x, h, c = (torch.randn(N, size) for size in (D, H, H))
    states = (h, c) if given else (None, None)
    torch.library.opcheck(cell_op, (x, *states, weights, save))
    _, _, gates, cells = cell_op(x, h, c, weights, True)
    for needs in ((True, True, True), (False, True, False), (False, False, False)):
        arguments = (h, c if save else None, x, h, c, weights, gates, cells, *needs)
        torch.library.opcheck(cell_backward_op, arguments)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": torch.zeros(1, N, D)}, "input must have 2 dimensions, got 3"),
    ({"weights": []}, "weights must begin with w_ih and w_hh"),
    ({"weights": [torch.zeros(4 * H, D), torch.zeros(4 * H)]}, "weights must begin with w_ih"),
    ({"h": torch.zeros(N, H + 1)}, "must have shape"),
    ({"c": torch.zeros(N + 1, H)}, "must have shape"),
    ({"input": torch.zeros(N, D).double()}, "must have input's dtype"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_arguments_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, device: str
) -> None:
    arguments = {
        "input": torch.zeros(N, D),
        "h": torch.zeros(N, H),
        "c": torch.zeros(N, H),
        "weights": [torch.zeros(4 * H, D), torch.zeros(4 * H, H)],
        "save": True,
    } | changes
    moved = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), arguments)
    with pytest.raises(RuntimeError, match=message if device == "cpu" else None):
        cell_op(*moved.values())


def test_flops_are_counted() -> None:
    cell, _, x = twins()
    with FlopCounterMode(display=False) as counter:
        cell(x)[0].sum().backward()
    step = 2 * N * 4 * H
    # The states' gradient is a part of every backward; the input's is not asked for.
    assert counter.get_total_flops() >= step * (D + H) + step * (D + H)


def test_no_graph_in_inference_mode() -> None:
    cell, _, x = twins()
    layer = FusedLSTM(D, H, dtype=F64)
    with torch.inference_mode(), torch.enable_grad():
        assert not cell(x)[0].requires_grad
        assert not layer(x.unsqueeze(0))[0].requires_grad
        assert not layer(x.unsqueeze(0), lengths=torch.tensor([1, 0, 1]))[0].requires_grad


MODULES: dict[str, Callable[[], Any]] = {
    "cell": lambda: FusedLSTMCell(D, H),
    "layer": lambda: FusedLSTM(D, H),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_refused_call_keeps_nothing_alive(make: Callable[[], Any]) -> None:
    module = make()
    x = torch.randn(*(() if isinstance(module, FusedLSTMCell) else (4,)), N, D + 1)
    alive = weakref.ref(x)
    gc.disable()
    try:
        with pytest.raises(RuntimeError):
            module(x)
        del x
        assert alive() is None
    finally:
        gc.enable()
