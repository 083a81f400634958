# SPDX-License-Identifier: BSD-3-Clause
"""Devices on which the persistent kernels of options do not work: what is found out before their
first use, blocks that never answer, launches that the driver refuses."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from kit.numeric import Results, assert_within_budget
from kit.options import OPTION_SETS, Case, make_option_inputs, reference_layer, run_options
from kit.tried_device import Tried

# Groups of at least two blocks in every type, two directions; and one block.
GROUP = Case(6, 9, 4, 136, directions=2, reset="state")
BLOCK = Case(6, 9, 4, 40, lengths=(6, 0, 2, 6, 1, 6, 6, 3, 5), reset="state")
WIDE_BLOCK = Case(2, 1, 4, 70)
# Every kernel: sizes of one block, of 32-bit and of 16-bit types; and, where few multiprocessors
# leave no choice, more units in each block of a group.
KERNELS = ((BLOCK, 20), (WIDE_BLOCK, 20), (GROUP, 40), (Case(2, 3, 4, 136), 6))
OPTIONS = OPTION_SETS["masks"]


def run(case: Case, dtype: torch.dtype = torch.float16) -> Results:
    return run_options(make_option_inputs(case, OPTIONS, dtype))


def assert_right(case: Case, results: Results) -> None:
    inputs = make_option_inputs(case, OPTIONS, torch.float16)
    theirs = run_options(inputs, reference_layer)
    truth = run_options(inputs.to(torch.float64), reference_layer)
    for name, value in results.items():
        assert_within_budget(name, value, theirs[name], truth[name], torch.float16)


def assert_stepwise(tried: Tried, case: Case) -> None:
    tried.launches()
    assert_right(case, run(case))
    assert tried.launches() > 2 * case.T


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16", "float16"])
def test_each_kernel_is_checked_once(kind: str, tried: Tried) -> None:
    """By both variants' results of a problem of seven steps, forward and backward."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    tried.check_first_use(True)
    counts = {}
    with tried.ops.tf32() if kind == "tf32" else nullcontext():
        for turn in ("first", "second"):
            for case, sm_count in KERNELS:
                tried.device.set(sm_count=sm_count)
                tried.launches()
                run(case, dtype)
                counts[turn, case] = tried.launches()
    assert not tried.warnings()
    for case, _ in KERNELS:
        # FFMA has no groups. Groups of few and of many units have one forward kernel, and two
        # backward kernels.
        checks = 0 if case.H > 128 and kind == "float32" else 1 if case == KERNELS[-1][0] else 2
        more = counts["first", case] - counts["second", case]
        assert more > 7 * checks if checks else more == 0


@pytest.mark.parametrize("case", [GROUP, BLOCK], ids=["group", "block"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_wrong_results_are_found_before_their_first_use(case: Case, way: str, tried: Tried) -> None:
    """Kernels whose barriers are taken out one at a time: some of them then compute nonsense."""
    group = case.H > 128
    kernel = f"persistent_{'group_' if group else ''}option_{way}_kernel"
    broken = [m for m in tried.device.mutations if kernel in m.function and "F16" in m.function]

    def warnings_of(mutation: int) -> list[str]:
        tried.forget()
        tried.check_first_use(True)
        tried.device.set(mutation=mutation)
        try:
            run(case)
        except RuntimeError:  # a deadlock of one block, which no kernel of ours can end
            return []
        finally:
            tried.device.set(mutation=0)
            tried.device.clear_error()
        return tried.warnings()

    found = [m for m in broken if any(" off stepwise's, " in w for w in warnings_of(m.number))]
    assert found
    assert all("with options of the cell" in w for w in warnings_of(found[0].number))
    assert bool(tried.refusal(group=group)) and not tried.refusal(group=not group)
    tried.check_first_use(False)
    assert_stepwise(tried, case)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_blocks_that_stop_are_told_of(way: str, tried: Tried) -> None:
    """The call ends, with NaN for what it lacks; the next one raises; then all is stepwise."""
    inputs = make_option_inputs(GROUP, OPTIONS, torch.float16)
    layer = (inputs.input, inputs.h_0, inputs.c_0, inputs.weights, None, None, inputs.reset_mask)
    ops = tried.ops.ops

    def forward() -> list[torch.Tensor]:
        return list(ops.lstm_options_forward(*layer, *inputs.options, True, False))

    def backward(saved: list[torch.Tensor]) -> list[torch.Tensor]:
        y, _, _, _, *rest = saved
        grads = [inputs.grads[name] for name in ("y", "h_n", "c_n")]
        needs = (False, True, False, True)
        return list(
            ops.lstm_options_backward(*grads, None, *layer, *inputs.options, y, *rest, *needs)
        )

    saved = forward() if way == "backward" else []
    tried.device.set(stall_block=1, stall_after=400)
    results = backward(saved) if saved else forward()
    tried.device.set(stall_block=-1)
    for states in results[1:3]:  # the final ones, or the gradients of the initial ones
        assert states[0, 0].isnan().all() and states[1].isfinite().all()
    match = rf"persistent_group_option_{way}_kernel of T = 6, N = 9, H = 136, .* gave up at step"
    with pytest.raises(RuntimeError, match=match):
        forward()
    assert_stepwise(tried, GROUP)


def test_refused_launches_are_planned_again(tried: Tried) -> None:
    tried.device.set(refuse_cooperative=1)
    assert_right(GROUP, run(GROUP))
    (warning,) = tried.warnings()
    assert "the driver must launch persistent_group_option_forward_kernel" in warning
    assert "cudaErrorCooperativeLaunchTooLarge" in tried.refusal()
    assert_stepwise(tried, GROUP)


def test_captured_calls_are_not_checked(tried: Tried) -> None:
    tried.check_first_use(True)
    tried.launches()
    with tried.ops.captured_stream():
        run(BLOCK)
    assert tried.launches() == 0
    run(BLOCK)
    checked = tried.launches()
    run(BLOCK)
    assert checked > tried.launches() + 7
