# SPDX-License-Identifier: BSD-3-Clause
"""How one peer's calls are timed, on the CPU and on a GPU."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]

# Calls of one turn, whatever the time: enough for percentiles, few enough to store.
MOST_CALLS = 2000
# How long a turn calls before it is timed: other peers' traces in the caches are gone after a few
# calls. A GPU that was idle, as between turns, takes some ten milliseconds to raise its clocks.
UNSEEN_SECONDS = {"cpu": 0.005, "cuda": 0.05}
# How long calls run untimed before the first turn of a case.
WARM_UP_SECONDS = {"cpu": 0.02, "cuda": 0.1}
# A call this long on the CPU is its own warm-up.
LONG_CALL_SECONDS = 0.3
# A flushed L2 holds nothing of the last call. Twice the largest L2 there is (126 MB on a B200).
FLUSH_BYTES = 256 << 20


def unseen_seconds(device: str, call_seconds: float) -> float:
    """How long a turn of such calls goes on before it is timed; 0: not at all."""
    kind = device.split(":")[0]
    return 0.0 if kind == "cpu" and call_seconds >= LONG_CALL_SECONDS else UNSEEN_SECONDS[kind]


class CpuClock:
    """Wall-clock time of each call by itself."""

    def warm_up(self, run: Run, seconds: float) -> float:
        """Calls until `seconds` have passed, at least once; gives the shortest time of a call."""
        return min(self.time(run, seconds, at_least=1))

    def time(self, run: Run, seconds: float, at_least: int = 1) -> list[float]:
        """Seconds of each call, for as long as `seconds` last."""
        samples: list[float] = []
        was_on = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            end = time.perf_counter() + seconds
            while len(samples) < at_least or time.perf_counter() < end:
                start = time.perf_counter_ns()
                result = run()
                samples.append((time.perf_counter_ns() - start) * 1e-9)
                # NOTE: freed after the clock has stopped and before the next call starts, in which
                # it would be freed otherwise.
                del result
                if len(samples) >= MOST_CALLS:
                    break
        finally:
            if was_on:
                gc.enable()
        return samples

    def kernels(self, run: Run) -> list[str]:
        """Names of the GPU kernels of a call: none here."""
        return []


class CudaClock:
    """Time between two events in the stream, the L2 cache emptied before the first one.

    Args:
        torch: the module, an argument so that the logic runs in tests without a GPU.
        cold: whether to empty the L2 cache before each call.
        graph: whether to capture the call in a CUDA graph and time its replay.
    """

    def __init__(self, torch: Any, *, cold: bool = True, graph: bool = False) -> None:
        self.torch, self.graph = torch, graph
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if cold else None

    def warm_up(self, run: Run, seconds: float) -> float:
        # NOTE: however many calls that takes, for it is the time that raises the clocks.
        return min(self.time(run, seconds, at_least=3, at_most=sys.maxsize))

    def captured(self, run: Run) -> Run:
        """The call itself, or the replay of its graph."""
        if not self.graph:
            return run
        cuda = self.torch.cuda
        # Capture forbids what a first call does (allocating workspaces, choosing algorithms), so
        # that calls come first, in a stream of their own as torch's documentation asks.
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):
                run()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            kept = run()
        replay = graph.replay

        def replayed(kept: Any = kept) -> Any:  # The outputs live as long as the graph.
            replay()
            return kept

        return replayed

    def time(
        self, run: Run, seconds: float, at_least: int = 1, at_most: int = MOST_CALLS
    ) -> list[float]:
        cuda = self.torch.cuda
        samples: list[float] = []
        cuda.synchronize()
        end = time.perf_counter() + seconds
        while len(samples) < at_least or time.perf_counter() < end:
            start, stop = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            if self.flush is not None:
                # NOTE: also keeps the GPU busy while the host enqueues the call, so that short
                # calls show the GPU's time and not the host's.
                self.flush.zero_()
            start.record()
            run()
            stop.record()
            stop.synchronize()
            samples.append(start.elapsed_time(stop) * 1e-3)
            if len(samples) >= at_most:
                break
        return samples

    def kernels(self, run: Run) -> list[str]:
        """The kernels that one call launches: "12 x name", the most frequent first."""
        profiler = self.torch.profiler
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            run()
            self.torch.cuda.synchronize()
        return count_names(
            event.name
            for event in profile.events()
            if "cuda" in str(event.device_type).lower() and not event.name.startswith("Mem")
        )


def count_names(names: Any) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{count} x {name}" for name, count in ordered]
