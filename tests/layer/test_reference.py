# SPDX-License-Identifier: BSD-3-Clause
"""The reference against nn.LSTM, against a loop over single steps, and against itself."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from kit.cases import CORE, WIDE, LayerCase, LayerInputs, covering_rows, make_inputs
from kit.numeric import (
    FLOORS,
    Results,
    assert_bitwise_equal,
    assert_within_budget,
    differentiate,
    run_reference,
    run_rival,
    run_torch,
    run_truth,
)
from torch import Tensor, nn

from lstm_fused.reference import lstm, lstm_cell, lstm_layer, lstm_layer_backward

F64 = torch.float64
OUTPUTS = ("y", "h_n", "c_n", "cell_states")
TINY = (
    LayerCase(3, 2, 2, 2, dtype=F64),
    LayerCase(3, 2, 2, 3, P=2, bidirectional=True, bias=False, dtype=F64),
    LayerCase(3, 3, 1, 2, P=1, bidirectional=True, lengths=(2, 0, 3), reset=0.3, dtype=F64),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the work is small, and threads that spin take 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer_arguments(inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Time-major input, h_0 and c_0 (zeros where none are given) and the weights."""
    case = inputs.case
    x = inputs.input.transpose(0, 1) if case.batch_first else inputs.input
    blocks = case.num_layers * case.dirs
    h_0, c_0 = inputs.hx or (
        x.new_zeros(blocks, case.N, case.output_size),
        x.new_zeros(blocks, case.N, case.H),
    )
    return x, h_0, c_0, list(inputs.weights.values())


def layer_masks(inputs: LayerInputs) -> dict[str, Tensor | None]:
    reset_mask = inputs.reset_mask
    if reset_mask is not None and inputs.case.batch_first:
        reset_mask = reset_mask.t()
    return {"lengths": inputs.lengths, "reset_mask": reset_mask}


def assert_equal_to(truth: Results, ours: Results, case: LayerCase) -> None:
    """Assert that float64 results agree up to rounding: no rival's error is allowed for."""
    assert truth.keys() == ours.keys()
    for name, expected in truth.items():
        assert_within_budget(f"{case}: {name}", ours[name], None, expected, F64)


# Against PyTorch.


@pytest.mark.parametrize("case", [c for c in WIDE if c.reset == 0], ids=str)
def test_results_and_gradients_are_those_of_nn_lstm(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=F64))
    assert_equal_to(run_torch(inputs), run_truth(inputs), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CORE, ids=str)
def test_other_dtypes_stay_within_the_budget(case: LayerCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(replace(case, dtype=dtype))
    ours, theirs, truth = run_reference(inputs), run_rival(inputs), run_truth(inputs)
    for name, expected in truth.items():
        assert ours[name].dtype == dtype
        assert_within_budget(f"{case}: {name}", ours[name], theirs[name], expected, dtype)


def run_loop(inputs: LayerInputs) -> Results:
    """Call nn.LSTM on one row and one step at a time, zeroing the state in between where told."""
    inputs = inputs.requiring_grad()
    case = inputs.case
    x, h_0, c_0, _ = layer_arguments(inputs)
    resets = layer_masks(inputs)["reset_mask"]
    ends = [case.T] * case.N if case.lengths is None else list(case.lengths)
    leaves = dict(inputs.leaves)
    finals: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    cells: list[list[Tensor]] = []
    rows = [x[: ends[n], n] for n in range(case.N)]  # (len, D) each
    for layer in range(case.num_layers):
        outputs: list[list[Tensor]] = [[] for _ in rows]  # per row, per direction, (len, P)
        cells = [[] for _ in rows]
        for d in range(case.dirs):
            block = layer * case.dirs + d
            suffix = f"l{layer}" + "_reverse" * d
            module = nn.LSTM(
                case.D if layer == 0 else case.dirs * case.output_size,
                case.H,
                bias=case.bias,
                proj_size=case.P,
                dtype=F64,
            )
            for name, parameter in module.named_parameters():
                full_name = name.removesuffix("l0") + suffix
                parameter.data.copy_(inputs.weights[full_name])
                leaves[full_name] = parameter
            for n, row in enumerate(rows):
                h, c = h_0[block, n : n + 1], c_0[block, n : n + 1]
                times = range(ends[n])[::-1] if d else range(ends[n])
                ys, cs = [row.new_zeros(0, case.output_size)], [row.new_zeros(0, case.H)]
                for t in times:
                    if resets is not None and resets[t, n]:
                        h, c = torch.zeros_like(h), torch.zeros_like(c)
                    y, (h, c) = module(row[t : t + 1], (h, c))
                    ys.append(y)
                    cs.append(c)
                order = [0, *(range(ends[n], 0, -1) if d else range(1, ends[n] + 1))]
                outputs[n].append(torch.cat([ys[k] for k in order]))
                cells[n].append(torch.cat([cs[k] for k in order]))
                finals[block, n] = (h, c)
        rows = [torch.cat(parts, dim=-1) for parts in outputs]

    # Put the rows side by side again, zeros behind their ends.
    def padded(parts: list[Tensor]) -> Tensor:
        whole = [torch.cat([p, p.new_zeros(case.T - len(p), p.size(1))]) for p in parts]
        return torch.stack(whole, dim=0 if case.batch_first else 1)

    blocks = range(case.num_layers * case.dirs)
    results = {
        "y": padded(rows),
        "h_n": torch.stack([torch.cat([finals[b, n][0] for n in range(case.N)]) for b in blocks]),
        "c_n": torch.stack([torch.cat([finals[b, n][1] for n in range(case.N)]) for b in blocks]),
        "cell_states": padded([torch.cat(parts, dim=-1) for parts in cells]),
    }
    return differentiate(results, leaves, inputs.grads)


@pytest.mark.parametrize(
    "case",
    [c for c in WIDE if 0 < c.T * c.N * c.num_layers * c.dirs <= (150 if c.reset else 30)],
    ids=str,
)
def test_resets_and_cell_states_are_those_of_a_loop_over_steps(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=F64))
    assert_equal_to(run_loop(inputs), run_truth(inputs, cell_states=True), case)


