# SPDX-License-Identifier: BSD-3-Clause
"""Derivatives of every order: finite differences, and mixtures that a training loop makes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from kit.cases import SMALL, LayerCase, LayerInputs, make_inputs
from kit.numeric import Results, assert_bitwise_equal, assert_within_budget, make_module
from kit.ours import run_ours
from kit.settings import DTYPES
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import FusedLSTM, FusedLSTMCell, reference

F64 = torch.float64
OUTPUTS = ("y", "h_n", "c_n", "cell_states")
cases = pytest.mark.parametrize("case", SMALL, ids=str)


def run_layers(inputs: LayerInputs, leaves: dict[str, Tensor], ours: bool = True) -> Results:
    """All results of FusedLSTM, or of the reference, as a function of the leaves."""
    case = inputs.case
    hx = (leaves["h_0"], leaves["c_0"]) if case.hx else None
    masks = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    if ours:
        weights = {name: leaves[name] for name in inputs.weights}
        y, (h_n, c_n), cells = torch.func.functional_call(
            make_module(inputs, FusedLSTM),
            weights,
            (leaves["input"], hx),
            {**masks, "return_cell_states": True},
        )
    else:
        y, h_n, c_n, cells = reference.lstm(
            leaves["input"],
            hx,
            [leaves[name] for name in inputs.weights],
            num_layers=case.num_layers,
            bidirectional=case.bidirectional,
            batch_first=case.batch_first,
            **masks,
        )
    return {"y": y, "h_n": h_n, "c_n": c_n, "cell_states": cells}


def as_function(inputs: LayerInputs) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """What gradcheck takes: a function of tensors, and the tensors."""
    names = list(inputs.leaves)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_layers(inputs, dict(zip(names, values, strict=True))).values())

    return run, tuple(leaf.detach().requires_grad_() for leaf in inputs.leaves.values())


@cases
def test_first_derivative(case: LayerCase, isa: str) -> None:
    assert gradcheck(*as_function(make_inputs(case)))


@cases
def test_second_derivative(case: LayerCase) -> None:
    assert gradgradcheck(*as_function(make_inputs(case)))


def test_third_derivative() -> None:
    run, leaves = as_function(make_inputs(LayerCase(2, 1, 1, 1, dtype=F64)))

    def penalty(*values: Tensor) -> Tensor:
        y = run(*values)[0]
        grads = torch.autograd.grad(y.pow(2).sum(), values, create_graph=True)
        return torch.stack([grad.pow(2).sum() for grad in grads]).sum()

    assert gradgradcheck(penalty, leaves)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_derivatives_of_packed_sequences(enforce_sorted: bool, bidirectional: bool) -> None:
    lengths = (3, 2, 1) if enforce_sorted else (1, 3, 2)
    inputs = make_inputs(LayerCase(3, 3, 1, 2, P=1, bidirectional=bidirectional, dtype=F64))
    module = make_module(inputs, FusedLSTM)

    def run(x: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        named = dict(zip(inputs.weights, weights, strict=True))
        options = {"return_cell_states": True}
        y, hidden, cells = torch.func.functional_call(module, named, (packed, (h_0, c_0)), options)
        assert isinstance(y, PackedSequence)
        return y.data, *hidden, cells.data

    leaves = tuple(leaf.detach().requires_grad_() for leaf in inputs.leaves.values())
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_the_cell(bias: bool) -> None:
    torch.manual_seed(0)
    cell = FusedLSTMCell(2, 3, bias=bias, dtype=F64)
    names = [name for name, _ in cell.named_parameters()]
    x, h, c = (torch.randn(2, size, dtype=F64, requires_grad=True) for size in (2, 3, 3))

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Any:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(cell, named, (x, (h, c)))

    leaves = (x, h, c, *cell.parameters())
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


# Losses made of outputs and gradients (design, trap 3: silently wrong where a backward is not
# differentiable but does not say so).


def penalised_gradients(inputs: LayerInputs, ours: bool, twice: bool) -> Results:
    """Gradients of a main loss plus the squared norm of a gradient of some outputs."""
    leaves = inputs.requiring_grad().leaves
    results = run_layers(inputs, leaves, ours)
    main = torch.stack([(results[name] * inputs.grads[name]).sum() for name in OUTPUTS]).sum()
    score = results["y"].tanh().sum() + results["c_n"].pow(2).sum()
    along = [leaves["input"], leaves["weight_hh_l0"]]
    grads = torch.autograd.grad(score, along, create_graph=True)
    penalty = torch.stack([grad.pow(2).sum() for grad in grads]).sum()
    if twice:
        (second,) = torch.autograd.grad(penalty, leaves["input"], create_graph=True)
        penalty = penalty + second.pow(2).sum()
    found = torch.autograd.grad(main + 3 * penalty, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("case", [case for case in SMALL if case.T > 1], ids=str)
@pytest.mark.parametrize("twice", [False, True], ids=["second_order", "third_order"])
def test_gradient_penalty_added_to_a_main_loss(case: LayerCase, twice: bool) -> None:
    inputs = make_inputs(case)
    truth = penalised_gradients(inputs, ours=False, twice=twice)
    for name, ours in penalised_gradients(inputs, ours=True, twice=twice).items():
        assert_within_budget(f"{case}: {name}", ours, None, truth[name], F64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        LayerCase(9, 4, 5, 17),
        LayerCase(
            6, 4, 5, 9, P=4, bidirectional=True, lengths=(6, 2, 0, 5), reset=0.2, poison=True
        ),
    ],
    ids=str,
)
def test_gradient_penalty_in_every_dtype(case: LayerCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(replace(case, dtype=dtype))
    truth = penalised_gradients(inputs.to(F64), ours=False, twice=False)
    theirs = penalised_gradients(inputs, ours=False, twice=False)
    for name, ours in penalised_gradients(inputs, ours=True, twice=False).items():
        assert_within_budget(f"{case}: {name}", ours, theirs[name], truth[name], dtype)


@pytest.mark.parametrize(
    "module",
    [
        FusedLSTM(2, 3, bidirectional=True, dtype=F64),
        FusedLSTM(2, 3, proj_size=2, bias=False, dtype=F64),
        FusedLSTM(2, 3, recompute=True, dtype=F64),
        FusedLSTMCell(2, 3, dtype=F64),
    ],
    ids=str,
)
def test_second_derivative_through_frozen_weights(module: Any) -> None:
    """As of a critic, or of an attribution: no gradient of the weights is ever asked for."""
    module.requires_grad_(False)
    shape = (2, 2) if isinstance(module, FusedLSTMCell) else (3, 2, 2)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    assert gradgradcheck(lambda x: module(x)[0], [x])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=str)
def test_second_derivative_of_an_empty_batch(options: dict[str, Any]) -> None:
    module = FusedLSTM(2, 3, **options)
    x = torch.randn(3, 0, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    along_x, along_w = torch.autograd.grad(gradient.square().sum(), [x, module.weight_hh_l0])
    assert along_x.shape == x.shape
    assert not along_w.any()


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_second_derivative_of_tensors_without_values(device: str) -> None:
    with FakeTensorMode() if device == "fake" else nullcontext():
        module = FusedLSTM(2, 3, device="meta" if device == "meta" else None)
        x = torch.randn(3, 2, 2, requires_grad=True, device=module.weight_ih_l0.device)
        lengths = torch.tensor([3, 1], device=x.device)
        y = module(x, lengths=lengths)[0]
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (along,) = torch.autograd.grad(gradient.square().sum(), module.weight_hh_l0)
        assert along.shape == module.weight_hh_l0.shape


class LookOn(TorchDispatchMode):
    """A mode that changes nothing, as those that count or log."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"peephole": True}, {"layer_norm": True}], ids=str)
