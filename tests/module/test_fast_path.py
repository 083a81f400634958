# SPDX-License-Identifier: BSD-3-Clause
"""The fast path of eager calls gives what the general path gives, and leaves to it what it must."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import DTYPES
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lstm_fused import FusedLSTM, FusedLSTMCell
from lstm_fused._ops import native
from lstm_fused.autograd import fast_path

D, H = 6, 9
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"bidirectional": True},
    {"proj_size": 4},
    {"batch_first": True, "bidirectional": True, "proj_size": 4, "bias": False},
]
WEIGHTS = [torch.zeros(4 * H, D), torch.zeros(4 * H, H)]
inference_op: Any = torch.ops.lstm_fused.lstm_inference.default


class Spy:
    """Stands in for what the fast path calls, and counts the calls that succeeded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inferred = self.trained = 0
        for place, name in ((native, "lstm_inference_op"), (native, "lstm_cell_op")):
            monkeypatch.setattr(place, name, self.counting("inferred", getattr(place, name)))
        for place, name in ((fast_path, "_apply"), (fast_path, "_apply_cell")):
            monkeypatch.setattr(place, name, self.counting("trained", getattr(place, name)))

    def counting(self, counter: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            # A cell in training calls the op that one without gradients calls.
            before = self.inferred
            result = function(*arguments)
            self.inferred = before
            setattr(self, counter, getattr(self, counter) + 1)
            return result

        return call


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def states_of(module: FusedLSTM, batch: int) -> tuple[Tensor, Tensor]:
    dirs = 2 if module.bidirectional else 1
    dtype = module.weight_ih_l0.dtype
    sizes = (module.proj_size or H, H)
    h_0, c_0 = (torch.randn(dirs, batch, size).to(dtype) for size in sizes)
    return h_0, c_0


def flat(result: Any) -> list[Tensor]:
    return list(torch.utils._pytree.tree_leaves(result))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (5, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zero", "hx"])
def test_fast_and_general_path_agree_bit_for_bit(
    options: dict[str, Any],
    dtype: torch.dtype,
    sizes: tuple[int, int],
    given: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = FusedLSTM(D, H, dtype=dtype, **options)
    x = torch.randn(*sizes, D).to(dtype)
    x = (x.transpose(0, 1) if module.batch_first else x).requires_grad_()
    hx = states_of(module, sizes[1]) if given else None

    def run() -> list[Tensor]:
        with torch.no_grad():
            inferred = flat(module(x, hx))
        trained = flat(module(x, hx))
        loss = torch.stack([t.float().square().sum() for t in trained]).sum()
        return [*inferred, *trained, *torch.autograd.grad(loss, [x, *module.parameters()])]

    spy = Spy(monkeypatch)
    fast = run()
    assert (spy.inferred, spy.trained) == (1, 1)
    monkeypatch.setattr(native, "lstm_inference_op", None)  # which the general path does without
    for ours, expected in zip(fast, run(), strict=True):
        assert_bitwise_equal(ours, expected)
        assert ours.requires_grad == expected.requires_grad
    assert fast[0].stride() == fast[3].stride()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [False, True], ids=["zero", "hx"])
def test_cell(bias: bool, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = FusedLSTMCell(D, H, bias=bias)
    x = torch.randn(3, D)
    hx = (torch.randn(3, H), torch.randn(3, H)) if given else None
    spy = Spy(monkeypatch)
    with torch.no_grad():
        inferred = cell(x, hx)
    trained = cell(x, hx)
    assert (spy.inferred, spy.trained) == (1, 1)
    monkeypatch.setattr(native, "lstm_inference_op", None)
    for results in zip(inferred, trained, cell(x, hx), strict=True):
        assert_bitwise_equal(results[0], results[2])
        assert_bitwise_equal(results[1], results[2])


def dual(module: FusedLSTM, x: Tensor) -> None:
    with forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, torch.ones_like(x)))[0]
        assert forward_ad.unpack_dual(y).tangent is not None


def autocast(module: FusedLSTM, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x)[0].dtype == torch.bfloat16


def trace(module: FusedLSTM, x: Tensor) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of comparing sizes
        torch.jit.trace(module, x, check_trace=False)


GENERAL: dict[str, Callable[[FusedLSTM, Tensor], Any]] = {
    "forward mode": dual,
    "autocast": autocast,
    "vmap": lambda m, x: torch.vmap(lambda row: m(row)[0])(x.expand(2, *x.shape)),
    "compile": lambda m, x: torch.compile(m, backend="eager", fullgraph=True)(x),
    "lengths": lambda m, x: m(x, lengths=torch.tensor([2, 1])),
    "resets": lambda m, x: m(x, reset_mask=torch.zeros(2, 2, dtype=torch.bool)),
    "cells": lambda m, x: m(x, return_cell_states=True),
    "unbatched": lambda m, x: m(x[0]),
    "trace": trace,
    "make_fx": lambda m, x: make_fx(lambda v: m(v)[0])(x),
    "subclass": lambda m, x: m(nn.Parameter(x)),
}


@pytest.mark.parametrize("call", GENERAL.values(), ids=GENERAL)
def test_other_calls_take_the_general_path(call: Callable[..., Any], spy: Spy) -> None:
    module = FusedLSTM(D, H)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            call(module, torch.randn(2, 2, D))
    assert (spy.inferred, spy.trained) == (0, 0)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("given", [False, True], ids=["zero", "hx"])
def test_opcheck_of_the_op(directions: int, given: bool) -> None:
    module = FusedLSTM(D, H, bidirectional=directions == 2, proj_size=4)
    weights = [w.detach() for w in module._flat_weights]
    states = states_of(module, 3) if given else (None, None)
    torch.library.opcheck(inference_op, (torch.randn(4, 3, D), *states, weights, directions))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(3, D)}, "input must have 3 dimensions, got 2"),
        ({"directions": 3}, "directions must be 1 or 2, got 3"),
        ({"directions": 0}, "directions must be 1 or 2, got 0"),
        ({"weights": []}, "weights must begin with w_ih and w_hh"),
        ({"h_0": torch.zeros(2, 3, H)}, "weights must hold 2 to 5 tensors for each direction"),
        (
            {"h_0": torch.zeros(2, 3, H), "c_0": torch.zeros(2, 3, H), "weights": 2 * WEIGHTS},
            "h_0 must hold 1 directions, got 2",
        ),
        ({"h_0": torch.zeros(1, 2, H)}, "h_0 must hold 3 rows as input does, got 2"),
        ({"c_0": torch.zeros(1, 3, H + 1)}, "h_0 must have hidden_size = 10 features"),
        ({"input": torch.zeros(0, 3, D)}, "Expected sequence length to be larger than 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "input": torch.zeros(2, 3, D),
        "h_0": None,
        "c_0": None,
        "weights": WEIGHTS,
        "directions": 1,
    } | changes
    with pytest.raises(RuntimeError, match=message):
        inference_op(*arguments.values())
