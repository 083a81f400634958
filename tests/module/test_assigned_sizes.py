# SPDX-License-Identifier: BSD-3-Clause
"""Sizes and flags that are assigned after construction: honoured as nn.LSTM does, or refused."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.twins import D, H, assert_same, make_twins
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

F64 = torch.float64
ATTRIBUTES = {
    "hidden_size": (H - 1, H + 1, H),
    "input_size": (D - 1, D),
    "num_layers": (1, 2, 3),
    "bias": (False, True),
    "bidirectional": (False, True),
    "proj_size": (0, 2, 3),
    "batch_first": (False, True),
    "dropout": (0.0, 0.5),
    "mode": ("GRU",),
}


def outcome(module: Any, *args: Any) -> Any:
    torch.manual_seed(1)
    try:
        return module(*args)
    except RuntimeError:
        return RuntimeError


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False}),
        {"num_layers": 2, "dropout": 0.25},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lstms_compute_or_raise_as_nn_lstm(options: dict[str, Any], name: str) -> None:
    x = torch.randn(6, 4, D, dtype=F64)
    for value in ATTRIBUTES[name]:
        ours, theirs = make_twins(**options)
        for module in (ours, theirs):
            setattr(module, name, value)
        expected = outcome(theirs, x)
        for mine in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    result = outcome(mine, x)
                if expected is RuntimeError or result is RuntimeError:
                    assert result is expected, (value, result)
                else:
                    assert_same(result, expected)


@pytest.mark.parametrize(
    "options",
    [
        *({"proj_size": 2}, {"bias": False}, {"num_layers": 2, "bidirectional": True}),
        {"num_layers": 3, "bidirectional": True, "proj_size": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_size_that_is_assigned_back_fits(options: dict[str, Any]) -> None:
    ours, theirs = make_twins(**options)
    x = torch.randn(6, 4, D, dtype=F64)
    ours.hidden_size = H + 1
    with pytest.raises(RuntimeError, match="must have a weight_ih_l0 of shape"):
        ours(x)
    ours.hidden_size = H
    assert_same(ours(x), theirs(x))


def test_the_error_names_sizes_and_weights() -> None:
    ours, _ = make_twins()
    x = torch.randn(6, 4, D, dtype=F64)
    ours.hidden_size = H + 1
    sentence = (
        f"FusedLSTM with input_size={D}, hidden_size={H + 1}, num_layers=1, bias=True, "
        "bidirectional=False, proj_size=0 must have a weight_ih_l0 of shape "
        f"({4 * H + 4}, {D}), got ({4 * H}, {D}): assign weights of these sizes as well, or build "
        "a new module"
    )
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        ours(x)
    ours.hidden_size, ours.num_layers = H, 2
    with pytest.raises(RuntimeError, match=r"num_layers=2, .* must have 8 weights, got 4: assign"):
        ours(x)
    ours.num_layers = 1
    assert_same(ours(x), make_twins()[1](x))


def narrow(module: Any) -> None:
    """Keeps half of the units, as structured pruning does."""
    kept, module.hidden_size = H // 2, H // 2
    for name, weight in list(module.named_parameters()):
        own = weight.detach().unflatten(0, (4, H))[:, :kept].flatten(0, 1)
        setattr(
            module, name, nn.Parameter(own[:, :kept] if "hh" in name and own.dim() == 2 else own)
        )


def test_sizes_that_change_with_the_weights_are_honoured() -> None:
    ours, theirs = make_twins()
    cells = [kind(D, H, dtype=F64) for kind in (FusedLSTMCell, nn.LSTMCell)]
    cells[0].load_state_dict(cells[1].state_dict())
    for module in (ours, theirs, *cells):
        narrow(module)
    x = torch.randn(6, 4, D, dtype=F64)
    assert_same(ours(x), theirs(x))
    assert_same(lstm_fused.convert(copy.deepcopy(theirs))(x), theirs(x))
    assert_same(cells[0](x[0]), cells[1](x[0]))
    back = ours.to_torch()
    assert back.__dict__.keys() == theirs.__dict__.keys()
    assert_same(back(x), theirs(x))


def test_modules_that_do_not_fit_do_not_after_conversion() -> None:
    theirs = nn.LSTM(D, H, dtype=F64)
    theirs.hidden_size = H + 1
    cell = nn.LSTMCell(D, H, dtype=F64)
    cell.hidden_size = H + 1
    x = torch.randn(6, 4, D, dtype=F64)
    deeper = nn.LSTM(D, H, dtype=F64)
    deeper.num_layers = 2
    lacking = nn.LSTM(D, H, dtype=F64)
    lacking.bias_hh_l0 = None
    for module, input in ((theirs, x), (cell, x[0]), (deeper, x), (lacking, x)):
        ours = lstm_fused.convert(module)
        with pytest.raises(RuntimeError, match=r"hidden_size|bias_hh_l0"):
            ours(input)


def set_none(*names: str) -> Callable[[Any], None]:
    def change(cell: Any) -> None:
        for name in names:
            setattr(cell, name, None)

    return change


def set_biases(cell: Any) -> None:
    cell.bias_ih, cell.bias_hh = (nn.Parameter(torch.full((4 * H,), k, dtype=F64)) for k in (1, 2))


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda cell: setattr(cell, name, value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        *(set_none("bias_ih"), set_none("bias_hh"), set_none("bias_ih", "bias_hh"), set_biases),
        *(set_attribute("bias", False), set_attribute("bias", True)),
        *(set_attribute("hidden_size", H + 1), set_attribute("input_size", D + 1)),
    ],
)
def test_cells_compute_or_raise_as_nn_lstm_cell(bias: bool, change: Callable[[Any], None]) -> None:
    theirs = nn.LSTMCell(D, H, bias, dtype=F64)
    made = FusedLSTMCell(D, H, bias, dtype=F64)
    made.load_state_dict(theirs.state_dict())
    change(made)
    change(theirs)
    converted = lstm_fused.convert(copy.deepcopy(theirs))
    x, h = torch.randn(4, D, dtype=F64), torch.randn(4, H, dtype=F64)
    calls: list[tuple[Tensor, Any]] = [(x, None), (x, (h, h)), (x[0], None), (x[0], (h[0], h[0]))]
    for cell in (made, converted, copy.deepcopy(made)):
        for args in calls:
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    result, expected = outcome(cell, *args), outcome(theirs, *args)
                if expected is RuntimeError or result is RuntimeError:
                    assert result is expected
                else:
                    assert_same(result, expected)


def test_a_conversion_has_its_own_list_of_names() -> None:
    theirs = nn.LSTM(D, H)
    ours = lstm_fused.convert(theirs)
    theirs._all_weights.clear()
    assert ours._all_weights == FusedLSTM(D, H)._all_weights


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_weights_may_be_away_in_a_conversion(kind: type[Any]) -> None:
    """As with DeepSpeed's ZeRO-3, whose parameters are empty until a call gathers them."""
    module = kind(D, H)
    whole = [parameter.data for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.data = torch.empty(0)
    model = lstm_fused.convert(nn.Sequential(module))
    assert type(model[0]) in (FusedLSTM, FusedLSTMCell)
    for parameter, data in zip(module.parameters(), whole, strict=True):
        parameter.data = data
    input = torch.randn(6, D)
    assert_same(model(input), module(input))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_module_notices(fullgraph: bool) -> None:
    ours = FusedLSTM(D, H, dtype=F64)
    run: Any = torch.compile(ours, backend="eager", fullgraph=fullgraph)
    x = torch.randn(6, 4, D, dtype=F64)
    run(x)
    ours.hidden_size = H + 1
    with pytest.raises(Exception, match=f"hidden_size={H + 1}"):
        run(x)
