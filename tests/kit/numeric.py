# SPDX-License-Identifier: BSD-3-Clause
"""The error budget that every numerical test of this project uses, and who computes what.

    @pytest.mark.parametrize("case", CORE, ids=str)
    def test_results(case):
        inputs = make_inputs(case)
        ours, theirs, truth = run_ours(inputs), run_rival(inputs), run_truth(inputs)
        for name in truth:
            assert_within_budget(name, ours[name], theirs[name], truth[name], case.dtype)

The budget:

    max|ours - truth|  <=  2 * max|theirs - truth|  +  FLOORS[dtype] * max(1, max|truth|)

``truth`` comes from ``lstm_fused.reference`` in float64, from the very inputs the others saw
(rounded to dtype, then widened). ``theirs`` is ``torch.nn.LSTM`` in the same dtype: twice its error
is the rule that FlashAttention tests by. Where nn.LSTM cannot (resets, gradients of cell states),
theirs is the reference in that dtype. The floor is there because a rival may be exact by luck,
above all on small cases. No test has a tolerance of its own.

NOTE: below 1 the floor is absolute. Give gradients of order 1 (as ``kit.cases`` does), or a wrong
result that is small passes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import reference

from .cases import LayerInputs

__all__ = [
    "FLOORS",
    "Results",
    "assert_bitwise_equal",
    "assert_within_budget",
    "budget",
    "differentiate",
    "make_module",
    "run_reference",
    "run_rival",
    "run_torch",
    "run_truth",
]

Results = dict[str, Tensor]

# Per dtype, in units of the truth's magnitude; in brackets in units of torch.finfo(dtype).eps.
# For 16-bit types one rounding of the result (eps / 2) and one more of an operand, with a margin of
# 2.5; for the wide ones the rounding of sums some hundred terms long. float32: a BLAS that adds 192
# equal rows one after the other is off by 37 eps (weight gradients of an expanded batch).
FLOORS: dict[torch.dtype, float] = {
    torch.float64: 1e-13,  # 450 eps
    torch.float32: 5e-6,  # 42 eps
    torch.float16: 2.5e-3,  # 2.6 eps
    torch.bfloat16: 2e-2,  # 2.6 eps
}

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def budget(theirs: Tensor | None, truth: Tensor, dtype: torch.dtype) -> float:
    """Compute the largest error that is allowed.

    Args:
        theirs: the rival's result, of truth's shape; None where there is no rival: the floor alone.
        truth: the float64 result.
        dtype: the precision of the computation, the key of FLOORS. The results may be stored wider.
    """
    floor = FLOORS[dtype] * max(1.0, _largest(_finite(truth.double())))
    if theirs is None:
        return floor
    error = _largest(_errors(theirs, truth))
    if error == float("inf"):
        raise AssertionError("the rival and the truth differ in where they are NaN or infinite")
    return 2 * error + floor


def assert_within_budget(
    name: str, ours: Tensor, theirs: Tensor | None, truth: Tensor, dtype: torch.dtype
) -> None:
    """Assert the rule at the head of this file; a NaN or infinity must be where truth has it.

    Args:
        name: what is compared, for the message ("y", "grad_weight_hh_l0").
        ours, theirs, truth: of one shape, on any device; see ``budget``.
        dtype: the precision of the computation.
    """
    for who, tensor in (("ours", ours), ("theirs", theirs)):
        if tensor is not None and tensor.shape != truth.shape:
            raise AssertionError(
                f"{name}: {who} has shape {tuple(tensor.shape)}, wanted {tuple(truth.shape)}"
            )
    ours, truth = ours.detach().cpu(), truth.detach().cpu()
    theirs = None if theirs is None else theirs.detach().cpu()
    try:
        allowed = budget(theirs, truth, dtype)
    except AssertionError as problem:
        raise AssertionError(f"{name}: {problem}") from None
    errors = _errors(ours, truth)
    worst = _largest(errors)
    if worst <= allowed:
        return
    at = _coordinates(int(errors.argmax()), errors.shape)
    rival = "" if theirs is None else f", theirs {theirs[at].item():.9g}"
    beyond = int((errors > allowed).sum())
    raise AssertionError(
        f"{name} ({dtype}): error {worst:.3g} at {at}, allowed {allowed:.3g}: "
        f"ours {ours[at].item():.9g}{rival}, truth {truth[at].item():.9g}; "
        f"{beyond} of {errors.numel()} elements are beyond the budget"
    )


def assert_bitwise_equal(a: Tensor, b: Tensor) -> None:
    """Assert that a and b have one shape, one dtype and the same bits; all NaNs are equal.

    -0.0 and 0.0 differ. Strides and devices may differ.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise AssertionError(
            f"got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}, wanted the same"
        )
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    bits = _BITS[a.element_size()]
    differ = (a.view(bits) != b.view(bits)) & ~(a.isnan() & b.isnan())
    if not bool(differ.any()):
        return
    at = _coordinates(int(differ.flatten().to(torch.uint8).argmax()), differ.shape)
    raise AssertionError(
        f"bits differ first at {at}: {a[at].item()!r} and {b[at].item()!r}; "
        f"{int(differ.sum())} of {differ.numel()} elements differ"
    )


