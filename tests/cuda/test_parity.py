# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, run by the emulated device, against nn.LSTM and the float64 reference."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.cases import CORE, WIDE, LayerCase, make_inputs
from kit.emulated import TARGETS, VARIANTS, EmulatedOps, emulated_ops
from kit.numeric import assert_bitwise_equal, assert_within_budget, make_module
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.sample_gradients import assert_exact, sample_arguments, sample_truth
from kit.settings import DTYPES

from lstm_fused import FusedLSTM, functional, reference

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

# Sizes that fill one block's registers, in 16 bits or in 32, for which there are kernels besides.
FULL = (
    LayerCase(1, 1, 2, 64),
    LayerCase(4, 3, 2, 64, lengths=(4, 2, 3), poison=True),
    LayerCase(5, 9, 3, 128, bidirectional=True, lengths=(5, 0, 2, 5, 1, 5, 3, 2, 5), reset=0.3),
    LayerCase(4, 9, 3, 96, bidirectional=True, lengths=(3, 0, 2, 3, 1, 3, 3, 2, 3), reset=0.3),
)

# Projections that a chip of one multiprocessor, with little of L2, makes by two products a step.
TWO_PRODUCTS = (
    LayerCase(4, 1, 3, 101, P=5),
    LayerCase(3, 5, 3, 120, P=8, bidirectional=True, num_layers=2, bias=False),
    LayerCase(5, 4, 3, 101, P=3, bidirectional=True, lengths=(4, 0, 5, 2), reset=0.4, poison=True),
    LayerCase(5, 3, 3, 104, P=1, lengths=(5, 1, 3), poison=True),
    LayerCase(1, 3, 5, 100, P=7, reset=0.5, bidirectional=True, poison=True),
)
# Devices' multiprocessors and the GEMMs of a step: one, but for what TWO_PRODUCTS has.
STEP_LAUNCHES = (
    (LayerCase(0, 3, 4, 33), 8, 1),
    (LayerCase(0, 3, 4, 33, bidirectional=True), 8, 1),
    (LayerCase(0, 3, 4, 33, P=16), 8, 1),
    (LayerCase(0, 3, 4, 33, P=16, bidirectional=True), 8, 1),
    (LayerCase(0, 3, 4, 101, P=5), 1, 2),
    (LayerCase(0, 3, 4, 120, P=8, bidirectional=True), 1, 2),
)

