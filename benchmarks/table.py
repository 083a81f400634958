# SPDX-License-Identifier: BSD-3-Clause
"""The tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS, REFERENCE
from benchmarks.records import QUIET_CORES, Record, Results
from benchmarks.rows import scaled, share_of, shown
from benchmarks.suites import SUITES

COLUMNS = ("median", "p10 – p90", "speed-up", "GFLOP/s", "of peak", "floor", "others")
# What "of peak" is called where the yardstick is torch's matrix product: on a GPU, and in files
# that are older than the micro-kernel's rate.
SHARE_COLUMN, GEMM_COLUMN = "of peak", "of sgemm"
# Only where the plain layer was measured beside, and where peers round weights.
PLAIN_COLUMN, ERROR_COLUMN = "of plain", "error of y"


def label_of(peer: str) -> str:
    return PEERS[peer].label if peer in PEERS else peer


def skipped_name(record: Record) -> str:
    """The peer, or the case, that a record of kind "skipped" is about."""
    return label_of(record["peer"]) if "peer" in record else record["case"]


def columns_of(rows: Sequence[Record]) -> tuple[str, ...]:
    """The columns that a suite's rows need."""
    columns = list(COLUMNS)
    if any(row.get("plain_ratio") for row in rows):
        columns.insert(1, PLAIN_COLUMN)
    # Files older than the field have the error in the note.
    if any(row.get("y_error") is not None for row in rows):
        columns.insert(1, ERROR_COLUMN)
    if not any(row.get("kernel_flops") for row in rows):
        columns[columns.index(SHARE_COLUMN)] = GEMM_COLUMN
    return tuple(columns)


def cells(row: Record, columns: Sequence[str] = COLUMNS) -> list[str]:
    """One row's figures, in the order of columns."""
    unit = row["unit"]
    median = scaled(row["median"], unit)
    if row["case"]["measure"] == "latency":
        median += f" (p99 {scaled(row['p99'], unit)})"
    floor = "–"
    if row["floor_seconds"]:
        # The share that a peer at the floor would have is 100 %.
        share = row["floor_seconds"] / row["median"]
        floor = f"{scaled(row['floor_seconds'], 's')} ({share:.0%})"
    spread = f"{scaled(row['p10'], unit)} – {scaled(row['p90'], unit)}"
    figures = (
        median,
        spread,
        shown(row["speedup"], ".2f"),
        shown(row["gflops"], ".3g"),
        shown(share_of(row), ".0%"),
        floor,
        shown(row["others_cpu"], ".1f"),
    )
    named = dict(zip(COLUMNS, figures, strict=True))
    named[GEMM_COLUMN] = named[SHARE_COLUMN]
    named[PLAIN_COLUMN] = shown(row.get("plain_ratio"), ".2f")
    named[ERROR_COLUMN] = shown(row.get("y_error"), ".1e")
    return [named[name] for name in columns]


def suite_table(results: Results, suite: str) -> Table:
    about = SUITES[suite].about if suite in SUITES else ""
    table = Table(title=f"{suite}: {about}", title_justify="left", header_style="bold")
    table.add_column("case", overflow="fold", min_width=16)
    table.add_column("peer", no_wrap=True)
    rows = results.of_suite(suite)
    columns = columns_of(rows)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row in rows:
        if last and row["label"] != last:
            table.add_section()
        name = row["label"] if row["label"] != last else ""
        last = row["label"]
        if row["status"] == "ok":
            style = "bold" if row["peer"] == "fused" else None
            table.add_row(name, label_of(row["peer"]), *cells(row, columns), style=style)
        else:
            style = "dim" if row["status"] == "unsupported" else "red"
            table.add_row(name, label_of(row["peer"]), row["status"], style=style)
    return table


def means_table(results: Results) -> Table:
    title = f"geometric mean of speed-ups against {label_of(REFERENCE)} (cases)"
    table = Table(title=title, title_justify="left", header_style="bold")
    means = results.geometric_means()
    peers = list(dict.fromkeys(peer for by_peer in means.values() for peer in by_peer))
    table.add_column("suite")
    for peer in peers:
        table.add_column(label_of(peer), justify="right")
    for suite, by_peer in means.items():
        found = (by_peer.get(peer) for peer in peers)
        table.add_row(suite, *("–" if f is None else f"{f[0]:.2f} ({f[1]})" for f in found))
    return table


def print_results(console: Console, results: Results) -> None:
    for suite in results.suites():
        console.print(suite_table(results, suite))
    print_means(console, results)


def print_means(console: Console, results: Results) -> None:
    """What stands below the tables of the suites."""
    console.print(means_table(results))
    for line in closing_lines(results):
        console.print(line, markup=False)


def closing_lines(results: Results) -> list[str]:
    """Gains from threads, what went wrong, who was left out, and whether the machine was quiet."""
    lines = [
        f"{label_of(peer)}: {few} → {many} threads: {gain:.2f}x ({label})"
        for peer, label, few, many, gain in results.thread_gains()
    ]
    lines += [
        f"{row['status']}: {label_of(row['peer'])}, {row['label']}: {row['reason']}"
        for row in results.rows
        if row["status"] in ("wrong", "error")
    ]
    lines += [f"skipped {skipped_name(s)}: {s['reason']}" for s in results.skipped]
    if (share := results.disturbed()) > 0:
        lines.append(
            f"{share:.0%} of the rows were measured while other programs kept more than "
            f"{QUIET_CORES} cores busy (column others): run again on a quiet machine."
        )
    return lines
