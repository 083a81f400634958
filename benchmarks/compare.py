# SPDX-License-Identifier: BSD-3-Clause
"""Two runs: what changed, and what is noise.

A row's unit is the median of a round, divided by nn.LSTM's of the same round: what slows the whole
machine down cancels out. A change is told only where three things hold: a permutation test over the
rounds finds it (p ≤ alpha), it is at least the threshold, and it is beyond the spread that nn.LSTM,
which did not change, shows between the two runs. Rows of nn.LSTM themselves are compared by time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers import REFERENCE
from benchmarks.records import Record, Results, key_of
from benchmarks.rows import scaled
from benchmarks.stats import bootstrap_interval, permutation_p, spread

# A change must be this many standard deviations of the reference's ratios between the runs.
CONTROL_DEVIATIONS = 3.0


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
    needed: float  # the least ratio that counts as a change
    control: float  # standard deviation of the reference's ratios, as a share
    unmatched: int
    warnings: list[str]


def compare(
    before: Results, after: Results, *, threshold: float = 0.05, alpha: float = 0.01
) -> Comparison:
    """Pairs the rows of two runs and judges each pair.

    Args:
        threshold: changes below this share are never told.
        alpha: the chance, for each row, that a difference between equal programs is taken for real
            by the test over the rounds.
    """
    first, second = _by_key(before), _by_key(after)
    pairs = [(first[key], second[key]) for key in first if key in second]
    controls = [math.log(b["median"] / a["median"]) for a, b in pairs if a["peer"] == REFERENCE]
    # What moved every row alike is the machine, not the spread between rows.
    shift = float(np.median(controls)) if controls else 0.0
    control = spread([value - shift for value in controls])
    needed = max(math.log1p(threshold), CONTROL_DEVIATIONS * control)
    changes = [_judge(a, b, _units(a, before), _units(b, after), needed, alpha) for a, b in pairs]
    unmatched = len(first) + len(second) - 2 * len(pairs)
    return Comparison(
        changes, math.exp(needed), math.expm1(control), unmatched, _warnings(before, after)
    )


def _by_key(results: Results) -> dict[tuple[str, ...], Record]:
    return {key_of(row): row for row in results.timed()}


def _units(row: Record, results: Results) -> list[float]:
    """Logarithms of a row's rounds, each relative to the reference's round where there is one."""
    own = [math.log(float(np.median(samples))) for samples in row["rounds"]]
    if row["peer"] == REFERENCE:
        return own
    wanted = (row["suite"], REFERENCE, *key_of(row)[2:])
    for other in results.timed(row["suite"], REFERENCE):
        if key_of(other) == wanted:
            theirs = [math.log(float(np.median(samples))) for samples in other["rounds"]]
            return [a - b for a, b in zip(own, theirs, strict=False)]
    return own


def _judge(
    before: Record,
    after: Record,
    a: Sequence[float],
    b: Sequence[float],
    needed: float,
    alpha: float,
) -> Change:
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
    console.print(
        f"A change counts from a ratio of {found.needed:.3f} (or its inverse) on: nn.LSTM's own "
        f"rows differ by {found.control:.1%} between the runs. {found.unmatched} rows stand in "
        "one run only."
    )
    return int(any(c.verdict == "slower" and c.after["peer"] == "fused" for c in found.changes))