def test_cell_by_hand() -> None:
    a = [0.5, -1.0, 0.25, 2.0]  # i, f, g, o of one unit
    i, f, g, o = (
        1 / (1 + math.exp(-a[0])),
        1 / (1 + math.exp(-a[1])),
        math.tanh(a[2]),
        1 / (1 + math.exp(-a[3])),
    )
    preactivations, c_prev = torch.tensor([a], dtype=F64), torch.tensor([[3.0]], dtype=F64)
    gates, cell_output, c = lstm_cell(preactivations, c_prev)
    expected_c = f * 3.0 + i * g
    assert [gate.item() for gate in gates] == pytest.approx([i, f, g, o], rel=1e-15)
    assert c.item() == pytest.approx(expected_c, rel=1e-15)
    assert cell_output.item() == pytest.approx(o * math.tanh(expected_c), rel=1e-15)


# The backward pass that was derived by hand.


def spoil_past_lengths(inputs: LayerInputs, grad: Tensor) -> Tensor:
    """Put NaN where nothing may look: past the rows' lengths. grad is (T, N, ...)."""
    if inputs.lengths is None:
        return grad
    past = torch.arange(grad.size(0)).unsqueeze(1) >= inputs.lengths
    return torch.where(past.unsqueeze(-1), float("nan"), grad)


