# SPDX-License-Identifier: BSD-3-Clause
"""The history as a page with a line for each headline case, and as Markdown tables by commit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.headlines import HEADLINES
from benchmarks.history_records import case_key, read_all
from benchmarks.page import Line, folded, make_page, paragraph, table
from benchmarks.peers import REFERENCE
from benchmarks.records import Record
from benchmarks.rows import scaled, shown
from benchmarks.site import Bar
from benchmarks.table import label_of

TITLE = "lstm_fused: headline cases by commit"
ABOUT = (
    "Median time of a call on each machine, with the runs' threads and torch. A + behind a commit "
    "says that files differed from it. What moves nn.LSTM's line too is the machine."
)
PAGE, TABLES = "history.html", "README.md"
# A picture's own units: its size, what is left free around the lines, for the figures too.
WIDTH, HEIGHT, MARGIN = 260, 84, 10
LINES = ((REFERENCE, "var(--nn)"), ("fused", "var(--fused)"))


class Point(NamedTuple):
    """A run in a case's line: its place among the machine's runs, its record, seconds by peer."""

    place: int
    record: Record
    seconds: dict[str, float]


def points_of(headline: Bar, records: Sequence[Record]) -> list[Point]:
    """The runs that have the case."""
    key = case_key(headline)
    return [
        Point(place, record, record["cases"][key])
        for place, record in enumerate(records)
        if key in record["cases"]
    ]


def write_pages(folder: Path) -> list[Path]:
    """Writes the page and the Markdown file beside the records; their paths."""
    histories = read_all(folder)
    written = []
    for name, text in ((PAGE, make_html(histories)), (TABLES, make_markdown(histories))):
        written.append(folder / name)
        written[-1].write_text(text, "utf-8")
    return written


# ------------------------------------------------------------------------------------------- HTML


def make_html(histories: dict[str, list[Record]]) -> str:
    names = " &nbsp; ".join(
        f"<b style='color:{colour}'>●</b> {escape(label_of(peer))}" for peer, colour in LINES[::-1]
    )
    parts = [paragraph(ABOUT, "faint"), f"<p>{names}</p>"]
    for machine, records in histories.items():
        cards = [_card(headline, records) for headline in HEADLINES]
        head, rows = figure_table(records)
        figures = table(head, (Line("", row) for row in rows))
        parts += [
            f"<h2>{escape(machine)}</h2>",
            paragraph(_where(records), "faint"),
            f"<div class='cards'>{''.join(cards)}</div>",
            folded("All figures", figures, about="FusedLSTM's times by commit"),
        ]
    return make_page(TITLE, parts)


def _where(records: Sequence[Record]) -> str:
    machine = records[-1]["machine"]
    count = f"{len(records)} run" + "s" * (len(records) != 1)
    days = dict.fromkeys(record["time"][:10] for record in (records[0], records[-1]))
    return f"{machine['cpu']}, {machine['cores']} cores; {count}, {' – '.join(days)}."


def _card(headline: Bar, records: Sequence[Record]) -> str:
    points = points_of(headline, records)
    if not points:
        return ""
    last = points[-1].seconds
    figures = [f"<b>{scaled(last['fused'], 's')}</b>"]
    if REFERENCE in last:
        figures.append(f"{last[REFERENCE] / last['fused']:.2f}× nn.LSTM")
    begun = ""
    if len(points) > 1:
        first = points[0]
        begun = f"first {scaled(first.seconds['fused'], 's')} at {first.record['commit'][:7]}"
        begun = f"<span class='faint'>{escape(begun)}</span>"
    return (
        f"<div class='card'><h3>{escape(headline.text)}</h3>"
        f"{draw(points, len(records), headline.text)}{', '.join(figures)}{begun}</div>"
    )


def draw(points: Sequence[Point], runs: int, what: str) -> str:
    """Time against the runs, from 0 on: a line for nn.LSTM and one for FusedLSTM."""
    most = max(seconds for point in points for seconds in point.seconds.values())
    step = (WIDTH - 2 * MARGIN) / max(runs - 1, 1)
    bottom = HEIGHT - MARGIN
    lines = [
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(what, quote=True)}'>",
        f"<path d='M{MARGIN} {bottom}H{WIDTH - MARGIN}' stroke='var(--line)'/>",
    ]
    for peer, colour in LINES:
        own = [point for point in points if peer in point.seconds]
        places = [
            (
                MARGIN + step * point.place if runs > 1 else WIDTH / 2,
                bottom - (bottom - MARGIN) * point.seconds[peer] / most,
            )
            for point in own
        ]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if len(places) > 1:
            lines.append(f"<path d='M{way}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for (x, y), point in zip(places, own, strict=True):
            title = f"{point.record['commit']}: {scaled(point.seconds[peer], 's')}"
            lines.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colour}'>"
                f"<title>{escape(title)}</title></circle>"
            )
    return "".join([*lines, "</svg>"])


# --------------------------------------------------------------------------------------- Markdown


def figure_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """A line for each run: its commit, date and torch, then times and ratios to nn.LSTM's."""
    rows = []
    for record in records:
        cells = [record["commit"], record["time"][:10], str(record["threads"]), record["torch"]]
        for headline in HEADLINES:
            seconds = record["cases"].get(case_key(headline))
            cells.append(_figure(seconds) if seconds else "–")
        rows.append(cells)
    return ["commit", "date", "threads", "torch", *(line.text for line in HEADLINES)], rows


def _figure(seconds: dict[str, float]) -> str:
    ratio = seconds[REFERENCE] / seconds["fused"] if REFERENCE in seconds else None
    return f"{scaled(seconds['fused'], 's')} ({shown(ratio, '.2f')})"


def make_markdown(histories: dict[str, list[Record]]) -> str:
    parts = [
        "<!-- SPDX-License-Identifier: BSD-3-Clause. Written by python -m benchmarks history. -->\n"
        f"# {TITLE}",
        f"{ABOUT} In brackets: times as fast as nn.LSTM in the same run. `python -m benchmarks "
        "history --add RUN.jsonl --machine NAME` adds a run, and writes a page with pictures too.",
    ]
    for machine, records in histories.items():
        head, rows = figure_table(records)
        lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts += [f"## {machine}", _where(records), text]
    return "\n\n".join(parts) + "\n"
