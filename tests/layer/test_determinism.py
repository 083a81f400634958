# SPDX-License-Identifier: BSD-3-Clause
"""Bits are the same run to run, for any number of threads, and for a row whatever else is there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit.cases import CORE, PARALLEL, WIDE, LayerCase, LayerInputs, make_inputs
from kit.numeric import Results, assert_bitwise_equal
from kit.ours import in_dtype, run_ours
from kit.settings import DTYPES, use_threads
from torch import Tensor

import lstm_fused
from lstm_fused import FusedLSTM

BY_ROW = ("y", "h_n", "c_n", "cell_states", "grad_input", "grad_h_0", "grad_c_0")
# By the kernels that compute it.
PARTS = {
    "outputs_and_states": ["y", "h_n", "c_n", "cell_states", "grad_h_0", "grad_c_0"],
    "grad_input": ["grad_input"],
    "weights": ["weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh"],
}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same_bits(results: Results, expected: Results, *names: str) -> None:
    """Compare the named results, or all of them."""
    assert results.keys() == expected.keys()
    for name, bits in expected.items():
        if names and name not in names:
            continue
        try:
            assert_bitwise_equal(results[name], bits)
        except AssertionError as problem:
            raise AssertionError(f"{name}: {problem}") from None


@pytest.mark.parametrize("case", [*CORE, *PARALLEL], ids=str)
@dtypes
def test_run_to_run(case: LayerCase, dtype: torch.dtype, isa: str) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    expected = run_ours(inputs, cell_states=True)
    for _ in range(2):
        # Fill memory that the next run may get.
        garbage = [torch.full((size,), float("nan")) for size in (10, 1000, 100_000)]
        del garbage
        assert_same_bits(run_ours(inputs, cell_states=True), expected)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("case", PARALLEL, ids=str)
@dtypes
def test_number_of_threads(case: LayerCase, dtype: torch.dtype, part: str, isa: str) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    expected = run_ours(inputs, cell_states=True)
    names = [name for name in expected if any(of in name for of in PARTS[part])]
    module = FusedLSTM(case.D, case.H, proj_size=case.P, batch_first=case.batch_first, dtype=dtype)
    for threads in (2, 3):
        with use_threads(threads):
            plan = lstm_fused.explain(module, inputs.input).splitlines()[1]
            assert "1 row group(s) x team of 1" not in plan, "nothing is tested"
            for _ in range(2):
                results = run_ours(inputs, cell_states=True)
                assert_same_bits(results, expected, *names)


def rows_of(results: Results, rows: Tensor | list[int]) -> Results:
    """What belongs to the given rows, in that order (of a case that is not batch_first)."""
    index = torch.as_tensor(rows)
    return {name: results[name].index_select(1, index) for name in BY_ROW if name in results}


def with_rows(inputs: LayerInputs, rows: Tensor) -> LayerInputs:
    """The inputs of the given rows, in that order (of a case that is not batch_first)."""

    def pick(tensor: Tensor | None, dim: int = 1) -> Tensor | None:
        return None if tensor is None else tensor.index_select(dim, rows)

    lengths = pick(inputs.lengths, 0)
    return replace(
        inputs,
        case=replace(
            inputs.case,
            N=len(rows),
            lengths=None if lengths is None else tuple(lengths.tolist()),
        ),
        input=inputs.input.index_select(1, rows),
        h_0=pick(inputs.h_0),
        c_0=pick(inputs.c_0),
        lengths=lengths,
        reset_mask=pick(inputs.reset_mask),
        grads={name: grad.index_select(1, rows) for name, grad in inputs.grads.items()},
    )


def batches() -> Iterator[LayerCase]:
    """Cases with rows to exchange."""
    for case in (*CORE, *PARALLEL):
        if case.N > 1 and not case.batch_first and case.layout == "contiguous":
            yield replace(case, poison=False)


batch_cases = pytest.mark.parametrize("case", list(batches()), ids=str)


@pytest.mark.parametrize("part", ["outputs_and_states", "grad_input"])
@batch_cases
@dtypes
def test_a_row_does_not_depend_on_the_order_of_rows(
    case: LayerCase, dtype: torch.dtype, part: str, isa: str
) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    expected = run_ours(inputs, cell_states=True)
    generator = torch.Generator().manual_seed(0)
    for rows in (torch.arange(case.N).flip(0), torch.randperm(case.N, generator=generator)):
        permuted = run_ours(with_rows(inputs, rows), cell_states=True)
        assert_same_bits(
            rows_of(permuted, rows.argsort()),
            rows_of(expected, torch.arange(case.N)),
            *PARTS[part],
        )


@batch_cases
@dtypes
def test_a_row_does_not_depend_on_what_the_others_hold(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    """Other values, NaN and infinity: in the input, the states and the incoming gradients."""
    inputs = make_inputs(in_dtype(case, dtype))
    expected = run_ours(inputs, cell_states=True)
    kept = [0, case.N - 1] if case.N > 2 else [1]
    others = torch.ones(case.N, dtype=torch.bool)
    others[kept] = False
    for value in (0.5, float("nan"), float("inf")):

        def spoil(tensor: Tensor, value: float = value) -> Tensor:
            return torch.where(others.unsqueeze(-1), value, tensor).to(dtype)

        spoiled = replace(
            inputs,
            input=spoil(inputs.input),
            h_0=None if inputs.h_0 is None else spoil(inputs.h_0),
            c_0=None if inputs.c_0 is None else spoil(inputs.c_0),
            grads={name: spoil(grad) for name, grad in inputs.grads.items()},
        )
        results = run_ours(spoiled, cell_states=True)
        assert_same_bits(rows_of(results, kept), rows_of(expected, kept))


def forward_kernel(inputs: LayerInputs) -> str:
    """What `explain` names the forward's kernel: it alone changes the order of a row's sums."""
    case = inputs.case
    module = FusedLSTM(
        case.D, case.H, proj_size=case.P, bidirectional=case.bidirectional, dtype=case.dtype
    )
    plan = lstm_fused.explain(module, inputs.input).splitlines()[1]
    kernels = [name for name in ("dot products", "packed panels") if name in plan]
    assert len(kernels) == 1, plan
    return kernels[0]


@pytest.mark.parametrize(
    "case",
    [
        LayerCase(4, 40, 30, 64),
        LayerCase(4, 40, 40, 70, bidirectional=True, lengths=(4, 1, 3, 0) * 10, reset=0.2),
        LayerCase(4, 40, 24, 33, P=7),
        LayerCase(30, 40, 70, 3),
    ],
    ids=str,
)
@dtypes
def test_a_row_does_not_depend_on_how_many_others_there_are(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    """As long as the same kernel serves the batches: for any number of rows and of threads."""
    inputs = make_inputs(replace(in_dtype(case, dtype), poison=False))
    expected: dict[str, Results] = {}
    for count, threads in ((1, 1), (2, 2), (8, 1), (9, 2), (33, 1), (33, 2), (40, 2)):
        rows = torch.arange(count)
        some = with_rows(inputs, rows)
        with use_threads(threads):
            results = rows_of(run_ours(some, cell_states=True), rows)
            kernel = forward_kernel(some)
        fewer = expected.get(kernel, results)
        assert_same_bits(rows_of(results, rows[: fewer["y"].shape[1]]), fewer)
        expected[kernel] = results
    one = bool(case.P) or case.H < 8
    assert len(expected) == (1 if one else 2), "the number of rows must have changed the kernel"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@dtypes
def test_one_bad_value_stays_in_its_row(bad: float, dtype: torch.dtype, isa: str) -> None:
    """A NaN reaches the steps after it, in the row; and every weight's gradient, as in nn.LSTM."""
    case = LayerCase(6, 5, 3, 17, P=3, lengths=(6, 4, 6, 2, 0), dtype=dtype)
    inputs = make_inputs(case)
    expected = run_ours(inputs, cell_states=True)
    x = inputs.input.clone()
    x[3, 2, 1] = bad
    results = run_ours(replace(inputs, input=x), cell_states=True)
    assert_same_bits(rows_of(results, [0, 1, 3, 4]), rows_of(expected, [0, 1, 3, 4]))
    assert_bitwise_equal(results["y"][:3], expected["y"][:3])
    if bad != bad:
        assert results["y"][3:, 2].isnan().all()
        assert results["grad_weight_hh_l0"].isnan().any()


