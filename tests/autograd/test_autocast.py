# SPDX-License-Identifier: BSD-3-Clause
"""Autocast: the dtypes of torch's modules, and no effect on what is computed beneath."""

import copy
import itertools
from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.twins import D, H
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._ops import native
from lstm_fused._torch import autocast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", [False, True], ids=["layers", "cell"])
def test_autocast_gives_the_dtypes_of_torchs_modules(dtype: torch.dtype, cell: bool) -> None:
    if not cell and dtype == torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("nn.LSTM under autocast needs oneDNN with bfloat16 (AVX-512)")
    torch.manual_seed(0)
    theirs = nn.LSTMCell(D, H) if cell else nn.LSTM(D, H, num_layers=2, bidirectional=True)
    if dtype == torch.float64:
        theirs.double()
    ours = lstm_fused.convert(theirs)
    x = torch.randn(*((4,) if cell else (6, 4)), D, dtype=dtype, requires_grad=True)
    results = []
    for module in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = torch.utils._pytree.tree_leaves(module(x))
        grads = torch.autograd.grad(
            out, [x, *module.parameters()], [torch.ones_like(t) for t in out]
        )
        results.append([*out, *grads])
    for mine, rival in zip(*results, strict=True):
        assert mine.dtype == rival.dtype
    truth = torch.utils._pytree.tree_leaves(theirs.double()(x.double()))
    computed_in = dtype if dtype == torch.float64 else torch.bfloat16
    for mine, rival, expected in zip(*results, truth, strict=False):
        assert_within_budget("result", mine, rival, expected, computed_in)


@pytest.mark.parametrize("kernels", [True, False])
def test_backward_inside_of_autocast_keeps_float32(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the forward was out of autocast; its gradients are float32's, as nn.LSTM's are."""
    if not kernels:
        monkeypatch.setattr(native, "has_kernels", lambda device: False)
        monkeypatch.setattr(native, "lstm_inference_op", None)
    module = FusedLSTM(32, 24)
    x = torch.randn(10, 8, 32)

    def gradients(module: Any, x: torch.Tensor) -> Any:
        loss = module(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.autograd.grad(loss, list(module.parameters()))

    ours, theirs = gradients(module, x), gradients(module.to_torch(), x)
    truth = gradients(module.double().to_torch(), x.double())
    for mine, rival, expected in zip(ours, theirs, truth, strict=True):
        if kernels:
            assert_within_budget("gradient", mine, rival, expected, torch.float32)
        else:  # whose own backward is torch's matmuls, which autocast casts
            assert mine.dtype == torch.float32


def test_double_backward_inside_of_autocast_keeps_float32() -> None:
    module = FusedLSTM(8, 12)
    x = torch.randn(5, 4, 8, requires_grad=True)

    def penalty(module: Any, x: torch.Tensor, enabled: bool) -> torch.Tensor:
        loss = module(x)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), module.weight_hh_l0)[0]  # type: ignore[no-any-return]

    torch.testing.assert_close(penalty(module, x, True), penalty(module, x, False))


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Dtypes of y and h_n, and of c_n: "own" is autocast's, "wider" what it and c_0's promote to.
FORMS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "padded": ({}, ("own", "own")),  # of float16 input: wider
    "layers": ({"num_layers": 2, "bidirectional": True}, ("own", "own")),
    "batch_first": ({"batch_first": True}, ("own", "own")),
    "unbatched": ({}, ("own", "own")),
    "packed": ({}, ("wider", "wider")),
    "packed_layers": ({"num_layers": 2, "bidirectional": True}, ("wider", "wider")),
    "projected": ({"proj_size": 2}, ("own", "wider")),
    "packed_projected": ({"proj_size": 2}, ("own", "wider")),
    "cell": ({}, ("wider", "wider")),
}


def arguments_of(form: str, options: dict[str, Any], x_dtype: Any, states: Any) -> tuple[Any, Any]:
    blocks = 4 if "layers" in form else 1
    rows = 6 if form == "batch_first" else 4
    x: Any = torch.randn(6, 4, D)
    hx = torch.randn(blocks, rows, options.get("proj_size", H)), torch.randn(blocks, rows, H)
    if form == "cell":
        x, hx = x[0], (hx[0][0], hx[1][0])
    elif form == "unbatched":
        x, hx = x[:, 0], (hx[0][:, 0], hx[1][:, 0])
    x = x.to(x_dtype)
    if form.startswith("packed"):
        x = pack_padded_sequence(x, torch.tensor([6, 4, 3, 1]))
    return x, None if states is None else tuple(map(Tensor.to, hx, states))


@pytest.mark.parametrize("weights", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("autocast", [F16, BF16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_results_have_the_dtypes_of_the_table(
    form: str, autocast: torch.dtype, weights: torch.dtype
) -> None:
    """Dtypes of results, for all of input and states; and nn.LSTM's own, where it runs."""
    torch.manual_seed(0)
    options, kinds = FORMS[form]
    by_onednn = form in ("padded", "layers", "batch_first", "unbatched")
    theirs = nn.LSTMCell(D, H) if form == "cell" else nn.LSTM(D, H, **options)
    ours = lstm_fused.convert(copy.deepcopy(theirs).to(weights))
    theirs.to(weights)
    pairs = [None, *itertools.product((F32, F16, BF16), repeat=2)]
    for x_dtype, states in itertools.product((F32, F16, BF16), pairs):
        arguments = arguments_of(form, options, x_dtype, states)
        wider = torch.promote_types(autocast, x_dtype if states is None else states[1])
        both = [wider if kind == "wider" or x_dtype == F16 else autocast for kind in kinds]
        if "projected" in form:
            both[0] = autocast

        def run(module: Any, arguments: Any = arguments) -> list[Tensor]:
            with torch.autocast("cpu", dtype=autocast):
                leaves = torch.utils._pytree.tree_leaves(module(*arguments))
            return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]

        results = run(ours)
        expected = [both[0]] * (len(results) - 1) + [both[1]]
        assert [result.dtype for result in results] == expected, (x_dtype, states)
        grads = torch.autograd.grad([r.float().sum() for r in results], list(ours.parameters()))
        assert {grad.dtype for grad in grads} == {weights}
        if x_dtype == BF16 and by_onednn and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue  # nn.LSTM takes another way on such a processor, and gives other dtypes
        try:
            rivals = run(theirs)
        except RuntimeError:  # oneDNN without the processor's instructions for this dtype
            continue
        assert [rival.dtype for rival in rivals] == expected, (x_dtype, states)
        truth = run_in_double(theirs, arguments) if states in (None, (F32, F32)) else results
        for mine, rival, value in zip(results, rivals, truth, strict=True):
            assert_within_budget("result", mine, rival, value, autocast)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 2}], ids=str)
