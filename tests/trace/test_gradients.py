# SPDX-License-Identifier: BSD-3-Clause
"""A differentiable trace: gradients of gates, through gates, and Captum's attributions."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.numeric import assert_within_budget, make_module
from kit.traces import FIELDS, reference_states
from torch import Tensor, nn
from torch.func import functional_call

import lstm_fused
from lstm_fused import FusedLSTM

CASES = [
    LayerCase(T=1, N=1, D=1, H=1),
    LayerCase(T=5, N=3, D=4, H=6, bidirectional=True, num_layers=2),
    LayerCase(T=6, N=4, D=3, H=5, P=2, bidirectional=True, lengths=(6, 0, 3, 1)),
    LayerCase(T=6, N=3, D=3, H=5, reset=0.3, bidirectional=True, num_layers=2),
    LayerCase(T=5, N=3, D=3, H=5, batch_first=True, lengths=(1, 5, 4)),
    LayerCase(T=5, N=3, D=3, H=5, bias=False, hx=False),
]


def open_trace(inputs: LayerInputs, **options: Any) -> tuple[lstm_fused.Trace, dict[str, Tensor]]:
    """A differentiable trace, and the leaves of its graph by name."""
    module = make_module(inputs, FusedLSTM)
    inputs = inputs.requiring_grad()
    masks = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    trace = lstm_fused.trace(
        module, inputs.input, inputs.hx, **masks, differentiable=True, **options
    )
    states = {} if inputs.hx is None else {"h_0": inputs.h_0, "c_0": inputs.c_0}
    return trace, {"input": inputs.input, **states, **dict(module.named_parameters())}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_every_tensor(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=torch.float64))
    trace, leaves = open_trace(inputs)
    wanted = inputs.requiring_grad()
    truth = reference_states(wanted)
    torch.manual_seed(0)
    for name in truth:
        for field in FIELDS:
            ours, theirs = getattr(trace[name], field), truth[name][field]
            weights = torch.randn_like(theirs)
            grads = torch.autograd.grad(
                (ours * weights).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
            )
            true_grads = torch.autograd.grad(
                (theirs * weights).sum(),
                list(wanted.leaves.values()),
                retain_graph=True,
                allow_unused=True,
            )
            for leaf, grad, true in zip(wanted.leaves, grads, true_grads, strict=True):
                true = torch.zeros_like(wanted.leaves[leaf]) if true is None else true
                grad = torch.zeros_like(true) if grad is None else grad
                what = f"{name}.{field} by {leaf}"
                assert_within_budget(what, grad, None, true, torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_the_output_are_the_modules(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=torch.float64))
    trace, leaves = open_trace(inputs)
    module = make_module(inputs, FusedLSTM)
    given = inputs.requiring_grad()
    y, (h_n, c_n) = module(
        given.input, given.hx, lengths=given.lengths, reset_mask=given.reset_mask
    )
    incoming = [inputs.grads[name] for name in ("y", "h_n", "c_n")]
    ours = torch.autograd.grad([trace.output[0], *trace.output[1]], list(leaves.values()), incoming)
    states = [] if given.hx is None else [given.h_0, given.c_0]
    variables: Any = [given.input, *states, *module.parameters()]
    theirs = torch.autograd.grad([y, h_n, c_n], variables, incoming)
    for leaf, a, b in zip(leaves, ours, theirs, strict=True):
        assert_within_budget(leaf, a, None, b, torch.float64)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_output_leads_through_every_tensor(field: str, batch_first: bool) -> None:
    """By finite differences: a tensor moves, the layer's other gates are held."""
    case = LayerCase(
        T=5, N=2, D=3, H=4, bidirectional=True, num_layers=2, batch_first=batch_first,
        lengths=(5, 3), dtype=torch.float64,
    )  # fmt: skip
    inputs = make_inputs(case)
    trace, _ = open_trace(inputs)
    tensor = getattr(trace["l0_reverse"], field)
    weights = torch.randn_like(trace.output[0])
    (grad,) = torch.autograd.grad((trace.output[0] * weights).sum(), tensor)
    direction = torch.randn_like(tensor) * (tensor != 0)  # zero past a row's length

    def score(step: float) -> float:
        name = f"l0_reverse.{field}"
        moved, _ = open_trace(inputs, through={name: lambda values: values + step * direction})
        return float((moved.output[0] * weights).sum().detach())

    numeric = (score(1e-5) - score(-1e-5)) / 2e-5
    assert float((grad * direction).sum()) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_gates_by_finite_differences_and_again() -> None:
    torch.manual_seed(0)
    module = FusedLSTM(2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def gates(x: Tensor) -> Any:
        trace = lstm_fused.trace(module, x, differentiable=True)
        return trace["l0"].f, trace["l0"].o, trace["l0"].c

    assert torch.autograd.gradcheck(gates, x)
    assert torch.autograd.gradgradcheck(gates, x)


def test_what_goes_through_takes_a_tensors_place() -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5, num_layers=2), torch.randn(6, 2, 3)
    seen = []
    whole = lstm_fused.trace(module, x, differentiable=True)
    shut = lstm_fused.trace(
        module,
        x,
        differentiable=True,
        through={"l0.i": torch.zeros_like, "l1.h": lambda h: seen.append(h) or h},
    )
    assert not shut["l0"].i.any() and not shut["l0"].c.any() and not shut["l0"].h.any()
    torch.testing.assert_close(shut["l0"].f, whole["l0"].f)  # held as it was
    assert not torch.allclose(shut["l1"].f, whole["l1"].f)  # computed of what came from below
    assert seen[0] is shut["l1"].h
    torch.testing.assert_close(shut.output[0], shut["l1"].h)


