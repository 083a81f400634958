# SPDX-License-Identifier: BSD-3-Clause
"""What is not of the call itself: earlier calls that fail late, streams that write, settings."""

from pathlib import Path

import pytest
import torch
from kit.cases import LayerCase, make_inputs
from kit.emulated import CHECKED_TARGET, emulated_ops
from kit.options import OPTION_SETS, Case, make_option_inputs, run_options
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.process import run_python
from kit.tried_device import Tried

TESTS = Path(__file__).resolve().parents[1]
RAGGED = (6, 0, 2, 6, 1, 6, 6, 3, 5)
# Groups of two blocks and more, in two directions; and one block.
GROUP = LayerCase(6, 9, 4, 136, bidirectional=True, lengths=RAGGED, reset=0.3)
BLOCK = LayerCase(6, 9, 4, 40)

dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)


# ---- Earlier calls -------------------------------------------------------------------------------


def test_a_failure_of_an_earlier_call_is_no_fault_of_a_kernel_that_is_checked(tried: Tried) -> None:
    """A group that gives up between the beginning of a call of another kernel and the check before
    that one's first use: the user is told that its outputs are NaN, and only groups are off."""
    group, block = (make_inputs(in_dtype(case, torch.float16)) for case in (GROUP, BLOCK))
    tried.check_first_use(True)
    tried.forward(group)

    def fail() -> None:
        tried.device.set(stall_block=1, stall_after=400)
        tried.forward(group)
        tried.device.set(stall_block=-1)

    match = r"persistent_group_forward_kernel of T = 6.* gave up at step .* Outputs of that call"
    with tried.before_workspace(fail), pytest.raises(RuntimeError, match=match):
        tried.forward(block)
    assert not tried.warnings()
    assert "gave up at step" in tried.refusal() and not tried.refusal(group=False)
    # The kernel of one block is checked, and taken, by the next call.
    tried.launches()
    tried.forward(block)
    checked = tried.launches()
    tried.forward(block)
    assert checked > tried.launches() + 7
    assert not tried.warnings() and not tried.refusal(group=False)


# ---- Lengths that another stream writes ----------------------------------------------------------


@dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recompute"])
def test_groups_read_lengths_of_their_own(
    recompute: bool, dtype: torch.dtype, tried: Tried
) -> None:
    """While a kernel of groups runs, the caller's lengths, which were copied before, are others."""
    case = in_dtype(GROUP, dtype)
    expected = expected_of(case, cell_states=True)
    tried.device.set(garble_copied=1, garbled_launches=0)
    assert_results(case, run_ours(expected.inputs, cell_states=True, recompute=recompute), expected)
    assert tried.device.get("garbled_launches") == 2, "forward and backward"
    assert not tried.warnings()


def test_groups_with_options_read_lengths_of_their_own(tried: Tried) -> None:
    case = Case(6, 9, 4, 136, directions=2, lengths=RAGGED, reset="state")
    inputs = make_option_inputs(case, OPTION_SETS["masks"], torch.float16)
    expected = run_options(inputs)
    tried.device.set(garble_copied=1, garbled_launches=0)
    found = run_options(inputs)
    assert tried.device.get("garbled_launches") == 2, "forward and backward"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


# ---- Wrong settings ------------------------------------------------------------------------------

CALLS = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import torch
from kit.cases import LayerCase, make_inputs
from kit.emulated import emulated_ops
from kit.tried_device import Tried

tried = Tried(emulated_ops({CHECKED_TARGET}))
with tried.ops.use("persistent"):
    tried.device.set(sm_count=20)
    tried.check_first_use(True)
    for hidden in (136, 136, 40):
        try:
            tried.forward(make_inputs(LayerCase(2, 3, 4, hidden, dtype=torch.float16)))
            print("right")
        except RuntimeError as error:
            print(error)
    print(tried.warnings() + [tried.refusal(), tried.refusal(group=False)])
"""


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "1e9", "10s"])
def test_a_wrong_limit_of_waiting_is_no_fault_of_a_kernel(value: str) -> None:
    """Calls of groups say what is wrong with the variable, and nothing is off on the device."""
    emulated_ops(CHECKED_TARGET)  # built, or the test is skipped
    error = f"LSTM_FUSED_CUDA_WAIT_SECONDS must be a number from 0.001 to 1e+06, got {value}"
    wanted = [error, error, "right", "['', '']"]
    assert run_python(CALLS, LSTM_FUSED_CUDA_WAIT_SECONDS=value).splitlines() == wanted
