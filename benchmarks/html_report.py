# SPDX-License-Identifier: BSD-3-Clause
"""One HTML file that holds all: figures, pictures, the machine. It loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from benchmarks.records import Record, Results
from benchmarks.report import (
    HOW_TO_READ,
    MEANS_COLUMNS,
    figure_table,
    machine_line,
    mean_rows,
    title_of,
)
from benchmarks.suites import SUITES
from benchmarks.table import closing_lines, label_of

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { padding: .2em .7em; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #333; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 1px solid #bbb; }
tr.fused td { font-weight: 600; }
tr.wrong td, tr.error td { color: #b00020; }
tr.unsupported td { color: #777; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 12px; }
"""


def make_html(results: Results, images: dict[str, bytes]) -> str:
    title = title_of(results)
    parts = [
        "<!DOCTYPE html>",
        f"<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in (machine_line(results), HOW_TO_READ)),
        "<h2>Geometric means of speed-ups</h2>",
        _means(results),
        *(f"<p>{escape(line)}</p>" for line in closing_lines(results)),
    ]
    for suite in results.suites():
        about = SUITES[suite].about if suite in SUITES else ""
        parts += [f"<h2>{escape(suite)}</h2><p>{escape(about)}</p>", _image(images, suite)]
        parts.append(_rows(results.of_suite(suite)))
    parts += ["<h2>Share of the matrix product's rate</h2>", _image(images, "share")]
    parts += [
        _kernels(results),
        "<h2>Run</h2>",
        f"<pre>{escape(json.dumps(results.run, indent=1))}</pre>",
    ]
    return "\n".join([*parts, "</body></html>\n"])


def _table(head: Iterable[str], rows: Iterable[tuple[str, Iterable[Any]]]) -> str:
    """
    Args:
        rows: class names and cells of each row.
    """
    lines = ["<table><tr>", *(f"<th>{escape(name)}</th>" for name in head), "</tr>"]
    for kind, texts in rows:
        inner = "".join(f"<td>{escape(str(text))}</td>" for text in texts)
        lines.append(f"<tr class='{kind}'>{inner}</tr>")
    return "".join([*lines, "</table>"])


def _means(results: Results) -> str:
    return _table(MEANS_COLUMNS, (("", row) for row in mean_rows(results)))


def _rows(rows: Sequence[Record]) -> str:
    shown: list[tuple[str, list[str]]] = []
    columns, figures = figure_table(rows)
    for row, texts in zip(rows, figures, strict=True):
        kind = f"{row['status']} {row['peer']}" + " first" * bool(texts[0])
        shown.append((kind, texts))
    return _table(columns, shown)


def _kernels(results: Results) -> str:
    """What each call launches on a GPU."""
    rows = [
        ("first", (row["label"], label_of(row["peer"]), "; ".join(row["kernels"])))
        for row in results.timed()
        if row["kernels"]
    ]
    head = "<h2>Kernels of a call</h2>"
    return head + _table(("case", "peer", "kernels"), rows) if rows else ""


def _image(images: dict[str, bytes], name: str) -> str:
    if name not in images:
        return ""
    data = base64.b64encode(images[name]).decode()
    return f"<img alt='{escape(name)}' src='data:image/png;base64,{data}'>"
