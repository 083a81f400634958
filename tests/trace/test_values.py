# SPDX-License-Identifier: BSD-3-Clause
"""Recorded gates, cell states and outputs against the reference in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal, assert_within_budget, make_module
from kit.traces import FIELDS, reference_states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_fused
from lstm_fused import FusedLSTM

CASES = [
    LayerCase(T=1, N=1, D=1, H=1),
    LayerCase(T=9, N=3, D=5, H=17, hx=False),
    LayerCase(T=6, N=4, D=3, H=8, bidirectional=True, num_layers=2),
    LayerCase(T=6, N=4, D=3, H=8, bidirectional=True, lengths=(6, 0, 3, 1)),
    LayerCase(T=7, N=3, D=4, H=9, P=4, bidirectional=True, num_layers=2, lengths=(2, 7, 5)),
    LayerCase(T=8, N=2, D=3, H=6, num_layers=2, reset=0.3, bidirectional=True),
    LayerCase(T=8, N=3, D=3, H=6, P=2, reset=0.3, lengths=(8, 2, 0), poison=True),
    LayerCase(T=5, N=3, D=4, H=7, bias=False, batch_first=True, num_layers=2),
    LayerCase(T=5, N=3, D=4, H=7, bidirectional=True, batch_first=True, lengths=(1, 5, 4)),
]


def run(case: LayerCase, dtype: torch.dtype, **options: Any) -> tuple[lstm_fused.Trace, Any]:
    """The trace of a case, and the inputs that it had."""
    inputs = make_inputs(replace(case, dtype=dtype))
    module = make_module(inputs, FusedLSTM)
    masks = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    return lstm_fused.trace(module, inputs.input, inputs.hx, **masks, **options), inputs


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_values(case: LayerCase, differentiable: bool) -> None:
    trace, inputs = run(case, torch.float64, differentiable=differentiable)
    truth = reference_states(inputs)
    assert list(trace) == list(truth)
    for name, states in truth.items():
        for field in FIELDS:
            ours = getattr(trace[name], field).detach()
            assert ours.dtype == torch.float64
            assert_within_budget(f"{name}.{field}", ours, None, states[field], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("differentiable", [False, True])
def test_other_dtypes(dtype: torch.dtype, differentiable: bool) -> None:
    case = LayerCase(T=7, N=3, D=4, H=9, bidirectional=True, lengths=(2, 7, 5))
    trace, inputs = run(case, dtype, differentiable=differentiable)
    for name, states in reference_states(inputs.to(torch.float64)).items():
        for field in FIELDS:
            ours = getattr(trace[name], field).detach()
            assert ours.dtype == torch.float32
            assert_within_budget(f"{name}.{field}", ours, None, states[field], dtype)
    assert trace.output[0].dtype == dtype


def test_every_instruction_set_records(isa: str) -> None:
    trace, inputs = run(CASES[4], torch.float64)
    for name, states in reference_states(inputs).items():
        assert_within_budget(f"{name}.f", trace[name].f, None, states["f"], torch.float64)


def test_outputs_are_those_of_the_module() -> None:
    case = LayerCase(T=6, N=4, D=3, H=8, bidirectional=True, num_layers=2, lengths=(6, 0, 3, 1))
    inputs = make_inputs(case)
    module = make_module(inputs, FusedLSTM)
    call: Any = {"hx": inputs.hx, "lengths": inputs.lengths, "return_cell_states": True}
    y, (h_n, c_n), cells = module(inputs.input, **call)
    trace = lstm_fused.trace(module, inputs.input, **call)
    traced_y, (traced_h, traced_c), traced_cells = trace.output
    assert_bitwise_equal(traced_y, y.detach())
    assert_bitwise_equal(traced_h, h_n.detach())
    assert_bitwise_equal(traced_c, c_n.detach())
    assert_bitwise_equal(traced_cells, cells.detach())
    both = torch.cat([trace["l1"].c, trace["l1_reverse"].c], dim=-1)
    assert_bitwise_equal(both, cells.detach())
    assert not traced_y.requires_grad
    opened = lstm_fused.trace(module, inputs.input, differentiable=True, **call).output
    for ours, theirs in zip((opened[0], *opened[1], opened[2]), (y, h_n, c_n, cells), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_sequence_in_every_layout() -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(7, 2, 3)
    batched = lstm_fused.trace(module, x)
    alone = lstm_fused.trace(module, x[:, 0])
    module.batch_first = True
    first = lstm_fused.trace(module, x.transpose(0, 1))
    for name in batched:
        for field in FIELDS:
            values: Tensor = getattr(batched[name], field)
            assert_bitwise_equal(getattr(first[name], field), values.transpose(0, 1))
            assert_bitwise_equal(getattr(alone[name], field), values[:, 0])
    assert alone["l0"].rows == 1
    assert first["l0"].rows == batched["l0"].rows == 2
    assert_bitwise_equal(first["l1"].row(1).g, batched["l1"].row(1).g)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
def test_packed_rows_come_in_the_callers_order(batch_first: bool, differentiable: bool) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 5, bidirectional=True, batch_first=batch_first)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([2, 6, 1, 5])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    padded = x if batch_first else x.transpose(0, 1)
    theirs = lstm_fused.trace(module, padded, lengths=lengths)
    ours = lstm_fused.trace(module, packed, differentiable=differentiable)
    for name in theirs:
        for field in FIELDS:
            torch.testing.assert_close(getattr(ours[name], field), getattr(theirs[name], field))
        assert torch.equal(ours[name].lengths, lengths)
        assert ours[name].row(3).c.shape == (5, 5)
        assert ours[name].steps().c.shape == (14, 5)
    y, hidden = module(packed)
    torch.testing.assert_close(ours.output[0].data, y.data.detach(), check_stride=False)
    torch.testing.assert_close(ours.output[1][1], hidden[1].detach())


def test_recompute_saves_gates_here_too() -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5), torch.randn(4, 2, 3)
    before = lstm_fused.trace(module, x)
    module.recompute = True
    assert_bitwise_equal(lstm_fused.trace(module, x)["l0"].f, before["l0"].f)


def test_autocast() -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5), torch.randn(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)[0]
        for differentiable in (False, True):
            trace = lstm_fused.trace(module, x, differentiable=differentiable)
            assert trace.output[0].dtype == y.dtype
            torch.testing.assert_close(trace["l0"].h.to(y.dtype), y, atol=1e-2, rtol=0)


def test_a_device_without_kernels_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstm_fused._ops import native

    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5, bidirectional=True), torch.randn(4, 2, 3)
    before = lstm_fused.trace(module, x)
    monkeypatch.setattr(native, "has_kernels", lambda device: False)
    after = lstm_fused.trace(module, x)
    for name in before:
        for field in FIELDS:
            torch.testing.assert_close(getattr(after[name], field), getattr(before[name], field))


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(FusedLSTM(3, 5))
    before = dict(model[0].__dict__)
    hooks = len(model[0]._forward_pre_hooks)
    lstm_fused.trace(model, torch.randn(4, 2, 3))
    with pytest.raises(RuntimeError):
        lstm_fused.trace(model, torch.randn(4, 2, 7))
    assert dict(model[0].__dict__) == before
    assert len(model[0]._forward_pre_hooks) == hooks
