# SPDX-License-Identifier: BSD-3-Clause
"""A Markdown file of all figures, small enough to be committed and compared by eye."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from benchmarks.records import Results
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
from benchmarks.suites import SUITES
from benchmarks.table import closing_lines


def make_markdown(results: Results) -> str:
    parts = [
        "<!-- SPDX-License-Identifier: BSD-3-Clause. Written by python -m benchmarks. -->\n"
        f"# {title_of(results)}",
        machine_line(results),
        HOW_TO_READ,
        yardstick_line(results),
        "## Geometric means of speed-ups",
        _table(MEANS_COLUMNS, mean_rows(results)),
        *map(_escaped, closing_lines(results)),
    ]
    for suite in results.suites():
        about = SUITES[suite].about if suite in SUITES else ""
        parts += [
            f"## {suite}",
            about,
            _table(*figure_table(results.of_suite(suite))),
        ]
    if rates := rate_rows(results):
        parts += ["## Yardsticks, GFLOP/s", _table(RATES_COLUMNS, rates)]
    parts += ["## Run", f"```json\n{json.dumps(results.run, indent=1)}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def _escaped(text: str) -> str:
    """Text in which Markdown's own signs, and a line's end, stand for themselves."""
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
