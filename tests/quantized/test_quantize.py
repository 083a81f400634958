# SPDX-License-Identifier: BSD-3-Clause
"""lstm_fused.quantize: what it finds, what it leaves, and what it refuses."""

import copy
import warnings
from typing import Any

import pytest
import torch
from kit.quantized import WEIGHTS
from torch import nn
from torch.nn.utils import parametrizations

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell, QuantizedLSTM, QuantizedLSTMCell, quantize


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(4, 8)
        self.second = FusedLSTM(8, 8)
        self.tied = self.second
        self.cells = nn.ModuleList([nn.LSTMCell(8, 8), FusedLSTMCell(8, 8)])
        self.head = nn.Linear(8, 2)
        self.loose = [nn.LSTM(3, 4)]


def test_every_lstm_of_a_model_is_replaced() -> None:
    model, report = quantize(Model(), return_report=True)
    assert isinstance(model.first, QuantizedLSTM) and isinstance(model.second, QuantizedLSTM)
    assert model.tied is model.second
    assert all(isinstance(cell, QuantizedLSTMCell) for cell in model.cells)
    assert isinstance(model.loose[0], QuantizedLSTM)
    assert isinstance(model.head, nn.Linear)
    assert {c.path for c in report.converted} >= {"first", "second", "tied", "cells.0", "cells.1"}
    assert not report.left
    assert model.first.weights == torch.int8


def test_a_model_that_is_an_lstm_and_one_that_is_none() -> None:
    for kind in (nn.LSTM, FusedLSTM):
        assert type(quantize(kind(3, 4), torch.bfloat16)) is QuantizedLSTM
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        quantize("lstm")  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"weights must be torch\.int8, .*, got torch\.float32"):
        quantize(nn.LSTM(3, 4), torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["weight_hh_l1_reverse", "bias_ih_l0", "weight_hr_l0"])
def test_weights_that_are_not_finite_are_named(bad: float, name: str) -> None:
    model = nn.Sequential(nn.LSTM(3, 4), nn.LSTM(4, 5, 2, bidirectional=True, proj_size=2))
    with torch.no_grad():
        getattr(model[1], name)[1] = bad
    with pytest.raises(ValueError, match=rf"^1\.{name} must be finite to be quantized"):
        quantize(model)
    assert type(model[0]) is nn.LSTM, "the model is as it was"


@pytest.mark.parametrize("place", [lambda m: [m], lambda m: (m, 1), lambda m: {"key": m}])
def test_an_error_in_a_loose_module_leaves_the_model_as_it_was(place: Any) -> None:
    model: Any = nn.Sequential(nn.LSTM(3, 4))
    bad = nn.LSTM(3, 4)
    model.loose = place(bad)
    with torch.no_grad():
        bad.weight_hh_l0[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"^loose\[.*\]\.weight_hh_l0 must be finite"):
        quantize(model)
    assert type(model[0]) is nn.LSTM


def test_rows_too_long_for_int8_are_named() -> None:
    model = nn.Sequential(nn.LSTM(3, 4), nn.LSTM((1 << 16) + 1, 1))
    with pytest.raises(ValueError, match=r"^1\.weight_ih_l0 must have at most 65536 columns"):
        quantize(model)
    assert type(model[0]) is nn.LSTM
    assert isinstance(quantize(model, torch.bfloat16)[1], QuantizedLSTM)


@pytest.mark.parametrize("kind", [nn.LSTMCell, FusedLSTMCell])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_weights_of_cells_that_are_not_finite_are_named(
    kind: type[nn.Module], weights: torch.dtype
) -> None:
    cell = kind(3, 4)
    with torch.no_grad():
        cell.bias_hh[2] = float("nan")
    with pytest.raises(ValueError, match=r"^bias_hh must be finite to be quantized"):
        quantize(cell, weights)


def test_weights_beyond_float16_are_named() -> None:
    lstm = nn.LSTM(3, 4)
    with torch.no_grad():
        lstm.weight_hh_l0[2, 1] = 7e4
    with pytest.raises(ValueError, match=r"^weight_hh_l0 must fit torch\.float16"):
        quantize(lstm, torch.float16)
    assert isinstance(quantize(lstm, torch.bfloat16), QuantizedLSTM)


def test_what_stays_is_named() -> None:
    class Own(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return input

    patched = nn.LSTM(3, 4)
    patched.forward = lambda *args: args  # type: ignore[method-assign]
    model = nn.Sequential(Own(3, 4), patched, nn.LSTM(3, 4, device="meta"), nn.LSTM(3, 4))
    with pytest.warns(UserWarning, match="lstm_fused.quantize left as they were") as caught:
        model, report = quantize(model, return_report=True)
    text = str(caught[0].message)
    assert "its class is a subclass of LSTM" in text and "a forward of its own" in text
    assert [left.path for left in report.left] == ["0", "1", "2"]
    assert isinstance(model[3], QuantizedLSTM)


def test_other_dtypes_and_computed_weights() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 8)
    x = torch.randn(5, 2, 3)
    wanted = quantize(nn.Sequential(lstm.double()))(x)[0]
    lstm = lstm.float()
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    own = quantize(lstm)
    torch.testing.assert_close(own(x)[0], wanted, rtol=0, atol=1e-4)
    assert type(own) is QuantizedLSTM


def dynamic(lstm: nn.LSTM, dtype: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(lstm), {nn.LSTM}, dtype=dtype)
    quantized: nn.Module = model[0]
    return quantized


