# SPDX-License-Identifier: BSD-3-Clause
"""Options that nn.LSTM lacks and no kernel knows of: initial values, learned states, dropout of
weights."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import DTYPES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

import lstm_fused
from lstm_fused import FusedLSTM, _variants, quantize

T, N, D, H = 6, 3, 5, 8
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 3, "num_layers": 2},
    "batch_first": {"batch_first": True},
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def make(shape: str = "plain", **options: Any) -> FusedLSTM:
    torch.manual_seed(0)
    return FusedLSTM(D, H, **SHAPES[shape], **options)


def directions_of(module: FusedLSTM) -> list[str]:
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{suffix}" for layer in range(module.num_layers) for suffix in suffixes]


def gate_of(module: FusedLSTM, kind: str, gate: int, direction: str) -> Tensor:
    return getattr(module, f"{kind}_{direction}").detach().chunk(4)[gate]


# ---- Initial values ----


@shapes
def test_forget_bias_is_the_sum_of_both_biases(shape: str) -> None:
    module, plain = make(shape, forget_bias=1.5), make(shape)
    for direction in directions_of(module):
        biases = [gate_of(module, kind, 1, direction) for kind in ("bias_ih", "bias_hh")]
        assert_bitwise_equal(sum(biases), torch.full((H,), 1.5))  # type: ignore[arg-type]
    changed = {
        n for n, p in module.named_parameters() if not torch.equal(p, plain.get_parameter(n))
    }
    assert changed == {n for n, _ in plain.named_parameters() if n.startswith("bias_")}
    for name in changed:  # in the forget gate alone
        for gate in (0, 2, 3):
            a, b = (m.get_parameter(name).chunk(4)[gate] for m in (module, plain))
            assert_bitwise_equal(a, b)


@shapes
def test_orthogonal_recurrent_weights(shape: str) -> None:
    module = make(shape, init="orthogonal")
    for direction in directions_of(module):
        for gate in range(4):
            weight = gate_of(module, "weight_hh", gate, direction).double()  # (H, P), P <= H
            torch.testing.assert_close(
                weight.T @ weight, torch.eye(weight.shape[1]).double(), atol=1e-5, rtol=0
            )


def test_chrono_spreads_time_constants() -> None:
    torch.manual_seed(0)
    module = FusedLSTM(2, 4000, init="chrono:100")
    forget = gate_of(module, "bias_ih", 1, "l0") + gate_of(module, "bias_hh", 1, "l0")
    enter = gate_of(module, "bias_ih", 0, "l0") + gate_of(module, "bias_hh", 0, "l0")
    assert_bitwise_equal(enter, -forget)
    times = forget.exp()
    assert times.min() >= 1 and times.max() <= 99 * (1 + 1e-6)
    assert abs(times.mean().item() - 50) < 2  # of U[1, 99]
    assert abs(times.std().item() - 98 / math.sqrt(12)) < 1


def test_both_may_be_joined_and_drawn_anew() -> None:
    module = make(init="orthogonal+chrono:30")
    before = copy.deepcopy(module.state_dict())
    module.reset_parameters()
    weight = gate_of(module, "weight_hh", 2, "l0").double()
    torch.testing.assert_close(weight @ weight.T, torch.eye(H).double(), atol=1e-5, rtol=0)
    assert not torch.equal(module.weight_hh_l0, before["weight_hh_l0"])
    assert not torch.equal(module.bias_ih_l0, before["bias_ih_l0"])
    assert (gate_of(module, "bias_ih", 1, "l0") >= 0).all()


def test_without_options_all_is_as_it_was() -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(D, H, 2)
    torch.manual_seed(0)
    ours = FusedLSTM(D, H, 2)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert_bitwise_equal(ours.state_dict()[name], value)
    assert repr(ours) == repr(theirs).replace("LSTM", "FusedLSTM")


# ---- Learned states ----


def with_states(shape: str) -> FusedLSTM:
    module = make(shape, learned_state=True)
    assert not module.initial_h.any() and not module.initial_c.any()
    nn.init.normal_(module.initial_h)
    nn.init.normal_(module.initial_c)
    return module


@shapes
@pytest.mark.parametrize("form", ["padded", "unbatched", "packed", "no gradients"])
def test_learned_states_take_the_place_of_zeros(shape: str, form: str) -> None:
    module = with_states(shape)
    plain = make(shape)
    plain.load_state_dict(module.state_dict(), strict=False)
    x: Any = torch.randn(N, T, D) if module.batch_first else torch.randn(T, N, D)
    rows = N
    if form == "unbatched":
        x, rows = torch.randn(T, D), 1
    elif form == "packed":
        x = pack_sequence([torch.randn(n, D) for n in (3, 6, 1)], enforce_sorted=False)
    hx = tuple(p.unsqueeze(1).repeat(1, rows, 1) for p in (module.initial_h, module.initial_c))
    if form == "unbatched":
        hx = tuple(part.squeeze(1) for part in hx)
    with torch.set_grad_enabled(form != "no gradients"):
        ours, wanted = module(x), plain(x, hx)
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (ours, wanted)), strict=True):
        if isinstance(a, Tensor):
            assert_bitwise_equal(a, b)
    if form == "no gradients":
        return
    leaves = [t for t in torch.utils._pytree.tree_leaves(ours) if isinstance(t, Tensor)]
    loss = sum(t.square().sum() for t in leaves if t.requires_grad)
    wanted_loss = sum(
        t.square().sum()
        for t in torch.utils._pytree.tree_leaves(wanted)
        if isinstance(t, Tensor) and t.requires_grad
    )
    states = [module.initial_h, module.initial_c]
    for a, b in zip(
        torch.autograd.grad(loss, states),  # type: ignore[arg-type]
        torch.autograd.grad(wanted_loss, states),  # type: ignore[arg-type]
        strict=True,
    ):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_given_states_are_taken() -> None:
    module = with_states("plain")
    x, hx = torch.randn(T, N, D), (torch.randn(1, N, H), torch.randn(1, N, H))
    plain = make()
    assert_bitwise_equal(module(x, hx)[0], plain(x, hx)[0])


def test_learned_states_go_with_the_module() -> None:
    module = with_states("stack")
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    x = torch.randn(T, N, D)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert_bitwise_equal(twin(x)[0], module(x)[0])
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_bitwise_equal(compiled(x)[0], module(x)[0])
    assert {"initial_h", "initial_c"} <= module.state_dict().keys()


def test_a_stream_begins_with_them() -> None:
    module = with_states("projection")
    x = torch.randn(T, 2, D)
    with torch.no_grad():
        torch.testing.assert_close(module.stream(2).run(x), module(x)[0])


def test_what_has_no_learned_states_is_left() -> None:
    model = nn.Sequential(with_states("plain"))
    with pytest.warns(UserWarning, match="learned_state=True"):
        quantize(model)
    assert type(model[0]) is FusedLSTM
    with pytest.warns(UserWarning, match="learned_state=True"):
        lstm_fused.revert(model)
    assert type(model[0]) is FusedLSTM
    with pytest.raises(ValueError, match=r"nn\.LSTM has no learned_state=True"):
        model[0].to_torch()


# ---- Dropout of weights ----


@shapes
@pytest.mark.parametrize("form", ["gradients", "no gradients", "packed"])
def test_weight_dropout_is_a_mask_a_call(shape: str, form: str) -> None:
    module, plain = make(shape, weight_dropout=0.4), make(shape)
    x: Any = torch.randn(N, T, D) if module.batch_first else torch.randn(T, N, D)
    if form == "packed":
        x = pack_sequence([torch.randn(n, D) for n in (6, 3, 1)])
    torch.manual_seed(7)
    with torch.set_grad_enabled(form != "no gradients"):
        ours = module(x)[0]
        torch.manual_seed(7)
        dropped = {}
        for direction in directions_of(plain):
            name = f"weight_hh_{direction}"
            dropped[name] = F.dropout(plain.get_parameter(name), 0.4)
        wanted = torch.func.functional_call(plain, dropped, (x,))[0]
    ours, wanted = (v.data if form == "packed" else v for v in (ours, wanted))
    assert_bitwise_equal(ours, wanted)
    if form == "gradients":
        a, b = (
            torch.autograd.grad(y.sum(), m.weight_hh_l0)[0]
            for y, m in ((ours, module), (wanted, plain))
        )
        assert_bitwise_equal(a, b)
        share = (a == 0).float().mean().item()
        assert 0.25 < share < 0.55
    with torch.no_grad():
        second = module(x)[0]
    assert not torch.equal(second.data if form == "packed" else second, ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_dropout_has_the_bits_of_torchs_dropout(dtype: torch.dtype) -> None:
    weight = torch.randn(40, 25).to(dtype)
    for probability in (0.1, 0.77):
        torch.manual_seed(3)
        wanted, state = F.dropout(weight, probability), torch.get_rng_state()
        torch.manual_seed(3)
        assert_bitwise_equal(_variants._dropout(weight, probability), wanted)
        assert torch.equal(torch.get_rng_state(), state)


def test_weight_dropout_in_vmap_draws_for_each_sample() -> None:
    module, x = FusedLSTM(D, H, weight_dropout=0.5), torch.randn(T, N, D)
    for randomness in ("same", "different"):
        y = torch.vmap(lambda x: module(x)[0], randomness=randomness)(torch.stack([x, x]))
        assert torch.allclose(y[0], y[1]) == (randomness == "same")


def test_weight_dropout_is_off_in_eval_and_at_zero() -> None:
    module, plain = make(weight_dropout=0.4).eval(), make()
    x = torch.randn(T, N, D)
    assert_bitwise_equal(module(x)[0], plain(x)[0])
    assert_bitwise_equal(make(weight_dropout=0.0)(x)[0], plain(x)[0])


def test_checkpoints_keep_the_mask() -> None:
    from torch.utils.checkpoint import checkpoint

    module = make(weight_dropout=0.4)
    x = torch.randn(T, N, D)
    grads = []
    for run in (lambda: checkpoint(module, x, use_reentrant=False), lambda: module(x)):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(run()[0].sum(), list(module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert_bitwise_equal(a, b)


# ---- Bad input ----


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"forget_bias": "1"}, ValueError, "forget_bias must be a finite number"),
        ({"forget_bias": float("nan")}, ValueError, "finite number or None, got nan"),
        ({"forget_bias": True}, ValueError, "got True"),
        ({"forget_bias": 1.0, "bias": False}, ValueError, "need bias=True"),
        ({"forget_bias": 1.0, "init": "chrono:9"}, ValueError, "both set the forget gate's bias"),
        ({"init": "xavier"}, ValueError, "got 'xavier'"),
        ({"init": "chrono"}, ValueError, "chrono:STEPS"),
        ({"init": "chrono:2"}, ValueError, "at least 3 steps, got 2"),
        ({"init": "orthogonal+orthogonal"}, ValueError, "init must be"),
        ({"init": 3}, TypeError, "a str or None, got int"),
        ({"init": "chrono:9", "bias": False}, ValueError, "need bias=True"),
        ({"learned_state": 1}, TypeError, "a bool, got int"),
        ({"weight_dropout": 1.0}, ValueError, r"in \[0, 1\), got 1.0"),
        ({"weight_dropout": -0.1}, ValueError, "got -0.1"),
        ({"weight_dropout": "a"}, ValueError, "got 'a'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type, text: str
) -> None:
    with pytest.raises(error, match=text):
        FusedLSTM(D, H, **options)


def test_options_are_shown() -> None:
    module = make(forget_bias=1.0, init="orthogonal", learned_state=True, weight_dropout=0.5)
    assert repr(module) == (
        "FusedLSTM(5, 8, forget_bias=1.0, init='orthogonal', learned_state=True, "
        "weight_dropout=0.5)"
    )
