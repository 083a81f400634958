# SPDX-License-Identifier: BSD-3-Clause
"""The pictures: speed-ups of every suite, and how near the machine's rate each case comes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers import PEERS, REFERENCE
from benchmarks.records import Record, Results
from benchmarks.table import label_of

matplotlib.use("Agg")

# One colour for each peer in every picture; FusedLSTM and nn.LSTM stand out.
_PALETTE = ("#c4342d", "#333333", "#8c8c8c", "#4c78a8", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2")
COLOURS = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(PEERS)}


def draw_all(results: Results) -> dict[str, bytes]:
    """PNG images by name: one for each suite that has speed-ups, and "share"."""
    drawn = {}
    for suite in results.suites():
        rows = [row for row in results.timed(suite) if row["speedup"] and row["peer"] != REFERENCE]
        if rows:
            drawn[suite] = _draw_speedups(suite, rows)
    rows = [row for row in results.timed() if row["gemm_share"] and row["suite"] in _SHARE_SUITES]
    if rows:
        drawn["share"] = _draw_shares(rows)
    return drawn


_SHARE_SUITES = ("inference", "training")


def _draw_speedups(suite: str, rows: list[Record]) -> bytes:
    """Bars on a logarithmic axis from 1: to the right is faster than nn.LSTM."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    # One line for each bar, and one left free between cases.
    places = {id(row): i + labels.index(row["label"]) for i, row in enumerate(rows)}
    figure = Figure(figsize=(9, 1.5 + 0.2 * (len(rows) + len(labels))))
    axes = figure.add_subplot()
    for peer in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == peer]
        ratios = [row["speedup"] for row in own]
        # The whiskers are this peer's own p10 to p90, nn.LSTM's median held fixed.
        low = [r - r * row["median"] / row["p90"] for r, row in zip(ratios, own, strict=True)]
        high = [r * row["median"] / row["p10"] - r for r, row in zip(ratios, own, strict=True)]
        axes.barh(
            [places[id(row)] for row in own],
            [ratio - 1 for ratio in ratios],
            0.9,
            left=1,
            xerr=[low, high],
            error_kw={"elinewidth": 0.8, "ecolor": "#00000080"},
            color=COLOURS.get(peer, "#555555"),
            label=label_of(peer),
        )
        for ratio, end, row in zip(ratios, high, own, strict=True):
            at = (max(ratio + end, 1), places[id(row)])
            axes.annotate(f" {ratio:.2f}", at, va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.02)
    middles = [np.mean([places[id(r)] for r in rows if r["label"] == label]) for label in labels]
    axes.set_yticks(middles, labels, fontsize=8)
    axes.invert_yaxis()
    what = "memory of nn.LSTM / memory" if rows[0]["unit"] == "bytes" else "time of nn.LSTM / time"
    axes.set_xlabel(f"{what} (above 1: better)")
    axes.set_title(suite)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def _draw_shares(rows: list[Record]) -> bytes:
    """Points: arithmetic reached, as a share of sgemm's in the same run."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(labels)))
    axes = figure.add_subplot()
    for peer in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == peer]
        axes.plot(
            [100 * row["gemm_share"] for row in own],
            [labels.index(row["label"]) for row in own],
            "o",
            color=COLOURS.get(peer, "#555555"),
            label=label_of(peer),
        )
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlabel("GFLOP/s, % of the measured matrix product's")
    axes.legend(fontsize=7, loc="best")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return file.getvalue()
