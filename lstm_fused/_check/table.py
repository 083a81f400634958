# SPDX-License-Identifier: BSD-3-Clause
"""The result of a check as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lstm_fused._check.problem import Errors

_HEAD = (
    *("device", "kernel", "products", "forward", "backward"),
    *("µs a step", "nn.LSTM", "training", "nn.LSTM", ""),
)


@dataclass(frozen=True)
class Times:
    """Seconds of a step of time: of a forward without gradients, and of a training step, where
    there is one."""

    inference: float
    training: float | None


@dataclass(frozen=True)
class Row:
    """What was found of one kernel on one device. Without errors it did not run."""

    device: str
    kernel: str
    kind: str
    errors: Errors | None = None
    ours: Times | None = None
    theirs: Times | None = None  # nn.LSTM's
    note: str = ""
    is_fault: bool = False  # whatever the errors are

    @property
    def is_wrong(self) -> bool:
        errors = [error for error in self.errors or () if error is not None]
        return self.is_fault or not all(error <= 1 for error in errors)

    def cells(self) -> tuple[str, ...]:
        errors = self.errors or (None, None)
        times = [getattr(t, name, None) for name in ("inference", "training")
                 for t in (self.ours, self.theirs)]  # fmt: skip
        return (
            *(self.device, self.kernel, self.kind),
            *("–" if error is None else f"{error:.2g}" for error in errors),
            *("–" if time is None else f"{time * 1e6:.2f}" for time in times),
            "WRONG" if self.is_wrong else "" if self.errors is None else "ok",
        )


def format_table(rows: Sequence[Row]) -> str:
    """A table in Markdown, aligned, and the notes of its rows."""
    cells = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(n) for text, n in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (n + 2) for n in widths) + "|")
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(f"{row.device} {row.kernel} {row.kind}")
    lines += [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    return "\n".join(lines)