# Each with a number of samples that divides its rows.
SAMPLES = (
    (LayerCase(4, 3, 2, 5), 1),
    (LayerCase(4, 3, 2, 5), 3),
    (LayerCase(3, 4, 2, 5, bidirectional=True, reset=0.4, bias=False), 2),
    (
        LayerCase(
            4, 6, 2, 5, P=2, bidirectional=True, lengths=(2, 4, 0, 1, 4, 3), reset=0.3, poison=True
        ),
        3,
    ),
    (LayerCase(66, 4, 3, 5, P=3), 2),  # more rows than a part of a bias's sum takes
    (LayerCase(3, 0, 2, 5, P=2), 3),
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
def test_results_and_gradients_of_every_pair_of_options(
    case: LayerCase, emulated: EmulatedOps
) -> None:
    expected = expected_of(case)
    assert_results(case, run_ours(expected.inputs), expected)


@pytest.mark.parametrize(("case", "sm_count"), GROUPS, ids=str)
@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_groups_of_blocks(
    case: LayerCase, sm_count: int, dtype: torch.dtype, recompute: bool, target: EmulatedOps
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    with target.use("persistent"):
        target.device.set(sm_count=sm_count)
        ours = run_ours(expected.inputs, cell_states=True, recompute=recompute)
        assert_results(case, ours, expected)


@pytest.mark.parametrize("case", FULL, ids=str)
@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_full_blocks(
    case: LayerCase, dtype: torch.dtype, recompute: bool, target: EmulatedOps
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    with target.use("persistent"):
        ours = run_ours(expected.inputs, cell_states=True, recompute=recompute)
        assert_results(case, ours, expected)
        with target.offset(1):  # where two elements cannot be moved at once
            ours = run_ours(expected.inputs, cell_states=True, recompute=recompute)
        assert_results(case, ours, expected)


@pytest.mark.parametrize("case", TWO_PRODUCTS, ids=str)
@dtypes
def test_two_products_a_step(case: LayerCase, dtype: torch.dtype, target: EmulatedOps) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, cell_states=True)
    with target.use("stepwise"):
        target.device.set(sm_count=1)
        assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


@pytest.mark.parametrize(("case", "sm_count", "gemms"), STEP_LAUNCHES, ids=str)
@dtypes
def test_launches_of_a_step(
    case: LayerCase, sm_count: int, gemms: int, dtype: torch.dtype, target: EmulatedOps
) -> None:
    """Forward and backward each: what calls of 9 and of 7 steps differ by, for both directions."""

    def launches(steps: int) -> list[tuple[int, int]]:
        inputs = make_inputs(replace(case, T=steps, dtype=dtype))
        arguments = (inputs.input, inputs.h_0, inputs.c_0, list(inputs.weights.values()))
        found = []

        def count(op: Callable[..., Any], *arguments: Any) -> Any:
            target.device.set(kernel_launches=0, gemm_calls=0)
            results = op(*arguments)
            found.append((target.device.get("gemm_calls"), target.device.get("kernel_launches")))
            return results

        y, _, _, _, gates, cells = count(
            target.ops.lstm_forward, *arguments, None, None, None, True, False
        )
        grads = [inputs.grads[name] for name in ("y", "h_n", "c_n")]
        masks = (None, None, None)
        saved = (y, gates, cells)
        count(
            target.ops.lstm_backward, *grads, None, *arguments, *masks, *saved, False, True, False
        )
        return found

    with target.use("stepwise"):
        target.device.set(sm_count=sm_count)
        for few, many in zip(launches(7), launches(9), strict=True):
            assert (many[0] - few[0], many[1] - few[1]) == (2 * gemms, 2)


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


@pytest.mark.parametrize("P", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_partial_sums_of_16_bit_products_are_not_rounded(
    dtype: torch.dtype, P: int, emulated: EmulatedOps
) -> None:
    """Whatever the handle's math mode, by which the emulated cuBLAS rounds them."""
    case = LayerCase(6, 5, 40, 101, P=P, num_layers=2, bidirectional=True, dtype=dtype)
    inputs = make_inputs(case)
    emulated.device.set(sm_count=1)  # has a projection's steps take two products
    with emulated.math_mode(16):
        wide = run_ours(inputs)
    for mode in (0, 3):
        with emulated.math_mode(mode):
            results = run_ours(inputs)
        for name, result in wide.items():
            assert_bitwise_equal(results[name], result)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_second_derivative(bidirectional: bool, emulated: EmulatedOps) -> None:
    """It takes what the CUDA kernels saved, whose rows lie otherwise than the CPU's."""
    case = LayerCase(
        4, 3, 3, 5, P=2, bidirectional=bidirectional, lengths=(2, 4, 1), dtype=torch.float64
    )
    inputs = make_inputs(case).requiring_grad()
    options = {"bidirectional": bidirectional, "lengths": inputs.lengths}
    assert inputs.hx is not None
    found = []
    for lstm in (functional.lstm, reference.lstm):
        y = lstm(inputs.input, inputs.hx, list(inputs.weights.values()), **options)[0]
        grads = torch.autograd.grad(
            y.tanh().sum(), list(inputs.weights.values()), create_graph=True
        )
        penalty = torch.stack([grad.square().sum() for grad in grads]).sum()
        found.append(torch.autograd.grad(penalty, list(inputs.leaves.values())))
    for name, ours, truth in zip(inputs.leaves, *found, strict=True):
        assert_within_budget(name, ours, None, truth, case.dtype)


@pytest.mark.parametrize(("case", "samples"), SAMPLES, ids=str)
@dtypes
def test_sample_gradients(
    case: LayerCase, samples: int, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    case = in_dtype(case, dtype)
    arguments = sample_arguments(case, op=emulated.ops.lstm_forward.default)
    truth = sample_truth(arguments, samples, arguments["lengths"])
    op = emulated.ops.lstm_sample_gradients
    found = op(*arguments.values(), True, True, samples)
    assert_exact(found[3], truth, dtype)
    expected = emulated.ops.lstm_backward(*arguments.values(), True, True, False)
    for mine, bits in zip(found[:3], expected[:3], strict=True):
        assert_bitwise_equal(mine, bits)
    # Autocast changes the dtype of no product.
    with torch.autocast("cpu", torch.bfloat16):
        *nothing, weights = op(*arguments.values(), False, False, samples)
    assert [t.shape for t in nothing] == [(0,)] * 3
    for mine, bits in zip(weights, found[3], strict=True):
        assert_bitwise_equal(mine, bits)
    # The forward saved no gates.
    arguments["gates"] = arguments["gates"].new_empty(0)
    assert_exact(op(*arguments.values(), True, True, samples)[3], truth, dtype)


def test_samples_that_do_not_divide_the_rows_are_refused(emulated: EmulatedOps) -> None:
    arguments = sample_arguments(LayerCase(4, 3, 2, 5), op=emulated.ops.lstm_forward.default)
    for samples in (0, -1, 2, 6):
        with pytest.raises(RuntimeError, match=f"divide the 3 rows of h_0, got {samples}"):
            emulated.ops.lstm_sample_gradients(*arguments.values(), True, True, samples)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=str)
def test_gradients_of_each_sample(options: dict[str, Any], emulated: EmulatedOps) -> None:
    module = FusedLSTM(3, 5, dtype=torch.float64, **options)
    own = {name: p.detach() for name, p in module.named_parameters()}
    xs, lengths = (
        torch.randn(3, 4, 2, 3, dtype=torch.float64),
        torch.tensor([[4, 1], [0, 3], [2, 4]]),
    )

    def loss(parameters: Any, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y, _ = torch.func.functional_call(module, parameters, (x,), {"lengths": lengths})
        return y.square().sum()  # type: ignore[no-any-return]

    found = torch.vmap(torch.func.grad(loss), (None, 0, 0))(own, xs, lengths)
    for index, sample in enumerate(zip(xs, lengths, strict=True)):
        for name, grad in torch.func.grad(loss)(own, *sample).items():
            assert_within_budget(name, found[name][index], None, grad, torch.float64)


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
