# SPDX-License-Identifier: BSD-3-Clause
"""How long the benchmark calls before it times, and how it times on a GPU; a GPU is not needed."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import clock
from benchmarks.clock import WARM_UP_SECONDS, CudaClock, count_names, unseen_seconds


class FakeEvent:
    """An event of a clock that moves by 2 ms with each call."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, stop: "FakeEvent") -> float:
        return stop.at - self.at


def make_torch(done: list[str]) -> Any:
    """As much of torch as the clock takes."""
    buffer = SimpleNamespace(zero_=lambda: done.append("flush"))
    cuda = SimpleNamespace(Event=FakeEvent, synchronize=lambda: None)
    return SimpleNamespace(empty=lambda *a, **k: buffer, uint8=None, cuda=cuda)


def test_cuda_clock_times_between_events_with_a_cold_cache() -> None:
    done: list[str] = []
    fake = make_torch(done)

    def run() -> None:
        done.append("run")
        FakeEvent.now += 2.0

    samples: Sequence[float] = CudaClock(fake).time(run, 0.0, at_least=3)
    assert samples == pytest.approx([2e-3] * 3)
    assert done == ["flush", "run"] * 3
    done.clear()
    CudaClock(fake, cold=False).time(run, 0.0, at_least=1)
    assert done == ["run"]


def test_gpu_is_warmed_up_for_the_time_that_its_clocks_take() -> None:
    """However long a call is, and however many it makes."""
    for seconds in (1e-6, 0.1, 3.0):
        assert unseen_seconds("cuda", seconds) >= 0.05 and unseen_seconds("cuda:1", seconds) >= 0.05
    assert WARM_UP_SECONDS["cuda"] >= 0.05
    assert unseen_seconds("cpu", 0.01) == 0.005 and unseen_seconds("cpu", 1.0) == 0.0


def test_warm_up_ends_after_its_time_and_a_turn_after_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: host[0])

    def run() -> None:
        host[0] += 1e-6
        calls.append(host[0])

    calls: list[float] = []
    cuda = CudaClock(make_torch([]), cold=False)
    cuda.warm_up(run, 0.05)
    assert calls[-1] == pytest.approx(0.05) and len(calls) > clock.MOST_CALLS
    calls.clear()
    cuda.time(run, 0.05)
    assert len(calls) == clock.MOST_CALLS


def test_kernels_are_counted() -> None:
    assert count_names(["gemm", "cell", "gemm"]) == ["2 x gemm", "1 x cell"]
