# SPDX-License-Identifier: BSD-3-Clause
"""The fast path runs once and hides no error; a backward makes the gradients that it was asked
for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.twins import D, H
from torch import Tensor

from lstm_fused import FusedLSTM, FusedLSTMCell
from lstm_fused._ops import native
from lstm_fused.autograd import needed_gradients

MODULES: dict[str, Callable[[], tuple[Any, Tensor]]] = {
    "layer": lambda: (FusedLSTM(D, H), torch.randn(4, 2, D)),
    "batch_first": lambda: (FusedLSTM(D, H, batch_first=True), torch.randn(2, 4, D)),
    "cell": lambda: (FusedLSTMCell(D, H), torch.randn(2, D)),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@modules
def test_a_hook_that_raises_is_called_once(make: Callable[[], tuple[Any, Tensor]]) -> None:
    module, x = make()
    calls: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        raise RuntimeError("the disk is full")

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.raises(RuntimeError, match=r"^the disk is full$"),
    ):
        module(x)
    assert len(calls) == 1


@modules
@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError], ids=["any", "memory"])
def test_errors_of_an_op_pass(
    make: Callable[[], tuple[Any, Tensor]],
    error: type[RuntimeError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, x = make()
    calls: list[Any] = []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        raise error("can't allocate memory")

    for name in ("lstm_inference_op", "lstm_cell_op", "lstm_forward_op"):
        monkeypatch.setattr(native, name, fail)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=r"^can't allocate memory$"):
            module(x)
    assert len(calls) == 2


def test_misfits_are_named_in_the_words_of_nn_lstm() -> None:
    """Each of these meets the op first."""
    layer, cell = FusedLSTM(D, H), FusedLSTMCell(D, H)
    x, h = torch.randn(4, 2, D), torch.randn(1, 2, H)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (layer, (torch.randn(4, 2, D + 1),)),
        (layer, (x.double(),)),
        (layer, (x, (h, h[:, :1]))),
        (layer, (x, (h[0], h[0]))),
        (layer, (torch.randn(0, 2, D),)),
        (cell, (torch.randn(2, D + 1),)),
        (cell, (x[0], (h[0], h[0, :1]))),
        (cell, (x[0], (h[0, :, 1:], h[0]))),
        (cell, (x[0], [h[0, :, 1:], h[0]])),
    ]
    for module, arguments in cases:
        theirs = module.to_torch()
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(*arguments)
        for grad in (False, True):
            with torch.set_grad_enabled(grad), pytest.raises(type(expected.value)) as found:
                module(*arguments)
            assert str(found.value) == str(expected.value)


class Requests:
    """Notes what backward ops are asked for: input, states, weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[bool, ...]] = []
        for name in ("lstm_backward_op", "lstm_cell_backward_op"):
            op = getattr(native, name)

            def note(*arguments: Any, op: Any = op) -> Any:
                self.seen.append(tuple(arguments[-3:]))
                return op(*arguments)

            monkeypatch.setattr(native, name, note)


@pytest.mark.parametrize("kind", ["cell", "layer", "general"])
def test_gradients_that_nobody_asked_for_are_not_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needed_gradients, "LEAST_NANOSECONDS", 0)
    is_cell = kind == "cell"
    module: Any = FusedLSTMCell(D, H) if is_cell else FusedLSTM(D, H)
    leading = (2,) if is_cell else (1, 2)
    x = torch.randn(*(() if is_cell else (4,)), 2, D, requires_grad=True)
    h, c = (torch.randn(*leading, H, requires_grad=True) for _ in range(2))
    masks = {"lengths": torch.tensor([4, 2])} if kind == "general" else {}
    w, b = list(module.parameters())[1:3]

    def loss(scaled: Tensor) -> Tensor:
        out = module(scaled, (h, c), **masks)
        return out[0].sin().sum() + (out[1] if is_cell else out[1][1]).sum()

    everything = torch.autograd.grad(loss(x), [x, h, c, w, b])
    by_name = dict(zip("xhcwb", everything, strict=True))
    requests = Requests(monkeypatch)
    for asked, wanted in (
        ("x", (True, False, False)),
        ("h", (False, True, False)),
        ("c", (False, True, False)),
        ("w", (False, False, True)),
        ("b", (False, False, True)),
        ("xw", (True, False, True)),
        ("xhcwb", (True, True, True)),
    ):
        tensors = {"x": x, "h": h, "c": c, "w": w, "b": b}
        found = torch.autograd.grad(loss(x * 1), [tensors[name] for name in asked])
        assert requests.seen.pop() == wanted
        for name, grad in zip(asked, found, strict=True):
            torch.testing.assert_close(grad, by_name[name], rtol=0, atol=0)
    loss(x).backward(inputs=[x, b])
    assert requests.seen.pop() == (True, False, True)
    torch.testing.assert_close(b.grad, by_name["b"], rtol=0, atol=0)
    loss(x).backward()
    assert requests.seen.pop() == (True, True, True)
    w.requires_grad_(False)
    b.requires_grad_(False)
    module.requires_grad_(False)
    loss(x.detach()).backward()
    assert requests.seen.pop() == (False, True, False)


@pytest.mark.parametrize(("units", "is_asked"), [(64, False), (256, True)])
def test_the_engine_is_asked_only_where_that_costs_less(
    units: int, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch tells of a leaf by an exception of 10 us, a third of a small backward."""
    questions: list[Any] = []
    ask = needed_gradients.will_engine_execute_node
    monkeypatch.setattr(
        needed_gradients,
        "will_engine_execute_node",
        lambda node: (questions.append(node), ask(node))[1],
    )
    module = FusedLSTMCell(units, units)
    x = torch.randn(1, units, requires_grad=True)
    loss = module(x)[0].sum()
    found = torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True)
    assert len(questions) == int(is_asked)  # about the weights; x is a leaf
    requests = Requests(monkeypatch)
    (alone,) = torch.autograd.grad(loss, x)
    assert requests.seen == [(True, False, not is_asked)]
    torch.testing.assert_close(alone, found[0], rtol=0, atol=0)


def test_needs_are_those_of_the_forward_where_torch_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(needed_gradients, "LEAST_NANOSECONDS", 0)
    module = FusedLSTM(D, H)
    x = torch.randn(4, 2, D, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    for name in ("will_engine_execute_node", "current_graph_task_id"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(needed_gradients, name, None)
            requests = Requests(patch)
            (found,) = torch.autograd.grad(module(x)[0].sum(), x)
            assert requests.seen == [(True, False, True)]
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
