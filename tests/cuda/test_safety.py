# SPDX-License-Identifier: BSD-3-Clause
"""Devices on which kernels do not work: blocks that never answer, launches that the driver refuses,
wrong results. The user is told, no result is wrong without a word, and later calls go on stepwise.
"""

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.tried_device import Tried
from torch import Tensor

import lstm_fused
from lstm_fused._check.command import check_kernel
from lstm_fused._check.kernels import Kernel
from lstm_fused._check.problem import Problem
from lstm_fused._ops import native

STEPS = 6
# Groups of at least two blocks in every type, two directions; and one block.
GROUP = LayerCase(STEPS, 9, 4, 136, bidirectional=True)
BLOCK = LayerCase(STEPS, 9, 4, 40, lengths=(6, 0, 2, 6, 1, 6, 6, 3, 5), reset=0.3)
DTYPES_16_AND_32 = (torch.float16, torch.float32)

dtypes = pytest.mark.parametrize("dtype", DTYPES_16_AND_32, ids=str)
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


def assert_right(case: LayerCase) -> None:
    expected = expected_of(case, cell_states=True)
    assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


def assert_stepwise(tried: Tried, case: LayerCase) -> None:
    """Results are right, and two kernels and more a step have run."""
    tried.launches()
    assert_right(case)
    assert tried.launches() > 2 * case.T


# ---- Blocks that never answer --------------------------------------------------------------------


GAVE_UP = (
    r"in launch \d+, persistent_group_\w+_kernel of T = 6, N = 9, H = 136, "
    r"directions = 2, block (?P<block>\d+) of group 0 gave up at step (?P<step>\d+) after waiting "
    r"(?P<seconds>[\d.]+) seconds for the other blocks"
)


def stop_a_block(tried: Tried, dtype: torch.dtype, backward: bool, block: int = 1) -> list[Tensor]:
    """What a call of GROUP gives, whose first group, of the forward direction, lacks a block."""
    inputs = make_inputs(in_dtype(GROUP, dtype))
    saved = tried.forward(inputs) if backward else []
    tried.device.set(stall_block=block, stall_after=400)
    results = tried.backward(inputs, saved) if backward else tried.forward(inputs)
    tried.device.set(stall_block=-1)
    return results


@dtypes
@passes
@pytest.mark.parametrize("block", [0, 1])
def test_blocks_that_stop_are_told_of(
    backward: bool, block: int, dtype: torch.dtype, tried: Tried
) -> None:
    """The call ends, with NaN for what it lacks; the next one raises; then all is stepwise."""
    results = stop_a_block(tried, dtype, backward, block)
    with pytest.raises(RuntimeError, match=GAVE_UP) as error:
        tried.forward(make_inputs(in_dtype(GROUP, dtype)))
    found = re.search(GAVE_UP, str(error.value))
    assert found is not None
    assert int(found["block"]) != block and float(found["seconds"]) == 10
    assert "LSTM_FUSED_CUDA_WAIT_SECONDS" in str(error.value)

    # The first row of the forward direction is in the group that stopped, the others are not all.
    step = int(found["step"])
    for states in results[1:3]:  # the final ones, or the gradients of the initial ones
        assert states[0, 0].isnan().all() and states[1].isfinite().all()
    if not backward:
        y = results[0][:, 0, :136]
        assert 0 <= step < STEPS - 1
        assert y[:step].isfinite().all() and y[step + 1 :].isnan().all()

    # The failure is told once, and groups stay off.
    assert found[0] in tried.refusal() and not tried.refusal(group=False)
    assert_stepwise(tried, in_dtype(GROUP, dtype))
    assert_right(in_dtype(BLOCK, dtype))
    assert not tried.warnings()


def test_the_backward_tells_of_a_forward_that_failed(tried: Tried) -> None:
    saved = stop_a_block(tried, torch.float16, backward=False)
    with pytest.raises(RuntimeError, match=GAVE_UP):
        tried.backward(make_inputs(in_dtype(GROUP, torch.float16)), saved)


def test_how_long_blocks_wait(tried: Tried) -> None:
    assert tried.set_wait_seconds(0.5) == 10
    try:
        begin = tried.device.get("nanoseconds")
        stop_a_block(tried, torch.float16, backward=False)
        assert 0.5e9 <= tried.device.get("nanoseconds") - begin < 2e9
        with pytest.raises(RuntimeError, match=r"after waiting 0\.5 seconds"):
            tried.forward(make_inputs(in_dtype(GROUP, torch.float16)))
    finally:
        tried.set_wait_seconds(10)


