# SPDX-License-Identifier: BSD-3-Clause
"""One HTML file that holds all: the summary first, then figures and the machine, folded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from benchmarks.headlines import HEADLINES
from benchmarks.page import Bar, Line, bars, folded, make_page, paragraph, table
from benchmarks.peers import REFERENCE
from benchmarks.records import Record, Results
from benchmarks.report import (
    HOW_TO_READ,
    MEANS_COLUMNS,
    RATES_COLUMNS,
    figure_table,
    machine_line,
    mean_rows,
    rate_rows,
    title_of,
    yardstick_line,
)
from benchmarks.rows import scaled, share_of
from benchmarks.suites import SUITES
from benchmarks.table import closing_lines, label_of

# Suites whose cases are shown beside the yardstick.
SHARE_SUITES = ("inference", "training")
SUMMARY_COLUMNS = ("suite", "geometric mean", "least", "most", "cases")


def make_html(results: Results) -> str:
    parts = [
        paragraph(machine_line(results), "faint"),
        *(paragraph(line, "warn") for line in _warnings(results)),
        _headlines(results),
        "<h2>Speed-ups of FusedLSTM</h2>",
        _summary(results),
        folded("Every peer's geometric means", _means(results)),
        "<h2>Suites</h2>",
        *(_suite(results, suite) for suite in results.suites()),
        "<h2>Arithmetic</h2>",
        paragraph(yardstick_line(results)),
        _shares(results),
        _rates(results),
        _kernels(results),
        "<h2>Run</h2>",
        folded("How to read this", paragraph(HOW_TO_READ)),
        folded("Threads and what was left out", *map(paragraph, _remarks(results))),
        folded("Machine and options", f"<pre>{escape(json.dumps(results.run, indent=1))}</pre>"),
    ]
    return make_page(title_of(results), parts)


def _warnings(results: Results) -> list[str]:
    """Closing lines not to be missed: peers that failed, a machine that was not quiet."""
    return [line for line in closing_lines(results) if not _is_remark(line)]


def _remarks(results: Results) -> list[str]:
    return [line for line in closing_lines(results) if _is_remark(line)] or ["Nothing."]


def _is_remark(line: str) -> bool:
    return line.startswith("skipped ") or " threads: " in line


def speedup_bar(row: Record) -> Bar:
    """The whisker is this peer's own p10 to p90, nn.LSTM's median held fixed."""
    ratio = row["speedup"]
    return Bar(
        row["peer"],
        label_of(row["peer"]),
        ratio,
        ratio * row["median"] / row["p90"],
        ratio * row["median"] / row["p10"],
        scaled(row["median"], row["unit"]),
        f"{ratio:.2f}×" * (row["peer"] != REFERENCE),
    )


def _speedup_bars(rows: Sequence[Record]) -> str:
    # A last word that all cases have, such as "inference", is said by the suite's name.
    modes = {row["label"].rpartition(" ")[2] for row in rows}
    common = f" {modes.pop()}" if len(modes) == 1 else ""
    cases: dict[str, list[Bar]] = {}
    for row in rows:
        if row["status"] == "ok" and row["speedup"]:
            name = row["label"].removesuffix(common)
            cases.setdefault(name, []).append(speedup_bar(row))
    return bars(cases)


def _headlines(results: Results) -> str:
    cases: dict[str, list[Bar]] = {}
    for headline in HEADLINES:
        for row in results.timed(headline.suite):
            shown = row["label"] == headline.label and row["speedup"]
            if shown and row["peer"] in ("fused", REFERENCE):
                cases.setdefault(headline.text, []).append(speedup_bar(row))
    if not cases:
        return ""
    about = "Bold: the time of a call. Bars, and the factor: how many times as fast as nn.LSTM."
    return f"<h2>Headline cases</h2>{paragraph(about, 'faint')}{bars(cases)}"


def _summary(results: Results) -> str:
    """FusedLSTM's speed-ups by suite."""
    lines = []
    for suite, by_peer in results.geometric_means().items():
        if "fused" in by_peer:
            mean, count = by_peer["fused"]
            ratios = [row["speedup"] for row in results.timed(suite, "fused") if row["speedup"]]
            figures = (f"{mean:.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}", str(count))
            lines.append(Line("", (suite, *figures)))
    return table(SUMMARY_COLUMNS, lines) if lines else paragraph("No speed-ups in this run.")


def _means(results: Results) -> str:
    lines, last = [], ""
    for suite, *figures in mean_rows(results):
        lines.append(Line("", figures, suite if suite != last else ""))
        last = suite
    return table(MEANS_COLUMNS[1:], lines)


def _suite(results: Results, suite: str) -> str:
    """Bars of all peers, and beneath them, folded once more, every figure."""
    rows = results.of_suite(suite)
    is_memory = any(row["unit"] == "bytes" for row in rows)
    unit = "Bytes; bars: times less than nn.LSTM." if is_memory else ""
    about = SUITES[suite].about if suite in SUITES else ""
    figures = folded("All figures", _figures(rows))
    return folded(suite, paragraph(unit, "faint"), _speedup_bars(rows), figures, about=about)


def _figures(rows: Sequence[Record]) -> str:
    head, figures = figure_table(rows)
    # The case stands in a line of its own; a column that says nothing is left out.
    kept = [i for i in range(1, len(head)) if any(texts[i] not in ("", "–") for texts in figures)]
    lines = [
        Line(f"{row['status']} {row['peer']}", [texts[i] for i in kept], texts[0])
        for row, texts in zip(rows, figures, strict=True)
    ]
    return table([head[i] for i in kept], lines, "figures")


def _shares(results: Results) -> str:
    """How near the yardstick each case comes; the bars' mark is the yardstick itself."""
    cases: dict[str, list[Bar]] = {}
    for row in results.timed():
        share = share_of(row)
        if row["suite"] in SHARE_SUITES and share:
            figure = f"{row['gflops']:.3g} GFLOP/s"
            bar = Bar(
                row["peer"], label_of(row["peer"]), share, share, share, f"{share:.0%}", figure
            )
            cases.setdefault(row["label"], []).append(bar)
    about = "inference and training, each peer"
    return folded("Share of the yardstick", bars(cases), about=about) if cases else ""


def _rates(results: Results) -> str:
    lines = [Line("", row) for row in rate_rows(results)]
    about = "GFLOP/s, measured anew for each suite"
    return folded("Yardsticks", table(RATES_COLUMNS, lines), about=about) if lines else ""


def _kernels(results: Results) -> str:
    """What each call launches on a GPU."""
    lines, last = [], ""
    for row in results.timed():
        if row["kernels"]:
            heading = row["label"] if row["label"] != last else ""
            last = row["label"]
            lines.append(Line("", (label_of(row["peer"]), "; ".join(row["kernels"])), heading))
    return folded("Kernels of a call", table(("peer", "note"), lines)) if lines else ""