@pytest.mark.parametrize("case", [c for c in WIDE if c.num_layers == 1], ids=str)
def test_hand_derived_backward_is_that_of_autograd(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=F64))
    x, h_0, c_0, weights = layer_arguments(inputs)
    grads = dict(inputs.grads)
    for name in ("y", "cell_states"):
        by_time = grads[name].transpose(0, 1) if case.batch_first else grads[name]
        grads[name] = spoil_past_lengths(inputs, by_time)

    leaves = [t.detach().requires_grad_() for t in (x, h_0, c_0, *weights)]
    masks = layer_masks(inputs)
    outputs = lstm_layer(leaves[0], leaves[1], leaves[2], leaves[3:], **masks)
    # All four gradients at once, and each alone: what is None must count as zero.
    for given in (OUTPUTS, *((name,) for name in OUTPUTS)):
        gy, gh, gc, gcells = (grads[name] if name in given else None for name in OUTPUTS)
        results = lstm_layer_backward(gy, gh, gc, gcells, x, h_0, c_0, weights, **masks)
        ours = [*results[:3], *results[3]]
        roots = [o for name, o in zip(OUTPUTS, outputs, strict=True) if name in given]
        expected = torch.autograd.grad(
            roots, leaves, [grads[name] for name in given], retain_graph=True, allow_unused=True
        )
        for k, (mine, truth) in enumerate(zip(ours, expected, strict=True)):
            truth = torch.zeros_like(leaves[k]) if truth is None else truth
            assert not mine.requires_grad
            assert_within_budget(f"{given}: gradient {k}", mine, None, truth, F64)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_hand_derived_backward_can_be_differentiated(case: LayerCase) -> None:
    inputs = make_inputs(case)
    leaves = [t.detach().requires_grad_() for t in inputs.leaves.values()]
    x, h_0, c_0, *weights = leaves
    grads = [inputs.grads[name].detach().requires_grad_() for name in OUTPUTS]
    masks = layer_masks(inputs)
    outputs = lstm_layer(x, h_0, c_0, weights, **masks)
    by_autograd = torch.autograd.grad(outputs, leaves, grads, create_graph=True)
    gy, gh, gc, gcells = grads
    results = lstm_layer_backward(gy, gh, gc, gcells, x, h_0, c_0, weights, **masks)
    by_hand = [*results[:3], *results[3]]
    second = [torch.randn(g.shape, dtype=F64) for g in by_hand]
    expected = torch.autograd.grad(by_autograd, [*leaves, *grads], second)
    ours = torch.autograd.grad(by_hand, [*leaves, *grads], second)
    for k, (mine, truth) in enumerate(zip(ours, expected, strict=True)):
        assert_within_budget(f"second gradient {k}", mine, None, truth, F64)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_finite_differences_of_first_and_second_order(case: LayerCase) -> None:
    inputs = make_inputs(case)
    leaves = tuple(t.detach().requires_grad_() for t in inputs.leaves.values())
    masks = layer_masks(inputs)

    def run(x: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return lstm_layer(x, h_0, c_0, weights, **masks)

    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_batched_gradients_are_those_of_single_rows() -> None:
    inputs = make_inputs(replace(TINY[1], N=4))
    x, h_0, c_0, weights = layer_arguments(inputs)

    def loss(w: list[Tensor], x: Tensor, h_0: Tensor, c_0: Tensor) -> Tensor:
        y, _, c_n, _ = lstm_layer(x.unsqueeze(1), h_0.unsqueeze(1), c_0.unsqueeze(1), w)
        return y.pow(2).sum() + c_n.sum()

    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1, 1, 1))(weights, x, h_0, c_0)
    for n in range(4):
        single = torch.func.grad(loss)(weights, x[:, n], h_0[:, n], c_0[:, n])
        for ours, truth in zip(batched, single, strict=True):
            assert_within_budget(f"row {n}", ours[n], None, truth, F64)


# Rows that end early, and what must not leak.


def first_and_second_gradients(inputs: LayerInputs) -> Results:
    """Results, gradients, and the gradients of the sum of the gradients' squares."""
    inputs = inputs.requiring_grad()
    case, leaves = inputs.case, inputs.leaves
    outputs = lstm(
        inputs.input,
        inputs.hx,
        list(inputs.weights.values()),
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        batch_first=case.batch_first,
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    loss = torch.stack(
        [(o * inputs.grads[k]).sum() for k, o in zip(OUTPUTS, outputs, strict=True)]
    ).sum()
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
    penalty = torch.stack([g.pow(2).sum() for g in first if g is not None]).sum()
    second = torch.autograd.grad(penalty, list(leaves.values()), allow_unused=True)
    results = {k: o.detach() for k, o in zip(OUTPUTS, outputs, strict=True)}
    for order, grads in (("first", first), ("second", second)):
        for name, grad in zip(leaves, grads, strict=True):
            results[f"{order} gradient of {name}"] = (
                torch.zeros(()) if grad is None else grad.detach()
            )
    return results


@pytest.mark.parametrize("case", [c for c in CORE if c.poison], ids=str)
def test_poison_changes_no_bit(case: LayerCase) -> None:
    poisoned = make_inputs(replace(case, dtype=F64))
    clean = make_inputs(replace(case, dtype=F64, poison=False))
    assert any(not leaf.isfinite().all() for leaf in poisoned.leaves.values())
    expected = first_and_second_gradients(clean)
    for name, result in first_and_second_gradients(poisoned).items():
        assert result.isfinite().all(), name
        assert_bitwise_equal(result, expected[name])


@pytest.mark.parametrize("case", [c for c in WIDE if c.lengths and 0 in c.lengths], ids=str)
def test_rows_of_length_zero_keep_their_states(case: LayerCase) -> None:
    inputs = make_inputs(replace(case, dtype=F64))
    results = run_truth(inputs, cell_states=True)
    for n in [n for n, length in enumerate(case.lengths or ()) if length == 0]:
        for name in ("y", "cell_states", "grad_input"):
            assert not results[name].select(0 if case.batch_first else 1, n).any(), name
        if case.hx:
            assert inputs.h_0 is not None
            assert inputs.c_0 is not None
            assert_bitwise_equal(results["h_n"][:, n], inputs.h_0[:, n])
            assert_bitwise_equal(results["c_n"][:, n], inputs.c_0[:, n])
            assert_bitwise_equal(results["grad_h_0"][:, n], inputs.grads["h_n"][:, n])
            assert_bitwise_equal(results["grad_c_0"][:, n], inputs.grads["c_n"][:, n])


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64], ids=str)
def test_lengths_of_either_integer_type(length_dtype: torch.dtype) -> None:
    inputs = make_inputs(LayerCase(4, 3, 2, 3, lengths=(4, 0, 2), dtype=F64))
    expected = lstm_layer(*layer_arguments(inputs), lengths=inputs.lengths)
    assert inputs.lengths is not None
    ours = lstm_layer(*layer_arguments(inputs), lengths=inputs.lengths.to(length_dtype))
    for mine, truth in zip(ours, expected, strict=True):
        assert_bitwise_equal(mine, truth)


