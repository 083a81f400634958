# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTMCell in the place of nn.LSTMCell; and whole models, converted from and to torch."""

import copy
import gc
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal, assert_within_budget
from kit.settings import DTYPES
from kit.twins import D, H, assert_same, make_twins
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

F64 = torch.float64
WIDTHS = [(1, 1, 1), (3, 5, 4), (5, 16, 2), (16, 33, 7), (40, 100, 13)]  # D, H, N


def make_cells(
    sizes: tuple[int, int] = (D, H), bias: bool = True, dtype: torch.dtype = F64
) -> tuple[FusedLSTMCell, nn.LSTMCell]:
    torch.manual_seed(5)
    theirs = nn.LSTMCell(*sizes, bias=bias, dtype=dtype)
    torch.manual_seed(5)
    return FusedLSTMCell(*sizes, bias=bias, dtype=dtype), theirs


# FusedLSTMCell.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell_is_constructed_as_nn_lstm_cell(bias: bool, dtype: torch.dtype) -> None:
    ours, theirs = make_cells(bias=bias, dtype=dtype)
    assert repr(ours) == repr(theirs).replace("LSTMCell(", "FusedLSTMCell(")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours._parameters.keys() == theirs._parameters.keys()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_bitwise_equal(mine, expected)
    signatures = [
        [(p.name, p.default) for p in inspect.signature(cell.__init__).parameters.values()]  # type: ignore[misc]
        for cell in (ours, theirs)
    ]
    assert signatures[0] == signatures[1]
    assert not isinstance(ours, nn.LSTMCell)


