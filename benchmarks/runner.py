# SPDX-License-Identifier: BSD-3-Clause
"""Runs cases: check first, then rounds in which the peers take turns.

For each case: every peer prepares it and hands over its results; those that are wrong stop there.
Then A B C, A B C, ...: in its turn a peer calls a few times unseen and then for a share of a second
timed, and is stopped. The rows come from the samples of all rounds.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.check import (
    find_fault,
    for_rounded,
    largest_error,
    load_arrays,
    load_truth,
    worst_share,
)
from benchmarks.clock import unseen_seconds
from benchmarks.machine import busy_seconds, load_average, process_seconds
from benchmarks.peers import REFERENCE, Peer
from benchmarks.pool import Pool, WorkerProcess
from benchmarks.records import Record
from benchmarks.rows import make_row
from benchmarks.worker import VERIFIER

# Preparing may compile; a call may take seconds. Beyond this, a peer is given up.
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: str = "cpu"
    threads: int = 1
    rounds: int = 7
    # Seconds of timed calls in one turn; at least one call.
    seconds: float = 0.05
    # Beyond the time that a case is given, it ends after so many rounds.
    least_rounds: int = 5
    cold: bool = True
    graph: bool = False
    # A module of the tests' own in place of a peer's.
    modules: tuple[tuple[str, str], ...] = ()


Say = Callable[[str], None]


@dataclass
class Others:
    """How much other programs computed during one peer's turns."""

    worked: float = 0.0
    passed: float = 0.0

    @contextmanager
    def watch(self, worker: WorkerProcess) -> Iterator[None]:
        start, all_before = time.monotonic(), busy_seconds()
        own_before = process_seconds(worker.process.pid)
        yield
        own = process_seconds(worker.process.pid) - own_before
        self.worked += busy_seconds() - all_before - own
        self.passed += time.monotonic() - start

    def cores(self) -> float:
        """Cores that others kept busy, on the average."""
        return round(max(0.0, self.worked) / self.passed, 2) if self.passed else 0.0


