# SPDX-License-Identifier: BSD-3-Clause
"""Traces of a cell with options: recorded and differentiable, against the reference in float64."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from kit.options import CASES, OPTION_SETS, Case, OptionInputs, make_option_inputs, run_options
from kit.traces import FIELDS, reference_option_states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._ops import native
from lstm_fused._trace.layer import Recorded, open_layer, record_layer
from lstm_fused.autograd.arguments import LayerArguments

F64 = torch.float64
SMALL = [case for case in CASES if case.T * case.N * case.H < 600]
TINY = Case(4, 2, 3, 3, directions=2, lengths=(4, 2), reset="state")

sets = pytest.mark.parametrize("names", OPTION_SETS)
small = pytest.mark.parametrize("case", SMALL, ids=str)


def opened(
    inputs: OptionInputs, passage: Any = lambda direction, field, values: values
) -> Recorded:
    arguments = LayerArguments(*inputs.tensors, return_cell_states=True)
    return open_layer(arguments, inputs.weights, inputs.options, passage)


def recorded(inputs: OptionInputs) -> Recorded:
    return record_layer(LayerArguments(*inputs.tensors), inputs.weights, inputs.options)


def assert_states(found: Recorded, inputs: OptionInputs, dtype: torch.dtype) -> None:
    truth = reference_option_states(inputs.to(F64))
    for d, (ours, wanted) in enumerate(zip(found.states, truth, strict=True)):
        for field in FIELDS:
            value = getattr(ours, field).detach()
            assert_within_budget(f"{field} of {d}", value, None, wanted[field], dtype)


@small
@sets
def test_values(case: Case, names: str) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], F64)
    assert_states(recorded(inputs), inputs, F64)
    assert_states(opened(inputs), inputs, F64)


@sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(names: str, dtype: torch.dtype) -> None:
    inputs = make_option_inputs(TINY, OPTION_SETS[names], dtype)
    for found in (recorded(inputs), opened(inputs)):
        assert all(getattr(found.states[1], field).dtype == torch.float32 for field in FIELDS)
        assert found.results[0].dtype == dtype
        assert_states(found, inputs, dtype)


@sets
def test_a_device_without_kernels(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_option_inputs(TINY, OPTION_SETS[names], F64)
    monkeypatch.setattr(native, "has_kernels", lambda device: False)
    assert_states(recorded(inputs), inputs, F64)


@pytest.mark.parametrize("case", [TINY, *(c for c in SMALL if c.P)], ids=str)
@sets
def test_gradients_of_every_tensor(case: Case, names: str) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], F64).requiring_grad()
    wanted = inputs.requiring_grad()
    found, truth = opened(inputs), reference_option_states(wanted)
    torch.manual_seed(0)
    for d, states in enumerate(truth):
        for field in FIELDS:
            weights = torch.randn_like(states[field])
            pair = [
                torch.autograd.grad(
                    (values * weights).sum(), list(leaves), retain_graph=True, allow_unused=True
                )
                for values, leaves in (
                    (getattr(found.states[d], field), inputs.leaves.values()),
                    (states[field], wanted.leaves.values()),
                )
            ]
            for name, ours, theirs in zip(inputs.leaves, *pair, strict=True):
                zero = torch.zeros_like(inputs.leaves[name])
                ours, theirs = (zero if g is None else g for g in (ours, theirs))
                assert_within_budget(f"{field} of {d} by {name}", ours, None, theirs, F64)


@small
@sets
def test_gradients_of_the_results_are_the_layers(case: Case, names: str) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], F64)
    through_gates = run_options(inputs, opened_results)
    for name, value in run_options(inputs).items():
        assert_within_budget(name, through_gates[name], None, value, F64)


def opened_results(arguments: Any, options: Any, weights: Any) -> tuple[Tensor, ...]:
    return open_layer(arguments, weights, options, lambda _, __, values: values).results


@pytest.mark.parametrize("case", [TINY, TINY._replace(lengths=None)], ids=str)
@pytest.mark.parametrize("field", FIELDS)
@sets
def test_the_results_lead_through_every_tensor(names: str, field: str, case: Case) -> None:
    """By finite differences: a tensor moves, the layer's other gates are held."""
    inputs = make_option_inputs(case, OPTION_SETS[names], F64).requiring_grad()
    torch.manual_seed(0)
    found = opened(inputs)
    tensor = getattr(found.states[1], field)
    weights = [torch.randn_like(result) for result in found.results]

    def score(results: Any) -> Tensor:
        return torch.stack([(r * w).sum() for r, w in zip(results, weights, strict=True)]).sum()

    (grad,) = torch.autograd.grad(score(found.results), tensor)
    direction = torch.randn_like(tensor) * (tensor != 0)  # zero past a row's length

    def moved(step: float) -> float:
        def passage(d: int, name: str, values: Tensor) -> Tensor:
            return values + step * direction if (d, name) == (1, field) else values

        return float(score(opened(inputs, passage).results).detach())

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert float((grad * direction).sum()) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


