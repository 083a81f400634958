# SPDX-License-Identifier: BSD-3-Clause
"""One run from its first case to its reports, within its time."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.case import CaseError
from benchmarks.machine import machine_facts
from benchmarks.peers import REFERENCE, Peer
from benchmarks.pool import Pool
from benchmarks.records import SCHEMA, Record, Results, Writer
from benchmarks.runner import Options, Runner
from benchmarks.suites import Entry
from benchmarks.table import print_means, suite_table
from benchmarks.worker import VERIFIER
from benchmarks.write_reports import write_reports

# Who runs the cases that are not for every peer.
PAIR = ("fused", REFERENCE)
# A case is given at most this long; where the run is behind, its share of what is left.
CASE_SECONDS = 20.0
# Where less than this is left for each case, only PAIR runs: the other peers take several times as
# long, to compile above all.
EVERY_PEER_SECONDS = 5.0

Plan = list[tuple[str, Entry]]


@dataclass
class Session:
    """A run: what it measures, with whom, and for how long.

    Args:
        plan: suites' names and entries, in order.
        every_peer: whether all peers run all cases.
        seconds: when they are over, the cases that are left are named as skipped.
        asked: the options of the command line, for the record.
    """

    plan: Plan
    peers: Sequence[Peer]
    skipped: list[Record]
    how: Options
    every_peer: bool
    seconds: float
    asked: Record

    def run(self, console: Console, folder: Path, name: str) -> int:
        """Returns the exit status: 1 if a peer was wrong or failed."""
        stamp = datetime.now(timezone.utc)
        path = folder / f"{name or stamp.strftime('%Y%m%d-%H%M%S')}.jsonl"
        started = time.monotonic()
        with Pool() as pool, _progress(console) as progress, _ending_politely():
            request = {"do": "facts", "device": self.how.device}
            facts = pool.get(VERIFIER, self.how.threads).ask(request, 120)
            if facts.pop("status") != "ok":
                raise CaseError(f"device {self.how.device}: {facts['reason']}")
            results = Results(self._run_record(stamp, facts), [], self.skipped)
            self._run_plan(pool, progress, results, path, started)
        written = write_reports(results, path)
        print_means(console, results)
        took = time.monotonic() - started
        console.print(f"{took:.0f} s. Written:", *map(str, [path, *written]), sep="\n  ")
        return int(any(row["status"] in ("wrong", "error") for row in results.rows))

    def _run_plan(
        self, pool: Pool, progress: Progress, results: Results, path: Path, started: float
    ) -> None:
        task = progress.add_task("starting", total=len(self.plan))

        def say(text: str) -> None:
            progress.update(task, description=text[-70:], refresh=True)

        writer = Writer(path)
        runner = Runner(pool, self.how, say)
        for record in (results.run, *self.skipped):
            writer.write(record)
        for number, (suite, entry) in enumerate(self.plan):
            left = started + self.seconds - time.monotonic()
            share = left / (len(self.plan) - number)
            if left <= 0:
                results.skipped.append(_out_of_time(suite, entry, "this case"))
                writer.write(results.skipped[-1])
                continue
            peers = self._peers_of(entry, share)
            if len(peers) < len(self._peers_of(entry)):
                results.skipped.append(_out_of_time(suite, entry, "other peers"))
                writer.write(results.skipped[-1])
            rows = runner.run_case(suite, entry.case, peers, min(share, CASE_SECONDS))
            for row in rows:
                writer.write(row)
            results.rows += rows
            progress.advance(task)
            if number + 1 == len(self.plan) or self.plan[number + 1][0] != suite:
                progress.console.print(suite_table(results, suite))
        runner.close()
        writer.close()

    def _peers_of(self, entry: Entry, share: float = CASE_SECONDS) -> list[Peer]:
        everyone = self.every_peer or (entry.every_peer and share >= EVERY_PEER_SECONDS)
        if entry.case.rounded:
            return [p for p in self.peers if p.name in PAIR or (everyone and p.weight_bytes)]
        if entry.case.variant:
            able = [peer for peer in self.peers if peer.has_variants]
            return [p for p in able if everyone or p.name in PAIR or p.runs_plain]
        exact = [peer for peer in self.peers if not peer.weight_bytes and not peer.runs_plain]
        return [peer for peer in exact if everyone or peer.name in PAIR]

    def _run_record(self, stamp: datetime, facts: Record) -> Record:
        return {
            "kind": "run",
            "schema": SCHEMA,
            "time": stamp.isoformat(timespec="seconds"),
            "threads": self.how.threads,
            "rounds": self.how.rounds,
            "options": self.asked,
            "machine": {**machine_facts(), **facts},
        }


def _out_of_time(suite: str, entry: Entry, what: str) -> Record:
    label = f"{suite}, {entry.case.label}"
    return {"kind": "skipped", "case": label, "reason": f"no time for {what} (--minutes)"}


def _progress(console: Console) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    # NOTE: no refresh by itself: the thread that draws would take time from what is measured.
    return Progress(*columns, TimeElapsedColumn(), console=console, auto_refresh=False)


@contextmanager
def _ending_politely() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: workers are ended, and what is written stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
