# SPDX-License-Identifier: BSD-3-Clause
"""Groups whose forward is by FFMA, on the emulated device: all ways to divide K among lanes."""

import re

import pytest
import torch
from kit.cases import LayerCase
from kit.emulated import CHECKED_TARGET, TARGETS, EmulatedOps, emulated_ops
from kit.numeric import assert_bitwise_equal
from kit.ours import assert_results, expected_of, run_ours

from lstm_fused import FusedLSTM

# Multiprocessors, by which a warp's part of K has 1, 2, 4, 6, 8 and 10 chunks: the last are more
# than registers have room for.
CASES = (
    (LayerCase(3, 9, 4, 104), 26),
    (LayerCase(3, 9, 4, 136), 17),
    (LayerCase(3, 5, 4, 200), 13),
    (LayerCase(2, 3, 4, 330), 21),
    (LayerCase(2, 3, 4, 200), 7),
    (LayerCase(2, 3, 4, 272), 9),
)
cases = pytest.mark.parametrize(("case", "sm_count"), CASES, ids=str)


@pytest.fixture(params=TARGETS, ids=lambda target: f"compute_{target}")
def target(request: pytest.FixtureRequest) -> EmulatedOps:
    return emulated_ops(request.param)


@cases
def test_results(case: LayerCase, sm_count: int, target: EmulatedOps) -> None:
    expected = expected_of(case, cell_states=True)
    with target.use("persistent"):
        target.device.set(sm_count=sm_count)
        assert_results(case, run_ours(expected.inputs, cell_states=True), expected)


# What one block could hold, and a group takes less time for: whole warps of units or not, H a
# multiple of 16 bytes or not, several groups, two directions.
SMALL = (
    (LayerCase(3, 9, 4, 64), 132),
    (LayerCase(3, 5, 4, 96, bidirectional=True, lengths=(3, 0, 2, 3, 1)), 132),
    (LayerCase(3, 3, 4, 61, reset=0.3), 132),
    (LayerCase(2, 17, 4, 83), 18),
)


@pytest.mark.parametrize(("case", "sm_count"), SMALL, ids=str)
def test_sizes_that_fit_one_block(case: LayerCase, sm_count: int, target: EmulatedOps) -> None:
    """As the estimates choose, of which no variant is asked."""
    expected = expected_of(case, cell_states=True)
    with target.use("auto"):
        target.device.set(sm_count=sm_count)
        target.device.clear_statistics()
        target.device.set(statistics=target.target == CHECKED_TARGET)
        results = run_ours(expected.inputs, cell_states=True)
        target.device.set(statistics=0)
        assert_results(case, results, expected)
    if target.target == CHECKED_TARGET:
        kernels = " ".join(target.device.statistics)
        for way in ("forward", "backward"):
            assert re.search(rf"persistent_group_{way}\w*_kernelI\w*F32Product", kernels), kernels


@cases
def test_rows_do_not_depend_on_their_places(
    case: LayerCase, sm_count: int, target: EmulatedOps
) -> None:
    """Lanes add up the parts of K in the same order for all rows of a tile, and NaN stays in its
    row."""
    torch.manual_seed(0)
    module = FusedLSTM(case.D, case.H)
    x = torch.randn(case.T, 8, case.D)
    x[:, 3] = torch.nan
    with target.use("persistent"), torch.no_grad():
        target.device.set(sm_count=sm_count)
        y = module(x)[0]
        assert y[:, 3].isnan().all() and not y[:, torch.arange(8) != 3].isnan().any()
        for shift in (1, 2, 5):
            assert_bitwise_equal(module(x.roll(shift, 1))[0], y.roll(shift, 1))