class Runner:
    def __init__(self, pool: Pool, options: Options, say: Say = lambda text: None) -> None:
        self.pool, self.options, self.say = pool, options, say
        self.folder = tempfile.TemporaryDirectory(prefix="lstm_fused_bench_")
        self.rates: dict[tuple[Any, ...], Record] = {}
        self.deadline = math.inf
        # The last truths, and the cases they are of: neighbours in a suite often share one.
        self.known: dict[Case, Record] = {}

    def close(self) -> None:
        self.folder.cleanup()

    # ---------------------------------------------------------------------------- one case

    def run_case(
        self, suite: str, case: Case, peers: Sequence[Peer], seconds: float = 20.0
    ) -> list[Record]:
        """The rows of one case, one for each peer, in the order of peers.

        Args:
            seconds: the rounds stop early when the case has taken as long.
        """
        self.deadline = time.monotonic() + seconds
        threads = case.threads or self.options.threads
        facts = {"suite": suite, "threads": threads, "device": self.options.device}
        rows: dict[str, Record] = {}
        ready: list[Peer] = []
        for peer in peers:
            truth = self._truth(peer.own_case(case))
            self.say(f"{case.label}: checking {peer.label}")
            verdict = self._check(case, peer, threads, truth)
            if verdict["status"] == "ok":
                ready.append(peer)
            rows[peer.name] = {**facts, **verdict}
        rates = self._rates(suite, case, threads)
        rounds = self._measure(case, ready, threads, rows)
        reference = rounds.get(REFERENCE)
        plain = next((rounds.get(peer.name) for peer in peers if peer.runs_plain), None)
        load = load_average()
        return [
            make_row(
                case,
                peer.name,
                rows[peer.name],
                rounds.get(peer.name),
                # The plain layer does not do what the reference does.
                None if peer.runs_plain else reference,
                rates,
                load,
                plain,
            )
            for peer in peers
        ]

    def _check(self, case: Case, peer: Peer, threads: int, truth: Record) -> Record:
        if self.options.device.split(":")[0] not in peer.devices:
            return {"status": "unsupported", "reason": f"not on {self.options.device}"}
        if case.variant and not peer.has_variants:
            return {"status": "unsupported", "reason": "no options of the cell"}
        if truth["status"] != "ok":
            return {"status": "error", "reason": f"no truth to check against: {truth['reason']}"}
        path = Path(self.folder.name) / f"{peer.name}.npz"
        answer = self._ask(peer, threads, {"do": "prepare", "results": str(path)}, case)
        if answer["status"] != "ok":
            return answer
        result = load_arrays(path)
        path.unlink()
        wanted, allowed = truth["arrays"]
        if case.rounded:
            allowed = for_rounded(allowed)
            answer["y_error"] = largest_error(result["y"], wanted["y"])
        fault = find_fault(result, wanted, allowed)
        if fault:
            return {"status": "wrong", "reason": fault}
        return {**answer, "error_share": round(worst_share(result, wanted, allowed), 4)}

    def _measure(
        self, case: Case, peers: Sequence[Peer], threads: int, rows: dict[str, Record]
    ) -> dict[str, list[list[float]]]:
        """Samples of each round, by peer; a peer that fails on the way is told in its row."""
        if case.measure == "memory":
            return self._measure_memory(case, peers, threads, rows)
        rounds: dict[str, list[list[float]]] = {}
        calls: dict[str, float] = {}
        others: dict[str, Others] = {}
        with self._neighbours(case):
            for peer in peers:
                request = {"do": "warm_up", "cold": self.options.cold, "graph": self.options.graph}
                answer = self._ask(peer, threads, request, case)
                if self._failed(answer, rows[peer.name]):
                    continue
                rows[peer.name]["kernels"] = answer["kernels"]
                calls[peer.name], rounds[peer.name] = answer["seconds"], []
                others[peer.name] = Others()
            for number in range(self.options.rounds):
                if number >= self.options.least_rounds and time.monotonic() > self.deadline:
                    break
                self.say(f"{case.label}: round {number + 1} of {self.options.rounds}")
                for peer in [peer for peer in peers if peer.name in rounds]:
                    unseen = unseen_seconds(self.options.device, calls[peer.name])
                    request = {"do": "measure", "seconds": self.options.seconds, "unseen": unseen}
                    with others[peer.name].watch(self._worker(peer, threads)):
                        answer = self._ask(peer, threads, request, case)
                    if self._failed(answer, rows[peer.name]):
                        del rounds[peer.name]
                        continue
                    rounds[peer.name].append(answer["samples"])
                    rows[peer.name]["others_cpu"] = others[peer.name].cores()
        return rounds

    def _measure_memory(
        self, case: Case, peers: Sequence[Peer], threads: int, rows: dict[str, Record]
    ) -> dict[str, list[list[float]]]:
        """Bytes: one call in a fresh process each time. They hardly vary: two rounds show it."""
        rounds: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}
        for _ in range(min(2, self.options.rounds)):
            for peer in [peer for peer in peers if peer.name in rounds]:
                worker = self._start(peer, threads)
                request = self._request({"do": "memory"}, peer.own_case(case))
                answer = worker.ask(request, TIMEOUT_SECONDS)
                worker.close()
                if self._failed(answer, rows[peer.name]):
                    del rounds[peer.name]
                else:
                    rounds[peer.name].append(answer["samples"])
        return rounds

    @staticmethod
    def _failed(answer: Record, row: Record) -> bool:
        if answer["status"] != "ok":
            row.update(answer)
        return answer["status"] != "ok"

    # ------------------------------------------------------------------------------ workers

    def _module(self, peer: Peer) -> str:
        return dict(self.options.modules).get(peer.name, "")

    def _start(self, peer: Peer, threads: int) -> WorkerProcess:
        return WorkerProcess(peer.name, threads, pinned=peer.pinned, module=self._module(peer))

    def _request(self, request: Record, case: Case) -> Record:
        threads = case.threads or self.options.threads
        where = {"device": self.options.device, "threads": threads}
        return {**request, **where, "case": case.as_record()}

    def _ask(self, peer: Peer, threads: int, request: Record, case: Case) -> Record:
        request = self._request(request, peer.own_case(case))
        return self._worker(peer, threads).ask(request, TIMEOUT_SECONDS)

    def _worker(self, peer: Peer, threads: int) -> WorkerProcess:
        return self.pool.get(peer.name, threads, pinned=peer.pinned, module=self._module(peer))

    def _truth(self, case: Case) -> Record:
        # What changes how a case is run, and not what comes out of it.
        same = replace(
            case, threads=0, busy=False, measure="time", ragged="packed" if case.ragged else ""
        )
        if same in self.known:
            return self.known[same]
        self.say(f"{case.label}: computing the truth")
        path = Path(self.folder.name) / "truth.npz"
        # NOTE: with every thread, whatever the case asks for: it is not timed.
        verifier = self.pool.get(VERIFIER, self.options.threads)
        request = self._request({"do": "truth", "results": str(path)}, case)
        answer = verifier.ask({**request, "threads": self.options.threads}, TIMEOUT_SECONDS)
        if answer["status"] == "ok":
            answer["arrays"] = load_truth(path)
            path.unlink()
            # Two: a case's, and that of the plain layer beside it.
            self.known = dict([*self.known.items(), (same, answer)][-2:])
        return answer

    def _rates(self, suite: str, case: Case, threads: int) -> Record:
        """The machine's rates, measured anew for each suite: they change with its other users."""
        key = (suite, threads, case.dtype)
        if key not in self.rates:
            verifier = self.pool.get(VERIFIER, self.options.threads)
            request = self._request({"do": "rates", "dtype": case.dtype}, case)
            answer = verifier.ask(request, TIMEOUT_SECONDS)
            self.rates[key] = answer if answer["status"] == "ok" else {}
        return self.rates[key]

    @contextmanager
    def _neighbours(self, case: Case) -> Iterator[None]:
        """For a busy case: processes that keep every core busy meanwhile."""
        count = self.options.threads if case.busy else 0
        neighbours = [WorkerProcess(VERIFIER, 1) for _ in range(count)]
        try:
            for neighbour in neighbours:
                neighbour.send({"do": "spin"})
            yield
        finally:
            for neighbour in neighbours:
                neighbour.close()