def test_torchs_int8_keeps_its_own_integers() -> None:
    lstm = nn.LSTM(5, 12, 2, bidirectional=True, batch_first=True)
    torchs: Any = dynamic(lstm, torch.qint8)
    own = quantize(torchs)
    assert type(own) is QuantizedLSTM and own.batch_first and own.num_layers == 2
    kept = own.dequantize()
    for name, weight in torchs.get_weight().items():
        torch.testing.assert_close(getattr(kept, name), weight.dequantize(), rtol=1e-6, atol=0)
    x = torch.randn(3, 7, 5)
    with torch.no_grad():
        exact, _ = lstm(x)
        ours, theirs = own(x)[0], torchs(x)[0]
    assert (ours - exact).abs().max() < (theirs - exact).abs().max() * 1.2


def test_torchs_scales_of_rows_are_kept() -> None:
    config = torch.ao.quantization.per_channel_dynamic_qconfig
    lstm = nn.LSTM(5, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(lstm), {nn.LSTM: config})
    torchs: Any = model[0]
    weights = torchs.get_weight()
    assert all(w.qscheme() == torch.per_channel_affine for w in weights.values())
    kept = quantize(model)[0].dequantize()
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(kept, name), weight.dequantize(), rtol=1e-6, atol=0)


def test_torchs_weights_with_zero_points_are_left() -> None:
    torchs: Any = dynamic(nn.LSTM(5, 12), torch.qint8)
    shifted = torch.quantize_per_tensor(torch.randn(48, 5), 0.1, 3, torch.qint8)
    torchs.get_weight = lambda: {"weight_ih_l0": shifted}
    model = nn.Sequential(torchs)
    with pytest.warns(UserWarning, match="its weights have zero points other than 0"):
        model, report = quantize(model, return_report=True)
    assert model[0] is torchs and [left.path for left in report.left] == ["0"]


def test_torchs_float16() -> None:
    lstm = nn.LSTM(5, 12)
    own = quantize(dynamic(lstm, torch.float16), torch.float16)
    x = torch.randn(7, 2, 5)
    with torch.no_grad():
        torch.testing.assert_close(own(x)[0], quantize(lstm, torch.float16)(x)[0])


def test_the_default_dtype_and_device_are_no_matter() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5)
    lstm, cell = nn.LSTM(5, 12), nn.LSTMCell(5, 12)
    models = (lstm, cell, dynamic(lstm, torch.qint8))
    wanted = [quantize(nn.Sequential(model))[0].state_dict() for model in models]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = [quantize(nn.Sequential(model))[0] for model in models]
            empty = [QuantizedLSTM(5, 12), QuantizedLSTMCell(5, 12)]
            kept = [module.dequantize() for module in made]
            y = made[0].stream(2).step(x[0])
    finally:
        torch.set_default_dtype(before)
    for module, state in zip(made, wanted, strict=True):
        assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)
    for module in kept:
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("cpu", torch.float32)}
    assert torch.equal(y, made[0](x[:1])[0][0])
    assert not empty[0](x)[0].any() and not empty[1](x[0])[0].any()


def test_convert_and_revert_leave_quantized_modules() -> None:
    model = quantize(nn.Sequential(nn.LSTM(3, 4)))
    before = model[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lstm_fused.convert(model)[0] is before
        assert lstm_fused.revert(model)[0] is before
        assert quantize(model)[0] is before


def test_lost_hooks_are_named() -> None:
    lstm = nn.LSTM(3, 4)
    lstm.register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match="its hooks"):
        model = quantize(nn.Sequential(lstm))
    assert isinstance(model[0], QuantizedLSTM)


@pytest.mark.parametrize("kind", [nn.LSTM, FusedLSTM])
def test_weights_in_an_assigned_list_are_packed(kind: Any) -> None:
    torch.manual_seed(0)
    module = kind(4, 8, num_layers=2)
    x = torch.randn(5, 3, 4)
    by_name = module(x)[0]
    module._flat_weights[1] = module._flat_weights[1].detach() * 3
    expected = module(x)[0]
    torch.testing.assert_close(quantize(module, torch.float16)(x)[0], expected, rtol=0, atol=2e-3)
    assert (by_name - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [nn.LSTMCell, FusedLSTMCell])
@pytest.mark.parametrize("names", [["bias_ih"], ["bias_ih", "bias_hh"]])
def test_cells_without_a_bias_that_was_taken_away(kind: Any, names: list[str]) -> None:
    cell = kind(4, 8)
    for name in names:
        setattr(cell, name, None)
    x = torch.randn(3, 4)
    expected = cell(x)
    for mine, state in zip(quantize(cell, torch.float16)(x), expected, strict=True):
        torch.testing.assert_close(mine, state, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", [nn.LSTM, FusedLSTM])
def test_sizes_that_do_not_fit_the_weights_are_refused(kind: Any) -> None:
    model = nn.Sequential(kind(4, 8))
    model[0].hidden_size = 9
    with pytest.raises(RuntimeError, match=r"hidden_size=9, .* weight_ih_l0 of shape \(36, 4\)"):
        quantize(model)


@pytest.mark.parametrize(
    "name, value",
    [
        *[("input_size", 3), ("hidden_size", 5), ("num_layers", 1), ("bias", False)],
        *[("bidirectional", True), ("proj_size", 2)],
    ],
)
def test_sizes_of_packed_weights_stay(name: str, value: Any) -> None:
    """They would change nothing, or be refused by the kernel without the name."""
    modules: list[Any] = [quantize(FusedLSTM(4, 6, 2)), QuantizedLSTM(4, 6, 2)]
    if hasattr(nn.LSTMCell(4, 6), name):
        modules += [quantize(FusedLSTMCell(4, 6)), QuantizedLSTMCell(4, 6)]
    for module in modules:
        had = getattr(module, name)
        with pytest.raises(AttributeError, match=rf"{name} must stay {had}, .*, got {value}"):
            setattr(module, name, value)
        setattr(module, name, had)
        assert copy.deepcopy(module).extra_repr() == module.extra_repr()
