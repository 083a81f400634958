# SPDX-License-Identifier: BSD-3-Clause
"""The stepwise CUDA kernels of a cell with options, run by the emulated device, against the
reference in float64."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from kit.emulated import CHECKED_TARGET, TARGETS, EmulatedOps, emulated_ops
from kit.numeric import Results, assert_bitwise_equal, assert_within_budget
from kit.options import (
    CASES,
    OPTION_SETS,
    Case,
    OptionInputs,
    make_option_inputs,
    reference_layer,
    run_by_hand,
    run_options,
)
from kit.settings import DTYPES
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import FusedLSTM
from lstm_fused.autograd.options_layer import options_layer
from tools.cuda_on_cpu.device import LoadedMutation

# Rows that begin late in reverse, all kinds of resets, and initial states that no row may read.
RAGGED = (
    Case(4, 6, 3, 9, directions=2, lengths=(4, 0, 2, 4, 1, 3), reset="state", poison=True),
    Case(4, 6, 3, 9, directions=2, lengths=(4, 0, 2, 4, 1, 3), reset="zero", poison=True),
    Case(4, 6, 3, 9, P=4, directions=2, lengths=(4, 0, 2, 4, 1, 3), reset="state", poison=True),
    Case(2, 0, 3, 4, P=2, directions=2, reset="state"),
)
# The CUDA ops take padded sequences alone.
PADDED = (*(case for case in CASES if case.batch_sizes is None), *RAGGED)
# For what is not about numbers. More units than a block's threads have in one go; rows more than a
# sum's warps.
SMALL = (RAGGED[0], RAGGED[2], Case(2, 10, 3, 264))

sets = pytest.mark.parametrize("names", OPTION_SETS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@cache
def expected(case: Case, names: str, dtype: torch.dtype) -> tuple[OptionInputs, Results, Results]:
    """Inputs, what the reference makes of them in their dtype, and the truth."""
    inputs = make_option_inputs(case, OPTION_SETS[names], dtype)
    truth = run_by_hand(inputs.to(torch.float64))
    return inputs, run_options(inputs, reference_layer), truth


def assert_results(case: Case, names: str, dtype: torch.dtype) -> None:
    inputs, theirs, truth = expected(case, names, dtype)
    ours = run_options(inputs)
    assert ours.keys() == truth.keys()
    # A value that a 16-bit type rounds to the other side of the clip has another gradient.
    rounds_clip = inputs.options.cell_clip > 0 and dtype.itemsize == 2
    for name, value in ours.items():
        assert value.dtype == dtype, name
        if not (rounds_clip and name.startswith("grad_")):
            assert_within_budget(name, value, theirs[name], truth[name], dtype)


@pytest.fixture(params=TARGETS, ids=lambda target: f"compute_{target}")
def emulated(request: pytest.FixtureRequest) -> Iterator[EmulatedOps]:
    ops = emulated_ops(request.param)
    with ops.use("stepwise"):
        yield ops


@pytest.fixture
def checked() -> Iterator[EmulatedOps]:
    """Kernels that can be searched for races, and broken."""
    ops = emulated_ops(CHECKED_TARGET)
    with ops.use("stepwise"):
        ops.device.set(race_check=1)
        ops.device.clear_races()
        yield ops
    ops.device.set(race_check=0, statistics=0, mutation=0)
    ops.device.clear_error()


@pytest.mark.parametrize("case", PADDED, ids=str)
@sets
@dtypes
def test_results_and_gradients(
    case: Case, names: str, dtype: torch.dtype, emulated: EmulatedOps
) -> None:
    assert_results(case, names, dtype)


@pytest.mark.parametrize("case", SMALL, ids=str)
@sets
def test_what_changes_no_bit(case: Case, names: str, emulated: EmulatedOps) -> None:
    """The order of threads, gates that the backward makes anew, tensors off a boundary."""
    inputs = make_option_inputs(case, OPTION_SETS[names], torch.float32)
    wanted = run_options(inputs)

    def without_gates(arguments: Any, *rest: Any) -> Any:
        return options_layer(arguments._replace(recompute=True), *rest)

    found = [run_options(inputs, without_gates)]
    with emulated.offset(1):
        found.append(run_options(inputs))
    emulated.device.set(seed=7)
    found.append(run_options(inputs))
    for results in found:
        for name, value in wanted.items():
            assert_bitwise_equal(results[name], value)


@sets
def test_inference_gives_the_bits_of_training(names: str, emulated: EmulatedOps) -> None:
    inputs = make_option_inputs(SMALL[0], OPTION_SETS[names], torch.float16)
    wanted = run_options(inputs)
    arguments = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights)
    found = emulated.ops.lstm_options_forward(
        *(*arguments, inputs.lengths, None, inputs.reset_mask, *inputs.options, False, True)
    )
    assert [t.shape for t in found[4:]] == [(0,)] * 4
    for name, value in zip(("y", "h_n", "c_n", "cell_states"), found, strict=False):
        assert_bitwise_equal(value, wanted[name])


@pytest.mark.parametrize("P", (0, 3))
@pytest.mark.parametrize("names", ("peephole", "norms", "all"))
def test_launches_of_a_step(names: str, P: int, emulated: EmulatedOps) -> None:
    """A GEMM and a kernel for both directions, and twice that with projection: what calls of 9 and
    of 7 steps differ by."""

    def launches(steps: int) -> list[tuple[int, int]]:
        case = Case(steps, 3, 4, 33, P=P, directions=2)
        inputs = make_option_inputs(case, OPTION_SETS[names], torch.float32)
        layer = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights, None, None, None)
        found = []

        def count(op: Callable[..., Any], *arguments: Any) -> Any:
            emulated.device.set(kernel_launches=0, gemm_calls=0)
            results = op(*arguments)
            device = emulated.device
            found.append((device.get("gemm_calls"), device.get("kernel_launches")))
            return results

        y, _, _, _, *saved = count(
            emulated.ops.lstm_options_forward, *layer, *inputs.options, True, False
        )
        grads = [inputs.grads[name] for name in ("y", "h_n", "c_n")]
        needs = (False, True, False, False)
        backward = emulated.ops.lstm_options_backward
        count(backward, *grads, None, *layer, *inputs.options, y, *saved, *needs)
        return found

    each = 4 if P else 2
    for few, many in zip(launches(7), launches(9), strict=True):
        assert (many[0] - few[0], many[1] - few[1]) == (each, each)


def test_a_module_takes_them_for_packed_sequences_too(emulated: EmulatedOps) -> None:
    options = {"peephole": True, "layer_norm": True, "cell_clip": 3.0, "zoneout": 0.2}
    module = FusedLSTM(3, 5, num_layers=2, bidirectional=True, **options).eval()  # type: ignore[arg-type]
    x, lengths = torch.randn(4, 3, 3), torch.tensor([2, 4, 1])
    emulated.device.set(kernel_launches=0)
    wanted, _ = module(x, lengths=lengths)
    assert emulated.device.get("kernel_launches") == 2 * (1 + 4)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    found, _ = pad_packed_sequence(module(packed)[0])
    assert_bitwise_equal(found, wanted)


@sets
def test_calls_can_be_captured(names: str, emulated: EmulatedOps) -> None:
    """They launch, and wait for nothing."""
    inputs = make_option_inputs(RAGGED[2], OPTION_SETS[names], torch.float32)
    emulated.device.set(kernel_launches=0)
    with emulated.captured_stream():
        run_options(inputs)
    assert emulated.device.get("kernel_launches") == 0
    run_options(inputs)
    assert emulated.device.get("kernel_launches") > 0


def test_batch_sizes_are_refused(emulated: EmulatedOps) -> None:
    case = next(case for case in CASES if case.batch_sizes is not None)
    inputs = make_option_inputs(case, ("peephole",), torch.float32)
    arguments = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights, None, inputs.batch_sizes)
    with pytest.raises(RuntimeError, match="take padded sequences with lengths, got batch_sizes"):
        emulated.ops.lstm_options_forward(*arguments, None, *inputs.options, False, False)


def test_a_backward_without_gates_is_refused(emulated: EmulatedOps) -> None:
    inputs = make_option_inputs(Case(2, 3, 2, 4), ("peephole",), torch.float32)
    layer = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights, None, None, None)
    y, _, _, _, *saved = emulated.ops.lstm_options_forward(
        *layer, *inputs.options, True, False, True
    )
    with pytest.raises(RuntimeError, match="gates must have 3 dimensions with options, got 1"):
        emulated.ops.lstm_options_backward(
            *(inputs.grads["y"], None, None, None, *layer, *inputs.options, y, *saved),
            *(True, True, True, True),
        )


# ---- Threads that synchronise: a row's sums, and those over rows -------------------------------


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("names", ("masks", "all"))
@dtypes
def test_no_races(case: Case, names: str, dtype: torch.dtype, checked: EmulatedOps) -> None:
    for seed in (1, 2):
        checked.device.set(seed=seed)
        assert_results(case, names, dtype)
        assert checked.device.races == []


def mutations(ops: EmulatedOps) -> list[LoadedMutation]:
    """Ways to break the synchronising instructions of these kernels."""
    return [m for m in ops.device.mutations if "lstm_fused4cuda" in m.function and is_ours(m)]


def is_ours(mutation: LoadedMutation) -> bool:
    return "option_" in mutation.function and "persistent" not in mutation.function


def test_every_synchronisation_is_needed(checked: EmulatedOps) -> None:
    """Without it there is a race or a wrong result."""
    found = mutations(checked)
    caught = set()
    for dtype in DTYPES:
        inputs = make_option_inputs(SMALL[2], OPTION_SETS["all"], dtype)
        checked.device.clear_races()
        wanted = run_options(inputs)
        assert checked.device.races == []
        for mutation in found:
            checked.device.clear_races()
            checked.device.set(seed=1, mutation=mutation.number)
            results = run_options(inputs)
            is_seen = checked.device.races or any(
                not torch.equal(results[name], value) for name, value in wanted.items()
            )
            if checked.device.mutation_hits:
                assert is_seen, mutation
                caught.add(mutation)
        checked.device.set(mutation=0)
    assert found and caught == set(found)
