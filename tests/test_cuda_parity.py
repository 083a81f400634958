# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, run by the emulated device, against nn.LSTM and the float64 reference."""

from collections.abc import Iterator

import pytest
import torch
from conftest import DTYPES, assert_results, expected_of, in_dtype, run_ours
from kit.cases import CORE, WIDE, LayerCase, make_inputs
from kit.emulated import TARGETS, VARIANTS, EmulatedOps, emulated_ops
from kit.numeric import assert_bitwise_equal, make_module

from lstm_fused import FusedLSTM

RAGGED = [case for case in CORE if case.lengths and min(case.lengths) > 0 and case.reset == 0]

# Groups of blocks, and the multiprocessors that they need all at once: two groups for each
# direction; in the backward, weights that registers have no room for, in float32 and in 16 bits.
GROUPS = (
    (
        LayerCase(3, 9, 4, 200, bidirectional=True, lengths=(3, 0, 2, 3, 1, 3, 3, 2, 3), reset=0.3),
        30,
    ),
    (LayerCase(3, 5, 4, 272), 9),
    (LayerCase(3, 5, 4, 528), 17),
)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
core_cases = pytest.mark.parametrize("case", CORE, ids=str)


@pytest.fixture(params=TARGETS, ids=lambda target: f"compute_{target}")
def target(request: pytest.FixtureRequest) -> EmulatedOps:
    return emulated_ops(request.param)


@pytest.fixture(params=VARIANTS)
def emulated(target: EmulatedOps, request: pytest.FixtureRequest) -> Iterator[EmulatedOps]:
    """Run the test with the CUDA ops of each PTX target, with and without persistent kernels."""
    with target.use(request.param):
        yield target


@core_cases
@dtypes
def test_results_and_gradients(case: LayerCase, dtype: torch.dtype, emulated: EmulatedOps) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


@core_cases
@dtypes
def test_results_and_gradients_with_rebuilt_gates(
    case: LayerCase, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    ours = run_ours(expected.inputs, cell_states=True, recompute=True)
    assert_results(case, ours, expected)


@pytest.mark.parametrize("case", [case for case in WIDE if case not in CORE], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_results_and_gradients_of_every_pair_of_options(
    case: LayerCase, recompute: bool, emulated: EmulatedOps
) -> None:
    expected = expected_of(case)
    assert_results(case, run_ours(expected.inputs, recompute=recompute), expected)


@pytest.mark.parametrize(("case", "sm_count"), GROUPS, ids=str)
@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_groups_of_blocks(
    case: LayerCase, sm_count: int, dtype: torch.dtype, recompute: bool, target: EmulatedOps
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    with target.use("auto"):
        target.device.set(sm_count=sm_count)
        ours = run_ours(expected.inputs, cell_states=True, recompute=recompute)
        assert_results(case, ours, expected)


@pytest.mark.parametrize("case", RAGGED, ids=str)
@dtypes
def test_packed_sequences(case: LayerCase, dtype: torch.dtype, emulated: EmulatedOps) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    ours = run_ours(expected.inputs, cell_states=True, packed=True)
    assert_results(case, ours, expected)


@core_cases
def test_inference_gives_the_bits_of_training(case: LayerCase, emulated: EmulatedOps) -> None:
    inputs = make_inputs(case)
    module = make_module(inputs, FusedLSTM)
    arguments = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    y, (h_n, c_n) = module(inputs.input, inputs.hx, **arguments)
    assert y.requires_grad
    with torch.no_grad():
        y_2, (h_2, c_2) = module(inputs.input, inputs.hx, **arguments)
    for trained, inferred in ((y, y_2), (h_n, h_2), (c_n, c_2)):
        assert_bitwise_equal(inferred, trained)


@core_cases
@dtypes
def test_order_of_threads_changes_no_bit(
    case: LayerCase, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    results = []
    for seed in (0, 7):
        emulated.device.set(seed=seed)
        results.append(run_ours(inputs, cell_states=True))
    for name, result in results[0].items():
        assert_bitwise_equal(results[1][name], result)


@pytest.mark.parametrize("case", [case for case in CORE if case.H % 4 == 0], ids=str)
@dtypes
def test_unaligned_tensors_change_no_bit(
    case: LayerCase, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    """Where 16 bytes cannot be moved at once, the same sums are made one element at a time."""
    inputs = make_inputs(in_dtype(case, dtype))
    aligned = run_ours(inputs, cell_states=True)
    with emulated.offset(1):
        unaligned = run_ours(inputs, cell_states=True)
    for name, result in aligned.items():
        assert_bitwise_equal(unaligned[name], result)


def test_tf32_follows_the_math_mode_of_the_handle(emulated: EmulatedOps) -> None:
    """torch.backends.cuda.matmul sets the mode; only float32 products may look at it."""
    case = LayerCase(4, 5, 40, 64, bidirectional=True)
    for dtype in DTYPES:
        expected = expected_of(in_dtype(case, dtype))
        exact = run_ours(expected.inputs)
        with emulated.tf32():
            rounded = run_ours(expected.inputs)
        if dtype != torch.float32:
            for name, result in exact.items():
                assert_bitwise_equal(rounded[name], result)
            continue
        for name, truth in expected.truth.items():
            error = (rounded[name].double() - truth).abs().max() / truth.abs().max()
            assert 1e-6 < error < 5e-3, name  # operands lose 13 of 24 bits


def test_batch_sizes_are_refused(emulated: EmulatedOps) -> None:
    weights = [torch.zeros(8, 3), torch.zeros(8, 2)]
    states = torch.zeros(1, 2, 2)
    with pytest.raises(RuntimeError, match="take padded sequences with lengths, got batch_sizes"):
        emulated.ops.lstm_forward(
            torch.zeros(3, 3),
            states,
            states,
            weights,
            None,
            torch.tensor([2, 1]),
            None,
            False,
            False,
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_lengths_out_of_range_are_clamped(dtype: torch.dtype, emulated: EmulatedOps) -> None:
    """The device checks them apart from the kernels, which must stay within memory."""
    inputs = make_inputs(LayerCase(3, 2, 3, 5))
    weights = list(inputs.weights.values())
    assert inputs.h_0 is not None and inputs.c_0 is not None
    results = [
        emulated.ops.lstm_forward(
            inputs.input, inputs.h_0, inputs.c_0, weights, lengths, None, None, False, False
        )
        for lengths in (torch.tensor([5, -1], dtype=dtype), torch.tensor([3, 0], dtype=dtype))
    ]
    for ours, theirs in zip(*results, strict=True):
        assert_bitwise_equal(ours, theirs)
