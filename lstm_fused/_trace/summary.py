# SPDX-License-Identifier: BSD-3-Clause
"""What units do, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lstm_fused._trace.layer import States

GATE_NAMES = {"i": "input", "f": "forget", "o": "output"}
# A unit whose output moves by less than this tells the layers above nothing.
_DEAD_RANGE = 0.01
_NAMED_UNITS = 8  # so many unit numbers fit a line


@dataclass(frozen=True, eq=False)
class UnitSummary:
    """What each unit of one direction of one layer did; float64 (H,) on the CPU.

    Attributes:
        steps: M, those counted.
        open: by gate ("i", "f", "o"), the share of steps at which it was open.
        closed: by gate, the share of steps at which it was closed.
        half_life: ln 2 / −ln f in steps, of the mean of f: a memory decays by the product of f, and
            of what the cell holds half is left, on average, after so many steps (Mahto, Vo, Turek &
            Huth: Multi-timescale representation learning in LSTM language models. ICLR, 2021; there
            −1/ln f). inf where f is 1 throughout, 0 where it is 0.
        dead: bool; the unit's output o·tanh(c) moved by less than 0.01 in all. With fewer than two
            steps nothing can be told: False.
    """

    steps: int
    open: dict[str, Tensor]
    closed: dict[str, Tensor]
    half_life: Tensor
    dead: Tensor


class Summary(Mapping[str, UnitSummary]):
    """A :class:`UnitSummary` for each name of a trace; printed, a table."""

    def __init__(
        self, summaries: Mapping[str, UnitSummary], open_above: float, closed_below: float
    ) -> None:
        self._summaries = dict(summaries)
        self._open_above, self._closed_below = open_above, closed_below

    def __getitem__(self, name: str) -> UnitSummary:
        return self._summaries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._summaries)

    def __len__(self) -> int:
        return len(self._summaries)

    def __str__(self) -> str:
        return "\n".join(line for name in self for line in self._lines(name))

    __repr__ = __str__

    def _lines(self, name: str) -> Iterator[str]:
        own = self[name]
        yield f"{name}: {len(own.dead)} units, {own.steps} steps"
        if own.steps == 0:
            return
        columns = f"open (> {self._open_above:g})", f"closed (< {self._closed_below:g})"
        yield f"  {'gate':8}" + "".join(f"{column:>16}" for column in columns)
        for gate, long_name in GATE_NAMES.items():
            shares = own.open[gate].mean(), own.closed[gate].mean()
            yield f"  {long_name:8}" + "".join(f"{100 * float(s):14.1f} %" for s in shares)
        longest = int(own.half_life.argmax())
        yield (
            f"  half-life of a memory: median {float(own.half_life.median()):.3g} steps, longest "
            f"{float(own.half_life[longest]):.3g} (unit {longest})"
        )
        dead = own.dead.nonzero().flatten().tolist()
        some = ", ".join(map(str, dead[:_NAMED_UNITS])) + (", …" * (len(dead) > _NAMED_UNITS))
        yield f"  dead units: {len(dead)}" + (f" ({some})" if dead else "")


def summarize(steps: States, open_above: float, closed_below: float) -> UnitSummary:
    """The summary of steps (M, H) of a layer."""
    count = len(steps.c)
    wide = {gate: getattr(steps, gate).double().cpu() for gate in GATE_NAMES}
    # NOTE: not h, which a projection mixes.
    output = wide["o"] * steps.c.double().cpu().tanh()
    if count > 1:
        dead = output.amax(dim=0) - output.amin(dim=0) < _DEAD_RANGE
    else:
        dead = torch.zeros(output.shape[1], dtype=torch.bool)
    decay = wide["f"].mean(dim=0).log().abs()  # of no steps NaN, as all that is a mean
    return UnitSummary(
        steps=count,
        open={gate: (values > open_above).double().mean(dim=0) for gate, values in wide.items()},
        closed={
            gate: (values < closed_below).double().mean(dim=0) for gate, values in wide.items()
        },
        half_life=math.log(2) / decay,
        dead=dead,
    )
