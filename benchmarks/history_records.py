# SPDX-License-Identifier: BSD-3-Clause
"""How the times of the headline cases went from commit to commit: benchmarks/history/*.jsonl.

A file is a machine's; a line holds what one run says of the headline cases.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.case import CaseError
from benchmarks.headlines import HEADLINES
from benchmarks.peers import REFERENCE
from benchmarks.records import Record, Results
from benchmarks.site import Bar

FOLDER = Path(__file__).parent / "history"
SCHEMA = 1
# What tells machines apart that call themselves by one name.
MACHINE_FIELDS = ("cpu", "cores", "caches")


def case_key(headline: Bar) -> str:
    return f"{headline.suite}: {headline.label}"


def make_record(results: Results) -> Record:
    """A run's commit, time and machine, and medians in seconds of its headline cases by peer.

    Raises:
        CaseError: the run has none of these cases.
    """
    run, machine = results.run, results.run["machine"]
    cases: dict[str, dict[str, float]] = {}
    for headline in HEADLINES:
        rows = [row for row in results.timed(headline.suite) if row["label"] == headline.label]
        medians = {row["peer"]: row["median"] for row in rows}
        if "fused" in medians:
            own = {peer: medians[peer] for peer in ("fused", REFERENCE) if peer in medians}
            cases[case_key(headline)] = own
    if not cases:
        raise CaseError(f"the run of {run['time']} has none of the headline cases")
    return {
        "kind": "history",
        "schema": SCHEMA,
        "time": run["time"],
        "commit": machine["commit"],
        "threads": run["threads"],
        "machine": {name: machine.get(name) for name in MACHINE_FIELDS},
        "torch": machine["packages"]["torch"],
        "cases": cases,
    }


def read_history(path: Path) -> list[Record]:
    """A machine's records, by time; none where there is no such file.

    Raises:
        CaseError: not a file of ours.
    """
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        for record in records:
            if record["kind"] != "history" or record["schema"] != SCHEMA:
                raise KeyError("kind")
        return sorted(records, key=lambda record: record["time"])
    except (ValueError, KeyError, TypeError):
        raise CaseError(f"{path} holds no history of schema {SCHEMA}") from None


def read_all(folder: Path) -> dict[str, list[Record]]:
    """Records by the machines' names."""
    return {path.stem: read_history(path) for path in sorted(folder.glob("*.jsonl"))}


def add_run(folder: Path, machine: str, results: Results) -> bool:
    """Writes a run's record into a machine's file; False where it is there already.

    Raises:
        CaseError: the file is another machine's, or the run has no headline case.
    """
    path = folder / f"{machine}.jsonl"
    record, known = make_record(results), read_history(path)
    if known and known[0]["machine"] != record["machine"]:
        raise CaseError(
            f"{path.name} is of the machine {known[0]['machine']}, the run of {record['machine']}"
        )
    if any(record == other for other in known):
        return False
    records = sorted([*known, record], key=lambda item: item["time"])
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in records), "utf-8")
    return True