def test_check_cuda_asks_without_a_call(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized: list[int] = []

    def check_wait_failures(device: int) -> None:
        text = tried.take_wait_failure()
        if text:
            raise RuntimeError(text)

    module = SimpleNamespace(check_wait_failures=check_wait_failures)
    monkeypatch.setattr(native, "compiled_cuda", module)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    lstm_fused.check_cuda()
    stop_a_block(tried, torch.float16, backward=False)
    with pytest.raises(RuntimeError, match=GAVE_UP):
        lstm_fused.check_cuda("cuda:0")
    lstm_fused.check_cuda(torch.device("cuda"))
    lstm_fused.check_cuda("cpu")  # has nothing to be waited for
    assert synchronized == [0, 0, 0]


def test_check_cuda_without_kernels_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiled_cuda", None)
    lstm_fused.check_cuda()


# ---- Launches that the driver refuses ------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_refused_launches_are_planned_again(
    recompute: bool, dtype: torch.dtype, tried: Tried
) -> None:
    """Forward and backward, each as the first call that meets the refusal, with one warning."""
    case = in_dtype(GROUP, dtype)
    expected = expected_of(case)
    tried.device.set(refuse_cooperative=1)
    assert_results(case, run_ours(expected.inputs, recompute=recompute), expected)
    (warning,) = tried.warnings()
    assert warning.startswith(
        "CUDA device 0: the driver must launch persistent_group_forward_kernel, got "
        "cudaErrorCooperativeLaunchTooLarge: "
    )
    assert "cudaErrorCooperativeLaunchTooLarge" in tried.refusal()
    assert_right(in_dtype(BLOCK, dtype))
    tried.device.set(refuse_cooperative=0)
    assert_stepwise(tried, case)
    assert not tried.warnings()


def test_streams_of_fewer_multiprocessors_than_the_plan_knows_of(tried: Tried) -> None:
    tried.device.set(stream_sm_count=1)
    assert_right(in_dtype(GROUP, torch.float16))
    (warning,) = tried.warnings()
    assert "A stream or a process with a part of the device's multiprocessors" in warning