def test_second_derivatives_under_a_mode_that_looks_on(options: dict[str, Any]) -> None:
    module = FusedLSTM(2, 3, **options).double()
    leaves = [torch.randn(s, dtype=F64, requires_grad=True) for s in ((4, 2, 2), (1, 2, 3))]

    def second() -> list[Tensor]:
        x, h = leaves
        y, (_, c_n) = module(x[1:], (h, h * 0.5))
        first = torch.autograd.grad(y.pow(2).sum() + c_n.sum(), leaves, create_graph=True)
        total = torch.stack([g.sin().sum() for g in first]).sum()
        return list(torch.autograd.grad(total, [*leaves, *module.parameters()]))

    expected = second()
    with LookOn():
        found = second()
    for k, (ours, right) in enumerate(zip(found, expected, strict=True)):
        assert_within_budget(f"gradient {k}", ours, None, right, F64)


def test_gradient_through_a_step_of_descent() -> None:
    """As in meta-learning: the loss after a step, differentiated by what was before it."""
    inputs = make_inputs(LayerCase(3, 2, 2, 3, lengths=(3, 2), dtype=F64))
    found: list[dict[str, Tensor]] = []
    for ours in (True, False):
        leaves = inputs.requiring_grad().leaves
        loss = run_layers(inputs, leaves, ours)["y"].pow(2).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        moved = {k: leaf - 0.1 * g for (k, leaf), g in zip(leaves.items(), grads, strict=True)}
        after = run_layers(inputs, moved, ours)["y"].pow(2).sum()
        by = torch.autograd.grad(after, list(leaves.values()))
        found.append(dict(zip(leaves, by, strict=True)))
    for name, truth in found[1].items():
        assert_within_budget(name, found[0][name], None, truth, F64)