@pytest.mark.parametrize(("features", "units", "rows"), WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_cell_results_and_gradients(
    features: int, units: int, rows: int, dtype: torch.dtype, bias: bool, with_hx: bool, isa: str
) -> None:
    ours, theirs = make_cells((features, units), bias, dtype)
    truth = copy.deepcopy(theirs).double()
    generator = torch.Generator().manual_seed(0)

    def normal(size: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, dtype=F64).to(dtype)

    x, h, c, grad_h, grad_c = (normal(size) for size in (features, units, units, units, units))
    results = []
    for cell, at in ((ours, dtype), (theirs, dtype), (truth, F64)):
        leaves = [t.to(at).requires_grad_() for t in ((x, h, c) if with_hx else (x,))]
        out = cell(leaves[0], tuple(leaves[1:]) if with_hx else None)
        grads = torch.autograd.grad(
            out, [*leaves, *cell.parameters()], [grad_h.to(at), grad_c.to(at)]
        )
        results.append([*out, *grads])
    for k, (mine, rival, expected) in enumerate(zip(*results, strict=True)):
        assert mine.dtype == dtype
        assert_within_budget(f"result {k}", mine, rival, expected, dtype)


@pytest.mark.parametrize("rows", [None, 0, 1, 4], ids="N={}".format)
@pytest.mark.parametrize("with_hx", [True, False])
def test_cell_results_have_the_forms_of_nn_lstm_cell(rows: int | None, with_hx: bool) -> None:
    ours, theirs = make_cells()
    leading = [] if rows is None else [rows]
    x = torch.randn(*leading, D, dtype=F64)
    hx = (torch.randn(*leading, H, dtype=F64), torch.randn(*leading, H, dtype=F64))
    arguments = (x, hx) if with_hx else (x,)
    assert_same(ours(*arguments), theirs(*arguments))


@pytest.mark.parametrize(("features", "units", "rows"), WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell_steps_as_the_layer_does(
    features: int, units: int, rows: int, dtype: torch.dtype, isa: str
) -> None:
    """The layer called step by step runs the very kernels of the cell: the same bits.

    A longer call may sum in another order (packed weights), and for 16-bit types keeps c in
    float32 between the steps, where a cell hands it out rounded.
    """
    torch.manual_seed(0)
    cell = FusedLSTMCell(features, units, dtype=dtype)
    layer = FusedLSTM(features, units, dtype=dtype)
    layer.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    x = torch.randn(6, rows, features, dtype=dtype)
    h = c = torch.zeros(rows, units, dtype=dtype)
    hidden = (h.unsqueeze(0), c.unsqueeze(0))
    for step in x:
        h, c = cell(step, (h, c))
        y, hidden = layer(step.unsqueeze(0), hidden)
        for mine, expected in ((h, y[0]), (h, hidden[0][0]), (c, hidden[1][0])):
            assert_bitwise_equal(mine, expected)
    if dtype.itemsize >= 4:
        truth = copy.deepcopy(layer).double()(x.double())[0][-1]
        theirs = layer.to_torch()(x)[0][-1]
        assert_within_budget("last h", h, theirs, truth, dtype)


def test_cell_is_copied_loaded_and_pickled() -> None:
    ours, theirs = make_cells()
    x = torch.randn(4, D, dtype=F64)
    expected = ours(x)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    loaded = FusedLSTMCell(D, H, dtype=F64)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    converted = FusedLSTMCell.from_torch(theirs)
    for cell in (copy.deepcopy(converted), pickle.loads(pickle.dumps(ours)), loaded):
        for mine, bits in zip(cell(x), expected, strict=True):
            assert_bitwise_equal(mine, bits)
    ours.weight_hh.data.mul_(2)
    ours.bias_hh.data.add_(1)
    assert not torch.equal(ours(x)[0], expected[0])


def test_cell_goes_from_torch_and_back() -> None:
    _, theirs = make_cells()
    ours = FusedLSTMCell.from_torch(theirs)
    back = ours.to_torch()
    assert type(back) is nn.LSTMCell
    for cell in (ours, back):
        pairs = zip(cell.parameters(), theirs.parameters(), strict=True)
        assert all(a is b for a, b in pairs)
    with pytest.raises(TypeError, match=r"from_torch takes an nn\.LSTMCell, got GRUCell"):
        FusedLSTMCell.from_torch(nn.GRUCell(D, H))  # type: ignore[arg-type]


# FusedLSTM.from_torch and to_torch.


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_layer_goes_from_torch_and_back(frozen: bool, training: bool) -> None:
    options: dict[str, Any] = {
        "num_layers": 2,
        "dropout": 0.5,
        "proj_size": 2,
        "bidirectional": True,
    }
    _, theirs = make_twins(**options)
    theirs.train(training).requires_grad_(not frozen)
    ours = FusedLSTM.from_torch(theirs)
    back = ours.to_torch()
    assert (type(ours), type(back)) == (FusedLSTM, nn.LSTM)
    assert repr(ours) == "Fused" + repr(theirs)
    assert repr(back) == repr(theirs)
    for module in (ours, back):
        assert module.training == training
        pairs = zip(module.named_parameters(), theirs.named_parameters(), strict=True)
        assert all(a == b and p is q for (a, p), (b, q) in pairs)
    x = torch.randn(6, 4, D, dtype=F64)
    results = []
    for module in (ours, theirs, back):
        torch.manual_seed(0)
        results.append(module(x))
    assert_same(results[0], results[1])
    assert_bitwise_equal(results[1][0], results[2][0])
    with pytest.raises(TypeError, match=r"from_torch takes an nn\.LSTM, got GRU"):
        FusedLSTM.from_torch(nn.GRU(D, H))  # type: ignore[arg-type]


# lstm_fused.convert.


class Tagger(nn.Module):
    """LSTMs in every kind of place: an attribute, a list, a dict, deep, twice, in a cell's form."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(D, H, bidirectional=True, dtype=F64)
        self.stack = nn.ModuleList(nn.LSTM(2 * H, H, bidirectional=True) for _ in "ab")
        self.named = nn.ModuleDict({"deep": nn.Sequential(nn.LSTM(2 * H, H, batch_first=True))})
        self.again = self.stack[0]
        self.cell = nn.LSTMCell(H, H)
        self.register_module("absent", None)
        self.head = nn.Linear(H, 2)
        self.stack[1].weight_ih_l0 = self.stack[0].weight_ih_l0
        self.to(F64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)[0]
        for layer in (*self.stack, self.again):
            y = y + layer(y)[0]
        y = self.named["deep"](y)[0]
        h, _ = self.cell(y[-1])
        return self.head(h)  # type: ignore[no-any-return]


def test_convert_replaces_every_lstm_in_place() -> None:
    torch.manual_seed(0)
    model = Tagger()
    x = torch.randn(6, 4, D, dtype=F64)
    expected = model(x)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    parameters = dict(model.named_parameters())
    modules = [name for name, _ in model.named_modules()]
    state = model.state_dict()

    assert lstm_fused.convert(model) is model
    kinds: list[type[nn.Module]] = [type(module) for module in model.modules()]
    assert kinds.count(FusedLSTM) == 4
    assert kinds.count(FusedLSTMCell) == 1
    assert nn.LSTM not in kinds
    assert nn.LSTMCell not in kinds
    assert_same(model(x), expected)
    assert [name for name, _ in model.named_modules()] == modules
    assert [n for n, _ in model.named_parameters(remove_duplicate=False)] == names
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert model.again is model.stack[0]
    assert model.stack[0].weight_ih_l0 is model.stack[1].weight_ih_l0
    assert model.state_dict().keys() == state.keys()
    assert not any(model.load_state_dict(state))
    before = list(model.modules())
    assert all(a is b for a, b in zip(lstm_fused.convert(model).modules(), before, strict=True))
    assert_same(copy.deepcopy(model)(x), expected)
    assert_same(pickle.loads(pickle.dumps(model))(x), expected)


def test_convert_of_a_single_module_returns_the_new_one() -> None:
    ours: nn.Module = lstm_fused.convert(nn.LSTM(D, H))
    assert type(ours) is FusedLSTM
    cell: nn.Module = lstm_fused.convert(nn.LSTMCell(D, H))
    assert type(cell) is FusedLSTMCell
    assert lstm_fused.convert(ours) is ours
    linear = nn.Linear(D, H)
    assert lstm_fused.convert(linear) is linear


def test_optimiser_goes_on_after_convert() -> None:
    x, goal = torch.randn(6, 4, D, dtype=F64), torch.randn(4, 2, dtype=F64)
    losses: list[list[float]] = []
    for converted in (True, False):
        torch.manual_seed(0)
        model = Tagger()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        losses.append([])
        for step in range(6):
            if converted and step == 3:
                lstm_fused.convert(model)
            loss = (model(x) - goal).pow(2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1][-1] < losses[1][0]
    assert_within_budget("losses", torch.tensor(losses[0]), None, torch.tensor(losses[1]), F64)


def test_hooks_are_kept_and_can_be_removed() -> None:
    calls: list[Any] = []
    model = nn.Sequential(nn.LSTM(D, H))
    lstm: Any = model[0]
    handles = [
        lstm.register_forward_pre_hook(lambda *_: calls.append("before")),
        lstm.register_forward_hook(lambda *_: calls.append("after")),
        lstm.register_state_dict_pre_hook(lambda *_: calls.append("state")),
        lstm.register_load_state_dict_pre_hook(lambda module, *_: calls.append(module)),
        lstm.register_load_state_dict_post_hook(lambda *_: calls.append("load")),
    ]
    lstm_fused.convert(model)
    del lstm  # hooks that take the module hold it weakly
    model(torch.randn(2, 3, D))
    model.load_state_dict(model.state_dict())
    assert calls == ["before", "after", "state", model[0], "load"]
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 3, D))
    model.load_state_dict(model.state_dict())
    assert len(calls) == 5, "handles from before the conversion remove hooks after it"


def test_a_twin_has_hooks_of_its_own() -> None:
    calls: list[Any] = []
    ours = FusedLSTM(D, H)
    ours.register_load_state_dict_pre_hook(lambda module, *_: calls.append(module))
    theirs = ours.to_torch()
    theirs.register_forward_hook(lambda *_: calls.append("theirs"))
    ours(torch.randn(2, 3, D))
    theirs.load_state_dict(theirs.state_dict())
    del theirs  # whose weak reference dies with it
    gc.collect()
    ours.load_state_dict(ours.state_dict())
    assert [type(module) for module in calls] == [nn.LSTM, FusedLSTM]


def test_a_twin_has_parametrizations_of_its_own() -> None:
    ours = weight_norm(FusedLSTM(D, H), "weight_hh_l0")
    theirs = ours.to_torch()
    x = torch.randn(2, 3, D)
    expected = theirs(x)[0]
    parametrize.remove_parametrizations(theirs, "weight_hh_l0")
    torch.testing.assert_close(theirs(x)[0], expected)
    torch.testing.assert_close(ours(x)[0], expected)
    assert parametrize.is_parametrized(ours, "weight_hh_l0")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def prune_half(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=0.5)  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "reparametrize",
    [
        torch.nn.utils.weight_norm,
        weight_norm,
        prune_half,
        lambda m, name: parametrize.register_parametrization(m, name, Doubled()),
    ],
    ids=["old_weight_norm", "weight_norm", "prune", "parametrize"],
)
def test_reparametrized_weights_survive_conversions(
    reparametrize: Callable[[nn.Module, str], object], bidirectional: bool
) -> None:
    x = torch.randn(6, 4, D, dtype=F64)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        _, theirs = make_twins(bidirectional=bidirectional)
        reparametrize(theirs, name)
        model: Any = nn.Sequential(theirs)
        expected = theirs(x)
        lstm_fused.convert(model)
        assert_same(model(x), expected)
        ours = FusedLSTM.from_torch(theirs)
        assert_same(ours(x), expected)
        assert_same(ours.to_torch()(x), expected)
        for parameter in theirs.parameters():
            parameter.data.mul_(0.5)
        expected = theirs(x)
        assert_same(model(x), expected)
        assert_same(ours(x), expected)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
