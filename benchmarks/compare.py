# SPDX-License-Identifier: BSD-3-Clause
"""Two runs: what changed, and what is noise.

A row's unit is the logarithm of the median of a round. From the differences between the runs comes
off what moved the whole machine: the median over the rows of the peers that did not change, all but
FusedLSTM. A change is told only where three things hold: a permutation test over the rounds finds
it (p ≤ alpha), it is at least the threshold, and it stands out from how much this peer's rows
differ between the runs in general, which the rounds of one process cannot show.

NOTE: not the ratio to nn.LSTM in the same round. That was tried: nn.LSTM's time jumps by 2x between
processes (page faults of its buffers) where FusedLSTM's holds to 5 %, and made changes of nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.records import Record, Results, key_of
from benchmarks.rows import scaled
from benchmarks.stats import bootstrap_interval, permutation_p, spread

# A change must be this many standard deviations of its peer's rows.
DEVIATIONS = 3.0
# With fewer rows than this, a peer's deviation is taken to be that of all peers.
LEAST_ROWS = 5
SUBJECTS = ("fused", "fused-plain")


@dataclass(frozen=True)
class Change:
    """One row of both runs. Ratios are after / before: above 1 is slower (or larger)."""

    before: Record
    after: Record
    ratio: float
    low: float
    high: float
    p: float
    verdict: str  # "slower", "faster", "same", "too few rounds"


@dataclass(frozen=True)
class Comparison:
    changes: list[Change]
    drift: float  # after / before of the machine as a whole
    needed: dict[str, float]  # by peer, the least ratio that counts as a change
    unmatched: int
    warnings: list[str]


def compare(
    before: Results, after: Results, *, threshold: float = 0.05, alpha: float = 0.01
) -> Comparison:
    """Pairs the rows of two runs and classifies each pair.

    Args:
        threshold: changes below this share are never told.
        alpha: the chance, for each row, that a difference between equal programs is taken for real
            by the test over the rounds.
    """
    first, second = _by_key(before), _by_key(after)
    pairs = [(first[key], second[key]) for key in first if key in second]
    moves = [(a["peer"], float(np.median(_units(b)) - np.median(_units(a)))) for a, b in pairs]
    controls = [move for peer, move in moves if peer not in SUBJECTS]
    drift = float(np.median(controls)) if controls else 0.0
    needed = {}
    for peer in dict.fromkeys(peer for peer, _ in moves):
        own = [move for name, move in moves if name == peer]
        noise = spread(own) if len(own) >= LEAST_ROWS else spread([move for _, move in moves])
        needed[peer] = max(math.log1p(threshold), DEVIATIONS * noise)
    changes = [_classify(a, b, drift, needed[a["peer"]], alpha) for a, b in pairs]
    unmatched = len(first) + len(second) - 2 * len(pairs)
    ratios = {peer: math.exp(value) for peer, value in needed.items()}
    return Comparison(changes, math.exp(drift), ratios, unmatched, _warnings(before, after))


def _by_key(results: Results) -> dict[tuple[str, ...], Record]:
    return {key_of(row): row for row in results.timed()}


def _units(row: Record) -> list[float]:
    return [math.log(float(np.median(samples))) for samples in row["rounds"]]


def _classify(before: Record, after: Record, drift: float, needed: float, alpha: float) -> Change:
    a = _units(before)
    b = [unit - (drift if after["unit"] == "s" else 0.0) for unit in _units(after)]
    difference = float(np.median(b) - np.median(a))
    low, high = bootstrap_interval(a, b)
    p = permutation_p(a, b)
    # The smallest p that so many rounds can give: the two extreme splits among all.
    reachable = 2 / math.comb(len(a) + len(b), len(a))
    if abs(difference) < needed:
        verdict = "same"
    elif reachable > alpha:
        verdict = "too few rounds"
    elif p > alpha:
        verdict = "same"
    else:
        verdict = "slower" if difference > 0 else "faster"
    return Change(before, after, math.exp(difference), math.exp(low), math.exp(high), p, verdict)


def _warnings(before: Results, after: Results) -> list[str]:
    """What makes two runs hard to compare."""
    found = []
    for name in ("cpu", "gpu", "cores", "packages", "environment"):
        one, two = before.run["machine"].get(name), after.run["machine"].get(name)
        if one != two:
            found.append(f"{name} differs: {one} and {two}")
    for who, results in (("before", before), ("after", after)):
        if (share := results.disturbed()) > 0:
            found.append(f"{who}: other programs were running during {share:.0%} of the rows")
    return found


def print_comparison(console: Console, found: Comparison) -> int:
    """Prints a table; returns the exit status: 1 if a row of FusedLSTM is slower."""
    table = Table(header_style="bold")
    for name in ("suite", "case", "peer", "before", "after", "ratio", "95 %", "p", "verdict"):
        table.add_column(name, overflow="fold")
    order = {"slower": 0, "faster": 1, "too few rounds": 2, "same": 3}
    styles = {"slower": "red", "faster": "green", "too few rounds": "yellow", "same": "dim"}
    for change in sorted(found.changes, key=lambda c: (order[c.verdict], -abs(math.log(c.ratio)))):
        row = change.before
        table.add_row(
            row["suite"],
            row["label"],
            row["peer"],
            scaled(row["median"], row["unit"]),
            scaled(change.after["median"], row["unit"]),
            f"{change.ratio:.3f}",
            f"{change.low:.3f} – {change.high:.3f}",
            f"{change.p:.3f}",
            change.verdict,
            style=styles[change.verdict],
        )
    console.print(table)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    counts = ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in found.needed.items())
    console.print(
        f"The machine as a whole: {found.drift:.3f}, taken off all ratios. A change counts from "
        f"this ratio (or its inverse) on: {counts}. {found.unmatched} rows stand in one run only.",
        highlight=False,
    )
    return int(any(c.verdict == "slower" and c.after["peer"] in SUBJECTS for c in found.changes))