def make_module(inputs: LayerInputs, module_type: type[nn.Module] = nn.LSTM) -> Any:
    """Build nn.LSTM, or a module with its constructor and parameter names, on a case's weights."""
    case = inputs.case
    module = module_type(
        case.D,
        case.H,
        num_layers=case.num_layers,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        proj_size=case.P,
        device=inputs.input.device,
        dtype=case.dtype,
    )
    module.load_state_dict(inputs.weights)
    return module


def run_truth(inputs: LayerInputs, *, cell_states: bool = False) -> Results:
    """Compute results and gradients by the reference in float64."""
    return run_reference(inputs.to(torch.float64), cell_states=cell_states)


def run_rival(inputs: LayerInputs, *, cell_states: bool = False) -> Results:
    """Compute what ours is measured against: nn.LSTM, or the reference where nn.LSTM cannot."""
    if cell_states or inputs.reset_mask is not None:
        return run_reference(inputs, cell_states=cell_states)
    return run_torch(inputs)


def run_reference(inputs: LayerInputs, *, cell_states: bool = False) -> Results:
    """Compute results and gradients by the reference and autograd, in the inputs' dtype."""
    inputs = inputs.requiring_grad()
    y, h_n, c_n, cells = reference.lstm(
        inputs.input,
        inputs.hx,
        list(inputs.weights.values()),
        num_layers=inputs.case.num_layers,
        bidirectional=inputs.case.bidirectional,
        batch_first=inputs.case.batch_first,
        lengths=inputs.lengths,
        reset_mask=inputs.reset_mask,
    )
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    if cell_states:
        outputs["cell_states"] = cells
    return differentiate(outputs, inputs.leaves, inputs.grads)


def run_torch(inputs: LayerInputs) -> Results:
    """Compute results and gradients by nn.LSTM, packing rows; rows of length 0 it never sees."""
    if inputs.reset_mask is not None:
        raise ValueError("reset_mask: nn.LSTM knows none")
    inputs = inputs.requiring_grad()
    case, module = inputs.case, make_module(inputs)
    parameters = dict(module.named_parameters())
    if inputs.lengths is None:
        y, (h_n, c_n) = module(inputs.input, inputs.hx)
    else:
        # Take out the rows that have steps, pack them, and put their results back.
        rows, rows_dim = inputs.lengths.nonzero().flatten(), 0 if case.batch_first else 1
        blocks = case.num_layers * case.dirs
        shape = [*inputs.input.shape[:2], case.dirs * case.output_size]
        y = inputs.input.new_zeros(shape)
        h_n, c_n = inputs.hx or (
            inputs.input.new_zeros(blocks, case.N, case.output_size),
            inputs.input.new_zeros(blocks, case.N, case.H),
        )
        if len(rows):
            packed, (h_rows, c_rows) = module(
                pack_padded_sequence(
                    inputs.input.index_select(rows_dim, rows),
                    inputs.lengths[rows].cpu(),
                    batch_first=case.batch_first,
                    enforce_sorted=False,
                ),
                (h_n.index_select(1, rows), c_n.index_select(1, rows)),
            )
            y_rows, _ = pad_packed_sequence(packed, case.batch_first, total_length=case.T)
            y = y.index_copy(rows_dim, rows, y_rows)
            h_n, c_n = h_n.index_copy(1, rows, h_rows), c_n.index_copy(1, rows, c_rows)
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    leaves = {name: parameters.get(name, leaf) for name, leaf in inputs.leaves.items()}
    return differentiate(outputs, leaves, inputs.grads)


def differentiate(
    outputs: dict[str, Tensor], leaves: dict[str, Tensor], grads: dict[str, Tensor]
) -> Results:
    """Add to outputs "grad_" + each leaf's name: the gradient of sum(outputs[k] * grads[k])."""
    roots = [name for name, output in outputs.items() if output.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if roots:
        found = torch.autograd.grad(
            [outputs[name] for name in roots],
            list(leaves.values()),
            [grads[name] for name in roots],
            allow_unused=True,
        )
    results = {name: output.detach() for name, output in outputs.items()}
    for (name, leaf), grad in zip(leaves.items(), found, strict=True):
        results[f"grad_{name}"] = torch.zeros_like(leaf).detach() if grad is None else grad
    return results


def _errors(result: Tensor, truth: Tensor) -> Tensor:
    """|result - truth| in float64: 0 where both are the same NaN or infinity, inf where one is."""
    result, truth = result.detach().cpu().double(), truth.detach().cpu().double()
    same = (result == truth) | (result.isnan() & truth.isnan())
    unlike = ~same & ~(result.isfinite() & truth.isfinite())
    errors = (_finite(result) - _finite(truth)).abs()
    return errors.masked_fill(unlike, float("inf"))


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0.0)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _coordinates(index: int, shape: torch.Size) -> tuple[int, ...]:
    """The coordinates of a flat index."""
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index), shape))