def test_bad_arguments_are_named() -> None:
    x, h_0, c_0, weights = layer_arguments(make_inputs(LayerCase(3, 2, 2, 3)))
    with pytest.raises(ValueError, match=r"lengths: got shape \(3,\), wanted \(2,\)"):
        lstm_layer(x, h_0, c_0, weights, lengths=torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"reset_mask: got shape \(2, 3\), wanted \(3, 2\)"):
        lstm_layer(x, h_0, c_0, weights, reset_mask=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="weights: got 1 for 1 directions, wanted 2 to 5 each"):
        lstm_layer(x, h_0, c_0, weights[:1])
    with pytest.raises(ValueError, match="params: got 5, wanted a multiple of num_layers=2"):
        lstm(x, (h_0, c_0), [*weights, weights[0]], num_layers=2)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        lstm_layer(x[:0], h_0, c_0, weights)


# The kit itself: a budget that nothing exceeds would let everything pass.


def test_budget_reports_the_worst_element() -> None:
    truth = torch.tensor([[1.0, -4.0], [0.5, 2.0]], dtype=F64)
    theirs = truth.float() + 1e-3
    allowed = 2e-3 + 4 * FLOORS[torch.float32]
    ours = truth.clone()
    ours[1, 0] += allowed * 0.999
    assert_within_budget("x", ours, theirs, truth, torch.float32)
    ours[1, 0] += allowed * 0.002
    with pytest.raises(
        AssertionError, match=r"x \(torch.float32\): error 0.00202 at \(1, 0\).*1 of 4"
    ):
        assert_within_budget("x", ours, theirs, truth, torch.float32)
    ours[0, 1] = float("nan")
    with pytest.raises(AssertionError, match=r"error inf at \(0, 1\)"):
        assert_within_budget("x", ours, theirs, truth, torch.float32)
    with pytest.raises(
        AssertionError, match="the rival and the truth differ in where they are NaN"
    ):
        assert_within_budget("x", truth, theirs * float("nan"), truth, torch.float32)
    with pytest.raises(AssertionError, match=r"ours has shape \(1, 2\), wanted \(2, 2\)"):
        assert_within_budget("x", ours[:1], theirs, truth, torch.float32)


def test_bitwise_equality_reports_the_first_difference() -> None:
    a = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
    assert_bitwise_equal(a, a.t().contiguous().t())
    with pytest.raises(AssertionError, match=r"first at \(1, 0\): 0.0 and -0.0; 1 of 4"):
        assert_bitwise_equal(a, torch.tensor([[1.0, float("nan")], [-0.0, 2.0]]))
    with pytest.raises(AssertionError, match=r"float32 \(2, 2\) and torch.float64 \(2, 2\)"):
        assert_bitwise_equal(a, a.double())


def test_cases_cover_what_they_promise() -> None:
    axes = {"a": (1, 2, 3), "b": (True, False), "c": ("x", "y", "z"), "d": (0.0, 0.5)}
    rows = covering_rows(axes)
    for first, second in combinations(axes, 2):
        met = {(row[first], row[second]) for row in rows}
        assert met == {(u, v) for u in axes[first] for v in axes[second]}
    assert len(rows) <= 12
    assert set(CORE) < set(WIDE)
    assert len({str(case) for case in WIDE}) == len(WIDE)
    for field, values in {
        "T": (1, 2, 33),
        "N": (0, 1, 2, 5, 7, 13, 17, 64),
        "D": (1, 3, 16, 40),
        "H": (1, 3, 15, 16, 17, 33, 64, 100),
    }.items():
        for value in values:
            assert any(getattr(case, field) == value for case in CORE + WIDE), (field, value)