def test_no_rows_have_the_dtypes_of_torch(options: dict[str, Any]) -> None:
    """oneDNN, which casts everything, does not run."""
    theirs = nn.LSTM(D, H, **options)
    ours = lstm_fused.convert(copy.deepcopy(theirs))
    with torch.autocast("cpu", dtype=BF16):
        results, rivals = (
            torch.utils._pytree.tree_leaves(module(torch.randn(6, 0, D)))
            for module in (ours, theirs)
        )
    assert [mine.dtype for mine in results] == [rival.dtype for rival in rivals]


@pytest.mark.parametrize("form", FORMS)
def test_float64_keeps_its_dtype_beside_narrower_cell_states(form: str) -> None:
    torch.manual_seed(0)
    options, _ = FORMS[form]
    theirs = nn.LSTMCell(D, H) if form == "cell" else nn.LSTM(D, H, **options)
    ours = lstm_fused.convert(copy.deepcopy(theirs.double()))
    x, hx = arguments_of(form, options, torch.float64, (torch.float64, F32))
    with torch.autocast("cpu", dtype=BF16):
        results, rivals = (torch.utils._pytree.tree_leaves(m(x, hx)) for m in (ours, theirs))
    for mine, rival in zip(results, rivals, strict=True):
        torch.testing.assert_close(mine, rival)


def run_in_double(module: nn.Module, arguments: Any) -> list[Tensor]:
    def widened(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    x, hx = arguments
    x = x.double() if isinstance(x, PackedSequence) else widened(x)
    hx = None if hx is None else tuple(map(widened, hx))
    leaves = torch.utils._pytree.tree_leaves(copy.deepcopy(module).double()(x, hx))
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


@pytest.mark.parametrize("packed", [False, True])
def test_cell_states_have_the_dtype_of_c_n(packed: bool) -> None:
    module = FusedLSTM(D, H, proj_size=2)
    x: Any = torch.randn(6, 4, D)
    x = pack_padded_sequence(x, torch.tensor([6, 4, 3, 1])) if packed else x
    with torch.autocast("cpu", dtype=BF16):
        y, (h_n, c_n), cells = module(x, return_cell_states=True)
    y, cells = (y.data, cells.data) if packed else (y, cells)
    assert (y.dtype, h_n.dtype, c_n.dtype, cells.dtype) == (BF16, BF16, F32, F32)


def test_compiled_results_have_the_same_dtypes() -> None:
    module = FusedLSTM(D, H)
    x = torch.randn(6, 4, D, dtype=F16)
    hx = torch.randn(1, 4, H), torch.randn(1, 4, H)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=F16):
        results, expected = compiled(x, hx), module(x, hx)
    for mine, eager in zip(*map(torch.utils._pytree.tree_leaves, (results, expected)), strict=True):
        assert mine.dtype == F32
        assert torch.equal(mine, eager)


def test_other_devices_give_autocasts_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nn.LSTM does there: cuDNN's layers, and cells by autocast's list, cast all they get."""
    monkeypatch.setattr(autocast, "is_autocast_enabled", lambda device: True)
    with FakeTensorMode():
        x, c_0 = torch.empty(6, 4, D, device="cuda"), torch.empty(1, 4, H, device="cuda")
        for options in ({}, {"packed": True}, {"projected": True}, {"cell": True}):
            assert autocast.result_dtypes(x, c_0, **options) == (F16, F16)
        assert autocast.result_dtypes(x.double(), c_0.double()) == (torch.float64,) * 2
