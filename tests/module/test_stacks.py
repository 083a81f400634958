# SPDX-License-Identifier: BSD-3-Clause
"""Several layers in one call, where no gradients are needed: what layer by layer gives."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import use_isa, use_threads
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._ops import native
from lstm_fused.functional import lstm

D, H = 5, 19
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "projection": {"proj_size": 6},
    "both": {"bidirectional": True, "proj_size": 6, "bias": False},
}
op: Any = torch.ops.lstm_fused.lstm_inference


def make(num_layers: int = 3, hidden_size: int = H, **options: Any) -> FusedLSTM:
    torch.manual_seed(0)
    return FusedLSTM(D, hidden_size, num_layers, **options)


def states_of(module: FusedLSTM, batch: int) -> tuple[Tensor, Tensor]:
    blocks = module.num_layers * (2 if module.bidirectional else 1)
    kind = {"dtype": module.weight_ih_l0.dtype}
    h_0 = torch.randn(blocks, batch, module.proj_size or module.hidden_size).to(**kind)
    return h_0, torch.randn(blocks, batch, module.hidden_size).to(**kind)


def layer_by_layer(module: FusedLSTM, x: Tensor, hx: tuple[Tensor, Tensor]) -> list[Tensor]:
    y, h_n, c_n, _ = lstm(
        x,
        hx,
        module._weights(),
        num_layers=module.num_layers,
        bidirectional=module.bidirectional,
        batch_first=module.batch_first,
    )
    return [y, h_n, c_n]


def assert_equal(results: Any, expected: list[Tensor]) -> None:
    y, (h_n, c_n) = results
    for ours, wanted in zip((y, h_n, c_n), expected, strict=True):
        assert_bitwise_equal(ours, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (40, 1), (7, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_bits_are_those_of_layer_by_layer(
    name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    module = make(**OPTIONS[name]).to(dtype)
    x, hx = torch.randn(*shape, D).to(dtype), states_of(module, shape[1])
    with torch.no_grad():
        assert_equal(module(x, hx), layer_by_layer(module, x, hx))
        zeros = (torch.zeros_like(hx[0]), torch.zeros_like(hx[1]))
        assert_equal(module(x), layer_by_layer(module, x, zeros))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("layers", [2, 5])
def test_a_wavefront_has_them_too(layers: int, threads: int) -> None:
    module = make(layers, 64)
    x, hx = torch.randn(130, 1, D), states_of(module, 1)
    with torch.no_grad():
        expected = layer_by_layer(module, x, hx)
        with use_threads(threads):
            for _ in range(5):
                assert_equal(module(x, hx), expected)
            text = lstm_fused.explain(module, x)
    assert ("wavefront" in text) == (threads > 1)


def test_every_instruction_set_has_them() -> None:
    assert native.compiled is not None
    module = make(2, 64)
    x, hx = torch.randn(50, 1, D), states_of(module, 1)
    for isa in native.compiled.available_isas():
        with use_isa(isa), torch.no_grad():
            assert_equal(module(x, hx), layer_by_layer(module, x, hx))


def test_batch_first_and_dropout_in_eval() -> None:
    module = make(batch_first=True, dropout=0.5).eval()
    x, hx = torch.randn(3, 7, D), states_of(module, 3)
    with torch.no_grad():
        assert_equal(module(x, hx), layer_by_layer(module, x, hx))
        assert not torch.equal(module.train()(x, hx)[0], module.eval()(x, hx)[0])


def gradients_of(results: Any, variables: list[Tensor]) -> list[Tensor]:
    loss = sum((t.double() * torch.linspace(1, 2, t.numel()).view_as(t)).sum() for t in results)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, variables))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_training_has_the_bits_of_layer_by_layer(
    name: str, batch_first: bool, recompute: bool
) -> None:
    module = make(**OPTIONS[name], batch_first=batch_first, recompute=recompute)
    x = torch.randn(3, 7, D, requires_grad=True)
    h_0, c_0 = (s.requires_grad_() for s in states_of(module, 3 if batch_first else 7))
    variables = [x, h_0, c_0, *module.parameters()]
    expected = layer_by_layer(module, x, (h_0, c_0))
    y, (h_n, c_n) = module(x, (h_0, c_0))
    assert_equal((y, (h_n, c_n)), expected)
    pairs = zip(
        gradients_of((y, h_n, c_n), variables), gradients_of(expected, variables), strict=True
    )
    for ours, wanted in pairs:
        assert_bitwise_equal(ours, wanted)
    zeros = (torch.zeros_like(h_0), torch.zeros_like(c_0))
    assert_equal(module(x), layer_by_layer(module, x, zeros))


def test_gradients_are_there_where_something_needs_them() -> None:
    module = make()
    x = torch.randn(4, 2, D)
    assert module(x)[0].requires_grad
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith("l1"))
    y, (h_n, _) = module(x)
    y.sum().backward()
    assert h_n.requires_grad and module.weight_hh_l1.grad is not None
    assert module.weight_hh_l0.grad is None and module.weight_hh_l2.grad is None
    module.requires_grad_(False)
    assert not module(x)[0].requires_grad
    assert module(x.requires_grad_())[0].requires_grad


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"h_0": torch.zeros(2, 2, H)}, "h_0 must have 3 dimensions, of 3 layers"),
        ({"h_0": torch.zeros(3, 2, H + 1)}, "h_0"),
        ({"c_0": torch.zeros(3, 3, H)}, "c_0 must have shape"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_layers": 5}, "as many tensors for each of 5 layers, got 12"),
        ({"num_layers": 12}, "as many tensors for each of 12 layers"),
        ({"directions": 3}, "directions must be 1 or 2"),
    ],
)
def test_faulty_calls_of_the_op_are_refused(change: dict[str, Any], text: str) -> None:
    weights = [weight.detach() for weight in make()._weights()]
    given: dict[str, Any] = {"h_0": None, "c_0": None, "directions": 1, "num_layers": 3, **change}
    with pytest.raises(RuntimeError, match=text):
        op(
            torch.zeros(4, 2, D),
            *(given["h_0"], given["c_0"], weights, given["directions"], given["num_layers"]),
        )


def test_layers_of_other_sizes_are_refused() -> None:
    other = FusedLSTM(H, H + 1)
    weights = [w.detach() for w in (*FusedLSTM(D, H)._weights(), *other._weights())]
    with pytest.raises(RuntimeError, match="must have shape"):
        op(torch.zeros(4, 2, D), None, None, weights, 1, 2)


def test_faulty_calls_of_the_module_are_told_as_layer_by_layer() -> None:
    module, theirs = make(2), make(2).to_torch()
    x = torch.randn(4, 2, D)
    for hx in (
        (torch.zeros(2, 3, H), torch.zeros(2, 3, H)),
        (torch.zeros(3, 2, H), torch.zeros(3, 2, H)),
        (torch.zeros(2, 2, H), torch.zeros(1, 2, H)),
    ):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                with pytest.raises(RuntimeError) as wanted:
                    theirs(x, hx)
                with pytest.raises(RuntimeError) as got:
                    module(x, hx)
            assert str(got.value) == str(wanted.value)


def test_shapes_and_flops_are_known() -> None:
    module = make(2, bidirectional=True)
    weights = [weight.detach() for weight in module._weights()]
    x = torch.zeros(4, 2, D)
    real = op(x, None, None, weights, 2, 2)
    fake = op(x.to("meta"), None, None, [weight.to("meta") for weight in weights], 2, 2)
    assert [t.shape for t in real] == [t.shape for t in fake]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        op(x, None, None, weights, 2, 2)
    matrices = sum(weight.numel() for weight in weights if weight.dim() == 2)
    assert counter.get_total_flops() == 2 * 4 * 2 * matrices
