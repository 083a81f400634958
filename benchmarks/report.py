# SPDX-License-Identifier: BSD-3-Clause
"""One HTML file that holds all: figures, pictures, the machine. It loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.plots import draw_all
from benchmarks.records import Record, Results
from benchmarks.suites import SUITES
from benchmarks.table import COLUMNS, cells, closing_lines, label_of

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


def write_reports(results: Results, path: Path) -> list[Path]:
    """Writes the HTML report and the PNG images beside the results; returns their paths."""
    images = draw_all(results)
    written = []
    for name, image in images.items():
        written.append(path.with_name(f"{path.stem}_{name}.png"))
        written[-1].write_bytes(image)
    written.append(path.with_suffix(".html"))
    written[-1].write_text(make_html(results, images), encoding="utf-8")
    return written


def make_html(results: Results, images: dict[str, bytes]) -> str:
    run, machine = results.run, results.run["machine"]
    where = machine.get("gpu") or machine["cpu"]
    title = f"lstm_fused: benchmarks of {run['time']}"
    parts = [
        "<!DOCTYPE html>",
        f"<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        f"<p>{escape(where)}, {machine['cores']} cores, {run['threads']} threads; "
        f"commit {escape(machine['commit'])}; torch {escape(str(machine['packages']['torch']))}; "
        f"{run['rounds']} rounds.</p>",
        "<p>Each peer computes in a process of its own, one at a time, in alternation; results "
        "were checked before anything was timed. Speed-ups are ratios of medians against nn.LSTM "
        "in the same run; the share is of the matrix product's rate on this machine in this run; "
        "the floor, for one row, is the time of reading the weights. benchmarks/README.md tells "
        "more."
        "</p>",
        "<h2>Geometric means of speed-ups</h2>",
        _means(results),
        *(f"<p>{escape(line)}</p>" for line in closing_lines(results)),
    ]
    for suite in results.suites():
        about = SUITES[suite].about if suite in SUITES else ""
        parts += [f"<h2>{escape(suite)}</h2><p>{escape(about)}</p>", _image(images, suite)]
        parts.append(_rows(row for row in results.rows if row["suite"] == suite))
    parts += ["<h2>Share of the matrix product's rate</h2>", _image(images, "share")]
    parts += [_kernels(results), "<h2>Run</h2>", f"<pre>{escape(json.dumps(run, indent=1))}</pre>"]
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
    means = results.geometric_means()
    rows = [
        ("", (suite, label_of(peer), f"{mean:.2f}", count))
        for suite, by_peer in means.items()
        for peer, (mean, count) in by_peer.items()
    ]
    return _table(("suite", "peer", "speed-up", "cases"), rows)


def _rows(rows: Iterable[Record]) -> str:
    shown: list[tuple[str, list[str]]] = []
    last = ""
    for row in rows:
        kind = f"{row['status']} {row['peer']}" + " first" * (row["label"] != last)
        name = row["label"] if row["label"] != last else ""
        last = row["label"]
        if row["status"] == "ok":
            figures = [*cells(row), row["note"]]
        else:
            figures = [row["status"], *[""] * (len(COLUMNS) - 1), row["reason"]]
        shown.append((kind, [name, label_of(row["peer"]), *figures]))
    return _table(("case", "peer", *COLUMNS, "note"), shown)


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