@pytest.mark.parametrize("case", [case for case in WIDE if case.poison], ids=str)
@dtypes
def test_poison_in_padding_and_in_states_that_are_reset(
    case: LayerCase, dtype: torch.dtype
) -> None:
    case = in_dtype(case, dtype)
    poisoned, clean = make_inputs(case), make_inputs(replace(case, poison=False))
    expected = run_ours(clean, cell_states=True)
    results = run_ours(poisoned, cell_states=True)
    assert all(result.isfinite().all() for result in results.values())
    assert_same_bits(results, expected)


# With MALLOC_PERTURB_ glibc fills new memory with bytes that read as 3e38 (float32 and bfloat16),
# 1e306 (float64) and NaN (float16).
PROGRAM = """
import sys
import torch
from kit.ours import in_dtype, run_ours
from kit.settings import DTYPES
from kit.cases import CORE, make_inputs
torch.set_num_threads(1)
results = [
    run_ours(make_inputs(in_dtype(case, dtype)), cell_states=True)
    for case in CORE for dtype in DTYPES
]
torch.save(results, sys.argv[1])
"""


def test_memory_that_is_not_set_is_not_used(tmp_path: Path) -> None:
    results = []
    for perturbed in ("0", "128"):
        path = tmp_path / perturbed
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path)],
            env={
                **os.environ,
                "MALLOC_PERTURB_": perturbed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    for mine, expected in zip(*results, strict=True):
        assert_same_bits(mine, expected)
