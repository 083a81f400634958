# SPDX-License-Identifier: BSD-3-Clause
"""Which way a branch goes whose condition comes from memory.

The rules, of which the first that tells the two ways apart decides:

1. A loop without a barrier of the block is left, by the shorter way that does not begin it anew.
   So a loop that waits for other blocks is left after its first poll.
2. The kernel goes on: a way that reaches no further time step (an abort, a trap) is not taken.
3. A way that calls a function before both ways meet (a slow path of a division) is not taken.
4. A way that begins behind the loop's end, where the compiler puts what it takes to be rare, is not
   taken.
5. The shorter way to where both meet is taken: a fix-up of NaN, for one, is skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from tools.cuda_report.sass.flow import Flow


@dataclass(frozen=True)
class Decision:
    taken: bool
    rule: str


class Branches:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._instructions = flow.listing.instructions
        self._decided: dict[int, Decision] = {}

    def decide(self, place: int) -> Decision:
        if place not in self._decided:
            self._decided[place] = self._decide(place)
        return self._decided[place]

    @cached_property
    def _headers(self) -> set[int]:
        return {loop.header for loop in self.flow.barrier_loops}

    @cached_property
    def _going_on(self) -> set[int]:
        """From where a loop with a barrier begins, or begins anew."""
        return self.flow.leading_to(self._headers)

    @cached_property
    def _ends(self) -> dict[int, int]:
        """The first exit behind each loop's header: what lies behind it is cold."""
        exits = [
            place
            for place, i in enumerate(self._instructions)
            if i.base == "EXIT" and i.predicate is None
        ]
        return {
            h: min((e for e in exits if e > h), default=len(self._instructions))
            for h in self._headers
        }

    def _decide(self, place: int) -> Decision:
        branch = self._instructions[place]
        fall, target = place + 1, self.flow.listing.labels[branch.label or ""]

        def stops(p: int) -> bool:
            return p == place or p in self._headers or self._instructions[p].base == "BAR"

        starts = {False: fall, True: target}
        out = {way: self._way_out(starts[way], place) for way in starts}
        if out[True] != out[False]:
            return Decision(out[True] < out[False], "a loop that waits is left")
        ways = {way: self.flow.distances(start, stops) for way, start in starts.items()}
        if self._headers:
            on = {way: starts[way] in self._going_on for way in ways}
            if on[True] != on[False]:
                return Decision(on[True], "the kernel goes on")
        common = ways[True].keys() & ways[False].keys()
        meeting = min(common, key=lambda p: ways[True][p] + ways[False][p], default=None)
        calls = {way: self._calls(starts[way], meeting) for way in ways}
        if calls[True] != calls[False]:
            return Decision(not calls[True], "slow paths are not taken")
        end = min((e for h, e in self._ends.items() if h <= place <= e), default=None)
        if end is not None and (fall > end) != (target > end):
            return Decision(target <= end, "cold code is not taken")
        if meeting is None:
            return Decision(False, "the ways do not meet: no branch")
        return Decision(ways[True][meeting] < ways[False][meeting], "the shorter way is taken")

    def _way_out(self, start: int, branch: int) -> float:
        """Instructions from `start` to where the branch's innermost loop is left; infinite if it
        begins anew before that; 0 if that loop is none that waits."""
        loop = self.flow.innermost(branch)
        if loop is None or any(self._instructions[p].base == "BAR" for p in loop.places):
            return 0
        found = self.flow.distances(start, lambda p: p == loop.header or p not in loop.places)
        return min((d for p, d in found.items() if p not in loop.places), default=math.inf)

    def _calls(self, start: int, meeting: int | None) -> bool:
        before = self.flow.distances(start, lambda p: p == meeting)
        near = {p for p, d in before.items() if p != meeting}
        if meeting is None:
            return False
        return any(
            self._instructions[p].base == "CALL" and not self._instructions[p].is_jump for p in near
        )
