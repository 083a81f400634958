# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: strong vector accesses, barriers that vote, and waits that end."""

import numpy as np
import pytest

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.samples import Samples

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

N = 128


def test_strong_vectors(samples: Samples) -> None:
    x = np.random.default_rng(1).integers(0, 2**32, N, dtype=np.uint32)
    y = np.zeros((6, N), np.uint32)
    samples.run("run_vector_words", x, y, N)
    np.testing.assert_array_equal(y, np.repeat(x[None], 6, 0))


def test_compare_and_swap(samples: Samples) -> None:
    count, wide = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    samples.run("run_swap", count, wide)
    assert (count[0], wide[0]) == (128, 128 << 32)


@pytest.mark.parametrize("seed", (1, 2, 3))
def test_barriers_that_vote_and_barriers_to_arrive_at(samples: Samples, seed: int) -> None:
    out = np.zeros(128, np.uint32)
    samples.device.set(seed=seed)
    samples.run("run_barriers", out)
    assert (out >> 31 == 1).all()
    out &= 0x7FFFFFFF
    lane = np.arange(32)
    # One thread of 64 says yes; each warp is of one mind.
    np.testing.assert_array_equal(out[:64], 1 | 1 << 4 | 0 << 8 | 1 << 12)
    np.testing.assert_array_equal(out[64:96], 1000 + lane + 1)
    np.testing.assert_array_equal(out[96:], 1000 + 31 - lane)


def test_copies_of_a_part_read_no_more_than_that(samples: Samples) -> None:
    n = 50
    x, out = np.random.default_rng(2).normal(size=n).astype(np.float32), np.zeros((2, 64), "f")
    samples.run("run_tail", x, out, n)
    np.testing.assert_array_equal(out[:, :32], np.stack([x[:32]] * 2))
    assert np.isnan(out[0, 32:]).all()
    np.testing.assert_array_equal(out[1, 32:], np.concatenate([x[32:], np.zeros(64 - n, "f")]))


# ---- Time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("limit_ms", (10, 5000))
def test_a_bounded_wait_ends(samples: Samples, limit_ms: int, seed: int) -> None:
    flags, waited = np.zeros(3, np.uint32), np.zeros(3, np.uint64)
    flags[1] = 1
    samples.device.set(seed=seed)
    samples.run("run_bounded", flags, waited, 3, limit_ms)
    assert waited[1] == 0
    for block in (0, 2):
        assert limit_ms * 10**6 < waited[block] < 2 * limit_ms * 10**6 + 4 * 10**8


def test_time_goes_on_from_launch_to_launch(samples: Samples) -> None:
    before = samples.device.get("nanoseconds")
    samples.run("run_bounded", np.zeros(1, np.uint32), np.zeros(1, np.uint64), 1, 100)
    assert before + 10**8 < samples.device.get("nanoseconds") < before + 10**9


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_time_hardly_moves_while_blocks_work(samples: Samples, seed: int) -> None:
    token, late = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    samples.device.set(seed=seed, sm_count=8)
    before = samples.device.get("nanoseconds")
    samples.run("run_token", token, late, 6, 20, 20000, 10)
    assert (token[0], late[0]) == (120, 0)
    assert samples.device.get("nanoseconds") - before < 10**7


def test_a_wait_without_bound_is_a_timeout(samples: Samples) -> None:
    assert samples.status("run_unbounded", np.zeros(1, np.uint32), np.zeros(1, np.uint64)) == 702
    message = samples.device.last_error
    assert "deadlock in kernel (anonymous namespace)::unbounded_kernel" in message
    assert "in a loop for 'argument0' + 0 of 4 bytes" in message


# ---- A block that stalls -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("stall_after", (0, 1, 4, 5))
def test_bounded_waits_for_a_stalled_block_end(
    samples: Samples, stall_after: int, seed: int
) -> None:
    blocks, rounds, limit_ms = 4, 5, 1000
    token, late = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    samples.device.set(seed=seed, stall_block=2, stall_after=stall_after)
    before = samples.device.get("nanoseconds")
    samples.run("run_token", token, late, blocks, rounds, 10, limit_ms)
    waited = samples.device.get("nanoseconds") - before
    if stall_after == rounds:
        assert (late[0], token[0]) == (0, blocks * rounds)
        return
    # Blocks 0 and 1 have their last turn before block 2 has its own.
    assert late[0] == (1 if stall_after == rounds - 1 else 3)
    assert token[0] == blocks * stall_after + 2
    assert limit_ms * 10**6 < waited < 2 * limit_ms * 10**6


def test_an_unbounded_wait_for_a_stalled_block_is_a_timeout(samples: Samples) -> None:
    token, late = np.zeros(1, np.uint32), np.zeros(1, np.uint64)
    samples.device.set(stall_block=1)
    assert samples.status("run_token", token, late, 3, 2, 10, 4 * 10**6) == 702
    assert "block 1: stalled, as stall_block has it" in samples.device.last_error
    assert "in a loop for 'argument0' + 0 of 4 bytes" in samples.device.last_error


def test_a_grid_without_waits_ends_though_a_block_stalls(samples: Samples) -> None:
    x = np.arange(N, dtype=np.uint32)
    y = np.zeros((6, N), np.uint32)
    # The block's 32 threads store 6 vectors and 4 words each.
    samples.device.set(stall_block=0, stall_after=200)
    samples.run("run_vector_words", x, y, N)
    assert 0 < np.count_nonzero(y != x) < 6 * N
    samples.device.set(stall_after=320)
    samples.run("run_vector_words", x, y, N)
    np.testing.assert_array_equal(y, np.repeat(x[None], 6, 0))


# ---- Races ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", (1, 2, 3))
def test_each_word_of_a_vector_is_a_flag(checked: Samples, seed: int) -> None:
    checked.device.set(seed=seed)
    x = np.zeros(2, np.uint32)
    checked.run("run_flags", x, np.zeros(4, np.uint32))
    assert x[1] == 5
    assert checked.device.races == []


def test_barriers_that_vote_order_threads(checked: Samples) -> None:
    checked.run("run_barriers", np.zeros(128, np.uint32))
    assert checked.device.races == []