ALL: dict[str, Any] = {
    "recurrent_dropout": 0.3,
    "zoneout": (0.2, 0.1),
    "layer_norm": True,
    "peephole": True,
    "cell_clip": 3.0,
}


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("options", [ALL, {"coupled_gates": True, "weight_dropout": 0.2}], ids=str)
def test_modules_in_every_layout(options: dict[str, Any], is_training: bool) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 5, 2, bidirectional=True, batch_first=True, dtype=F64, **options)
    module.train(is_training)
    x, lengths = torch.randn(4, 6, 3, dtype=F64), torch.tensor([2, 6, 1, 5])
    calls: list[tuple[Any, dict[str, Tensor]]] = [
        (x, {}),
        (x[0], {}),
        (x, {"lengths": lengths}),
        (pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), {}),
    ]
    for input, masks in calls:
        torch.manual_seed(1)
        y, (h_n, c_n) = module(input, **masks)
        traces = []
        for differentiable in (False, True):
            torch.manual_seed(1)
            trace = lstm_fused.trace(module, input, differentiable=differentiable, **masks)
            ours, (ours_h, ours_c) = trace.output
            for a, b in ((ours, y), (ours_h, h_n), (ours_c, c_n)):
                a, b = (getattr(value, "data", value).detach() for value in (a, b))
                assert_within_budget("output", a, None, b, F64)
            traces.append(trace)
        for name in traces[0]:
            for field in FIELDS:
                a, b = (getattr(trace[name], field).detach() for trace in traces)
                assert_within_budget(f"{name}.{field}", b, None, a, F64)


def test_captum_attributes_the_output_to_a_gate() -> None:
    captum: Any = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(0)
    options = {"peephole": True, "layer_norm": True, "zoneout": (0.2, 0.1)}

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 4)
            self.lstm = FusedLSTM(4, 6, batch_first=True, **options)
            self.head = nn.Linear(6, 1)

        def forward(self, words: Tensor) -> Tensor:
            score: Tensor = self.head(self.lstm(self.embedding(words))[0][:, -1]).squeeze(-1)
            return score

    model = Tagger().double().eval()
    words, nothing = torch.randint(1, 11, (2, 5)), torch.zeros(2, 5, dtype=torch.long)
    probe = nn.Identity()

    def score(words: Tensor, through: Any) -> Any:
        named = {"lstm.l0.f": through}
        return lstm_fused.trace(model, words, differentiable=True, through=named).output

    attributor = captum.LayerIntegratedGradients(lambda words: score(words, probe), probe)
    attribution = attributor.attribute(words, nothing, n_steps=200)
    assert attribution.shape == (2, 5, 6)
    # From the words' score with the gates of other words, the rest held, to the words' score.
    other = lstm_fused.trace(model, nothing)["lstm.l0"].f
    wanted = score(words, probe) - score(words, lambda _: other)
    assert wanted.abs().min() > 1e-3
    torch.testing.assert_close(attribution.sum(dim=(1, 2)), wanted, atol=1e-6, rtol=1e-5)
