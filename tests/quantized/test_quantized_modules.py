# SPDX-License-Identifier: BSD-3-Clause
"""QuantizedLSTM and QuantizedLSTMCell as modules: calls, states, copies, refusals."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal
from kit.quantized import WEIGHTS, make_quantized
from kit.settings import ISAS, use_isa
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import (
    FusedLSTM,
    FusedLSTMCell,
    QuantizedLSTM,
    QuantizedLSTMCell,
    explain,
    quantize,
)

weight_types = pytest.mark.parametrize("weights", WEIGHTS, ids=str)

STACK = LayerCase(6, 3, 5, 20, P=7, num_layers=2, bidirectional=True, batch_first=True)


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for part in results for tensor in flat(part)]


def assert_same(a: Any, b: Any) -> None:
    for mine, theirs in zip(flat(a), flat(b), strict=True):
        assert_bitwise_equal(mine, theirs)


@weight_types
def test_unbatched_input_is_a_batch_of_one(weights: torch.dtype) -> None:
    for batch_first in (False, True):
        case = LayerCase(6, 1, 5, 20, bidirectional=True, batch_first=batch_first, reset=0.4)
        inputs = make_inputs(case)
        module = make_quantized(inputs, weights)
        dim = 0 if batch_first else 1
        assert inputs.hx is not None and inputs.reset_mask is not None
        masks = {"reset_mask": inputs.reset_mask, "return_cell_states": True}
        y, (h, c), cells = module(inputs.input, inputs.hx, **masks)
        masks["reset_mask"] = inputs.reset_mask.squeeze(dim)
        hx = (inputs.hx[0].squeeze(1), inputs.hx[1].squeeze(1))
        one_y, (one_h, one_c), one_cells = module(inputs.input.squeeze(dim), hx, **masks)
        assert_same(
            (one_y, one_h, one_c, one_cells),
            (y.squeeze(dim), h.squeeze(1), c.squeeze(1), cells.squeeze(dim)),
        )


def test_the_fast_path_gives_what_the_general_one_does() -> None:
    inputs = make_inputs(STACK)
    module = make_quantized(inputs, torch.int8)
    y, hidden = module(inputs.input, inputs.hx)
    assert_same(module(inputs.input, inputs.hx, return_cell_states=True)[:2], (y, hidden))
    zeros = (torch.zeros(4, 3, 7), torch.zeros(4, 3, 20))
    assert_same(module(inputs.input), module(inputs.input, zeros))
    full = torch.full((3,), 6)
    assert_same(module(inputs.input, lengths=full), module(inputs.input, zeros))


def test_packed_sequences_without_states_and_in_any_order() -> None:
    module = make_quantized(make_inputs(LayerCase(2, 1, 3, 8)), torch.int8)
    rows = [torch.randn(n, 3) for n in (2, 4, 3)]
    packed, (h, c) = module(pack_sequence(rows, enforce_sorted=False))
    for index, row in enumerate(rows):
        _, (own_h, own_c) = module(row[:, None])
        assert_same((h[:, index : index + 1], c[:, index : index + 1]), (own_h, own_c))
    assert packed.data.shape == (9, 8)


@weight_types
def test_copies_compute_the_same(weights: torch.dtype) -> None:
    inputs = make_inputs(STACK)
    module = make_quantized(inputs, weights)
    wanted = module(inputs.input, inputs.hx)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = QuantizedLSTM(5, 20, 2, True, True, 0.0, True, 7, weights=weights)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert repr(twin) == repr(module)
        assert_same(twin(inputs.input, inputs.hx), wanted)
    assert_same(copy.deepcopy(module).half().double()(inputs.input, inputs.hx), wanted)


def test_safetensors(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    inputs = make_inputs(STACK)
    module = make_quantized(inputs, torch.int8)
    safetensors.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    loaded = QuantizedLSTM(5, 20, 2, True, True, 0.0, True, 7)
    loaded.load_state_dict(safetensors.load_file(tmp_path / "weights.safetensors"), assign=True)
    assert_same(loaded(inputs.input), module(inputs.input))


@weight_types
def test_memory_is_a_part_of_the_float_weights(weights: torch.dtype) -> None:
    lstm = FusedLSTM(256, 256)
    before = sum(p.numel() * p.element_size() for p in lstm.parameters())
    after = sum(b.numel() * b.element_size() for b in quantize(lstm, weights).buffers())
    assert after <= before / (4 if weights == torch.int8 else 2) * 1.05


@weight_types
def test_dequantized_modules_quantize_to_the_same(weights: torch.dtype) -> None:
    inputs = make_inputs(STACK)
    module = make_quantized(inputs, weights)
    lstm = module.dequantize()
    assert type(lstm) is FusedLSTM and not lstm.training and lstm.batch_first
    for parameter, name in zip(lstm.parameters(), inputs.weights, strict=True):
        if "bias" not in name:
            row = inputs.weights[name].abs().amax(1, keepdim=True)
            error = (parameter - inputs.weights[name]).abs()
            assert (error <= row * (0.00394 if weights == torch.int8 else 0.0039)).all()
    again = quantize(lstm, weights)
    torch.testing.assert_close(again(inputs.input)[0], module(inputs.input)[0], rtol=0, atol=1e-5)


def test_an_unknown_format_is_refused_and_nothing_is_lost() -> None:
    inputs = make_inputs(STACK)
    module = make_quantized(inputs, torch.int8)
    wanted = module(inputs.input)
    for at, value, sentence in (
        (8, 2, "packed_l1: packed weights must have format version 1, got 2"),
        (0, 0, "got something else"),
        (12, 7, "damaged"),
        (45, 1, "damaged"),  # bias
        (50, 1, "damaged"),  # reserved
        (12, 2, "must be of .*torch.int8.*got .*torch.bfloat16"),
        (16, 9, "must be of .*got .*input_size=9"),
    ):
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        state["packed_l1"][at] = value
        with pytest.raises(RuntimeError, match=sentence):
            module.load_state_dict(state)
        assert_same(module(inputs.input), wanted)
    good = module.state_dict()["packed_l1"].clone()
    for bad in (torch.zeros(10), good[:10], good.to_sparse(), good.tolist(), good.view(1, -1)):
        with pytest.raises(RuntimeError, match=r"packed weights must be a torch\.uint8 tensor"):
            module.load_state_dict({**state, "packed_l1": bad}, strict=False, assign=True)
        assert_same(module(inputs.input), wanted)
    parameter = nn.Parameter(good, requires_grad=False)
    module.load_state_dict({**module.state_dict(), "packed_l1": parameter}, assign=True)
    assert_same(module(inputs.input), wanted)
    module.packed_l1[8] = 2
    with pytest.raises(RuntimeError, match="format version 1, got 2"):
        module(inputs.input)


def test_training_is_refused() -> None:
    lstm, cell = quantize(nn.LSTM(3, 4)), quantize(nn.LSTMCell(3, 4))
    for module, x in ((lstm, torch.randn(2, 1, 3)), (cell, torch.randn(1, 3))):
        assert not list(module.parameters()) and not module.training
        module(x)
        sentence = "is for inference and has no gradients"
        with pytest.raises(RuntimeError, match=sentence):
            module(x.clone().requires_grad_())
        with pytest.raises(RuntimeError, match=sentence):
            module.train()(x)
        with torch.no_grad():
            module(x.clone().requires_grad_())
            with forward_ad.dual_level(), pytest.raises(RuntimeError, match=sentence):
                module(forward_ad.make_dual(x, x))
        with pytest.raises(RuntimeError, match=sentence):
            torch.func.jvp(module.eval(), (x,), (x,))


@weight_types
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_computed_in_float32(weights: torch.dtype, dtype: torch.dtype) -> None:
    """Of models that are of another dtype as a whole."""
    inputs = make_inputs(STACK)
    assert inputs.hx is not None
    module = make_quantized(inputs, weights)
    x, hx = inputs.input.to(dtype), (inputs.hx[0].to(dtype), inputs.hx[1].to(dtype))
    states = {"hx": (hx[0].float(), hx[1].float())}
    for own, given in (({}, {}), ({"hx": hx}, states)):
        results = flat(module(x, **own, return_cell_states=True))
        wanted = flat(module(x.float(), **given, return_cell_states=True))
        for ours, exact in zip(results, wanted, strict=True):
            assert_bitwise_equal(ours, exact.to(dtype))
    cell = quantize(nn.LSTMCell(5, 18), weights)
    assert_same(cell(x[0]), [state.to(dtype) for state in cell(x[0].float())])
    model = quantize(nn.Sequential(nn.Linear(3, 5), nn.LSTM(5, 4)).to(dtype), weights)
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 3, dtype=dtype))[0].dtype == dtype


def test_weights_that_are_not_there_yet_are_no_weights() -> None:
    """Of a module on "meta", which computes shapes alone."""
    x = torch.randn(2, 1, 3)
    for module, rows in ((quantize(nn.LSTM(3, 4)), x), (quantize(nn.LSTMCell(3, 4)), x[0])):
        twin = copy.deepcopy(module).to("meta")
        assert twin(rows.to("meta"))[0].device.type == "meta"
        for own, given in ((twin, rows), (module, rows.to("meta"))):
            with pytest.raises(RuntimeError, match="parameter tensors are not at the same device"):
                own(given)
        state = torch.zeros(1, 1, 4) if rows.dim() == 3 else torch.zeros(1, 4)
        with pytest.raises(RuntimeError, match="hidden tensors are not at the same device"):
            module(rows, (state.to("meta"), state))


def test_arguments_that_do_not_fit() -> None:
    module = quantize(nn.LSTM(3, 4, batch_first=True))
    x = torch.randn(2, 5, 3)
    h = torch.zeros(1, 2, 4)
    for error, sentence, call in (
        (ValueError, "2D or 3D, got 1D", lambda: module(x[0, 0])),
        (RuntimeError, "Expected 3, got 2", lambda: module(x[..., :2])),
        (TypeError, "input must be float32, .* got torch.int64", lambda: module(x.long())),
        (TypeError, "hx must be a tuple of two tensors", lambda: module(x, h)),
        (TypeError, "hx must be a tuple of two tensors", lambda: module(x[0], h[0])),
        (TypeError, "hx must hold tensors, got NoneType", lambda: module(x, (h, None))),
        (RuntimeError, "expects two hidden states", lambda: module(x, (h,))),
        (TypeError, "tuple of two tensors", lambda: module(pack_sequence([x[0]]), h[:, :1])),
        (RuntimeError, "must have 2 dim", lambda: module(pack_sequence([x[0, :, 0]]))),
        (RuntimeError, r"Expected hidden\[0\] size", lambda: module(x, (h[:, :1], h))),
        (RuntimeError, r"Expected hidden\[1\] size", lambda: module(x, (h, h[..., :2]))),
        (RuntimeError, "also be 3-D", lambda: module(x, (h[0], h[0]))),
        (RuntimeError, "h_0 must have input's dtype", lambda: module(x, (h.double(), h))),
        (RuntimeError, "sequence length to be larger than 0", lambda: module(x[:, :0])),
        (RuntimeError, "lengths must be between", lambda: module(x, lengths=torch.tensor([6, 1]))),
        (ValueError, "lengths must have shape", lambda: module(x, lengths=torch.tensor([5]))),
        (TypeError, "reset_mask must be bool", lambda: module(x, reset_mask=torch.ones(2, 5))),
        (
            ValueError,
            "does not go with a PackedSequence",
            lambda: module(pack_sequence([x[0]]), lengths=torch.tensor([5])),
        ),
    ):
        with pytest.raises(error, match=sentence):
            call()
    with pytest.raises(ValueError, match=r"weights must be torch\.int8"):
        QuantizedLSTM(3, 4, weights=torch.float32)
    with pytest.raises(ValueError, match="proj_size"):
        QuantizedLSTM(3, 4, proj_size=4)


def test_a_model_may_flatten_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm: Any = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.lstm.flatten_parameters()
            y: Tensor = self.lstm(x)[0]
            return y

    assert quantize(Model())(torch.zeros(2, 1, 3)).shape == (2, 1, 4)


def test_no_rows_and_single_sizes() -> None:
    module = quantize(nn.LSTM(3, 4, 2, bidirectional=True))
    y, (h, c) = module(torch.zeros(5, 0, 3))
    assert y.shape == (5, 0, 8) and h.shape == c.shape == (4, 0, 4)
    y, _ = QuantizedLSTM(1, 1)(torch.ones(1, 1, 1))
    assert y.item() == 0


@weight_types
@pytest.mark.parametrize("bias", [True, False])
def test_cells_are_steps_of_a_layer(weights: torch.dtype, bias: bool) -> None:
    lstm = nn.LSTM(5, 18, bias=bias)
    cell = nn.LSTMCell(5, 18, bias=bias)
    cell.load_state_dict({name[:-3]: tensor for name, tensor in lstm.state_dict().items()})
    layer, step = quantize(lstm, weights), quantize(cell, weights)
    assert type(step) is QuantizedLSTMCell
    x = torch.randn(4, 3, 5)
    y, (h_n, c_n) = layer(x)
    hx = None
    for t in range(4):
        hx = step(x[t], hx)
        assert_bitwise_equal(hx[0], y[t])
    assert_same(hx, (h_n[0], c_n[0]))
    h, c = step(x[0, 0])
    assert h.shape == c.shape == (18,)
    assert h.detach_() is h and c.detach_() is c, "no views, as loops over a cell want"
    loaded = QuantizedLSTMCell(5, 18, bias, weights=weights)
    loaded.load_state_dict(step.state_dict())
    assert_same(loaded(x[0]), step(x[0]))
    kept = step.dequantize()
    assert type(kept) is FusedLSTMCell and kept.bias is bias
    torch.testing.assert_close(kept(x[0])[0], step(x[0])[0], rtol=0, atol=1e-4)


def test_cell_arguments_that_do_not_fit() -> None:
    cell = quantize(nn.LSTMCell(3, 4))
    x, h = torch.randn(2, 3), torch.zeros(2, 4)
    for error, sentence, call in (
        (ValueError, "1D or 2D, got 3D", lambda: cell(x[None])),
        (RuntimeError, "got 2 expected 3", lambda: cell(x[:, :2])),
        (RuntimeError, "hidden1 has inconsistent hidden_size", lambda: cell(x, (h, h[:, :2]))),
        (RuntimeError, "Input batch size 2 doesn't match hidden0", lambda: cell(x, (h[:1], h[:1]))),
        (TypeError, "input must be float32, .* got torch.int64", lambda: cell(x.long())),
        (RuntimeError, "h must have input's dtype", lambda: cell(x, (h.double(), h))),
        (TypeError, "must be tuple of Tensors", lambda: cell(x, h)),
        (TypeError, "hx must hold tensors, got NoneType", lambda: cell(x, (h, None))),
    ):
        with pytest.raises(error, match=sentence):
            call()


def test_explain_names_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    module = quantize(nn.LSTM(5, 20, 2, bidirectional=True), torch.bfloat16)
    with use_isa(ISAS[-1]):
        text = explain(module, torch.zeros(7, 3, 5))
    assert capsys.readouterr().out == text + "\n"
    first, *plans = text.splitlines()
    assert first == "cpu, bfloat16 weights: T=7 N=3 layers=2 directions=2 threads=1"
    assert [plan.split(":")[0] for plan in plans] == ["  layer 0 D=5 H=20", "  layer 1 D=40 H=20"]
    assert all("bfloat16 weights, 1 row group(s) x team of 1" in plan for plan in plans)
    assert "layer 0 D=3 H=4" in explain(quantize(nn.LSTMCell(3, 4)), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="Expected 5, got 6"):
        explain(module, torch.zeros(7, 3, 6))


def test_flops_are_those_of_the_float_module() -> None:
    lstm = FusedLSTM(5, 20, 2, bidirectional=True, proj_size=7)
    own, x = quantize(nn.Sequential(lstm))[0], torch.zeros(4, 3, 5)
    counts = []
    for module in (lstm, own):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
