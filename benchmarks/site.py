# SPDX-License-Identifier: BSD-3-Clause
"""Writes what README.md and docs/performance.md show of the committed results: the pictures in
docs/_static, each for light and dark pages, and the tables of docs/performance.md.

    python -m benchmarks.site

The files depend on the results alone, and a test compares them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.records import Record, read_results
from benchmarks.rows import scaled

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "_static"
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- written by python -m benchmarks.site: {} -->\n"
END = "<!-- end of what is written -->\n"
# The machine of the pictures, and the one beside it in the table.
MAIN, OTHER = "zen5-2cores", "zen4-2cores"
# Runs of the suite "weights" on that machine, by their number of threads.
WEIGHTS = {1: f"{MAIN}-weights-1thread", 2: f"{MAIN}-weights-2threads"}
# The peers of that suite in the tables, and what their columns are called.
COLUMNS = {
    "nn": "nn.LSTM",
    "fused": "FusedLSTM",
    "fused-int8": "int8 (its floor)",
    "fused-bfloat16": "bfloat16",
    "fused-float16": "float16",
    "torch-int8": "torch int8",
    "onnxruntime-int8": "ONNX Runtime int8",
    "openvino-int8": "OpenVINO int8",
}
TITLES = {
    "step": "One step, as a stream of data takes it",
    "cell": "Cells, one thread",
    "inference": "Inference, whole sequences",
    "training": "Training",
    "ragged": "Training, rows of unequal lengths (T … T/4)",
    "resets": "Training, states reset in 3 % of the steps",
    "saturated": "Gates that are closed or saturated",
    "options": "Training, other options",
    "lowp": "16-bit types",
    "scaling": "One thread, two threads, and beside a process that keeps both cores busy",
    "memory": "Peak memory of a training step",
}


class Bar(NamedTuple):
    """A case in a picture: the suite, the label in the results, what readers are told."""

    suite: str
    label: str
    text: str


HEADLINES = (
    Bar("step", "T=1 N=1 D=H=128 inference", "one step, 1 row, 128 units"),
    Bar("inference", "T=100 N=1 D=H=256 inference", "inference, 1 row, 256 units"),
    Bar("inference", "T=100 N=32 D=128 H=256 inference", "inference, 32 rows, 256 units"),
    Bar("training", "T=28 N=64 D=28 H=128 training", "training, 64 rows, 128 units"),
    Bar("training", "T=100 N=32 D=128 H=256 training", "training, 32 rows, 256 units"),
    Bar("options", "T=100 N=32 D=128 H=256 P=128 training", "training with proj_size"),
    Bar("ragged", "T=100 N=32 D=128 H=256 lengths training", "training, unequal lengths"),
    Bar("resets", "T=128 N=16 D=H=256 resets=0.03 training", "training with resets"),
    Bar("scaling", "T=100 N=32 D=H=256 busy inference", "inference, busy machine"),
)
PICTURES = {
    "inference": ("step", "inference"),
    "training": ("training",),
    "lengths": ("ragged", "resets"),
    "options": ("options",),
    "memory": ("memory",),
}


class Colours(NamedTuple):
    text: str
    faint: str
    line: str
    bar: str


THEMES = {
    "light": Colours("#1f2328", "#656d76", "#8c959f", "#b4432f"),
    "dark": Colours("#e6edf3", "#9198a1", "#6e7681", "#e07a5f"),
}
# Geometry of a picture, in its own units: a row, the longest bar, room for a letter and a figure.
# Narrow, so that it can be read on a phone.
ROW, LONGEST, LETTER, FIGURE = 30, 220, 9.2, 58


def rows_of(name: str) -> dict[tuple[str, str, str], Record]:
    """The timed rows of a file of results, by suite, label and peer."""
    results = read_results(ROOT / "benchmarks" / "results" / f"{name}.jsonl")
    return {(row["suite"], row["label"], row["peer"]): row for row in results.timed()}


def draw(bars: list[tuple[str, Record, Record]], colours: Colours, what: str) -> str:
    """A picture: for each bar its label and the rows of FusedLSTM and of nn.LSTM.

    Lengths are the ratios themselves, from 0 on; a line marks 1, where the two are equal.
    """
    ratios = [ours["speedup"] for _, ours, _ in bars]
    unit = LONGEST / max(ratios)
    left = int(LETTER * max(len(label) for label, _, _ in bars)) + 14
    left = max(left, int(7.5 * len(what)) - LONGEST - FIGURE)
    width, height = left + LONGEST + FIGURE, ROW * len(bars) + 58
    one = left + unit
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="14.5">',
        f"<title>{escape(what)}</title>",
        f'<text x="4" y="18" fill="{colours.faint}" font-size="13">{escape(what)}</text>',
    ]
    for i, ((label, ours, theirs), ratio) in enumerate(zip(bars, ratios, strict=True)):
        y = 30 + i * ROW
        length = unit * ratio
        times = f"{scaled(theirs['median'], ours['unit'])} → {scaled(ours['median'], ours['unit'])}"
        lines += [
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end" fill="{colours.text}">'
            f"{escape(label)}</text>",
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{ROW - 9}" rx="2" '
            f'fill="{colours.bar}"><title>{escape(times)}</title></rect>',
            f'<text x="{left + length + 7:.1f}" y="{y + 17}" fill="{colours.text}">'
            f"{ratio:.2f}</text>",
        ]
    bottom = 30 + ROW * len(bars)
    lines += [
        f'<path d="M{one:.1f} 26V{bottom + 4}" stroke="{colours.line}" stroke-dasharray="3 3"/>',
        f'<text x="{one:.1f}" y="{bottom + 20}" text-anchor="middle" fill="{colours.faint}" '
        'font-size="13">1: as nn.LSTM</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def pictures() -> dict[str, str]:
    """The SVG files, by name."""
    rows = rows_of(MAIN)
    charts = {"speedups": [(bar.text, bar.suite, bar.label) for bar in HEADLINES]}
    for name, suites in PICTURES.items():
        charts[name] = [
            (readable(label, own), own, label)
            for suite in suites
            for own, label, peer in rows
            if own == suite and peer == "fused"
        ]
    files = {}
    for name, chart in charts.items():
        what = "times less memory than nn.LSTM" if name == "memory" else "times as fast as nn.LSTM"
        common = same_words([text for text, _, _ in chart])
        if common:
            chart = [(t.removeprefix(common).strip() or "plain", s, k) for t, s, k in chart]
            what += f", {common}"
        bars = [(text, rows[s, label, "fused"], rows[s, label, "nn"]) for text, s, label in chart]
        for theme, colours in THEMES.items():
            files[f"{name}-{theme}.svg"] = draw(bars, colours, what)
    return files


def same_words(texts: list[str]) -> str:
    """The words with which all begin."""
    words = []
    for column in zip(*(text.split() for text in texts), strict=False):
        if len(set(column)) > 1:
            break
        words.append(column[0])
    return " ".join(words)


def readable(label: str, suite: str) -> str:
    """A label of the results without what the heading of its suite says already."""
    for word in ("inference", "training"):
        if suite != "lowp" and suite != "scaling":
            label = label.removesuffix(f" {word}")
    return label.replace(" resets=0.03", " resets").replace("recompute", "recompute=True")


def table() -> str:
    """The table of docs/performance.md: every suite of the default run."""
    main, other = rows_of(MAIN), rows_of(OTHER) | rows_of(f"{OTHER}-scaling")
    lines = []
    for suite, title in TITLES.items():
        lines += [f"### {title}", "", "| case | nn.LSTM | FusedLSTM | ratio | ratio on Zen 4 |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for (own_suite, label, peer), ours in main.items():
            if own_suite != suite or peer != "fused":
                continue
            theirs, beside = main[suite, label, "nn"], other.get((suite, label, "fused"))
            figures = [scaled(row["median"], ours["unit"]) for row in (theirs, ours)]
            figures.append(f"{ours['speedup']:.2f}")
            figures.append("–" if beside is None else f"{beside['speedup']:.2f}")
            lines.append(f"| {readable(label, suite)} | {' | '.join(figures)} |")
        lines.append("")
    return "\n".join(lines)


def in_page(row: Record) -> bool:
    """Whether docs/performance.md shows a case of the suite "weights"; others stand in reports."""
    case = row["case"]
    return case["N"] == 1 or (case["N"] == 16 and case["layers"] == 1)


def weights_table() -> str:
    """What packed weights take beside other runtimes' int8, and the largest errors of y."""
    header = "|".join(["| case ", *(f" {title} " for title in COLUMNS.values())]) + "|"
    lines = []
    errors: dict[str, dict[str, float]] = {}
    for threads, name in WEIGHTS.items():
        rows = rows_of(name)
        lines += [f"### {threads} thread{'s' * (threads > 1)}", "", header]
        lines.append("|---|" + "---:|" * len(COLUMNS))
        labels = dict.fromkeys(label for (_, label, _), row in rows.items() if in_page(row))
        for label in labels:
            cells: list[str] = []
            for peer in COLUMNS:
                row = rows.get(("weights", label, peer))
                cells.append("–" if row is None else scaled(row["median"], "s"))
                if row is None:
                    continue
                if peer == "fused-int8" and row["floor_seconds"]:
                    cells[-1] += f" ({scaled(row['floor_seconds'], 's')})"
                if row["case"]["T"] > 1 and row["y_error"] is not None:
                    group = errors.setdefault(f"H={row['case']['H']}", {})
                    group[peer] = max(group.get(peer, 0.0), row["y_error"])
            text = readable(label, "weights").removesuffix(" rounded")
            lines.append(f"| {text} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["### Largest error of y, T=100", "", header.replace(" (its floor)", "")]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for label, group in errors.items():
        cells = [f"{group[peer]:.1e}" if peer in group else "–" for peer in COLUMNS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def page(text: str) -> str:
    """docs/performance.md with the tables as they are to be."""
    for name, write in (("suites", table), ("weights", weights_table)):
        begin = BEGIN.format(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(END)
        text = f"{before}{begin}\n{write()}\n{END}{after}"
    return text


if __name__ == "__main__":
    for file_name, content in pictures().items():
        (IMAGES / file_name).write_text(content, "utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