@cases
def test_incoming_gradients_that_require_gradients_only(case: LayerCase) -> None:
    """The double-backward trick for forward derivatives: differentiate a vjp by its vector."""
    inputs = make_inputs(case)
    found = []
    for ours in (True, False):
        leaves = inputs.requiring_grad().leaves
        results = run_layers(inputs, leaves, ours)
        vectors = [inputs.grads[name].detach().requires_grad_() for name in OUTPUTS]
        vjp = torch.autograd.grad(
            list(results.values()), list(leaves.values()), vectors, create_graph=True
        )
        along = [torch.ones_like(g) for g in vjp]
        found.append(torch.autograd.grad(vjp, vectors, along))
    for name, ours_, truth in zip(OUTPUTS, *found, strict=True):
        assert_within_budget(f"{case}: {name}", ours_, None, truth, F64)


# Which gradients are asked for, and which arrive.


LEAVES = ("input", "h_0", "c_0", "weight_hh_l0", "bias_ih_l0_reverse")
SUBSETS = [subset for size in range(1, len(LEAVES)) for subset in combinations(LEAVES, size)]


@pytest.mark.parametrize("wanted", SUBSETS, ids="+".join)
@pytest.mark.parametrize("projected", [0, 2])
def test_gradients_of_any_subset_of_inputs(wanted: tuple[str, ...], projected: int) -> None:
    inputs = make_inputs(
        LayerCase(5, 3, 4, 5, P=projected, bidirectional=True, lengths=(5, 0, 2), reset=0.2)
    )
    everything = run_ours(inputs, cell_states=True)
    leaves = {
        name: leaf.detach().requires_grad_(name in wanted) for name, leaf in inputs.leaves.items()
    }
    results = run_layers(inputs, leaves)
    torch.autograd.backward(
        [results[name] for name in OUTPUTS], [inputs.grads[name] for name in OUTPUTS]
    )
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted), name
        if leaf.grad is not None:
            assert_bitwise_equal(leaf.grad, everything[f"grad_{name}"])


@pytest.mark.parametrize("given", [(name,) for name in OUTPUTS] + [("h_n", "c_n")], ids="+".join)
@pytest.mark.parametrize("case", SMALL[2:], ids=str)
def test_gradients_of_some_outputs_only(case: LayerCase, given: tuple[str, ...]) -> None:
    inputs = make_inputs(case)
    found = []
    for ours in (True, False):
        leaves = inputs.requiring_grad().leaves
        results = run_layers(inputs, leaves, ours)
        roots, vectors = zip(*((results[k], inputs.grads[k]) for k in given), strict=True)
        found.append(
            torch.autograd.grad(
                roots, list(leaves.values()), vectors, allow_unused=True, materialize_grads=True
            )
        )
    for name, ours_, truth in zip(inputs.leaves, *found, strict=True):
        assert_within_budget(f"{case}: {name}", ours_, None, truth, F64)


def test_no_gradient_is_asked_for_and_none_is_tracked() -> None:
    inputs = make_inputs(LayerCase(3, 2, 2, 3))
    results = run_layers(inputs, {name: leaf.detach() for name, leaf in inputs.leaves.items()})
    assert not any(result.requires_grad for result in results.values())


def test_backward_twice_over_a_retained_graph() -> None:
    inputs = make_inputs(LayerCase(5, 3, 4, 5, P=3, bidirectional=True, lengths=(5, 0, 2)))
    leaves = inputs.requiring_grad().leaves
    y = run_layers(inputs, leaves)["y"]
    first = torch.autograd.grad(y, list(leaves.values()), inputs.grads["y"], retain_graph=True)
    second = torch.autograd.grad(y, list(leaves.values()), inputs.grads["y"])
    for a, b in zip(first, second, strict=True):
        assert_bitwise_equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, list(leaves.values()), inputs.grads["y"])


def test_gradients_do_not_share_memory() -> None:
    """The two biases have equal gradients; scaling one, as clipping does, must not scale both."""
    module = FusedLSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2)
    module(torch.randn(4, 2, 2))[0].sum().backward()
    grads = [parameter.grad for parameter in module.parameters()]
    assert len({grad.data_ptr() for grad in grads if grad is not None}) == len(grads)


def test_change_of_a_weight_before_backward_is_noticed() -> None:
    module: Any = FusedLSTM(2, 3)
    y, _ = module(torch.randn(4, 2, 2))
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_backward_in_eval_as_in_train(training: bool) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 4, num_layers=2, bidirectional=True).train(training)
    twin = module.to_torch()
    x = torch.randn(5, 2, 3, requires_grad=True)
    ours = torch.autograd.grad(module(x)[0].pow(2).sum(), [x, *module.parameters()])
    theirs = torch.autograd.grad(twin(x)[0].pow(2).sum(), [x, *twin.parameters()])
    for mine, expected in zip(ours, theirs, strict=True):
        assert_within_budget("gradient", mine, None, expected, torch.float32)
