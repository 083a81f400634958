# SPDX-License-Identifier: BSD-3-Clause
"""Eager calls of one layer with options: what the general path gives, to the bits."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from torch import Tensor

from lstm_fused import FusedLSTM, _cell_options
from lstm_fused.autograd import fast_path

T, N, D, H = 5, 3, 4, 7

OPTIONS: dict[str, dict[str, Any]] = {
    "peephole": {"peephole": True, "cell_clip": 0.5},
    "coupled": {"coupled_gates": True},
    "dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": (0.2, 0.1)},
    "one zoneout": {"zoneout": 0.2},
    "zoneout of h": {"zoneout": (0.0, 0.2)},
    "norms": {"layer_norm": True, "peephole": True},
    "learned": {"peephole": True, "learned_state": True},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "both ways": {"bidirectional": True},
    "recompute": {"recompute": True},
    "no bias": {"bias": False},
}


def results_of(module: FusedLSTM, x: Tensor, hx: Any, needs_grad: bool) -> list[Tensor]:
    torch.manual_seed(1)
    if not needs_grad:
        with torch.no_grad():
            y, states = module(x, hx)
        return [y, *states]
    leaves = [x.detach().requires_grad_(), *module.parameters()]
    if hx is not None:
        hx = tuple(state.detach().requires_grad_() for state in hx)
        leaves += hx
    y, (h_n, c_n) = module(leaves[0], hx)
    score = y.square().sum() + h_n.sum() + c_n.square().sum()
    grads = torch.autograd.grad(score, leaves, allow_unused=True)
    return [y, h_n, c_n, *(torch.zeros(()) if g is None else g for g in grads)]


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", OPTIONS)
def test_results_and_gradients(
    names: str, shape: str, is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(D, H, **OPTIONS[names], **SHAPES[shape]).train(is_training)
    x, states = torch.randn(T, N, D), (2 if module.bidirectional else 1, N, H)
    rows = T if module.batch_first else N
    given = tuple(torch.randn(states[0], rows, H) for _ in range(2))
    calls = []
    run = _cell_options.options_layer_eagerly
    monkeypatch.setattr(
        _cell_options, "options_layer_eagerly", lambda *a: calls.append(1) or run(*a)
    )
    for hx in (None, given):
        for needs_grad in (True, False):
            calls.clear()
            ours = results_of(module, x, hx, needs_grad)
            is_learned = hx is None and module.learned_state
            draws = module.recurrent_dropout and not is_training
            assert bool(calls) == (not is_learned and not draws)
            with monkeypatch.context() as patch:
                patch.setattr(fast_path, "can_run", lambda *a, **k: False)
                theirs = results_of(module, x, hx, needs_grad)
            for a, b in zip(ours, theirs, strict=True):
                assert_bitwise_equal(a, b)


@pytest.mark.parametrize("names", OPTIONS)
def test_bad_input_has_the_sentences_of_the_plain_layer(names: str) -> None:
    module, plain = FusedLSTM(D, H, **OPTIONS[names]), FusedLSTM(D, H)
    x, h, c = torch.randn(T, N, D), torch.randn(1, N, H), torch.randn(1, N, H)
    calls: list[tuple[Any, ...]] = [
        (torch.randn(T, N, D + 1),),
        (torch.randn(0, N, D),),
        (x.double(),),
        (x.long(),),
        (x, (h[:, :2], c)),
        (x, (h, c[..., :3])),
        (x, (h[0], c[0])),
        (x, (h.double(), c.double())),
        (x, (h.repeat(2, 1, 1), c)),
    ]
    for call in calls:
        with pytest.raises(Exception) as wanted:
            plain(*call)
        with pytest.raises(type(wanted.value)) as found:
            module(*call)
        assert str(found.value) == str(wanted.value)
