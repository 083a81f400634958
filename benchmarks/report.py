# SPDX-License-Identifier: BSD-3-Clause
"""What every report of a run holds, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import Record, Results
from benchmarks.table import cells, columns_of, label_of

HOW_TO_READ = (
    "Each peer computes in a process of its own, one at a time, in alternation; results were "
    "checked before anything was timed. Speed-ups are ratios of medians against nn.LSTM in the "
    "same run; the share is of the matrix product's rate on this machine in this run; the floor, "
    "for one row, is the time of reading the weights. benchmarks/README.md tells more."
)
MEANS_COLUMNS = ("suite", "peer", "speed-up", "cases")


def title_of(results: Results) -> str:
    return f"lstm_fused: benchmarks of {results.run['time']}"


def machine_line(results: Results) -> str:
    run, machine = results.run, results.run["machine"]
    where = machine.get("gpu") or machine["cpu"]
    return (
        f"{where}, {machine['cores']} cores, {run['threads']} threads; commit {machine['commit']}; "
        f"torch {machine['packages']['torch']}; {run['rounds']} rounds."
    )


def mean_rows(results: Results) -> list[list[str]]:
    """Geometric means of speed-ups, in the order of MEANS_COLUMNS."""
    return [
        [suite, label_of(peer), f"{mean:.2f}", str(count)]
        for suite, by_peer in results.geometric_means().items()
        for peer, (mean, count) in by_peer.items()
    ]


def figure_table(rows: Sequence[Record]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A suite's columns, and its rows in their order; a case's name stands in its first one."""
    columns = columns_of(rows)
    shown, last = [], ""
    for row in rows:
        name = row["label"] if row["label"] != last else ""
        last = row["label"]
        if row["status"] == "ok":
            figures = [*cells(row, columns), row["note"]]
        else:
            figures = [row["status"], *[""] * (len(columns) - 1), row["reason"]]
        shown.append([name, label_of(row["peer"]), *figures])
    return ("case", "peer", *columns, "note"), shown