class Tagger(nn.Module):
    """Numbers of words (N, T) to a score (N,), by an LSTM with its batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lstm = FusedLSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, words: Tensor) -> Tensor:
        y, _ = self.lstm(self.embedding(words))
        score: Tensor = self.head(y[:, -1]).squeeze(-1)
        return score


def layer_integrated_gradients() -> Any:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    return captum.LayerIntegratedGradients


def test_captum_attributes_a_gate_to_words() -> None:
    torch.manual_seed(0)
    method, model = layer_integrated_gradients(), Tagger().double()
    words, nothing = torch.randint(1, 11, (2, 5)), torch.zeros(2, 5, dtype=torch.long)

    def gate(words: Tensor) -> Tensor:
        trace = lstm_fused.trace(model, words, differentiable=True)
        return trace["lstm.l0"].f[:, 3, 2]  # of the fourth step and the third unit

    attribution = method(gate, model.embedding).attribute(words, nothing, n_steps=200)
    assert attribution.shape == (2, 5, 4)
    assert not attribution[:, 4].any()  # what comes later has no part in it
    wanted = gate(words) - gate(nothing)
    torch.testing.assert_close(attribution.sum(dim=(1, 2)), wanted, atol=1e-4, rtol=1e-3)


def test_captum_attributes_the_output_to_a_gate() -> None:
    torch.manual_seed(0)
    method, model = layer_integrated_gradients(), Tagger().double()
    words, nothing = torch.randint(1, 11, (2, 5)), torch.zeros(2, 5, dtype=torch.long)
    probe = nn.Identity()

    def score(words: Tensor, through: Any) -> Any:
        options = {"differentiable": True, "through": {"lstm.l0.i": through}}
        return lstm_fused.trace(model, words, **options).output

    attributor = method(lambda words: score(words, probe), probe)
    attribution = attributor.attribute(words, nothing, n_steps=200)
    assert attribution.shape == (2, 5, 6)
    # From the words' score with the gates of other words, the rest held, to the words' score.
    other = lstm_fused.trace(model, nothing)["lstm.l0"].i
    wanted = score(words, probe) - score(words, lambda _: other)
    assert wanted.abs().min() > 1e-3
    torch.testing.assert_close(attribution.sum(dim=(1, 2)), wanted, atol=1e-6, rtol=1e-5)


def test_parameters_from_elsewhere() -> None:
    module, x = FusedLSTM(3, 5), torch.randn(4, 2, 3)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in module.named_parameters()}

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: Tensor) -> Tensor:
            return lstm_fused.trace(self.lstm, x, differentiable=True)["l0"].f

    f = functional_call(Traced(), {f"lstm.{name}": p for name, p in given.items()}, (x,))
    (grad,) = torch.autograd.grad(f.sum(), given["weight_hh_l0"])
    assert grad.abs().sum() > 0