@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_a_refused_backward_is_planned_again(
    recompute: bool, dtype: torch.dtype, tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebuilt gates, which gradients overwrite, are rebuilt once more."""
    case = in_dtype(GROUP, dtype)
    expected = expected_of(case)
    forward = native.lstm_forward_op

    def forward_and_refuse(*arguments: Any) -> Any:
        results = forward(*arguments)
        tried.device.set(refuse_cooperative=1)
        return results

    monkeypatch.setattr(native, "lstm_forward_op", forward_and_refuse)
    assert_results(case, run_ours(expected.inputs, recompute=recompute), expected)
    (warning,) = tried.warnings()
    assert "the driver must launch persistent_group_backward_single_kernel, got " in warning


# ---- The check before the first use --------------------------------------------------------------


@pytest.mark.parametrize("case", [GROUP, BLOCK], ids=["group", "block"])
@dtypes
def test_kernels_that_work_are_checked_once(
    case: LayerCase, dtype: torch.dtype, tried: Tried
) -> None:
    inputs = make_inputs(in_dtype(case, dtype))
    saved = tried.forward(inputs)
    tried.backward(inputs, saved)
    tried.launches()
    counts = []
    for on in (False, True, True):
        tried.check_first_use(on)
        results = tried.forward(inputs)
        forward = tried.launches()
        tried.backward(inputs, results)
        counts.append((forward, tried.launches()))
    # The check of the first use has run its problem, of seven steps, by both variants.
    unchecked, checked, again = counts
    assert again == unchecked
    assert all(more > few + 7 for more, few in zip(checked, unchecked, strict=True))
    assert not tried.warnings() and not tried.refusal() and not tried.refusal(group=False)


# Every kernel: sizes of one block, of float32 and of 16-bit types; and, where few multiprocessors
# leave no choice, more units in each block of a group, and two tiles in a group.
KERNELS = (
    (BLOCK, 20),
    (LayerCase(2, 1, 4, 70), 20),
    (GROUP, 40),
    (LayerCase(2, 3, 4, 136), 6),
    (LayerCase(2, 10, 4, 136), 6),
)


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16", "float16"])
def test_each_kernel_is_checked_once(kind: str, tried: Tried) -> None:
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    tried.check_first_use(True)
    counts = {}
    with tried.ops.tf32() if kind == "tf32" else nullcontext():
        for turn in ("first", "second"):
            for case, sm_count in KERNELS:
                tried.device.set(sm_count=sm_count)
                inputs = make_inputs(in_dtype(case, dtype))
                tried.launches()
                saved = tried.forward(inputs)
                forward = tried.launches()
                tried.backward(inputs, saved)
                counts[turn, case] = forward, tried.launches()
    assert not tried.warnings()
    for case, _ in KERNELS:
        first, second = counts["first", case], counts["second", case]
        # Groups of few and of many units, and of one tile and of two, have one forward kernel.
        assert (first[0] > second[0] + 7) == (case not in [case for case, _ in KERNELS[3:]])
        assert first[1] > second[1] + 7


def test_captured_streams_are_not_checked(tried: Tried) -> None:
    """Nothing can be waited for in a capture, which would be void."""
    inputs = make_inputs(in_dtype(BLOCK, torch.float16))
    tried.check_first_use(True)
    tried.launches()
    with tried.ops.captured_stream():
        tried.forward(inputs)
    assert tried.launches() == 0
    tried.forward(inputs)
    checked = tried.launches()
    tried.forward(inputs)
    assert checked > tried.launches() + 7


@dtypes
def test_groups_that_hang_are_found_before_their_first_use(
    dtype: torch.dtype, tried: Tried
) -> None:
    case = in_dtype(GROUP, dtype)
    tried.check_first_use(True)
    tried.device.set(stall_block=1, stall_after=100)
    assert_right(case)
    (warning,) = tried.warnings()
    assert warning.startswith(
        "CUDA device 0: a kernel does not work here, as was found in the check before its first "
        "use (forward, persistent, "
    )
    assert "gave up at step" in warning and "python -m lstm_fused check" in warning
    assert "in the check before its first use" in tried.refusal()
    assert not tried.refusal(group=False)
    assert_stepwise(tried, case)
    assert not tried.warnings()


def test_a_refusal_is_found_before_the_first_use(tried: Tried) -> None:
    tried.check_first_use(True)
    tried.device.set(refuse_cooperative=1)
    assert_right(in_dtype(GROUP, torch.float16))
    (warning,) = tried.warnings()
    assert "in the check before its first use" in warning
    assert "cudaErrorCooperativeLaunchTooLarge" in tried.refusal()


def first_warning(tried: Tried, case: LayerCase, mutation: int) -> str:
    """What a first call warns of, whose kernels are broken in one place."""
    tried.forget()
    tried.check_first_use(True)
    tried.device.set(mutation=mutation)
    try:
        saved = tried.forward(make_inputs(case))
        tried.backward(make_inputs(case), saved)
    except RuntimeError:  # a deadlock of one block, which no kernel of ours can end
        return ""
    finally:
        tried.device.set(mutation=0)
        tried.device.clear_error()
    return "".join(tried.warnings())


@pytest.mark.parametrize(
    ("case", "sm_count", "kernel"),
    [
        (GROUP, 40, "persistent_group_forward_kernel"),
        (GROUP, 40, "persistent_group_backward_single_kernel"),
        (GROUP, 10, "persistent_group_backward_kernel"),  # two tiles in a group
        (BLOCK, 40, "persistent_forward_kernel"),
        (BLOCK, 40, "persistent_backward_kernel"),
    ],
)
def test_wrong_results_are_found_before_their_first_use(
    case: LayerCase, sm_count: int, kernel: str, tried: Tried
) -> None:
    """Kernels whose barriers are taken out one at a time: some of them then compute nonsense."""
    case = in_dtype(case, torch.float16)
    tried.device.set(sm_count=sm_count)
    broken = [m for m in tried.device.mutations if kernel in m.function and "F16" in m.function]
    found = [first_warning(tried, case, m.number) for m in broken]
    wrong = [text for text in found if " off stepwise's, " in text]
    assert wrong, found
    assert all("wanted at most" in text for text in wrong)
    # What is refused is that variant.
    tried.forget()
    tried.check_first_use(True)
    tried.device.set(mutation=broken[found.index(wrong[0])].number)
    assert_stepwise(tried, case)
    assert bool(tried.refusal(group=case.H > 128)) and not tried.refusal(group=case.H <= 128)


# ---- The longer check ----------------------------------------------------------------------------


def test_the_check_command_tells_of_broken_kernels(tried: Tried) -> None:
    """As on a GPU, but for the plan, of which it asks torch's CUDA."""
    device = torch.device("cpu")
    kernel = Kernel("baseline", "float16", (Problem(136, steps=4),))
    row = check_kernel(kernel, device, timed=False)
    assert not row.is_wrong and row.errors is not None
    tried.device.set(stall_block=1, stall_after=100)
    row = check_kernel(kernel, device, timed=False)
    assert row.is_wrong and "gave up at step" in row.note
