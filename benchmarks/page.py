# SPDX-License-Identifier: BSD-3-Clause
"""What the HTML pages are made of: the frame with its style, tables, bars. A page loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.peers import PEERS

# One colour for each peer in every picture; FusedLSTM and nn.LSTM stand out. The variable differs
# between light and dark pages.
_PALETTE = ("#4c78a8", "#72b7b2", "#54a24b", "#d9a521", "#b279a2", "#9d755d")
_OTHERS = [name for name in PEERS if name not in ("fused", "nn")]
COLOURS = {
    "fused": "var(--fused)",
    "nn": "var(--nn)",
    **{name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(_OTHERS)},
}

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --page: #fff; --card: #f6f8fa; --fused: #b4432f; --nn: #6e7781; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9198a1; --line: #3d444d;
  --page: #0d1117; --card: #161b22; --fused: #e07a5f; --nn: #8b949e; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 68em; margin: 0 auto; padding: 1em 1em 4em; overflow-wrap: break-word; }
h1 { font-size: 1.6em; line-height: 1.2; margin: .6em 0 .3em; }
h2 { font-size: 1.2em; margin: 1.8em 0 .4em; }
h3 { font-size: 1em; margin: 0; }
p { margin: .4em 0; max-width: 52em; }
.faint { color: var(--faint); font-size: .9em; }
.warn { color: var(--bad); }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6em 0; padding: 0 .9em; }
details[open] { padding-bottom: .7em; }
details details { background: var(--card); }
summary { cursor: pointer; padding: .5em 0; }
summary b { margin-right: .4em; }
.scroll { overflow-x: auto; margin: .6em 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; text-align: right; white-space: nowrap; font-weight: 400; }
thead th { border-bottom: 1px solid var(--faint); color: var(--faint); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.figures th:first-child, .figures td:first-child { position: sticky; left: 0;
  background: var(--card); }
td.note { text-align: left; white-space: normal; min-width: 24em; }
tr.group th { text-align: left; padding-top: .8em; font-weight: 600; }
tr.group span { position: sticky; left: 0; }
tr.fused td { font-weight: 600; }
tr.wrong td, tr.error td { color: var(--bad); }
tr.unsupported td { color: var(--faint); }
pre { background: var(--card); padding: .8em; overflow-x: auto; font-size: 12px; }
.case { display: grid; grid-template-columns: 18em 1fr; gap: 0 1em; margin: .7em 0;
  font-size: 13px; align-items: center; }
.bar { display: grid; grid-template-columns: 14.5em 1fr; gap: .7em; line-height: 1.45; }
.peer { text-align: right; color: var(--faint); }
.track { position: relative; height: 1.45em; --room: calc(100% - 9.5em); }
.track > * { position: absolute; }
.track i { left: 0; top: .22em; bottom: .22em; border-radius: 2px; min-width: 1px;
  width: calc(var(--room) * var(--size)); }
.track u { top: .7em; height: 1px; background: var(--text); opacity: .6;
  left: calc(var(--room) * var(--low)); width: calc(var(--room) * (var(--high) - var(--low))); }
.track s { top: 0; bottom: 0; border-left: 1px dashed var(--faint);
  left: calc(var(--room) * var(--one)); }
.track span { white-space: nowrap; background: var(--page); padding-right: .3em;
  font-variant-numeric: tabular-nums;
  left: calc(var(--room) * max(var(--size), var(--high)) + .5em); }
.track span b { font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: .8em; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6em .9em; min-width: 0; }
.card span { display: block; }
.card svg { display: block; width: 100%; height: auto; margin: .4em 0; }
@media (max-width: 44em) {
  .case { grid-template-columns: 1fr; margin: 1em 0; }
  .case h3 { margin-bottom: .1em; }
  .bar { grid-template-columns: 8.4em 1fr; gap: .5em; align-items: center; }
  .peer { line-height: 1.15; }
  .figures td:first-child { white-space: normal; min-width: 8.4em; }
}
"""


def make_page(title: str, parts: Iterable[str]) -> str:
    head = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
    )
    return "\n".join([head, f"<h1>{escape(title)}</h1>", *filter(None, parts), "</body></html>\n"])


def paragraph(text: str, kind: str = "") -> str:
    return f"<p class='{kind}'>{escape(text)}</p>" if text else ""


def folded(summary: str, *parts: str, about: str = "", is_open: bool = False) -> str:
    """What a click opens.

    Args:
        about: stands behind the summary, less strong.
    """
    shown = f"<b>{escape(summary)}</b> <span class='faint'>{escape(about)}</span>"
    opened = " open" * is_open
    return f"<details{opened}><summary>{shown}</summary>\n{''.join(parts)}</details>"


class Line(NamedTuple):
    """A line of a table: its class names, its cells, and the heading above it, if any."""

    kind: str
    cells: Sequence[str]
    heading: str = ""


def table(head: Sequence[str], lines: Iterable[Line], kind: str = "") -> str:
    """A table that scrolls inside itself; the column "note", the last, is prose."""
    html = [f"<div class='scroll'><table class='{kind}'><thead><tr>"]
    html += [f"<th>{escape(name)}</th>" for name in head]
    html.append("</tr></thead>")
    for line in lines:
        if line.heading:
            name = escape(line.heading)
            html.append(
                f"<tr class='group'><th colspan='{len(head)}'><span>{name}</span></th></tr>"
            )
        cells = "".join(
            f"<td class='note'>{escape(text)}</td>"
            if name == "note"
            else f"<td>{escape(text)}</td>"
            for name, text in zip(head, line.cells, strict=True)
        )
        html.append(f"<tr class='{line.kind}'>{cells}</tr>")
    return "".join([*html, "</table></div>"])


class Bar(NamedTuple):
    """A bar of one peer: its length and whisker, all in the figure's unit, and what it says."""

    peer: str
    label: str
    length: float
    low: float
    high: float
    strong: str
    faint: str


def bars(cases: dict[str, list[Bar]]) -> str:
    """Bars from 0 on one scale for all cases, each with its text; a line marks 1."""
    longest = max(
        (max(bar.length, bar.high, 1.0) for group in cases.values() for bar in group), default=1.0
    )
    html = []
    for name, group in cases.items():
        html.append(f"<div class='case'><h3>{escape(name)}</h3><div>")
        for bar in group:
            sizes = zip(
                ("size", "low", "high", "one"), (bar.length, bar.low, bar.high, 1.0), strict=True
            )
            style = ";".join(f"--{key}:{value / longest:.4f}" for key, value in sizes)
            html.append(
                f"<div class='bar'><span class='peer'>{escape(bar.label)}</span>"
                f"<div class='track' style='{style}'>"
                f"<i style='background:{COLOURS.get(bar.peer, 'var(--faint)')}'></i><u></u><s></s>"
                f"<span><b>{escape(bar.strong)}</b> {escape(bar.faint)}</span></div></div>"
            )
        html.append("</div></div>")
    return "".join(html)
