# SPDX-License-Identifier: BSD-3-Clause
"""What a conversion changed and what it left."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Converted:
    """A module that was swapped: where, its class before and after, and what it lost ("" if
    nothing)."""

    path: str
    before: str
    after: str
    lost: str = ""


@dataclass(frozen=True)
class Left:
    """An LSTM that stayed as it was: where, its class, and why."""

    path: str
    kind: str
    reason: str


@dataclass
class ConversionReport:
    """What `convert` or `revert` did. str() gives a table.

    A path is that of `named_modules`, "" for the model itself. A module that stands in several
    places is listed once for each of them.
    """

    converted: list[Converted] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            (c.path, f"{c.before} -> {c.after}", f"lost: {c.lost}" if c.lost else "")
            for c in self.converted
        ]
        rows += [(left.path, left.kind, f"left: {left.reason}") for left in self.left]
        if not rows:
            return "no LSTMs found"
        rows = [(path or "(the model)", kind, note) for path, kind, note in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{p:{widths[0]}}  {k:{widths[1]}}  {n}".rstrip() for p, k, n in rows)

    def warn(self, verb: str, stacklevel: int) -> None:
        """One UserWarning that names what was left or lost, if anything was."""
        lines = [f"{x.path or '(the model)'} ({x.kind}): {x.reason}" for x in self.left]
        if lines:
            lines.insert(0, f"lstm_fused.{verb} left as they were:")
        lost = [
            f"{c.path or '(the model)'} ({c.after}): {c.lost}" for c in self.converted if c.lost
        ]
        if lost:
            lines += [f"lstm_fused.{verb} lost options of:", *lost]
        if lines:
            warnings.warn("\n  ".join(lines), UserWarning, stacklevel=stacklevel + 1)


# Pickles name these classes, so their place is one that stays.
for _class in (Converted, Left, ConversionReport):
    _class.__module__ = "lstm_fused.convert"
