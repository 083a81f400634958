# SPDX-License-Identifier: BSD-3-Clause
"""Writes a run's reports beside its results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.html_report import make_html
from benchmarks.markdown_report import make_markdown
from benchmarks.records import Results


def write_reports(results: Results, path: Path) -> list[Path]:
    """Writes the HTML report and the Markdown report; their paths."""
    written = []
    for suffix, text in ((".html", make_html(results)), (".md", make_markdown(results))):
        written.append(path.with_suffix(suffix))
        written[-1].write_text(text, encoding="utf-8")
    return written
