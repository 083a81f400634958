# SPDX-License-Identifier: BSD-3-Clause
"""QuantizedLSTM under torch.export, torch.compile, AOTInductor, fx, jit and autocast; its op."""

import io
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal
from kit.quantized import WEIGHTS, make_quantized
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence

from lstm_fused import quantize

weight_types = pytest.mark.parametrize("weights", WEIGHTS, ids=str)


class Model(nn.Module):
    def __init__(self, weights: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = quantize(nn.LSTM(5, 20, 2, batch_first=True, bidirectional=True), weights)
        self.cell = quantize(nn.LSTMCell(40, 6), weights)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, (h_n, _) = self.lstm(x, lengths=lengths)
        h, _ = self.cell(y[:, 0])
        return y, h + h_n[0, :, :6]


def call_of(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(rows, steps, 5), torch.randint(1, steps + 1, (rows,))


@weight_types
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(weights: torch.dtype, strict: bool) -> None:
    model = Model(weights)
    shapes = ({0: Dim("n"), 1: Dim("t")}, {0: Dim("n")})
    program = torch.export.export(model, call_of(3, 4), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for sizes in ((3, 4), (5, 9)):
        for mine, wanted in zip(loaded(*call_of(*sizes)), model(*call_of(*sizes)), strict=True):
            assert_bitwise_equal(mine, wanted)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_in_one_graph(backend: str) -> None:
    model = Model(torch.int8)
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for sizes in ((3, 4), (5, 9)):
            wanted = model(*call_of(*sizes))
            for mine, own in zip(compiled(*call_of(*sizes)), wanted, strict=True):
                assert_bitwise_equal(mine, own)


def test_aot_inductor(tmp_path: Any) -> None:
    model = Model(torch.int8)
    shapes = ({0: Dim("n"), 1: Dim("t")}, {0: Dim("n")})
    program = torch.export.export(model, call_of(3, 4), dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    for sizes in ((3, 4), (5, 9)):
        for mine, wanted in zip(loaded(*call_of(*sizes)), model(*call_of(*sizes)), strict=True):
            assert_bitwise_equal(mine, wanted)


def test_fx_takes_it_for_a_leaf() -> None:
    model = nn.Sequential(nn.Linear(3, 5), quantize(nn.LSTM(5, 4)))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    x = torch.randn(2, 1, 3)
    with torch.no_grad():
        assert_bitwise_equal(traced(x)[0], model(x)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of comparing sizes
def test_jit_script_is_refused_and_trace_runs() -> None:
    module, cell = quantize(nn.LSTM(3, 4)), quantize(nn.LSTMCell(3, 4))
    x = torch.randn(4, 2, 3)
    for packed, given in ((module, x), (cell, x[0])):
        with pytest.raises(RuntimeError, match=r"Script its dequantize\(\)\.to_torch\(\)"):
            torch.jit.script(packed)
        floats = packed.dequantize()
        scripted = torch.jit.script(nn.Sequential(floats.to_torch()))  # alone it has no forward
        torch.testing.assert_close(scripted(given)[0], floats(given)[0])
    with torch.no_grad():
        traced: Any = torch.jit.trace(module, (x,))
        assert_bitwise_equal(traced(x)[0], module(x)[0])


def test_autocast_computes_in_float32() -> None:
    module = quantize(nn.LSTM(3, 4))
    x = torch.randn(4, 2, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y, _ = module(x)
    assert_bitwise_equal(y, module(x.float())[0])


@weight_types
@pytest.mark.parametrize("batch_first", [False, True])
def test_vmap_is_a_call_for_each_sample(weights: torch.dtype, batch_first: bool) -> None:
    """In one call for all, bit for bit; and one by one where weights differ, as in an ensemble."""
    case = LayerCase(4, 3, 5, 20, P=6, bidirectional=True, num_layers=2, batch_first=batch_first)
    module = make_quantized(make_inputs(case), weights)
    x = torch.randn(2, 3, 4, 5) if batch_first else torch.randn(2, 4, 3, 5)
    hx = (torch.randn(4, 2, 3, 6), torch.randn(4, 3, 20))  # mapped in dimension 1, and shared
    lengths, mask = torch.tensor([[4, 1, 0], [2, 2, 4]]), torch.rand(*x.shape[:3]) < 0.3

    def call(x: Tensor, h: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        options = {"lengths": lengths, "reset_mask": mask, "return_cell_states": True}
        y, states, cells = module(x, (h, hx[1]), **options)
        return y, *states, cells

    results = torch.vmap(call, in_dims=(0, 1, 0, 0))(x, hx[0], lengths, mask)
    plain = torch.vmap(lambda x: module(x)[0])(x)
    data, sizes = torch.randn(2, 6, 5), torch.tensor([3, 2, 1])
    of_packed = torch.vmap(lambda data: module(PackedSequence(data, sizes))[0].data)(data)
    for i in range(2):
        for ours, wanted in zip(results, call(x[i], hx[0][:, i], lengths[i], mask[i]), strict=True):
            assert_bitwise_equal(ours[i], wanted)
        assert_bitwise_equal(plain[i], module(x[i])[0])
        assert_bitwise_equal(of_packed[i], module(PackedSequence(data[i], sizes))[0].data)

    cells = [quantize(nn.LSTMCell(5, 20), weights) for _ in range(2)]
    rows, h = torch.randn(2, 3, 5), torch.randn(3, 20)
    shared = torch.vmap(lambda r: cells[0](r, (h, h)))(rows)
    packed = torch.stack([cell.packed for cell in cells])
    run = torch.vmap(lambda p, r: torch.func.functional_call(cells[0], {"packed": p}, (r,)))
    own = run(packed, rows)
    for i in range(2):
        for k in range(2):
            assert_bitwise_equal(shared[k][i], cells[0](rows[i], (h, h))[k])
            assert_bitwise_equal(own[k][i], cells[i](rows[i])[k])


@weight_types
def test_the_op_is_what_its_fake_says(weights: torch.dtype) -> None:
    case = LayerCase(4, 3, 5, 20, P=6, bidirectional=True, num_layers=2)
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    states = inputs.hx or ()
    lengths = torch.tensor([4, 0, 2])
    arguments = (inputs.input, *states, module._packed(), lengths, None, None, 20, 6, 2, True)
    torch.library.opcheck(
        torch.ops.lstm_fused.lstm_quantized.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_faults_have_one_sentence_in_op_and_fake() -> None:
    op = torch.ops.lstm_fused.lstm_quantized.default
    packed = quantize(nn.LSTM(3, 4))._packed()
    x, h = torch.zeros(2, 1, 3), torch.zeros(1, 1, 4)
    good: dict[str, Any] = {
        **{"input": x, "h_0": h, "c_0": h, "packed": packed, "lengths": None},
        **{"batch_sizes": None, "reset_mask": None, "hidden_size": 4, "output_size": 4},
        **{"directions": 1, "return_cell_states": False},
    }
    op(**good)
    for change in (
        {"input": x.double()},
        {"input": x[0, 0]},
        {"h_0": h[0]},
        {"h_0": h[..., :2]},
        {"c_0": h.expand(2, 1, 4)},
        {"packed": []},
        {"directions": 0},
        {"packed": packed * 3, "directions": 2},
        {"lengths": torch.tensor([1, 2])},
        {"reset_mask": torch.ones(1, 2, dtype=torch.bool)},
        {"h_0": None, "batch_sizes": torch.tensor([1, 1])},
    ):
        with pytest.raises(RuntimeError) as real:
            op(**{**good, **change})
        meta = {
            name: value.to("meta") if isinstance(value, Tensor) else value
            for name, value in {**good, **change}.items()
            if name != "packed"
        }
        if "batch_sizes" in change:
            meta["batch_sizes"] = change["batch_sizes"]
        meta["packed"] = [p.to("meta") for p in change.get("packed", packed)]
        with pytest.raises(RuntimeError) as fake:
            op(**meta)
        assert str(fake.value).splitlines()[0] == str(real.value).splitlines()[0], change


def test_what_packed_weights_hold_is_checked_in_each_call() -> None:
    op = torch.ops.lstm_fused.lstm_quantized.default
    packed = quantize(nn.LSTM(3, 4))._packed()[0]
    other = quantize(nn.LSTM(3, 4, bidirectional=True), torch.bfloat16)._packed()[0]
    x = torch.zeros(2, 1, 3)

    def run(*blocks: Tensor, directions: int = 1, hidden: int = 4) -> None:
        op(x, None, None, list(blocks), None, None, None, hidden, hidden, directions, False)

    for sentence, call in (
        ("must be of input_size 3, hidden_size 5", lambda: run(packed, hidden=5)),
        ("must be of input_size 4", lambda: run(packed, packed)),
        ("must have one type, got int8 and bfloat16", lambda: run(packed, other, directions=2)),
        ("must be a torch.uint8 tensor of 1 dimension", lambda: run(packed.float())),
        ("must have .* bytes, got", lambda: run(packed[:-1])),
        ("must begin with a header of 64 bytes, got 10", lambda: run(packed[:10])),
        ("must be made by lstm_fused.quantize", lambda: run(packed.flip(0))),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            call()
    run(torch.cat([packed.new_zeros(1), packed])[1:])  # not on a boundary
