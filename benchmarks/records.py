# SPDX-License-Identifier: BSD-3-Clause
"""JSON lines: what a run writes, line by line as it goes, and what the readers read.

The first line is of kind "run", the others "row" or "skipped", in the order of the run; README.md
lists the fields. A row's status is "ok" (right, and timed), "wrong" (computed something else, and
not timed), "unsupported" (not done by this peer) or "error" (failed).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.case import CaseError, from_record
from benchmarks.peers import REFERENCE
from benchmarks.stats import geometric_mean

SCHEMA = 1
# Cores that other programs may keep busy: about what the system itself takes.
QUIET_CORES = 0.2

Record = dict[str, Any]


@dataclass
class Results:
    """One file of results."""

    run: Record
    rows: list[Record]
    skipped: list[Record]

    def of_suite(self, suite: str) -> list[Record]:
        return [row for row in self.rows if row["suite"] == suite]

    def suites(self) -> list[str]:
        return list(dict.fromkeys(row["suite"] for row in self.rows))

    def timed(self, suite: str | None = None, peer: str | None = None) -> list[Record]:
        return [
            row
            for row in self.rows
            if row["status"] == "ok"
            and suite in (None, row["suite"])
            and peer in (None, row["peer"])
        ]

    def disturbed(self) -> float:
        """The share of rows during which other programs computed, where none were asked for."""
        rows = [row for row in self.timed() if row["others_cpu"] is not None]
        rows = [row for row in rows if not row["case"]["busy"]]
        return sum(row["others_cpu"] > QUIET_CORES for row in rows) / len(rows) if rows else 0.0

    def thread_gains(self) -> list[tuple[str, str, int, int, float]]:
        """Peer, label, few and many threads, and the gain, for cases run with several counts."""
        found = []
        groups: dict[tuple[str, str], list[Record]] = {}
        for row in self.timed("scaling"):
            if row["case"]["threads"] and row["unit"] == "s":
                label = row["label"].replace(f" threads={row['threads']}", "")
                groups.setdefault((row["peer"], label), []).append(row)
        for (peer, label), rows in groups.items():
            few, *more = sorted(rows, key=lambda row: row["threads"])
            for many in more:
                gain = few["median"] / many["median"]
                found.append((peer, label, few["threads"], many["threads"], gain))
        return found

    def geometric_means(self) -> dict[str, dict[str, tuple[float, int]]]:
        """By suite and peer: the geometric mean of speed-ups, and of how many cases."""
        means: dict[str, dict[str, tuple[float, int]]] = {}
        for suite in self.suites():
            by_peer: dict[str, list[float]] = {}
            for row in self.timed(suite):
                if row["speedup"] is not None and row["peer"] != REFERENCE:
                    by_peer.setdefault(row["peer"], []).append(row["speedup"])
            means[suite] = {p: (geometric_mean(v), len(v)) for p, v in by_peer.items()}
        return means


def key_of(row: Record) -> tuple[str, ...]:
    """What makes two rows of different runs the same measurement.

    A field of Case that is younger than a row has its default there.
    """
    case = json.dumps(from_record(row["case"]).as_record(), sort_keys=True)
    return (row["suite"], row["peer"], row["device"], str(row["threads"]), case)


class Writer:
    """Appends records to a file; each is on disk before the next is measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w")

    def write(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_results(path: Path) -> Results:
    """Reads a file of JSON lines.

    Raises:
        CaseError: no such file, or not one of ours.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise CaseError(f"cannot read {path}: {error.strerror}") from None
    try:
        records = [json.loads(line) for line in lines if line.strip()]
        run = records[0]
        if run["kind"] != "run" or run["schema"] != SCHEMA:
            raise KeyError("kind")
    except (ValueError, KeyError, IndexError, TypeError):
        raise CaseError(f"{path} holds no benchmark results of schema {SCHEMA}") from None
    by_kind = {
        kind: [record for record in records if record["kind"] == kind]
        for kind in ("row", "skipped")
    }
    return Results(run, by_kind["row"], by_kind["skipped"])
